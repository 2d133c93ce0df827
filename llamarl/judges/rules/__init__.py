"""Checkable instructions: the 25 of IFEval and Multi-IF, graded strictly and loosely. No torch here.

grade("fewer words, no comma", [{"id": "punctuation:no_comma"}]).strict      # (False,)
"""

from llamarl.judges.rules.base import Mode, Rule
from llamarl.judges.rules.grading import Checklist, Grade, Grader, grade, loose_versions
from llamarl.judges.rules.judge import InstructionJudge, follows_instructions
from llamarl.judges.rules.registry import RULES, build_rule
from llamarl.tasks.instructions.catalog import Instruction

__all__ = [
    "RULES",
    "Checklist",
    "Grade",
    "Grader",
    "Instruction",
    "InstructionJudge",
    "Mode",
    "Rule",
    "build_rule",
    "follows_instructions",
    "grade",
    "loose_versions",
]
