"""How tokens are drawn."""

from pydantic import Field

from llamarl.core.config import Config


class Sampling(Config):
    """Sampling settings of a generator. The defaults sample the model's own distribution, as training wants.

    Filters apply in the order temperature, top-k, top-p, min-p. A completion's log-probs are those of the filtered,
    renormalised distribution: the one that was really sampled.
    """

    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of a completion, its end token included."""
    temperature: float = Field(default=1.0, ge=0.0)
    """0 is greedy (its log-probs are 0: the choice is certain)."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keep the smallest set of tokens whose probability reaches this."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Drop tokens less probable than this share of the most probable one."""
    stop: tuple[str, ...] = ()
    """A completion ends after the token that completes one of these strings; the string stays in its text."""

    @property
    def is_filtered(self) -> bool:
        """Whether a filter changes the support: then behaviour log-probs differ from the policy's own."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.temperature == 0.0
