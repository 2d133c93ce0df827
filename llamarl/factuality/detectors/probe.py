"""A probe: a small classifier of the frozen hidden states with which the model reads the Prompt-TF prompt.

    DIR/probe.safetensors     the classifier, as it takes features
    DIR/trials.json           all that was tried on validation: variant, learning rate, BAcc, loss, epoch

Features, variants and their numbers: `probe_features`. Variant and learning rate are those of the highest balanced
accuracy on validation at its best threshold, of several those of the lowest loss.

Reference: Qin et al., https://arxiv.org/abs/2505.12265, section 3; SAPLMA (Azaria and Mitchell 2023,
https://arxiv.org/abs/2304.13734).
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamarl.core.errors import CheckpointError, DataError
from llamarl.core.seeds import derive_seed
from llamarl.factuality.asking import PromptFile, load_prompt
from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.method import Method, MethodSettings, TrainingJob
from llamarl.factuality.detectors.mlp import Fit, Mlp, fit_mlp
from llamarl.factuality.detectors.probe_features import FeatureReader
from llamarl.functional.detection import balanced_accuracy, count_single, search_threshold
from llamarl.report.files import read_json, write_json

TRAINING_FOLDER = "training"
"""Folder of hidden states in a detector's directory, until it is trained."""
PROBE_FILE, TRIALS_FILE = "probe.safetensors", "trials.json"
Variant = Literal["last", "tokens", "layers", "last_and_tokens"]
VARIANTS: tuple[Variant, ...] = ("last", "tokens", "layers", "last_and_tokens")


class ProbeSettings(MethodSettings):
    """Settings of the probe. Of variants and learning rates, a trained one has those that were chosen."""

    variants: tuple[Variant, ...] = Field(default=VARIANTS, min_length=1)
    """Features that are tried."""
    layer: int | None = Field(default=None, ge=1)
    """The layer behind which the last token's state is read instead of these."""
    learning_rates: tuple[float, ...] = Field(default=(3e-4, 1e-3, 3e-3), min_length=1)
    """Learning rates that are tried with each of them."""
    hidden_size: int = Field(default=128, ge=1)
    """Hidden units."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    max_epochs: int = Field(default=100, ge=1)
    """Most passes over the training claims."""
    patience: int = Field(default=10, ge=1)
    """Passes without a lower validation loss after which a training ends."""
    batch_size: int = Field(default=64, ge=1)
    """Claims of a step."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights and order."""

    @field_validator("variants", "learning_rates", mode="before")
    @classmethod
    def _take_one(cls, value: Any) -> Any:  # as an option of the command it may be a single one
        return (value,) if isinstance(value, str | int | float) else value

    @property
    def names(self) -> tuple[str, ...]:
        """The features that are tried, by name."""
        return self.variants if self.layer is None else ("layer",)


@dataclass(frozen=True, slots=True)
class Trial:
    """One training on the grid."""

    variant: str
    learning_rate: float
    bacc: float
    """Balanced accuracy on the validation claims, at the best threshold."""
    loss: float
    epoch: int


