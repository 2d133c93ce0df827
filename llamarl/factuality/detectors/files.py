"""A detector on disk: `save_detector` writes it, `load_detector` gives it back where it computes what it computed.

DIR/detector.json     method, threshold, model, prompts, settings; written last
DIR/...               what the method itself keeps, such as an adapter
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.errors import CheckpointError, DataError, MissingCheckpointError
from llamarl.factuality.asking import PromptFile, load_prompt
from llamarl.factuality.detectors.backbone import BATCH_TOKENS, Backbone
from llamarl.factuality.detectors.method import Method, find_method
from llamarl.report.files import read_json, write_json

DETECTOR_FILE = "detector.json"
FORMAT = 1


class BaseModel(Config):
    """The model that a detector belongs to."""

    path: str
    """The place it was loaded from."""
    weights: str
    """`backbone.fingerprint_of` its weights."""
    tokenizer: str
    """`Tokenizer.fingerprint`."""


class DetectorRecord(Config):
    """The content of `detector.json`."""

    format: int
    method: str
    threshold: float | None = Field(ge=0.0, le=1.0)
    """A claim is called factual if its P_factual is above; None where none was searched."""
    model: BaseModel
    prompts: dict[str, PromptFile]
    """The prompt files themselves, so that a detector survives a new version of them."""
    settings: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    """Hashes of the files beside."""


def save_detector(detector: Method, directory: str | Path) -> Path:
    """Writes a detector; returns the path of its `detector.json`, which comes last and makes it complete.

    Args:
        detector: any method.
        directory: made where it is missing; an earlier detector there is replaced.
    """
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    (place / DETECTOR_FILE).unlink(missing_ok=True)
    backbone = detector.backbone
    record = DetectorRecord(
        format=FORMAT,
        method=detector.name,
        threshold=detector.threshold,
        model=BaseModel(path=backbone.path, weights=backbone.fingerprint, tokenizer=backbone.tokenizer.fingerprint),
        prompts=dict(detector.prompts),
        settings=detector.settings.model_dump(mode="json"),
        files={name: _hash(place / name) for name in detector.write(place)},
    )
    write_json(place / DETECTOR_FILE, record.model_dump(mode="json"))
    return place / DETECTOR_FILE


def read_record(directory: str | Path) -> DetectorRecord:
    """Reads a detector's `detector.json` and checks the files beside it; no model is loaded.

    Raises:
        CheckpointError: no detector there, or a file missing, broken, exchanged or of a later version.
        ConfigError: a value of `detector.json` is wrong; names the field.
    """
    place = Path(directory)
    if not (place / DETECTOR_FILE).is_file():
        what = "no such directory" if not place.is_dir() else f"no {DETECTOR_FILE} in it"
        raise MissingCheckpointError(f"{directory}: {what}; give the --out of a 'llamarl detect train' that has ended")
    try:
        values = read_json(place / DETECTOR_FILE)
    except DataError as error:
        raise CheckpointError(f"{error}; or train the detector again") from None
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"{place / DETECTOR_FILE}: format={values.get('format')!r}, this version reads {FORMAT}; use the llamarl "
            "that wrote it, or train the detector again"
        )
    record = DetectorRecord.parse(values, source=str(place / DETECTOR_FILE))
    for name, digest in record.files.items():
        if not (place / name).is_file():
            raise CheckpointError(f"{place}: no {name}, which is a part of the detector; copy the whole directory")
        if _hash(place / name) != digest:
            raise CheckpointError(f"{place / name}: is not the file that the detector was saved with; copy it again")
    return record


def load_detector(
    directory: str | Path,
    model: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "fp32",
    batch_tokens: int = BATCH_TOKENS,
    load: Callable[..., Backbone] = Backbone.load,
) -> Method:
    """The detector of a directory, ready to score; its `threshold` is the one it was saved with.

    Args:
        directory: the --out of a `llamarl detect train`.
        model: the model it belongs to, where that is no longer where it was: a directory, a GGUF file or a Hub id.
        device: as torch names it, or `auto`.
        precision: `fp32` or `bf16`, of the forward pass.
        batch_tokens: most tokens of one forward pass.
        load: gives the backbone; for tests.

    Raises:
        CheckpointError: no detector there, files missing or broken, a model that cannot be loaded, or another model or
            tokenizer than the detector's.
        ConfigError: an unknown method, a wrong setting, a device that is not there.
        MissingDependencyError: an adapter without the extra `lora`.
    """
    place, record = Path(directory), read_record(directory)
    kind = find_method(record.method)
    settings = kind.Settings.parse(record.settings, source=f"{place / DETECTOR_FILE}: settings")
    if missing := sorted(set(kind.prompt_names) - record.prompts.keys()):
        raise CheckpointError(f"{place / DETECTOR_FILE}: prompts: no {missing[0]!r}, which {kind.name} asks with")
    for name in kind.prompt_names:
        if (found := record.prompts[name].fields) != (fields := load_prompt(name).fields):
            raise CheckpointError(
                f"{place / DETECTOR_FILE}: prompts.{name}.user: takes {sorted(found)}, not {sorted(fields)}; write "
                f"{' '.join('{{' + each + '}}' for each in sorted(fields))} where it belongs, or copy the file again"
            )
    source = record.model.path if model is None else model
    try:
        backbone = load(
            source,
            adapter=place if kind.has_adapter else None,
            device=device,
            precision=precision,
            max_tokens=settings.max_tokens,
            batch_tokens=batch_tokens,
            chat_template_args=settings.chat_template_args,
        )
    except MissingCheckpointError as error:
        if model is not None:
            raise
        raise MissingCheckpointError(f"{place}: the detector's model: {error}; or say where it is: --model") from None
    _refuse_other_model(record.model, backbone, str(source))
    return kind.read(place, backbone, settings, record.prompts, record.threshold)


def _refuse_other_model(recorded: BaseModel, backbone: Backbone, source: str) -> None:
    """Raises `CheckpointError` unless the model is the one that the detector was made for."""
    for name, found, expected in (
        ("tokenizer", backbone.tokenizer.fingerprint, recorded.tokenizer),
        ("weights", backbone.fingerprint, recorded.weights),
    ):
        if found != expected:
            raise CheckpointError(
                f"model={source!r}: another model than the detector's ({name} {found}, not {expected}); give the one "
                f"that was at {recorded.path}, or train a detector for this one"
            )


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
