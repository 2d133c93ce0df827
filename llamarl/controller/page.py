"""The page of a run: what its files hold, and what its ledger says of its prompts."""

from pathlib import Path

from llamarl.controller.directory import LEDGER_FILE
from llamarl.controller.ledger import read_account
from llamarl.core.errors import CheckpointError
from llamarl.report.site.document import write_run_page


def account_of(run_dir: str | Path) -> dict[str, dict[str, int]] | None:
    """The account of a run's prompts; None where it has no ledger, or one that cannot be read."""
    ledger = Path(run_dir) / LEDGER_FILE
    try:
        return read_account(ledger) if ledger.is_file() else None
    except CheckpointError:
        return None


def write_page(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Writes `index.html` into a run's directory, or elsewhere; returns its path.

    Raises:
        DataError: not the directory of a run, or a broken file in it.
        OSError: the disk does not take it.
    """
    return write_run_page(run_dir, account_of(run_dir), path=path)
