"""File names that go on to mean the same files, wherever the working directory moves: user code may change it."""

import glob
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from llamarl.core.errors import ConfigError


def absolute(name: str, folder: str | Path = "") -> str:
    """The full path of a file, a directory or a glob that is there, relative to the folder; other names as they are."""
    path = os.path.join(folder, name)
    is_there = os.path.exists(path) or bool(glob.has_magic(name) and glob.glob(path))
    return os.path.abspath(path) if name and is_there else name


def absolute_object(spec: str, folder: str | Path = "") -> str:
    """`file.py:name` with the full path of a file that is there; `module:name` as it is."""
    file, colon, name = spec.rpartition(":")
    return f"{absolute(file, folder)}{colon}{name}" if file.endswith(".py") else spec


def read_path(value: Any, name: str) -> Path:
    """Returns a path that a caller gave as the argument `name`.

    Raises:
        ConfigError: it is neither text nor a path, or holds a NUL, which no file system takes.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}={value!r}: no path; give the name of a directory, as text or a Path")
    path = Path(value)
    if "\0" in str(path):
        raise ConfigError(f"{name}={str(path)!r}: a NUL stands in the name; give one without it")
    return path


def _as_text(name: Any) -> Any:
    return os.fspath(name) if isinstance(name, os.PathLike) else name


FileName = Annotated[str, BeforeValidator(_as_text), AfterValidator(absolute)]
"""A setting that may name a file or directory; absolute from when the config is built, if it is there then."""

ObjectName = Annotated[str, AfterValidator(absolute_object)]
"""A setting that may name an object in a Python file."""

FullPath = Annotated[Path, AfterValidator(Path.absolute)]
"""A setting that names a file or directory which may be yet to be written; absolute from when the config is built."""
