"""Proof, before a run starts, that its judges know a right answer when they see one."""

from collections.abc import Sequence

from llamarl.core.errors import JudgeError
from llamarl.core.protocols import Judge
from llamarl.core.records import Completion, Prompt, Status


def text_completion(text: str) -> Completion:
    """A completion that no policy sampled: only its text."""
    return Completion((), (), (), (), text, "stop")


async def check_canaries(judge: Judge, cases: Sequence[tuple[Prompt, str]]) -> None:
    """Judges answers known to be right.

    Args:
        judge: any judge.
        cases: prompts with the text of a right answer each.

    Raises:
        JudgeError: an answer fails, scores 0 or less, or does not pass; or the judge abstains from all of them.
    """
    num_scored = 0
    for prompt, answer in cases:
        verdicts = await judge.judge(prompt, [text_completion(answer)])
        for verdict in verdicts:
            is_wrong = verdict.score is not None and (verdict.score <= 0 or verdict.passed is False)
            if verdict.status is Status.FAILED or is_wrong:
                raise JudgeError(
                    f"judge '{judge.name}' on the right answer {answer!r} to prompt {prompt.id!r}: {verdict}"
                )
            num_scored += verdict.score is not None
    if cases and not num_scored:
        raise JudgeError(f"judge '{judge.name}' abstained from all {len(cases)} right answers; does it fit this data?")
