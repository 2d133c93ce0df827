"""An algorithm of the user's own, named in a recipe."""

from typing import Any, Literal

from pydantic import Field

from llamarl.algorithms.base import Loss
from llamarl.core.algorithm import Algorithm, Credit, Needs
from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, LlamaRLError, boundary
from llamarl.core.loading import load_object
from llamarl.core.paths import ObjectName


class CustomConfig(Config, Algorithm):
    """An algorithm of your own: the place of its code, and its settings."""

    type: Literal["custom"] = "custom"
    factory: ObjectName
    """`module:name` or `path/to/file.py:name`: called with `settings` as keywords, returns the algorithm's settings;
    their class itself will do."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""

    def load(self) -> Algorithm:
        """Loads the algorithm's settings. Raises `ConfigError` if the factory is missing, fails, or returns none."""
        factory = load_object(self.factory)
        if isinstance(factory, type) and issubclass(factory, Config):
            algorithm: Any = factory.parse(self.settings, source="algorithm.settings")
        else:
            with boundary(
                lambda problem: ConfigError(f"algorithm.factory={self.factory}: {problem}; check algorithm.settings"),
                factory,
                passing=LlamaRLError,
            ):
                algorithm = factory(**self.settings)
        if not isinstance(algorithm, Algorithm):
            raise ConfigError(
                f"algorithm.factory={self.factory} returned a {type(algorithm).__name__}, but a recipe needs an "
                "Algorithm (llamarl.core.algorithm); derive from it or from PolicyGradientConfig, see "
                "docs/guides/write-an-algorithm.md"
            )
        return algorithm

    @property
    def needs(self) -> Needs:
        """The needs of the loaded algorithm."""
        return self.load().needs

    def credit(self) -> Credit:
        """Builds the controller's half of the loaded algorithm."""
        return self.load().credit()

    def loss(self) -> Loss:
        """Builds the trainer's half of the loaded algorithm."""
        return self.load().loss()
