r"""Demonstrations of voting: rows for `llamarl sft`, from a model's own attempts or from golden solutions.

Sequential voting (SV) always answers by a vote. Adaptive sequential voting (ASV) answers an easy problem once and votes
on a hard one; how often it does which is what IBPO teaches, so its demonstrations mix both at a given share.

    {"prompt": "What is 3 + 4?", "answer": "7", "completions": ["3 + 4 is \\boxed{7}", ...]}     attempts
    {"prompt": "What is 3 + 4?", "answer": "7", "solution": "3 + 4 is \\boxed{7}"}              a golden solution
    {"prompt": "What is 3 + 4?", "answer": "3 + 4 is \\boxed{7}"}                              the same

A vote takes attempts in order until three agree or eight are used, and is kept if its answer is right. A row with a
golden solution and no attempts votes with three copies of it: that teaches the form only.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import derive_seed
from llamarl.data.asks import SHIPPED, Mode, instruct
from llamarl.evals.budget_samples import sample
from llamarl.generation.chats import NativeChat
from llamarl.judges.math.clean import clean
from llamarl.judges.math.equality import answers_equal
from llamarl.judges.math.extract import extract_answer
from llamarl.judges.math.judge import read_reference
from llamarl.judges.voting import CONSENSUS, MAX_TRIALS, consensus, plurality, read_vote, write_vote
from llamarl.report.progress import Progress

SLOTS = 64
"""Attempts that are sampled together."""


@dataclass(frozen=True, slots=True)
class Built:
    """Demonstrations and what became of the prompts."""

    rows: tuple[Mapping[str, Any], ...]
    """Rows for `llamarl sft`: `messages`, and for information `id`, `group` and `num_trials`."""
    counts: Mapping[str, int]
    """Prompts by outcome: `voting`, `short`, and the reasons for leaving one out."""

    @property
    def voting_share(self) -> float:
        """Share of votes among the rows, in [0, 1]; 0 without rows."""
        return self.counts["voting"] / max(1, len(self.rows))


def build_vote(attempts: Iterable[str], reference: str) -> str | None:
    """A voting response from attempts in order, or None if its final answer is wrong or undecided.

    Attempts that are no plain answer, votes among them, are passed over. With eight trials and no consensus the answer
    of most trials counts as the plausible one.
    """
    trials: list[str] = []
    answers: list[str | None] = []
    for attempt in attempts:
        vote = read_vote(attempt)
        if vote.group != "short" or vote.answer is None:
            continue
        trials.append(attempt)
        answers.append(vote.answer)
        if consensus(answers) is not None or len(trials) == MAX_TRIALS:
            break
    final = consensus(answers)
    if final is None and len(trials) == MAX_TRIALS:
        final = plurality(answers)
    return write_vote(trials, final) if final is not None and answers_equal(reference, final) else None


def build_short(attempts: Iterable[str], reference: str) -> str | None:
    """The first attempt that is a plain and right answer; None if there is none."""
    votes = ((attempt, read_vote(attempt)) for attempt in attempts)
    right = (a for a, v in votes if v.group == "short" and v.answer is not None and answers_equal(reference, v.answer))
    return next(right, None)


def build_sv(prompts: Sequence[Prompt], attempts: Callable[[Prompt], Sequence[str]]) -> Built:
    """Sequential-voting demonstrations, one of each prompt where its attempts allow."""
    return _build(prompts, attempts, lambda prompt: True, "voting")


def build_asv(
    prompts: Sequence[Prompt],
    attempts: Callable[[Prompt], Sequence[str]],
    voting_share: float = 0.5,
    seed: int = 0,
) -> Built:
    """Adaptive demonstrations, one of each prompt: a vote or a short answer, drawn regardless of its difficulty.

    Only prompts that allow both kinds are kept, whichever is drawn. A vote needs more right attempts than a short
    answer; were that asked only where a vote is drawn, the rows would teach to answer hard problems shortly.

    Args:
        prompts: with reference answers.
        attempts: texts for a prompt, such as `recorded_attempts`.
        voting_share: of votes among the rows, in [0, 1].
        seed: decides the draws.

    Raises:
        ConfigError: the share is not one.
        DataError: a prompt has no usable answer, or no attempts.
    """
    if not 0.0 <= voting_share <= 1.0:
        raise ConfigError(f"voting_share = {voting_share!r}; a share lies between 0 and 1")

    def should_vote(prompt: Prompt) -> bool:
        return derive_seed("asv", seed, prompt.id) / 2**63 < voting_share

    return _build(prompts, attempts, should_vote, "adaptive")


def recorded_attempts(prompt: Prompt) -> list[str]:
    """The attempts in a prompt's row: `completions` (texts, or objects with a `text`), else its golden solution.

    That is `solution`, or an `answer` that has more than a box.

    Raises:
        DataError: the row has neither, or something else under these names.
    """
    found = prompt.info.get("completions")
    if found is None and "solution" in prompt.info:
        found = [prompt.info["solution"]] * CONSENSUS
    elif found is None and _is_solution(prompt.answer):
        found = [prompt.answer] * CONSENSUS
    items = found if isinstance(found, list) else []
    texts = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    known = [text for text in texts if isinstance(text, str)]
    if not known or len(known) < len(texts):
        raise DataError(
            f"prompt {prompt.id!r}: no attempts; give the row 'completions' (a list of texts) or a golden 'solution' "
            "(a text), or name a model that makes them"
        )
    return known


def sample_attempts(
    prompts: Sequence[Prompt],
    model: str,
    directory: Path,
    num_samples: int,
    *,
    sampling: Sampling,
    chat_template_args: Mapping[str, Any],
    seed: int,
    source: str,
    progress: Progress | None = None,
) -> Callable[[Prompt], list[str]]:
    """Attempts by a model, under the plain instructions, as a function like `recorded_attempts`.

    They are kept, so that a killed call goes on and the other kind of rows needs no second sampling. Attempts that the
    token limit cut are left out.

    Args:
        prompts: with unique ids.
        model: checkpoint directory or Hub id.
        directory: where attempts are kept, in a folder for each source, model and setting.
        num_samples: attempts of each prompt.
        sampling: how tokens are drawn.
        chat_template_args: arguments of the chat template.
        seed: of all sampling.
        source: the prompts' name in that folder's.
        progress: told of every attempt.

    Raises:
        CheckpointError, ConfigError, DataError: see `NativeChat` and `run_conversations`.
    """
    parts = [source, model, sampling.max_tokens, sampling.temperature, seed]
    parts += [f"{name}={value}" for name, value in chat_template_args.items()]
    folder = "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-.") for part in parts)
    replies = sample(
        prompts,
        NativeChat(model, sampling, chat_template_args=chat_template_args, slots=SLOTS),
        directory / folder,
        num_samples,
        ask=SHIPPED["plain"],
        max_in_flight=SLOTS,
        seed=seed,
        progress=progress,
    )
    return lambda prompt: [
        r.response for r in replies[prompt.id] if r.response is not None and r.finish_reason == "stop"
    ]


def _is_solution(answer: Any) -> bool:
    """Says whether an answer has a box and says more."""
    if not isinstance(answer, str) or "\\boxed" not in answer:
        return False
    return clean(answer.strip(" $.\n")) != clean(extract_answer(answer) or "")


def _build(
    prompts: Sequence[Prompt],
    attempts: Callable[[Prompt], Sequence[str]],
    should_vote: Callable[[Prompt], bool],
    mode: Mode,
) -> Built:
    rows, counts = [], Counter({"voting": 0, "short": 0})
    for prompt in prompts:
        reference, texts = _reference(prompt), attempts(prompt)
        vote, short = build_vote(texts, reference), build_short(texts, reference)
        if vote is None or short is None:  # without a right attempt, or with too few for a vote
            counts["no right voting answer"] += 1
            continue
        kind, text = ("voting", vote) if should_vote(prompt) else ("short", short)
        counts[kind] += 1
        rows.append(_row(prompt, mode, text))
    return Built(tuple(rows), dict(counts))


def _reference(prompt: Prompt) -> str:
    try:
        reference = read_reference(prompt.answer)
    except ConfigError as error:
        raise DataError(f"prompt {prompt.id!r}: {error}") from None
    if reference is None:
        raise DataError(f"prompt {prompt.id!r}: no answer; a demonstration must be known to be right")
    return reference


def _row(prompt: Prompt, mode: Mode, text: str) -> dict[str, Any]:
    vote = read_vote(text)
    messages = [*map(dict, instruct(prompt, mode)), {"role": "assistant", "content": text}]
    return {"messages": messages, "id": prompt.id, "group": vote.group, "num_trials": len(vote.trials)}
