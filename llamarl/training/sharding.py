"""A model over several ranks: cut up, gathered where it computes, and put together again one tensor at a time.

    tp      each rank has a part of every block's matrices (`models.tensor_parallel`)
    fsdp    of what is left, each rank keeps an equal stretch of rows; a block's weights are gathered when it computes,
            and its gradients are summed to where their rows are kept (torch's `fully_shard`)

So each rank keeps one box of every parameter. Files and weight channels hold whole parameters; they are read and
written box by box.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from llamarl.core.errors import ConfigError
from llamarl.core.shards import Region, Shard
from llamarl.functional.shards import is_sharded, local_part
from llamarl.models.adapted import AdaptedDense
from llamarl.models.decoder import Decoder, why_unsupported
from llamarl.models.lora import adapter_name
from llamarl.models.rope import rope_threshold
from llamarl.models.tensor_parallel import cut_up, stretch, why_not_split
from llamarl.scoring.adapters import prepare_projections
from llamarl.training.config import Checkpointing, GradientSync
from llamarl.training.layout import WHOLE, Layout
from llamarl.training.ranks import ALONE, Ranks


class Sharded:
    """A model as several ranks train it, or as one does.

    Args:
        model: a transformers causal language model, or classifier, with all its weights, the same on all ranks.
        ranks: who takes part.
        checkpointing: activations that are computed again.
        gradient_sync: micro-batches after which gradients are summed over the shares.
        head_name: attribute of `model` that holds the output head.

    Raises:
        ConfigError: the model cannot be cut up like that; names the numbers. Or another family than the decoder's with
            checkpointing.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks = ALONE,
        checkpointing: Checkpointing = "none",
        gradient_sync: GradientSync = "each",
        head_name: str = "lm_head",
    ) -> None:
        config: Any = model.config
        if reason := why_not_split(config, ranks.tp):
            raise ConfigError(f"tp={ranks.tp}: {reason}; choose another tp, or fsdp instead")
        self.ranks = ranks
        self.syncs_last = ranks.fsdp > 1 and gradient_sync == "last"
        """True where gradients stay on their ranks until `backward` is told that a micro-batch is the last."""
        is_known = not why_unsupported(config)
        self.module = prepare_projections(Decoder.live(model.eval(), head_name), model) if is_known else model
        """The decoder over the model's weights, or the model itself where the decoder doesn't know its family."""
        if isinstance(self.module, Decoder):
            for block in self.module.blocks:
                block.recompute = checkpointing
        elif checkpointing != "none":
            raise ConfigError(
                f"checkpointing={checkpointing!r}: only llamarl's own modules compute activations "
                f"again, and {why_unsupported(config)}; set it to 'none'"
            )
        if ranks.fsdp > 1 and not is_known and rope_threshold(config) is not None:
            raise ConfigError(
                f"fsdp={ranks.fsdp}: this model turns positions by the length of a sequence, so that ranks would not "
                "compute equally often; train it on one rank"
            )
        if ranks.count == 1:
            self.parameters, self.layout = _named_parameters(model), WHOLE
            return
        shapes = {name: tuple(parameter.shape) for name, parameter in _named_parameters(self.module).items()}
        cuts: dict[str, int] = {}
        assert ranks.mesh is not None
        if ranks.tp > 1:
            assert isinstance(self.module, Decoder)
            cuts = cut_up(self.module, ranks.part, ranks.tp, ranks.mesh.get_group("tp"))
        if ranks.fsdp > 1:
            for module in self.module.modules():
                if isinstance(module, AdaptedDense):
                    module.is_sharded = True
            _deal_out_rows(self.module, ranks.mesh["fsdp"])
        self.parameters = _named_parameters(self.module)
        """What this rank keeps of each parameter."""
        self._trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.layout = Layout(
            ranks, {name: tuple(_shards(shapes[name], cuts.get(name), ranks)) for name in self._trained}
        )
        """Where in the whole parameters the trained ones lie."""
        _release(model, self.module)

    def tensors(self) -> dict[str, Tensor]:
        """This rank's numbers of each parameter."""
        return {name: local_part(parameter) for name, parameter in self.parameters.items()}

    def trained_tensors(self) -> dict[str, Tensor]:
        """This rank's numbers of each parameter that is trained, where there are several ranks."""
        return {name: local_part(parameter) for name, parameter in self._trained.items()}

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Adds the gradient of a micro-batch to this rank's; all ranks call it.

        Args:
            loss: of this rank's samples.
            is_last: whether the ranks must now hold the sum over all of them, if they sync on the last alone.
        """
        if self.syncs_last:
            module: Any = self.module  # `fully_shard` has made another class of it
            module.set_requires_gradient_sync(is_last)
        loss.backward()  # type: ignore[no-untyped-call]

    @property
    def gradient_bytes(self) -> int:
        """Most bytes of gradients of this rank's parameters at a time."""
        trained = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        # Of a sharded parameter, the size is that of all rows.
        return sum(p.numel() * p.itemsize if self.syncs_last else local_part(p).nbytes for p in trained)


def _named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters, with the names that they have in files."""
    return {adapter_name(name): parameter for name, parameter in module.named_parameters()}


def _release(model: nn.Module, module: nn.Module) -> None:
    """Frees the whole weights that the ranks' own were taken from; whoever still has the model holds empty tensors."""
    kept = {id(parameter) for parameter in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.new_empty(0)


def _deal_out_rows(module: nn.Module, mesh: Any) -> None:
    """Leaves this rank its rows of every parameter; the others' come when a block computes, in float32.

    The proof of an update compares log-probs in float32, which weights gathered in half precision could not give.
    """
    from torch.distributed.fsdp import fully_shard  # a second that lone ranks need not wait

    for unit in (*_blocks(module), module):
        # Gathered anew for the backward pass: whoever reads a parameter outside of a pass finds this rank's rows.
        sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)  # summed: losses are divided by the whole step's denominators
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def own_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """This rank's numbers of a parameter, for an optimizer; a parameter that is not sharded is its own."""
    return nn.Parameter(local_part(parameter)) if is_sharded(parameter) else parameter


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The modules that gather their weights one after the other."""
    stacks = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    return max((list(stack) for stack in stacks), key=len, default=[])


def _shards(shape: tuple[int, ...], cut: int | None, ranks: Ranks) -> Iterator[Shard]:
    """Everyone's shard of a parameter, by rank.

    Args:
        shape: of the whole parameter.
        cut: the dimension along which tensor parallelism cuts it; None: not at all.
        ranks: who takes part.
    """
    for rank in range(ranks.count):
        share, part = divmod(rank, ranks.tp)
        offset, size = [0] * len(shape), [*shape]
        if cut is not None:
            offset[cut], size[cut] = stretch(shape[cut], part, ranks.tp)
        first, size[0] = stretch(size[0], share, ranks.fsdp)  # of each part, rows are shared out
        offset[0] += first
        yield Shard(shape, Region(tuple(offset), tuple(size)), "float32")
