r"""Voting responses: several independent trials, each between tags, and the answer that three of them agree on.

    [TRIAL] ... \boxed{12} [/TRIAL]
    [TRIAL] ... \boxed{10} [/TRIAL]
    [TRIAL] ... \boxed{12} [/TRIAL]
    [TRIAL] ... \boxed{12} [/TRIAL]
    The final answer is \boxed{12}

`read_vote` is the one reader: rewards, data building and evaluation get group and answer from it. Answers are found and
compared as `judges.math` does. The form is that of "Think Smarter not Harder: Adaptive Reasoning with Inference Aware
Optimization", Yu, Xu et al. 2025, arXiv 2501.17974.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.judges.math.clean import clean
from llamarl.judges.math.equality import answers_equal
from llamarl.judges.math.extract import extract_answer
from llamarl.judges.math.judge import MathJudge

MAX_TRIALS = 8
CONSENSUS = 3
"""Equal answers that decide, and end the vote."""

OPEN, CLOSE = "[TRIAL]", "[/TRIAL]"
_BESIDE = (
    r"(?:[^a-z\[\]<>【】\n]|(?:[a-z]|[ivx]{2,4}|st|nd|rd|th|no|nr|num|number|id|of|new|next|last|final"
    r"|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|one|two|three|four|five|six|seven|eight|nine|ten"
    r"|begin|start|open|end|close|stop)(?![a-z])){0,40}"
)
_TAG = re.compile(rf"(?<!\b[PE])[\[<【]{_BESIDE}TRIAL{_BESIDE}[\]>】]|[\[<【({{]/[ \t]{{0,4}}TRIAL", re.IGNORECASE)
"""The tags and whatever looks like one: the word TRIAL in brackets, with nothing beside it but numbers, letters, and
words of order. Other words make it a phrase, as in [trial and error], unless a slash says that it closes something;
P[trial 1] and E[trial] are mathematics."""
_CLOSING = re.compile(r"[^a-z0-9]*/|.*(?<![a-z])(?:end|close|stop)(?![a-z])", re.IGNORECASE)

Problem = Literal["misspelled", "unopened", "nested", "unclosed", "single", "too_many", "continued"]
"""Reasons why a vote is malformed.

`misspelled`   a tag in other letters or brackets, with a number, or with spaces
`unopened`     a closing tag without an opening one
`nested`       a trial opens inside another
`unclosed`     the last trial has no closing tag
`single`       one trial: a vote takes two
`too_many`     more than eight
`continued`    trials after three equal answers
"""


@dataclass(frozen=True, slots=True)
class Vote:
    """A response, read."""

    trials: tuple[str, ...] = ()
    """Texts between the tags; empty for a plain answer and for a malformed vote."""
    answers: tuple[str | None, ...] = ()
    """Answer of each trial; one that gives no answer has no vote."""
    answer: str | None = None
    """The final answer: of a vote the first to reach three, else the one stated after the last trial, else the last
    trial's; of a plain text the one it gives. None if there is none, and always for a malformed vote."""
    problem: Problem | None = None
    """None where the form is valid."""

    @property
    def group(self) -> str | None:
        """`long` for a vote, `short` for a plain answer, None for a malformed vote."""
        if self.problem is not None:
            return None
        return "long" if self.trials else "short"

    @property
    def num_answers(self) -> int:
        """Answers that were generated: the trials, or one."""
        return max(1, len(self.trials))


def read_vote(text: str) -> Vote:
    """Reads a response of any form; never raises."""
    trials, closing, problem = _split(text)
    if problem is None and not trials:
        return Vote(answer=extract_answer(text))
    answers = tuple(extract_answer(trial) for trial in trials) if problem is None else ()
    problem = problem or _count_problem(answers)
    if problem is not None:
        return Vote(problem=problem)
    decided = consensus(answers)
    if decided is None:
        decided = extract_answer(closing) or answers[-1]
    return Vote(tuple(trials), answers, decided)


def num_begun(text: str) -> int:
    """Trials that a text begins, malformed ones too; 0 for a plain answer."""
    return sum(not _CLOSING.match(tag[0]) for tag in _TAG.finditer(text))


def consensus(answers: Sequence[str | None]) -> str | None:
    """The first answer that three trials agree on; None if there is none."""
    return next((answer for answer, count in _tally(answers) if count == CONSENSUS), None)


