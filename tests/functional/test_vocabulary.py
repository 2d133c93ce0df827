"""Log-probs and entropy of a vocabulary that several ranks share: threads here, each with its logits."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from llamarl.functional.logprobs import Kept
from llamarl.functional.vocabulary import SplitVocabulary, Vocabulary, WholeVocabulary
from llamarl.scoring.logprobs import score_tokens

CUTS = (5, 5, 3)
"""Tokens of each rank."""
LOGITS = torch.randn(4, sum(CUTS), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3.0
TARGETS = torch.tensor([0, 12, 5, 9])


class Meeting:
    """What the ranks tell each other: each puts down its tensor, and all take the result."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier, self.told = threading.Barrier(num_ranks, timeout=60.0), dict[int, Tensor]()

    def combine(self, rank: int, x: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
        self.told[rank] = x.detach()
        self.barrier.wait()
        result = how(torch.stack([self.told[number] for number in range(len(self.told))]))
        self.barrier.wait()
        return result


class Seat:
    """One rank at the meeting."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank

    def largest(self, x: Tensor) -> Tensor:
        return self.meeting.combine(self.rank, x, lambda all_of: all_of.amax(0))

    def total(self, x: Tensor) -> Tensor:
        total = self.meeting.combine(self.rank, x, lambda all_of: all_of.sum(0))
        return x + (total - x).detach()  # the gradient is that of the sum


def split_and_whole(compute: Callable[[Vocabulary, Tensor], Tensor], logits: Tensor = LOGITS) -> None:
    """Asserts that values and gradients are the same on all ranks together as on one."""
    weights = torch.linspace(-1.0, 2.0, 4, dtype=torch.float64)
    alone = logits.clone().requires_grad_()
    expected = compute(WholeVocabulary(logits.shape[1]), alone)
    (expected.to(torch.float64).view(4, -1).sum(-1) * weights).sum().backward()
    meeting, starts = Meeting(len(CUTS)), [sum(CUTS[:rank]) for rank in range(len(CUTS))]

    def work(rank: int) -> tuple[Tensor, Tensor]:
        own = logits[:, starts[rank] : starts[rank] + CUTS[rank]].clone().requires_grad_()
        found = compute(SplitVocabulary(starts[rank], CUTS[rank], max(CUTS), Seat(meeting, rank)), own)
        (found.to(torch.float64).view(4, -1).sum(-1) * weights).sum().backward()
        assert own.grad is not None
        return found.detach(), own.grad

    with ThreadPoolExecutor(len(CUTS)) as pool:
        values, gradients = zip(*pool.map(work, range(len(CUTS))), strict=True)
    for value in values:
        torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(torch.cat(gradients, dim=1), alone.grad)


# golden


def test_the_log_prob_of_a_target_that_another_rank_has() -> None:
    meeting = Meeting(2)
    logits = torch.log(torch.tensor([[1.0, 2.0, 3.0, 2.0]]))  # the third has 3 of 8 parts

    def work(rank: int) -> tuple[float, float]:
        split = SplitVocabulary(2 * rank, 2, 2, Seat(meeting, rank))
        own = logits[:, 2 * rank : 2 * rank + 2]
        return float(split.logprobs(own, torch.tensor([2]), 1.0).exp()), float(split.entropy(own, 1.0))

    with ThreadPoolExecutor(2) as pool:
        for probability, entropy in pool.map(work, range(2)):
            assert probability == pytest.approx(3 / 8)
            assert entropy == pytest.approx(2.0794415 - (2 * 0.6931472 * 2 + 3 * 1.0986123) / 8)  # log 8 - sum p z


# invariance


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_whole(temperature: float) -> None:
    split_and_whole(lambda vocabulary, logits: vocabulary.logprobs(logits, TARGETS, temperature))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_is_that_of_the_whole(temperature: float) -> None:
    split_and_whole(lambda vocabulary, logits: vocabulary.entropy(logits, temperature))


def test_tokens_without_probability_add_nothing_to_the_entropy() -> None:
    logits = LOGITS.clone()
    logits[:, [1, 7]] = -torch.inf
    split_and_whole(lambda vocabulary, logits: vocabulary.entropy(logits, 1.0), logits)


@pytest.mark.parametrize("counts", [[3, 2, 0, 4], [3, 2, 2, 4]])
def test_log_probs_among_kept_tokens_are_those_of_the_whole(counts: list[int]) -> None:
    ids = [0, 7, 11, 12, 3, *([5, 4] if counts[2] else []), 9, 0, 8, 1]
    kept = Kept(torch.tensor(ids), torch.tensor(counts))
    split_and_whole(lambda vocabulary, logits: vocabulary.logprobs(logits, TARGETS, 0.9, kept))


def test_log_probs_of_a_few_tokens_are_those_of_the_whole() -> None:
    split_and_whole(lambda vocabulary, logits: vocabulary.logprobs_of(logits, torch.tensor([1, 12, 6])), LOGITS.float())


def test_half_precision_is_summed_in_float32() -> None:
    split_and_whole(lambda vocabulary, logits: vocabulary.logprobs(logits, TARGETS, 1.0), LOGITS.bfloat16())


def test_pieces_that_are_computed_again_are_those_of_the_whole() -> None:
    def compute(vocabulary: Vocabulary, logits: Tensor) -> Tensor:
        scores = score_tokens(logits, TARGETS, lambda x: x, vocabulary, 0.9, "gradient", max_logits=10)
        assert scores.entropy is not None
        return scores.logprobs + 2.0 * scores.entropy

    split_and_whole(compute)  # pieces of one row on one rank, of two on several
