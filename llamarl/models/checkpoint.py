"""Hugging Face checkpoints in and out. The only module that imports transformers.

Weights are read and written as safetensors, everything else as JSON or text; pickled weights are refused and no code
from a checkpoint is ever run. A GGUF file is unpacked when it is read, and is an ordinary model from then on.
"""

import contextlib
import io
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llamarl.core.errors import CheckpointError, ConfigError, MissingCheckpointError
from llamarl.models.device import resolve_device
from llamarl.models.export import EXPORT_FILE, read_object, write_export
from llamarl.models.gguf_files import require_gguf, rope_parameters, without_invented
from llamarl.models.lora import find_base, load_adapter
from llamarl.models.template_args import check_template_args
from llamarl.models.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number formats weights may be loaded in."""

GGUF_SUFFIX = ".gguf"
ERROR_CHARACTERS = 500
MAX_COUNT = 100_000
"""Most layers, heads, labels or experts of a model."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_FROM_HUB = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True, slots=True)
class Source:
    """The place of a checkpoint: a directory in Hugging Face format, or one GGUF file of a directory."""

    directory: Path
    gguf_file: str | None = None
    """Name of the file in the directory."""
    adapter: Path | None = None
    """Folder of an adapter that is added to the model's weights."""

    def __str__(self) -> str:
        if self.adapter is not None:
            return str(self.adapter)
        return str(self.directory if self.gguf_file is None else self.directory / self.gguf_file)

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of every `from_pretrained`."""
        options = {"trust_remote_code": False, "local_files_only": True}
        return options if self.gguf_file is None else {**options, "gguf_file": self.gguf_file}


def load_model(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> nn.Module:
    """A causal language model, in evaluation mode.

    Args:
        path: a checkpoint directory in Hugging Face format, a GGUF file (extra `gguf`), a Hub id, or the folder of an
            adapter (extra `lora`), which is added to the weights of the model that it names.
        dtype: `float32`, `bfloat16` or `float16`, whatever format the file has.
        device: where the weights go, as torch names it, or `auto`.

    Raises:
        CheckpointError: files missing, broken, torn, pickled, quantized, or not the weights their config describes.
        ConfigError: unknown `dtype`, or a device that is not there.
        MissingDependencyError: a GGUF file without the extra `gguf`, or an adapter without the extra `lora`.
    """
    place, source = resolve_device(device), resolve(path)
    model, report = _load("AutoModelForCausalLM", source, _config_of(source), dtype)
    _refuse_misfits(source, report)
    if source.adapter is not None:
        load_adapter(model, source.adapter, merged=True)
    return model.to(place).eval()  # type: ignore[no-any-return]


def load_classifier(
    path: str | Path, *, new_labels: int | None = None, dtype: str = "float32", device: str = "cpu"
) -> nn.Module:
    """A sequence classifier or, with one label, a reward model; in evaluation mode.

    Args:
        path: as for `load_model`.
        new_labels: for training. A classifier with so many labels is taken as it is. Any other classifier and any
            causal language model gives its body only, below a new head of zeros.
        dtype: as for `load_model`.
        device: where the weights go.

    Raises:
        CheckpointError: as `load_model`; or, without `new_labels`, a checkpoint without a trained head.
        ConfigError: unknown `dtype`, a device that is not there; or a new head for a family that has no `score`.
        MissingDependencyError: a GGUF file without the extra `gguf`.
    """
    place, source = resolve_device(device), resolve(path)
    if source.adapter is not None:
        raise CheckpointError(f"{source}: an adapter of a language model; write the whole model first: llamarl export")
    config = _config_of(source)
    if new_labels is not None:
        config.num_labels = new_labels
    with torch.random.fork_rng(devices=[]):
        model, report = _load("AutoModelForSequenceClassification", source, config, dtype)
    head = {name for name in _names(report["missing_keys"], report["mismatched_keys"]) if _is_head(name)}
    if head and new_labels is None:
        raise CheckpointError(
            f"{source}: {min(head)} is not in the weights: a language model without a trained head; train one with "
            "'llamarl reward train', or give the directory of a sequence classifier"
        )
    _refuse_misfits(source, report, _is_head)
    if head:
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise ConfigError(f"{source}: {type(model).__name__} has no linear head 'score' to train")
        torch.nn.init.zeros_(model.score.weight)
    return model.to(place).eval()  # type: ignore[no-any-return]


def load_config(path: str | Path) -> Any:
    """The transformers config of a checkpoint. Raises as `load_model` does."""
    return _config_of(resolve(path))


def load_tokenizer(path: str | Path, chat_template_args: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint, with its chat template and every end id the model stops at.

    Args:
        path: as for `load_model`.
        chat_template_args: arguments of the chat template, for every text it renders.

    Raises:
        CheckpointError: files missing or broken, or an id beyond the model's vocabulary.
        ConfigError: an argument that the chat template doesn't read.
        MissingDependencyError: a GGUF file without the extra `gguf`.
    """
    from tokenizers import Tokenizer as Rules

    source = resolve(path)
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if source.gguf_file is None and not any((source.directory / name).exists() for name in files):
        raise CheckpointError(
            f"{source}: no tokenizer.json; save the tokenizer beside the weights (tokenizer.save_pretrained)"
        )
    has_config = source.gguf_file is not None or (source.directory / "config.json").exists()
    config = _config_of(source) if has_config else None
    with quiet() as transformers, _explain_errors(source, "tokenizer"):
        backend = transformers.AutoTokenizer.from_pretrained(source.directory, **source.options)
        if source.gguf_file is not None and (rules := without_invented(backend, source.directory / source.gguf_file)):
            template, names = backend.chat_template, backend.special_tokens_map
            backend = transformers.PreTrainedTokenizerFast(tokenizer_object=Rules.from_str(rules), **names)
            backend.chat_template = template
        if not isinstance(backend.model_max_length, int | float):
            raise CheckpointError(f"{source}: model_max_length={backend.model_max_length!r} is no number")
        check_template_args(backend.chat_template, chat_template_args or {})
        tokenizer = Tokenizer(backend, _end_ids(source, config), chat_template_args)
    if config is not None:
        _check_vocabulary(tokenizer, config, str(source))
    return tokenizer


