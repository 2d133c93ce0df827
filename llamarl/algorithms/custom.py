"""An algorithm of the user's own, named in a recipe."""

from typing import Any, Literal

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.errors import ConfigError
from llamarl.core.loading import load_object
from llamarl.core.paths import ObjectName
from llamarl.core.protocols import Algorithm

REQUIRED = (
    *("name", "needs_reference", "needs_entropy_grad", "needs_values", "keeps_groups_together"),
    *("trains_zero_advantage", "drops_zero_signal", "corrects_staleness", "assign", "loss"),
)


class CustomConfig(Config):
    """Where the algorithm is and what it is built with."""

    type: Literal["custom"] = "custom"
    factory: ObjectName
    """`module:name` or `path/to/file.py:name`: called with `settings` as keywords, returns the algorithm."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""

    def build(self) -> Algorithm:
        """The algorithm. Raises `ConfigError` if the factory is missing, fails, or returns none."""
        factory = load_object(self.factory)
        try:
            algorithm = factory(**self.settings)
        except TypeError as error:
            raise ConfigError(f"algorithm.factory={self.factory}: {error}; check algorithm.settings") from error
        missing = [name for name in REQUIRED if not hasattr(algorithm, name)]
        if missing:
            raise ConfigError(
                f"algorithm.factory={self.factory} returned a {type(algorithm).__name__} without {', '.join(missing)}; "
                "see docs/guides/write-an-algorithm.md"
            )
        return algorithm  # type: ignore[no-any-return]