class Probe(Method):
    """The classifier, over a backbone.

    Args:
        backbone: the model.
        settings: with one variant.
        prompts: with `detect`; None: the shipped one.
        threshold: a claim is called factual if its P_factual is above.
        mlp: the classifier.
        trials: how it was chosen.
    """

    name: ClassVar[str] = "probe"
    Settings: ClassVar[type[MethodSettings]] = ProbeSettings
    settings: ProbeSettings

    def __init__(
        self,
        backbone: Backbone,
        settings: MethodSettings | None = None,
        prompts: Mapping[str, PromptFile] | None = None,
        threshold: float | None = None,
        *,
        mlp: Mlp,
        trials: Sequence[Trial] = (),
    ) -> None:
        super().__init__(backbone, settings, prompts, threshold)
        self.mlp, self.trials = mlp, tuple(trials)
        self._features = FeatureReader(backbone, self.settings.layer)

    @classmethod
    def train(cls, job: TrainingJob) -> Self:
        """The best probe of the job's grid; hidden states that a killed training computed are read again."""
        train, validation = (
            ([each.claim for each in split], [each.label for each in split])
            for split in (job.data.train, job.data.validation)
        )
        folder, settings = job.out / TRAINING_FOLDER, cast(ProbeSettings, job.settings)
        tell = job.tell or (lambda note: None)
        probe = cls.fit(job.load(), train, validation, settings, cache=folder, tell=tell)
        shutil.rmtree(folder, ignore_errors=True)
        return probe

    @classmethod
    def fit(
        cls,
        backbone: Backbone,
        train: tuple[Sequence[Claim], Sequence[bool]],
        validation: tuple[Sequence[Claim], Sequence[bool]],
        settings: ProbeSettings | None = None,
        prompts: Mapping[str, PromptFile] | None = None,
        *,
        cache: Path | None = None,
        tell: Callable[[str], object] = lambda note: None,
    ) -> Self:
        """The best probe of a grid. Claims that cannot be asked about are left out.

        Args:
            backbone: the model.
            train: claims, and whether each is factual.
            validation: claims of other prompts, by which variant, learning rate and epoch are chosen.
            settings: the grid; None: the default.
            prompts: with `detect`; None: the shipped one.
            cache: folder for hidden states, so that the next training with this model does not compute them again.
            tell: hears what was left out, and what was chosen.

        Raises:
            DataError: claims of one class only.
            ConfigError: the model has no such layer.
        """
        settings = settings or ProbeSettings()
        prompt = (prompts or {"detect": load_prompt("detect")})["detect"]
        reader = FeatureReader(backbone, settings.layer, cache)
        encoded = [
            [(backbone.encode(prompt, claim=claim.text), label) for claim, label in zip(*split, strict=True)]
            for split in (train, validation)
        ]
        kept = [[(each.ids, label) for each, label in split if not each.problem] for split in encoded]
        if problems := [each.problem for split in encoded for each, _ in split if each.problem]:
            tell(f"{len(problems)} claims are left out, the first with: {problems[0]}")
        for name, split in zip(("train", "validation"), kept, strict=True):
            if len({label for _, label in split}) < 2:
                raise DataError(f"{name}: {len(split)} claims of one class; a probe learns from both")
        sequences = [ids for split in kept for ids, _ in split]
        features = reader.read(sequences, backbone.prefix_of(prompt))
        labels = torch.tensor([float(label) for split in kept for _, label in split])
        num_train = len(kept[0])
        fits = {
            (name, rate): _fit(features.pick(name), labels, num_train, settings, name, rate)
            for name in settings.names
            for rate in settings.learning_rates
        }
        trials = [Trial(name, rate, bacc, fit.loss, fit.epoch) for (name, rate), (fit, bacc) in fits.items()]
        best = max(trials, key=lambda trial: (trial.bacc, -trial.loss))
        tell(
            f"{len(trials)} probes tried; chosen: {best.variant}, learning rate {best.learning_rate:g}, "
            f"epoch {best.epoch}, validation BAcc {best.bacc:.3f}"
        )
        chosen = {"variants": (best.variant,)} if settings.layer is None else {}
        settings = settings.model_copy(update={**chosen, "learning_rates": (best.learning_rate,)})
        mlp = fits[best.variant, best.learning_rate][0].mlp
        return cls(backbone, settings, prompts, mlp=mlp, trials=trials)

    @torch.no_grad()
    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order, by one forward pass for many. There is no label mass."""
        prompt = self.prompts["detect"]
        encoded = [self.backbone.encode(prompt, claim=claim.text) for claim in claims]
        sequences = [each.ids for each in encoded if not each.problem]
        values: list[float] = []
        if sequences:
            features = self._features.read(sequences, self.backbone.prefix_of(prompt))
            values = self.mlp(features.pick(self.settings.names[0])).sigmoid().tolist()
        found = iter(values)
        return [Score(None, problem=each.problem) if each.problem else Score(next(found)) for each in encoded]

    def write(self, directory: Path) -> list[str]:
        """Writes classifier and trials."""
        save_file(self.mlp.tensors(), directory / PROBE_FILE)
        write_json(directory / TRIALS_FILE, {"trials": [asdict(trial) for trial in self.trials]})
        return [PROBE_FILE, TRIALS_FILE]

    @classmethod
    def read(
        cls,
        directory: Path,
        backbone: Backbone,
        settings: MethodSettings,
        prompts: Mapping[str, PromptFile],
        threshold: float | None,
    ) -> Self:
        """The probe that `write` wrote. Raises `CheckpointError` for weights that fit no probe of this model."""
        file = directory / PROBE_FILE
        try:
            mlp = Mlp.parse(load_file(file))
            trials = [Trial(**each) for each in read_json(directory / TRIALS_FILE)["trials"]]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, DataError) as error:
            raise CheckpointError(f"{file}: holds no probe ({error}); copy or train it again") from None
        size = backbone.model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        if mlp.hidden_weight.shape[1] != size:
            raise CheckpointError(
                f"{file}: reads states of {mlp.hidden_weight.shape[1]} numbers, the model's have {size}; give the "
                "model that it was trained on"
            )
        return cls(backbone, settings, prompts, threshold, mlp=mlp, trials=trials)


def _fit(
    features: Tensor, labels: Tensor, num_train: int, settings: ProbeSettings, name: str, rate: float
) -> tuple[Fit, float]:
    """A classifier of the first rows, and its balanced accuracy on the others."""
    x, y = features[num_train:], labels[num_train:]
    fit = fit_mlp(
        features[:num_train],
        labels[:num_train],
        (x, y),
        learning_rate=rate,
        hidden_size=settings.hidden_size,
        weight_decay=settings.weight_decay,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        batch_size=settings.batch_size,
        seed=derive_seed("probe", settings.seed, name, repr(rate)),
    )
    scores, truth = fit.mlp(x).sigmoid().double().numpy(), y.numpy() > 0.5
    counts = count_single(scores, truth, search_threshold(scores, truth)).sum(axis=0)
    return fit, float(np.asarray(balanced_accuracy(counts)))