def save_model(model: nn.Module, tokenizer: Tokenizer, directory: str | Path, beside: Sequence[Path] = ()) -> Path:
    """Writes a checkpoint that `load_model` and any Hugging Face tool can read, and that reloads bit-equal.

    Whatever stands under the directory's name is complete (`write_export`).

    Args:
        model: a transformers model; tied weights are stored once.
        tokenizer: goes along with its chat template, which gets `chat_template_args` as defaults.
        directory: new, empty, or an earlier result of this function with nothing else in it.
        beside: files to copy into the directory, of other names than a checkpoint's.

    Raises:
        CheckpointError: the directory holds other files, or the tokenizer isn't this model's.
    """
    target = Path(directory).resolve()
    saved: Any = model
    if not hasattr(saved, "save_pretrained"):
        raise ConfigError(f"model: {type(model).__name__} is not a transformers model; unwrap it before saving")
    _check_vocabulary(tokenizer, saved.config, str(target))

    def write(draft: Path) -> None:
        with quiet():
            saved.save_pretrained(draft, safe_serialization=True)
            tokenizer.with_default_args().backend.save_pretrained(draft)
        for file in beside:
            shutil.copy(file, draft)

    return write_export(target, write)


def new_config(model_type: str, **sizes: Any) -> Any:
    """A transformers config of a model family, for instance `llama`, with the given fields."""
    with quiet() as transformers:
        return transformers.AutoConfig.for_model(model_type, **sizes)


def new_model(config: Any, seed: int) -> nn.Module:
    """A causal language model with random float32 weights that depend on `config` and `seed` only."""
    with quiet() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def count_parameters(config: Any) -> int:
    """Numbers in the weights of a causal language model of this config, tied ones once; no memory is taken."""
    return sum(parameter.numel() for parameter in new_skeleton(config).parameters())


def new_skeleton(config: Any) -> nn.Module:
    """A causal language model of this config whose weights have shapes and no values; no memory is taken."""
    with quiet() as transformers, torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return]


def new_tokenizer(rules: Any, chat_template: str | None, **special_tokens: Any) -> Tokenizer:
    """Wraps a `tokenizers.Tokenizer`; `special_tokens` as transformers names them (`eos_token`, `pad_token`, ...)."""
    with quiet() as transformers:
        backend = transformers.PreTrainedTokenizerFast(tokenizer_object=rules, **special_tokens)
    backend.chat_template = chat_template
    return Tokenizer(backend)


