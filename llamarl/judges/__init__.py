"""Judges: what a completion is worth, said by functions, worker processes and mixtures of them. No torch here."""

from llamarl.judges.canary import check_canaries, text_completion
from llamarl.judges.combine import combine, mixture, satisfies
from llamarl.judges.config import JudgeConfig, build_judge, build_panel
from llamarl.judges.executor import JudgeExecutor
from llamarl.judges.function import FunctionJudge, to_verdict
from llamarl.judges.panel import JudgePanel
from llamarl.judges.resolve import as_judge, load_judge
from llamarl.judges.trl import TRLJudge, from_verl
from llamarl.judges.verifiers import VerifiersJudge
from llamarl.judges.worker import ProcessJudge

__all__ = [
    "FunctionJudge",
    "JudgeConfig",
    "JudgeExecutor",
    "JudgePanel",
    "ProcessJudge",
    "TRLJudge",
    "VerifiersJudge",
    "as_judge",
    "build_judge",
    "build_panel",
    "check_canaries",
    "combine",
    "from_verl",
    "load_judge",
    "mixture",
    "satisfies",
    "text_completion",
    "to_verdict",
]
