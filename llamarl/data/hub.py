"""Data sets of the Hugging Face Hub and their copies on disk. The one module that imports `datasets`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError, MissingDependencyError
from llamarl.data.rows import RowError
from llamarl.data.tables import plain_or_error

DISK_MARKS = ("dataset_dict.json", "state.json")
"""Files by which a folder written by `save_to_disk` is known."""


def read_hub(source: str, split: str | None = None) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yields (row number from 1, row or what is wrong with it) of one split (default `train`).

    Args:
        source: a folder written by `save_to_disk`, or a Hub id `owner/name`, `owner/name:configuration`.
        split: the split's name.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        DataError: the data set or the split cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError.for_extra("datasets", "hub") from None
    try:
        rows = _load(datasets, source, split)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: cannot load the data set: {type(error).__name__}: {error}") from None
    for number, row in enumerate(rows, start=1):
        yield number, plain_or_error(row)


def _load(datasets: Any, source: str, split: str | None) -> Any:
    if Path(source).is_dir():
        loaded = datasets.load_from_disk(source)
        if not isinstance(loaded, dict):
            return loaded
        if (split or "train") not in loaded:
            raise DataError(f"{source}: no split '{split or 'train'}'; choose one of: {', '.join(loaded)}")
        return loaded[split or "train"]
    name, _, configuration = source.partition(":")
    return datasets.load_dataset(name, configuration or None, split=split or "train")
