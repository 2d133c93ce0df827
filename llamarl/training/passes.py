"""Several optimizer updates on one batch: its parts, and what the policy said of it before the first of them.

    passes x minibatches updates a step:    snapshot > [ minibatch 1 > update > minibatch 2 > update ... ] x passes

Ratios are taken to the trainer's own log-probs from before the first update (`TrainSample.old_logprobs`), so that clips
bound what the updates change and nothing else. That policy did not sample the batch: a staler one did, or the
generator's numerics. So each token's objective is weighted by old / behaviour, up to a cap. "Batch size-invariance for
policy optimization", Hilton, Cobbe and Schulman 2022, arXiv 2110.00641, calls this the decoupled objective.
"""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from llamarl.core.records import Assignment, TrainSample


def split_assignment(assignment: Assignment, count: int) -> list[Assignment]:
    """Splits a batch by prompts into `count` parts of nearly equal size; samples of one group stay together.

    The parts are the same whenever the batch is. Prompts without a training sample are shared out evenly, since they
    count in denominators.
    """
    groups = list(dict.fromkeys(sample.group for sample in assignment.samples))
    part_of = {group: place % count for place, group in enumerate(groups)}
    rest, odd = divmod(assignment.num_prompts - len(groups), count)
    parts = []
    for part in range(count):
        samples = tuple(sample for sample in assignment.samples if part_of[sample.group] == part)
        # the parts that got a group less get the odd prompts first, so that all parts differ by at most one prompt
        num_odd = int((part - len(groups)) % count < odd)
        parts.append(Assignment(samples, len({sample.group for sample in samples}) + rest + num_odd))
    return parts


def remember(samples: Sequence[TrainSample], logprobs: Tensor, values: Tensor | None) -> list[TrainSample]:
    """Returns the samples with what the policy and the critic say of them now.

    Args:
        samples: `N` of them.
        logprobs: `[N, T]` of the policy, padded right.
        values: `[N, T]` of the critic; None where there is none.
    """
    found = []
    for place, sample in enumerate(samples):
        length = sample.trajectory.response_length
        old_values = None if values is None else array("f", values[place, :length].tolist())
        old_logprobs = array("f", logprobs[place, :length].tolist())
        found.append(replace(sample, old_logprobs=old_logprobs, old_values=old_values))
    return found
