"""Settings of the training side; read without torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llamarl.core.config import Config

Schedule = Literal["constant", "linear", "cosine"]
"""What the learning rate does after warm-up: stays, or falls to 0 at the run's last step."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    learning_rate: float = Field(default=1e-5, gt=0.0)
    """Peak learning rate. Small models bear more (2e-4 at 0.3M parameters), and all want warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises linearly."""
    schedule: Schedule = "constant"
    """What the learning rate does after warm-up: stays, or falls to 0 at the last step."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and square."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Applied to matrices only, never to norms and biases."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """A larger gradient is scaled down to this norm."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens in one forward and backward pass; larger batches are accumulated, with the same gradient. None takes
    what fits an eighth of the device's memory, at most 16384."""


class TrainerConfig(OptimizerConfig):
    """The policy trainer."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and backward pass. Weights, log-softmax and optimizer stay in fp32."""
    device: str = "auto"
    """Where the policy is trained: as torch names it, such as `cuda`, or `auto`: CUDA, else MPS, else the CPU."""
    spike_factor: float = Field(default=10.0, gt=1.0)
    """A gradient norm over this times the median of the last 50 is flagged as a spike."""
    should_skip_spikes: bool = False
    """Refuse the update of a spike instead of clipping it."""


class ExamplesConfig(OptimizerConfig):
    """Training on a fixed set of rows, for so many steps or so often through them: one of the two is set."""

    num_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; instead of `num_epochs`."""
    num_epochs: int | None = Field(default=None, ge=1)
    """Times each row is seen; instead of `num_steps`."""

    @model_validator(mode="before")
    @classmethod
    def _take_one(cls, values: Any) -> Any:
        """The length that is given takes the place of the default one."""
        if not isinstance(values, Mapping):
            return values
        lengths = ("num_steps", "num_epochs")
        given = [name for name in lengths if values.get(name) is not None]
        if len(given) == 2:
            raise ValueError(f"num_steps={values['num_steps']} and num_epochs={values['num_epochs']}: give one of them")
        return {**dict.fromkeys(lengths), **values} if given else values

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.num_steps is None and self.num_epochs is None:
            raise ValueError("num_steps, num_epochs: give one of them")
        return self


class LoraConfig(Config):
    """Low-rank adapters: linear layers compute `W x + (alpha / rank) B A x`, and only A and B are trained."""

    rank: int = Field(ge=1)
    """Rows of A and columns of B; 8 to 64 are usual."""
    alpha: float = Field(default=32.0, gt=0.0)
    """What the adapters add is scaled by `alpha / rank`."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as `q_proj`; empty: all but the output head."""

    @field_validator("targets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Names from the command line, between commas."""
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class SFTConfig(ExamplesConfig):
    """Supervised fine-tuning. A falling schedule reaches 0 at the last step."""

    num_steps: int | None = Field(default=500, ge=1)
    """Optimizer steps; instead of `num_epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per step."""
    reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    """`token_mean`: each completion token of the step weighs the same. `sequence_sum`: mean over rows of their sum."""
    device: str = "auto"
    """Where the model is trained: as torch names it, such as `cuda`, or `auto`: CUDA, else MPS, else the CPU."""
    seed: int = 0
    """Decides the order of the rows, and the adapters' first weights."""
    lora: LoraConfig | None = None
    """Train adapters instead of the weights, and add them to the weights at the end; extra `lora`."""

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps on so many rows. Batches go across epochs, and the last holds what is left."""
        return self.num_steps or -(-num_rows * (self.num_epochs or 0) // self.batch_size)