def plurality(answers: Sequence[str | None]) -> str | None:
    """The answer that most trials agree on, the earliest of equals; None if no trial gives one."""
    counts: dict[str, int] = {}
    for answer, count in _tally(answers):
        counts[answer] = count
    return max(counts, key=lambda answer: counts[answer], default=None)


def spelled_alike(answers: Sequence[str | None]) -> list[str | None]:
    r"""The answers, each as the first equal one spells it: 1/2, 7, 0.5 become 1/2, 7, 1/2. None stays None."""
    firsts: dict[str, str] = {}
    for answer in answers:
        if answer is not None and answer not in firsts:
            known = dict.fromkeys(firsts.values())
            firsts[answer] = next((other for other in known if _is_same(other, answer)), answer)
    return [None if answer is None else firsts[answer] for answer in answers]


def write_vote(trials: Sequence[str], answer: str) -> str:
    r"""A voting response that ends by stating the answer in `\boxed{}`; `read_vote` reads it back."""
    blocks = [f"{OPEN}\n{trial.strip()}\n{CLOSE}" for trial in trials]
    return "\n".join([*blocks, f"The final answer is $\\boxed{{{answer}}}$."])


def group(prompt: Prompt, completion: Completion) -> str | None:
    """`long` for a vote of two to eight trials, `short` for an answer without one.

    None for a malformed vote, and for a completion that the token limit cut.
    """
    return None if completion.finish_reason == "length" else read_vote(completion.text).group


class VotingJudge(Judge):
    """Scores 1 if the final answer is the reference answer, else 0; a malformed vote scores 0 whatever it answers.

    Args:
        math: compares the answers.
        name: in verdicts and metrics.
    """

    def __init__(self, math: MathJudge | None = None, name: str = "voting") -> None:
        self.name, self._math = name, math or MathJudge()
        self.info = JudgeInfo(version=f"1, math {self._math.info.version}", has_deadline=True)

    def check(self, prompt: Prompt) -> None:
        """Checks a row before a run; raises what `MathJudge.check` raises."""
        self._math.check(prompt)

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion."""
        votes = [read_vote(completion.text) for completion in completions]
        answers = ["" if vote.answer is None else f"\\boxed{{{vote.answer}}}" for vote in votes]
        said = [replace(completion, text=text) for completion, text in zip(completions, answers, strict=True)]
        verdicts = await self._math.judge(prompt, said)
        return [_with_form(verdict, vote) for verdict, vote in zip(verdicts, votes, strict=True)]

    def close(self) -> None:
        """Ends the math judge's worker processes."""
        self._math.close()


judge = VotingJudge()
"""The judge of default settings, for recipes: `function = "llamarl.judges.voting:judge"`."""


def _split(text: str) -> tuple[list[str], str, Problem | None]:
    """Texts of the trials, text after the last, and the first thing wrong with the tags."""
    trials: list[str] = []
    start: int | None = None
    end = 0
    for tag in _TAG.finditer(text):
        if tag[0] not in (OPEN, CLOSE):
            return [], "", "misspelled"
        if tag[0] == OPEN:
            if start is not None:
                return [], "", "nested"
            start = tag.end()
        elif start is None:
            return [], "", "unopened"
        else:
            trials.append(text[start : tag.start()].strip())
            start, end = None, tag.end()
    return trials, text[end:], None if start is None else "unclosed"


def _count_problem(answers: Sequence[str | None]) -> Problem | None:
    if len(answers) == 1:
        return "single"
    if len(answers) > MAX_TRIALS:
        return "too_many"
    return "continued" if answers and consensus(answers[:-1]) is not None else None


def _tally(answers: Sequence[str | None]) -> list[tuple[str, int]]:
    """Lists for each trial with an answer: the first trial's spelling of it, and how many trials agree so far."""
    seen: Counter[str] = Counter()
    tally = []
    for answer in spelled_alike(answers):
        if answer is not None:
            seen[answer] += 1
            tally.append((answer, seen[answer]))
    return tally


def _is_same(one: str, other: str) -> bool:
    return one == other or clean(one) == clean(other) or answers_equal(one, other)


def _with_form(verdict: Verdict, vote: Vote) -> Verdict:
    """The verdict, with what is wrong with the form as its reason."""
    return (
        verdict
        if vote.problem is None or verdict.score is None
        else replace(verdict, reason=f"malformed vote: {vote.problem}")
    )
