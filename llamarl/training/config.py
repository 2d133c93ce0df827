"""Settings of the training side; read without torch."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llamarl.core.config import Config
from llamarl.models.lora_config import LoraConfig
from llamarl.models.template_args import ChatTemplateArgs

Schedule = Literal["constant", "linear", "cosine"]
"""Course of the learning rate after warm-up: it stays, or falls to 0 at the run's last step."""

DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Share of a running mean that one step keeps."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    learning_rate: float = Field(default=1e-5, gt=0.0)
    """Peak learning rate. Small models bear more (2e-4 at 0.3M parameters), and all want warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises linearly."""
    schedule: Schedule = "constant"
    """Course of the learning rate after warm-up: it stays, or falls to 0 at the last step."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's mean and square."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Applied to matrices only, never to norms and biases."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """A larger gradient is scaled down to this norm."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Most tokens in one forward and backward pass; larger batches are accumulated, with the same gradient. None takes
    what fits an eighth of the device's memory, at most 16384."""
    dither: bool = True
    """Let passes in bf16 see every update, on average: matrices start at a random place among the fp32 numbers that
    round to the same bf16 ones. Otherwise an update below bf16's spacing is not seen until others add to it. Without
    effect on adapters and where `precision` is fp32."""
    offload: Literal["optimizer"] | None = None
    """Parts that lie in the machine's memory instead of the device's, if any. `optimizer`: AdamW's moments and a copy
    of the weights, on which the CPU takes the step. The device then holds 8 bytes per trained number instead of 16;
    each step moves 8 between the two."""


class TrainerConfig(OptimizerConfig):
    """The policy trainer."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass. Weights, log-softmax and optimizer stay in fp32."""
    device: str = "auto"
    """Device of the policy, as torch names it, such as `cuda`; or `auto`: CUDA, else MPS, else the CPU."""
    spike_factor: float = Field(default=10.0, gt=1.0)
    """A gradient norm over this times the median of the last 50 is flagged as a spike."""
    should_skip_spikes: bool = False
    """Refuse the update of a spike instead of clipping it."""
    passes: int = Field(default=1, ge=1)
    """Times that each batch is gone through."""
    minibatches: int = Field(default=1, ge=1)
    """Parts of a batch, by prompts, that get an optimizer update each, in every pass. Where a batch gets several
    updates, ratios are taken to the trainer's own log-probs from before the first, for one more forward pass."""
    behavior_cap: float | None = Field(default=2.0, ge=1.0)
    """Largest weight of a token with several updates: its probability by the trainer before the first update / at
    sampling. The weight makes up for staleness and the generator's precision. None: no such weight."""
    lora: LoraConfig | None = None
    """Train adapters beside the model's weights, which stay as they are; extra `lora`. Checkpoints and the weight
    channel then hold adapters only. They bear five to ten times the learning rate."""

    @property
    def num_updates(self) -> int:
        """Optimizer updates on each batch."""
        return self.passes * self.minibatches


Checkpointing = Literal["none", "selective", "full"]
"""Activations that are computed again in the backward pass instead of being kept: none; of each block those between its
matrix products; or all of each block but its input."""


GradientSync = Literal["each", "last"]
"""Micro-batches after which ranks exchange gradients: each one, or only the last of a task's samples."""


class RanksConfig(Config):
    """Processes that train one model together, and what each of them holds."""

    ranks: int | None = Field(default=None, ge=1)
    """Processes of the trainer, if given always `fsdp` x `tp`."""
    fsdp: int = Field(default=1, ge=1)
    """Ranks that share the samples of a step, each with its part of weights, gradients and optimizer."""
    tp: int = Field(default=1, ge=1)
    """Ranks that compute each sample together, each with its part of every block's matrices."""
    checkpointing: Checkpointing = "none"
    """Activations computed again in the backward pass, to save memory."""
    gradient_sync: GradientSync = "each"
    """Micro-batches after which `fsdp` ranks sum their gradients: `each`, so that a rank keeps its rows of them alone,
    or the `last`, which exchanges less, while every rank holds the gradients of all rows until then."""

    @model_validator(mode="after")
    def _multiplies(self) -> Self:
        if self.ranks is not None and self.ranks != self.num_ranks:
            raise ValueError(
                f"ranks={self.ranks}, but fsdp={self.fsdp} x tp={self.tp} is {self.num_ranks}; leave ranks out, or set "
                "it to the product"
            )
        return self

    @property
    def num_ranks(self) -> int:
        """Processes of the trainer."""
        return self.fsdp * self.tp


class TrainerPlacement(RanksConfig):
    """Processes, device and precision of the trainer."""

    device: str | None = None
    """Device of the trainer; None: `trainer.device`."""
    precision: Literal["fp32", "bf16"] | None = None
    """Number format of its passes; None: `trainer.precision`."""


class FitConfig(RanksConfig, OptimizerConfig):
    """Supervised training on a fixed set of rows. A falling schedule reaches 0 at the last step."""

    batches_cross_epochs: ClassVar[bool] = False
    """True where a batch may hold an epoch's end and the next one's start; else an epoch's last batch is smaller."""

    num_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; instead of `num_epochs`."""
    num_epochs: int | None = Field(default=None, ge=1)
    """Times each row is seen; instead of `num_steps`."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per step."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the model's chat template, such as `{enable_thinking = false}`; the result's template gets them as
    defaults."""
    evaluate_every: int = Field(default=100, ge=1)
    """Measure on the held-out rows every so many steps, and after the last."""
    keep: Literal["loss", "accuracy", "last"] = "last"
    """Weights that become the model: of the lowest held-out loss, of the highest held-out accuracy, or the last."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Save what a resume needs every so many steps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the body's forward and backward pass. Weights, loss and optimizer stay in fp32."""
    device: str = "auto"
    """Device of the model, as torch names it, such as `cuda`; or `auto`: CUDA, else MPS, else the CPU."""
    seed: int = 0
    """Decides the order of the rows, and the adapters' first weights."""
    lora: LoraConfig | None = None
    """Train adapters instead of the weights, and add them to the weights at the end; extra `lora`."""
    exchange_seconds: float = Field(default=600.0, gt=0.0)
    """Longest time that one of several ranks waits for the others; who is silent for longer ends the training."""

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

    def total_steps(self, num_rows: int) -> int:
        """Optimizer steps on so many rows."""
        if self.num_epochs is None:
            return self.num_steps or 0
        if self.batches_cross_epochs:
            return -(-num_rows * self.num_epochs // self.batch_size)
        return -(-num_rows // self.batch_size) * self.num_epochs


class ExampleConfig(FitConfig):
    """Training on preference pairs or labelled rows (`training.examples`)."""

    num_epochs: int | None = Field(default=1, ge=1)
    """Times each row is seen; instead of `num_steps`."""
    max_tokens: int = Field(default=4096, ge=2)
    """Longest conversation, prompt and answer together, at most the model's positions; longer rows are bad rows."""
    held_out: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept apart to measure on, chosen by a hash of the prompt; unused with `--eval-data`."""
    keep: Literal["loss", "accuracy", "last"] = "loss"
    """Weights that become the model: those of the lowest held-out loss, of the highest held-out accuracy (which says
    nothing of calibration, and whose best of many is partly luck), or the last."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`skip` leaves bad rows out and counts them: malformed, too long, equal answers, duplicates, contradictions, and
    training rows whose prompt is in the evaluation data."""
