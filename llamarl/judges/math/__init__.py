"""Mathematics: the answer of a text, and whether it is the right one. No torch here."""

from llamarl.judges.math.equality import answers_equal, compare_answers
from llamarl.judges.math.extract import Found, extract_answer, find_answer
from llamarl.judges.math.judge import MathJudge, math_judge

__all__ = [
    "Found",
    "MathJudge",
    "answers_equal",
    "compare_answers",
    "extract_answer",
    "find_answer",
    "math_judge",
]
