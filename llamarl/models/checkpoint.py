"""Hugging Face checkpoints in and out. The only module that imports transformers.

Weights are read and written as safetensors, everything else as JSON or text; pickled weights are refused and no code
from a checkpoint is ever run.
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.models.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats weights may be loaded in."""

EXPORT_FILE = "llamarl_export.json"
"""Marks a directory as written by `save_model`: the name and size in bytes of each of its files."""

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_FROM_HUB = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def load_model(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """A causal language model, in evaluation mode.

    Args:
        path: a checkpoint directory in Hugging Face format, or a Hub id.
        dtype: `float32`, `bfloat16` or `float16`, whatever format the file has.
        device: where the weights go.

    Raises:
        CheckpointError: files missing, broken, torn, pickled, or not the weights their config describes.
        ConfigError: unknown `dtype`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: unknown number format {dtype!r}; choose one of: {', '.join(DTYPES)}")
    directory = resolve(path)
    _check_weight_files(directory)
    with quiet() as transformers, _explained(directory, "weights"):
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with the other misfits
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    _refuse_misfits(directory, report)
    return model.to(device).eval()  # type: ignore[no-any-return]


def load_classifier(
    path: str | Path, *, new_labels: int | None = None, dtype: str = "float32", device: str = "cpu"
) -> nn.Module:
    """A sequence classifier or, with one label, a reward model; in evaluation mode.

    Args:
        path: a checkpoint directory in Hugging Face format, or a Hub id.
        new_labels: for training. A classifier with so many labels is taken as it is. Any other classifier and any
            causal language model gives its body only, below a new head of zeros.
        dtype: as for `load_model`.
        device: where the weights go.

    Raises:
        CheckpointError: as `load_model`; or, without `new_labels`, a checkpoint without a trained head.
        ConfigError: unknown `dtype`, a device that is not there; or a new head for a family that has no `score`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: unknown number format {dtype!r}; choose one of: {', '.join(DTYPES)}")
    directory = resolve(path)
    _check_weight_files(directory)
    labels = {} if new_labels is None else {"num_labels": new_labels}
    with quiet() as transformers, _explained(directory, "weights"), torch.random.fork_rng(devices=[]):
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            directory,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **labels,
        )
    head = {name for name in _names(report["missing_keys"], report["mismatched_keys"]) if _is_head(name)}
    if head and new_labels is None:
        raise CheckpointError(
            f"{directory}: {min(head)} is not in the weights: a language model without a trained head; train one with "
            "'llamarl reward train', or give the directory of a sequence classifier"
        )
    _refuse_misfits(directory, report, _is_head)
    if head:
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise ConfigError(f"{directory}: {type(model).__name__} has no linear head 'score' to train")
        torch.nn.init.zeros_(model.score.weight)
    try:
        return model.to(device).eval()  # type: ignore[no-any-return]
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        raise ConfigError(f"device={device!r}: {error}; choose another device") from None


def load_config(path: str | Path) -> Any:
    """The transformers config of a checkpoint. Raises `CheckpointError` as `load_model` does."""
    directory = resolve(path)
    _read_json(directory / "config.json")
    with quiet() as transformers, _explained(directory, "config.json"):
        return transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint, with its chat template and every end id the model stops at.

    Raises:
        CheckpointError: files missing or broken, or an id beyond the model's vocabulary.
    """
    directory = resolve(path)
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(
            f"{directory}: no tokenizer.json; save the tokenizer beside the weights (tokenizer.save_pretrained)"
        )
    config = load_config(directory) if (directory / "config.json").exists() else None
    with quiet() as transformers, _explained(directory, "tokenizer"):
        backend = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    tokenizer = Tokenizer(backend, _end_ids(directory))
    if config is not None:
        _check_vocabulary(tokenizer, config, str(directory))
    return tokenizer


def save_model(model: nn.Module, tokenizer: Tokenizer, directory: str | Path) -> Path:
    """Writes a checkpoint that `load_model` and any Hugging Face tool can read, and that reloads bit-equal.

    The files are written to a hidden sibling folder, which takes the name only when all of them are on disk: whatever
    stands under the name is complete.

    Args:
        model: a transformers model; tied weights are stored once.
        tokenizer: goes along with its chat template.
        directory: new, empty, or an earlier result of this function with nothing else in it.

    Raises:
        CheckpointError: the directory holds other files, or the tokenizer isn't this model's.
    """
    target = Path(directory).resolve()
    saved: Any = model
    if not hasattr(saved, "save_pretrained"):
        raise ConfigError(f"model: {type(model).__name__} is not a transformers model; unwrap it before saving")
    _check_vocabulary(tokenizer, saved.config, str(target))
    check_target(target)
    draft = target.with_name(f".{target.name}.draft-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with quiet():
            saved.save_pretrained(draft, safe_serialization=True)
            tokenizer.backend.save_pretrained(draft)
        _write_export_file(draft)
        _swap_in(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def check_target(directory: str | Path, source: str | Path | None = None) -> None:
    """Refuses what `save_model` could not or should not write to; call it before the work whose result goes there.

    Args:
        directory: new, empty, or an earlier result of `save_model` with nothing else in it.
        source: the checkpoint that the result is made from, which is never overwritten; Hub ids are out of reach.

    Raises:
        CheckpointError: the directory holds other files, lies below a file, may not be written, or is `source`, holds
            it or lies in it.
    """
    target = Path(directory).resolve()
    own = None if source is None else Path(source).expanduser().resolve()
    if own is not None and own.is_dir() and (target == own or target in own.parents or own in target.parents):
        raise CheckpointError(
            f"{directory}: is, holds or lies in the model that the result is made from ({source}), and would overwrite "
            "it or mix with it; choose another directory"
        )
    standing = next(path for path in (target, *target.parents) if path.exists())
    if not standing.is_dir():
        raise CheckpointError(f"{target}: {'' if standing == target else f'{standing} '}is a file; give a directory")
    folder = target.parent if standing == target else standing  # where the finished draft takes its name
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{target}: {folder} may not be written; choose another directory or change its rights")
    found = {file.name for file in target.iterdir()} if standing == target else set()
    known = set(_read_json(target / EXPORT_FILE)["files"]) | {EXPORT_FILE} if EXPORT_FILE in found else set()
    if foreign := sorted(found - known):
        raise CheckpointError(
            f"{target}: not empty and not an earlier export (holds {foreign[0]}); choose another directory or empty it"
        )


def new_config(model_type: str, **sizes: Any) -> Any:
    """A transformers config of a model family, for instance `llama`, with the given fields."""
    with quiet() as transformers:
        return transformers.AutoConfig.for_model(model_type, **sizes)


def new_model(config: Any, seed: int) -> nn.Module:
    """A causal language model with random float32 weights that depend on `config` and `seed` only."""
    with quiet() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def new_tokenizer(rules: Any, chat_template: str | None, **special_tokens: Any) -> Tokenizer:
    """Wraps a `tokenizers.Tokenizer`; `special_tokens` as transformers names them (`eos_token`, `pad_token`, ...)."""
    with quiet() as transformers:
        backend = transformers.PreTrainedTokenizerFast(tokenizer_object=rules, **special_tokens)
    backend.chat_template = chat_template
    return Tokenizer(backend)


def resolve(path: str | Path) -> Path:
    """The local directory of a checkpoint; a Hub id (`owner/name`) is downloaded, without any pickled file.

    Raises:
        CheckpointError: neither a directory nor a Hub id that can be had.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    is_hub_id = isinstance(path, str) and path.count("/") == 1 and path[0] not in "./~"
    if not is_hub_id:
        raise CheckpointError(f"{path}: no such directory; give a checkpoint directory or a Hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=_FROM_HUB))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{path}: no such directory, and it can't be had from the Hub ({type(error).__name__}: {error}); "
            "check the name, the network and your Hub login, or download it first"
        ) from error