def resolve(path: str | Path) -> Source:
    """Finds a checkpoint; a Hub id (`owner/name`) is downloaded, without any pickled file.

    Raises:
        MissingCheckpointError: neither a directory, nor a GGUF file, nor a Hub id that can be had; or the folder of an
            adapter whose model is none of these.
        MissingDependencyError: a GGUF file without the extra `gguf`.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if (base := find_base(place)) is None:
            return Source(place)
        try:
            return replace(resolve(base), adapter=place)
        except MissingCheckpointError as error:
            raise MissingCheckpointError(f"{place}: the adapter's model: {error}") from None
    if place.suffix == GGUF_SUFFIX and place.is_file():
        require_gguf()
        return Source(place.parent, place.name)
    is_hub_id = isinstance(path, str) and path.count("/") == 1 and path[0] not in "./~"
    if not is_hub_id or place.exists():
        found = "is a file that is no GGUF file" if place.exists() else "no such directory"
        raise MissingCheckpointError(
            f"{path}: {found}; give a checkpoint directory, a GGUF file or a Hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Source(Path(snapshot_download(str(path), allow_patterns=_FROM_HUB)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingCheckpointError(
            f"{path}: no such directory, and it can't be had from the Hub ({type(error).__name__}: {error}); "
            "check the name, the network and your Hub login, or download it first"
        ) from error


_LOADING = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """The transformers module, imported on first use and silent (no progress bars, errors only) inside the block.

    One block at a time: transformers changes global state while it loads, and two threads at once would lose weights.
    """
    with _LOADING:
        import transformers  # in the lock: of two threads that load its lazy attributes, one would miss some

        log = transformers.utils.logging
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
def _explain_errors(source: Source, what: str) -> Iterator[None]:
    """Turns what a broken file makes transformers raise into one `CheckpointError` that names checkpoint and part.

    Any exception is one: configs and tokenizers are the checkpoint's, and what their values run into is not foreseen.
    """
    try:
        yield
    except (ConfigError, CheckpointError):
        raise
    except Exception as error:
        problem = str(error)[:ERROR_CHARACTERS] or "no message"
        raise CheckpointError(f"{source}: can't load its {what}: {type(error).__name__}: {problem}") from error


def _load(auto_class: str, source: Source, config: Any, dtype: str) -> tuple[Any, Mapping[str, Any]]:
    """A model of one of transformers' auto classes, and the report of what did and didn't fit."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: unknown number format {dtype!r}; choose one of: {', '.join(DTYPES)}")
    _check_weight_files(source)
    _refuse_oversized(source, config, auto_class)
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "config": config, **source.options}
    with quiet() as transformers, _explain_errors(source, "weights"), contextlib.ExitStack() as stack:
        if source.gguf_file is None:
            options["use_safetensors"] = True
        else:
            # said aloud: without it the model would count as quantized, and refuse to be saved
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))  # a progress bar that obeys no switch
        model, report = getattr(transformers, auto_class).from_pretrained(
            source.directory,
            ignore_mismatched_sizes=True,  # the caller reports them, with the other misfits
            output_loading_info=True,
            **options,
        )
    return model, report


def _refuse_oversized(source: Source, config: Any, auto_class: str) -> None:
    """Raises `CheckpointError` before memory is taken for many more numbers than the files can hold."""
    with quiet() as transformers, _explain_errors(source, "weights"), torch.device("meta"):
        skeleton = getattr(transformers, auto_class).from_config(config)
    wanted = sum(parameter.numel() for parameter in skeleton.parameters())
    is_packed = source.gguf_file is not None
    files = [source.directory / str(source.gguf_file)] if is_packed else source.directory.glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    if wanted > size * (8 if is_packed else 2):  # numbers of a bit, or of half a byte
        raise CheckpointError(
            f"{source}: the weights don't fit the config, which describes {wanted:,} numbers; the files have {size:,} "
            "bytes; use the config the weights were saved with"
        )


