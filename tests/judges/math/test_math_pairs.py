"""Recall and precision on labelled pairs: those that the judge was tuned on, and those that it was not."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

from llamarl.core.records import Prompt
from llamarl.judges import text_completion
from llamarl.judges.math import MathJudge


def passes(name: str, sign: str) -> list[tuple[str, str, bool]]:
    """(reference, answer, verdict) of the pairs with this sign."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()[1:]
    pairs = [line.split(f" {sign} ") for line in lines if f" {sign} " in line]

    async def judge_all() -> list[tuple[str, str, bool]]:
        judge = MathJudge(num_workers=1)
        verdicts = []
        for reference, answer in pairs:
            text = answer if "boxed" in answer else f"\\boxed{{{answer}}}"
            (verdict,) = await judge.judge(Prompt("p", (), answer=reference), [text_completion(text)])
            verdicts.append((reference, answer, verdict.passed is True))
        judge.close()
        return verdicts

    return asyncio.run(judge_all())


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")
@pytest.mark.parametrize(("name", "least"), [("pairs_tuned.txt", 50), ("pairs_held_out.txt", 49)])
def test_most_right_answers_pass_and_no_wrong_one(name: str, least: int) -> None:
    right, wrong = passes(name, "=="), passes(name, "!=")
    assert len(right) == len(wrong) == 50
    assert [pair for *pair, is_passed in wrong if is_passed] == []
    assert sum(is_passed for *_, is_passed in right) >= least, [pair for *pair, is_passed in right if not is_passed]
