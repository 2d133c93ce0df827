"""Settings by which tokens are drawn."""

from pydantic import Field

from llamarl.core.config import Config


class Sampling(Config):
    """Sampling settings of a generator. The defaults sample the model's own distribution, as training wants.

    Filters apply in the order temperature, top-k, top-p, min-p. A completion's log-probs are those of the filtered,
    renormalised distribution: the one that was really sampled. The trainer divides by the temperature too, and takes
    its log-probs among the tokens that the filters left, where the generator recorded them (`Trajectory.support`).
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
    def filters(self) -> dict[str, float]:
        """The settings that cut tokens: the log-probs of what is drawn then differ from the policy's own."""
        settings = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        return {name: value for name, value in settings.items() if value != type(self).model_fields[name].default}
