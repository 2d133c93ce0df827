"""Settings of `llamarl reward train`; read without torch."""

from typing import Literal

from pydantic import Field

from llamarl.models.template_args import ChatTemplateArgs
from llamarl.training.config import ExamplesConfig


class RewardConfig(ExamplesConfig):
    """Training of a reward model or classifier. A falling schedule reaches 0 at the last step."""

    num_epochs: int | None = Field(default=1, ge=1)
    """Times each row is seen; instead of `num_steps`. Reward models overfit from the second on."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs (or labelled rows) per optimizer step."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the model's chat template, such as `{enable_thinking = false}`; the result's template gets them as
    defaults."""
    max_tokens: int = Field(default=4096, ge=2)
    """Longest conversation, prompt and answer together, at most the model's positions; longer rows are bad rows."""
    centering: float = Field(default=0.0, ge=0.0)
    """Coefficient of the mean of (r_chosen + r_rejected)^2, which holds the rewards around 0; 0.01 is usual."""
    is_head_only: bool = False
    """Train the scoring head alone and leave the body as it is."""
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept apart to measure on, chosen by a hash of the prompt; unused with `--eval-data`."""
    evaluate_every: int = Field(default=100, ge=1)
    """Measure on the held-out pairs every so many steps, and after the last."""
    keep: Literal["loss", "accuracy", "last"] = "loss"
    """Which weights become the model: those of the lowest held-out loss, of the highest held-out accuracy (which says
    nothing of calibration, and whose best of many is partly luck), or the last."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Save what a resume needs every so many steps."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`skip` leaves bad rows out and counts them: malformed, too long, equal answers, duplicates, contradictions, and
    training rows whose prompt is in the evaluation data."""
    is_response_only: bool = False
    """Labelled rows only: show the classifier the completion without prompt and chat template."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the body's forward and backward pass. Weights, head, loss and optimizer stay in fp32."""
    device: str = "auto"
    """Where the model is trained: as torch names it, such as `cuda`, or `auto`: CUDA, else MPS, else the CPU."""
    seed: int = 0
    """Decides the order of the rows."""

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps on so many rows. Each epoch's last batch holds what is left of it."""
        return self.num_steps or -(-num_rows // self.batch_size) * (self.num_epochs or 0)
