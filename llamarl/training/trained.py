"""What a run trains, publishes and saves: a model's own weights, or low-rank adapters beside them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn

from llamarl.core.errors import ConfigError
from llamarl.functional.checksum import checksum, digest
from llamarl.models.decoder import named_tensors
from llamarl.models.lora import Adapters
from llamarl.models.lora_config import LoraConfig


class TrainedWeights:
    """A model's trained tensors, with or without adapters.

    Args:
        model: put in place; with `lora` it gets adapters, and its own weights are frozen.
        lora: settings of the adapters; None: the model's own weights are trained.
        seed: of the adapters' first weights.

    Raises:
        MissingDependencyError: adapters without the extra `lora`.
        ConfigError: a target that is no linear layer of the model.
    """

    def __init__(self, model: nn.Module, lora: LoraConfig | None, seed: int = 0) -> None:
        self._model = model
        # Before the adapters are there: afterwards peft has renamed what they wrap.
        self.base: Mapping[str, int] = {} if lora is None else checksum(dict(named_tensors(model)))
        """Checksums of the frozen weights; empty where none are."""
        self._adapters = None if lora is None else Adapters(model, lora, seed)

    @property
    def base_digest(self) -> int | None:
        """One number for all frozen weights; None where none are."""
        return digest(self.base) if self.base else None

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by name, detached."""
        return dict(named_tensors(self._model)) if self._adapters is None else self._adapters.tensors()

    def switched_off(self) -> AbstractContextManager[None]:
        """Lets the model compute what it did before any training, inside the block.

        Raises:
            ConfigError: without adapters the weights before training are gone.
        """
        return self._require_adapters().switched_off()

    def merge(self) -> None:
        """Adds the adapters, where there are any, to the weights: the model is then an ordinary one."""
        if self._adapters is not None:
            self._adapters.merge()
            self._adapters = None

    def save_adapter(self, directory: Path, base: str) -> None:
        """Writes the adapters alone, in PEFT layout, for a model of the name `base`."""
        self._require_adapters().save(directory, base)

    def _require_adapters(self) -> Adapters:
        if self._adapters is None:
            raise ConfigError(
                "trainer.lora: this run trains the whole model and has no adapters; set trainer.lora.rank"
            )
        return self._adapters
