"""Judges: what a completion is worth, said by functions, worker processes and mixtures of them. No torch here."""

from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import text_completion
from llamarl.judges.adapters.base import to_verdict
from llamarl.judges.adapters.function import FunctionJudge
from llamarl.judges.adapters.trl import TRLJudge
from llamarl.judges.adapters.verifiers import VerifiersJudge
from llamarl.judges.adapters.verl import VerlJudge
from llamarl.judges.canary import check_canaries
from llamarl.judges.combine import combine, mixture, satisfies
from llamarl.judges.config import JudgeConfig, build_judge, build_panel
from llamarl.judges.executor import JudgeExecutor
from llamarl.judges.panel import JudgePanel
from llamarl.judges.process.judge import ProcessJudge
from llamarl.judges.resolve import as_judge, load_judge
from llamarl.judges.seat import Seat

__all__ = [
    "FunctionJudge",
    "Judge",
    "JudgeConfig",
    "JudgeExecutor",
    "JudgeInfo",
    "JudgePanel",
    "ProcessJudge",
    "Seat",
    "TRLJudge",
    "VerifiersJudge",
    "VerlJudge",
    "as_judge",
    "build_judge",
    "build_panel",
    "check_canaries",
    "combine",
    "load_judge",
    "mixture",
    "satisfies",
    "text_completion",
    "to_verdict",
]