def _config_of(source: Source) -> Any:
    if source.gguf_file is None:
        values = read_object(source.directory / "config.json")
        _refuse_quantized(source, values)
        _refuse_counts(source, values)
    with quiet() as transformers, _explain_errors(source, "config"):
        config = transformers.AutoConfig.from_pretrained(source.directory, **source.options)
        if source.gguf_file is not None and config.get_text_config().rope_parameters is not None:
            head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
            file = source.directory / source.gguf_file
            config.rope_parameters = rope_parameters(file, config.rope_parameters, head_dim)
    text_config = config.get_text_config()
    for name in ("max_position_embeddings", "sliding_window"):
        value = getattr(text_config, name, None)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise CheckpointError(f"{source}: config: {name}={value!r} is no positive integer")
    return config


def _refuse_counts(source: Source, values: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` for counts of layers, labels or experts that would take for ever to build."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _refuse_counts(source, value)
        elif name.startswith("num_") and isinstance(value, int) and not 0 <= value <= MAX_COUNT:
            raise CheckpointError(f"{source}: config: {name}={value} is not between 0 and {MAX_COUNT}")


def _refuse_quantized(source: Source, values: Mapping[str, Any]) -> None:
    """Packed weights can't be trained, and their formats need packages and devices of their own."""
    for table in (values, values.get("text_config")):
        packing = table.get("quantization_config") if isinstance(table, Mapping) else None
        if packing is not None:
            method = packing.get("quant_method") if isinstance(packing, Mapping) else None
            raise CheckpointError(
                f"{source}: its weights are quantized ({method or 'of unknown method'}), and only unpacked ones can be "
                "read here; take the original model in bfloat16 or float32, or a GGUF file of it, which is unpacked "
                "when it is read"
            )


def _refuse_misfits(
    source: Source, report: Mapping[str, Any], is_expected: Callable[[str], bool] = lambda name: False
) -> None:
    """Raises `CheckpointError` for weights missing, left over or of another shape, unless expected."""
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(name for name in _names(report[problem]) if not is_expected(name)):
            raise CheckpointError(
                f"{source}: the weights don't fit the config: {len(names)} {problem.replace('_', ' ')}, "
                f"first {names[0]}; use the config the weights were saved with"
            )


def _names(*keys: Iterable[Any]) -> list[str]:
    """Names of transformers' loading report, where some keys are (name, shapes)."""
    return [key if isinstance(key, str) else key[0] for group in keys for key in group]


def _is_head(name: str) -> bool:
    """True for a weight that belongs to the head of a classifier or of a language model."""
    return name.split(".")[0] in ("score", "classifier", "lm_head", "embed_out")


def _end_ids(source: Source, config: Any) -> tuple[int, ...]:
    """End ids of the generation config, or of the model config where there is none."""
    if source.gguf_file is not None:
        return _ids(config.eos_token_id, source)
    for name in ("generation_config.json", "config.json"):
        file = source.directory / name
        if file.exists() and (ids := _ids(read_object(file).get("eos_token_id"), file)):
            return ids
    return ()


def _ids(value: Any, place: Path | Source) -> tuple[int, ...]:
    """Token ids of a setting that holds one, several or none."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        raise CheckpointError(f"{place}: eos_token_id holds {wrong[0]!r}; give token ids, integers from 0")
    return tuple(ids)


def _check_vocabulary(tokenizer: Tokenizer, config: Any, source: str) -> None:
    if misfit := tokenizer.why_unfit(config.get_text_config().vocab_size):
        raise CheckpointError(f"{source}: {misfit}")


def _check_weight_files(source: Source) -> None:
    if source.gguf_file is not None:
        return
    directory = source.directory
    if not any(directory.glob("*.safetensors")):
        if packed := sorted(file.name for file in directory.glob(f"*{GGUF_SUFFIX}")):
            raise CheckpointError(f"{directory}: no *.safetensors file; to load a GGUF file, name it: {packed[0]}")
        pickled = sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern))
        if pickled:
            raise CheckpointError(
                f"{directory}: {pickled[0]} is a pickle, which can run code when it is read; convert it to safetensors"
            )
        raise CheckpointError(f"{directory}: no *.safetensors file; the weights are missing")
    if (directory / EXPORT_FILE).exists():
        for name, size in read_object(directory / EXPORT_FILE)["files"].items():
            file = directory / name  # JSON files may be edited by hand; broken ones don't parse
            if file.suffix == ".safetensors" and not (file.exists() and file.stat().st_size == size):
                raise CheckpointError(
                    f"{directory}: {name} is missing or torn ({size} bytes were saved); copy it again"
                )
