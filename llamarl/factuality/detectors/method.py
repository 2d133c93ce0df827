"""A way to detect hallucinations, and how to add one.

A method is a class below `Method` in a file of this folder, and an entry of `METHODS`. It says

    name        the word of `--method` and of `detector.json`
    prompts     the shipped prompt files that it asks with
    Settings    a `Config` of what its scores depend on, `MethodSettings` with more fields
    score       scores of claims
    key         what a score depends on, where that is more than the claim's text
    train       how it comes to be from labelled claims (`TrainingJob`); without it, the settings are all there is
    write, read files of its own beside `detector.json`, such as a probe's weights; none by default

`files.load_detector` finds the class by name, checks that model, tokenizer and prompts are those it was made with, and
hands it a `Backbone`. Importing this module does not import torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from llamarl.core.config import Config, suggest
from llamarl.core.errors import ConfigError
from llamarl.factuality.asking import PromptFile, load_prompt
from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.detector import ClaimKey, Score
from llamarl.models.template_args import ChatTemplateArgs

if TYPE_CHECKING:
    from llamarl.factuality.detectors.backbone import Backbone
    from llamarl.factuality.labelled import Data

TRAINING_FOLDER = "training"
"""Folder of a training's own files in a detector's directory."""
METHODS = {
    "token_probability": "internal_states:TokenProbability",
    "token_entropy": "internal_states:TokenEntropy",
    "prompt_tf": "prompt_tf:PromptTF",
    "prompt_prob": "prompt_prob:PromptProb",
    "cot_tf": "cot_tf:CotTF",
    "selfcheck": "selfcheck:SelfCheck",
    "probe": "probe:Probe",
    "fine_tuning": "fine_tuning:FineTuning",
    "rate_ft": "fine_tuning:RateFT",
}
"""Module and class of each method; imported when it is asked for."""


class MethodSettings(Config):
    """Settings of every method: what a score depends on beside model and prompts."""

    max_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt; a claim that makes a longer one has no score. None: the model's positions."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the model's chat template, such as `{enable_thinking = false}`."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The data that a method is trained from, and the place of its files while it is."""

    model: str
    """Checkpoint directory, GGUF file or Hub id."""
    data: "Data"
    """Labelled claims. A method learns from `train`, chooses by `validation`, and never looks at `test`."""
    out: Path
    """The detector's directory, which exists; what is unfinished may be kept in a folder of it for a resume."""
    settings: MethodSettings
    """The method's `Settings`."""
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_tokens: int = 4096
    """Most tokens of one forward pass."""
    on_step: Callable[[int, int, Mapping[str, float | None]], None] | None = None
    """Called with steps done, all steps, and the last one's metrics."""
    tell: Callable[[str], None] | None = None
    """Hears, in sentences, what a user should know."""

    def load(self, adapter: Path | None = None) -> "Backbone":
        """The model to ask, with an adapter where there is one."""
        from llamarl.factuality.detectors.backbone import Backbone

        return Backbone.load(
            self.model,
            adapter=adapter,
            device=self.device,
            precision=self.precision,
            max_tokens=self.settings.max_tokens,
            batch_tokens=self.batch_tokens,
            chat_template_args=self.settings.chat_template_args,
        )


class Method(ABC):
    """A detector that asks a model.

    Args:
        backbone: the model.
        settings: of the method's `Settings`; None: the defaults.
        prompts: prompt files by name; None: the shipped ones.
        threshold: a claim is called factual if its P_factual is above; None: not searched yet.
    """

    name: ClassVar[str]
    prompt_names: ClassVar[tuple[str, ...]] = ("detect",)
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    has_adapter: ClassVar[bool] = False
    """True where the backbone is to be loaded with the adapter that lies beside `detector.json`."""

    def __init__(
        self,
        backbone: "Backbone",
        settings: MethodSettings | None = None,
        prompts: Mapping[str, PromptFile] | None = None,
        threshold: float | None = None,
    ) -> None:
        self.backbone, self.threshold = backbone, threshold
        self.settings = settings or self.Settings()
        self.prompts = prompts or {name: load_prompt(name) for name in self.prompt_names}

    def key(self, claim: Claim) -> ClaimKey:
        """All of a claim that its score depends on: of a method that asks about it, its text."""
        return (claim.text,)

    @abstractmethod
    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order. A claim that cannot be scored says so in its `problem`."""

    @classmethod
    def train(cls, job: "TrainingJob") -> Self:
        """The detector that labelled claims make; its threshold is searched afterwards, by the caller."""
        return cls(job.load(), job.settings)

    def write(self, directory: Path) -> list[str]:
        """Writes files of its own into a directory that exists; returns their names."""
        return []

    @classmethod
    def read(
        cls,
        directory: Path,
        backbone: "Backbone",
        settings: MethodSettings,
        prompts: Mapping[str, PromptFile],
        threshold: float | None,
    ) -> Self:
        """The detector that `write` wrote the files of."""
        return cls(backbone, settings, prompts, threshold)


def find_method(name: str) -> type[Method]:
    """The class of a method. Raises `ConfigError` for an unknown name."""
    if name not in METHODS:
        raise ConfigError(
            f"method={name!r}: unknown; choose one of {', '.join(METHODS)}.{suggest(name, list(METHODS))}"
        )
    module, _, kind = METHODS[name].partition(":")
    found: type[Method] = vars(import_module(f"llamarl.factuality.detectors.{module}"))[kind]
    return found
