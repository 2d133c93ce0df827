"""Code: the program of a text, and whether it passes its unit tests, in a sandbox. No torch here."""

from llamarl.judges.code.extract import extract_code
from llamarl.judges.code.judge import CodeJudge, code_judge
from llamarl.judges.code.sandbox import Limits, SandboxError
from llamarl.judges.code.unit_tests import Call, Program, Script, Test, parse_tests

__all__ = [
    "Call",
    "CodeJudge",
    "Limits",
    "Program",
    "SandboxError",
    "Script",
    "Test",
    "code_judge",
    "extract_code",
    "parse_tests",
]
