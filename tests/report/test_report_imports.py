import subprocess
import sys
from pathlib import Path

import llamarl.report

FOLDER = Path(llamarl.report.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)


def test_no_module_imports_torch_or_matplotlib() -> None:
    program = (
        f"import sys\nfor name in {MODULES!r}: __import__('llamarl.report.' + name)\n"
        "print([name for name in ('torch', 'matplotlib', 'transformers', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert {"live", "metrics", "plots", "view", "site.server"} <= set(MODULES)


def test_a_run_is_viewed_without_torch_or_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rollout/reward/mean": 0.5}\n')
    program = (
        "import sys, rich\nfrom llamarl.report.view import render_run\nfrom llamarl.report.environment import "
        f"environment_record\nrich.print(render_run({str(tmp_path)!r}))\nenvironment_record()\n"
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("[]\n")