_LOADING = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """The transformers module, imported on first use and silent (no progress bars, errors only) inside the block.

    One block at a time: transformers changes global state while it loads, and two threads at once would lose weights.
    """
    import transformers

    log = transformers.utils.logging
    with _LOADING:
        verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            yield transformers
        finally:
            log.set_verbosity(verbosity)
            if had_bars:
                log.enable_progress_bar()


def new_cache() -> Any:
    """An empty key/value cache of transformers that keeps every position, also those behind an attention window."""
    import transformers

    return transformers.DynamicCache()


@contextlib.contextmanager
def _explained(directory: Path, what: str) -> Iterator[None]:
    """Turns what a broken file makes transformers raise into one `CheckpointError` that names directory and part."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: can't load its {what}: {type(error).__name__}: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{file.parent}: no {file.name}; is this the directory of a Hugging Face checkpoint?"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); copy or download it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not an object; copy or download it again")
    return values


def _refuse_misfits(
    directory: Path, report: Mapping[str, Any], is_expected: Callable[[str], bool] = lambda name: False
) -> None:
    """Raises `CheckpointError` for weights missing, left over or of another shape, unless expected."""
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(name for name in _names(report[problem]) if not is_expected(name)):
            raise CheckpointError(
                f"{directory}: the weights don't fit config.json: {len(names)} {problem.replace('_', ' ')}, "
                f"first {names[0]}; use the config the weights were saved with"
            )


def _names(*keys: Iterable[Any]) -> list[str]:
    """Names of transformers' loading report, where some keys are (name, shapes)."""
    return [key if isinstance(key, str) else key[0] for group in keys for key in group]


def _is_head(name: str) -> bool:
    """Whether a weight belongs to the head of a classifier or of a language model."""
    return name.split(".")[0] in ("score", "classifier", "lm_head", "embed_out")


def _end_ids(directory: Path) -> tuple[int, ...]:
    """End ids of the generation config, or of the model config where there is none."""
    for name in ("generation_config.json", "config.json"):
        if (directory / name).exists():
            ids = _read_json(directory / name).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if wrong := [i for i in ids if not isinstance(i, int)]:
                raise CheckpointError(f"{directory / name}: eos_token_id holds {wrong[0]!r}; give token ids, integers")
            if ids:
                return tuple(ids)
    return ()


def _check_vocabulary(tokenizer: Tokenizer, config: Any, source: str) -> None:
    if misfit := tokenizer.why_unfit(config.get_text_config().vocab_size):
        raise CheckpointError(f"{source}: {misfit}")


def _check_weight_files(directory: Path) -> None:
    _read_json(directory / "config.json")
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern))
        if pickled:
            raise CheckpointError(
                f"{directory}: {pickled[0]} is a pickle, which can run code when it is read; convert it to safetensors"
            )
        raise CheckpointError(f"{directory}: no *.safetensors file; the weights are missing")
    if (directory / EXPORT_FILE).exists():
        for name, size in _read_json(directory / EXPORT_FILE)["files"].items():
            file = directory / name  # JSON files may be edited by hand; broken ones don't parse
            if file.suffix == ".safetensors" and not (file.exists() and file.stat().st_size == size):
                raise CheckpointError(
                    f"{directory}: {name} is missing or torn ({size} bytes were saved); copy it again"
                )


def _write_export_file(draft: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
    (draft / EXPORT_FILE).write_text(json.dumps({"format": 1, "files": sizes}, indent=2) + "\n", encoding="utf-8")
    for file in draft.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def _swap_in(draft: Path, target: Path) -> None:
    """Renames `draft` to `target`; an older checkpoint there steps aside first and is then deleted."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
