"""Objects by name: `module:attribute` or `path/to/file.py:attribute`, for judges and algorithms of the user's own."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, LlamaRLError, boundary


def load_object(spec: str) -> Any:
    """Loads what `module:attribute` or `file.py:attribute` names.

    Raises:
        ConfigError: no such file, module or attribute, or importing it failed; says which and what is near.
    """
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"{spec!r} names nothing; write 'module:name' or 'path/to/file.py:name'")
    module = _from_file(place) if place.endswith(".py") else _from_module(place, spec)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            names = [n for n, value in vars(target).items() if callable(value) and not n.startswith("_")]
            raise ConfigError(f"{spec}: {place} has no {part!r}.{suggest(part, names) if names else ''}")
        target = getattr(target, part)
    return target


def name_object(target: Any) -> str | None:
    """Names an object as `load_object` takes it.

    Returns:
        The name; None for lambdas, closures, instances, and what a program's main file or a notebook defines.
    """
    module = sys.modules.get(str(getattr(target, "__module__", None)))
    path = getattr(target, "__qualname__", None)
    if module is None or not isinstance(path, str) or module.__name__ == "__main__":
        return None
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    if found is not target:
        return None
    file = Path(module.__file__ or "").resolve()
    is_alone = file.name == f"{module.__name__}.py"  # in no package: what runs in another folder has no such module
    return f"{file if is_alone else module.__name__}:{path}"


def _from_module(name: str, spec: str) -> ModuleType:
    with boundary(lambda problem: ConfigError(f"{spec}: importing {name} failed: {problem}"), passing=LlamaRLError):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports one that is not
            missing = error.name
    raise ConfigError(f"{spec}: no module {missing!r}; install it, or name a file: 'path/to/file.py:name'")


def _from_file(path: str) -> ModuleType:
    """Runs the file once a process; its module name is a hash of its path, so same-named files stay apart."""
    file = Path(path).resolve()
    if not file.is_file():
        siblings = [other.name for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file.{suggest(file.name, siblings) if siblings else ''}")
    imported = sys.modules.get(file.stem)
    if imported is not None and Path(imported.__file__ or "").resolve() == file:
        return imported  # by the program itself: one file is one module
    name = f"llamarl_file_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be loaded as Python; check the file's name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with boundary(lambda problem: ConfigError(f"{path}: running the file failed: {problem}")):
            spec.loader.exec_module(module)
    except ConfigError:
        del sys.modules[name]  # or the next call would take the broken file for loaded
        raise
    return module
