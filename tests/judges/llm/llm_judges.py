"""LLM judges on a scripted server, for tests."""

import asyncio
import math
from typing import Any

from fake_server import Reply, ScriptedTransport, transport

from llamarl.core.records import Prompt, Verdict
from llamarl.judges import text_completion
from llamarl.judges.llm.judge import LLMJudge
from llamarl.testing import run_virtual

PROMPT = Prompt("p", ({"role": "user", "content": "Capital of France?"},), answer="Paris")
YES = Reply("True", top_logprobs=[{"True": math.log(0.75), "False": math.log(0.25)}])
NO = Reply("False", top_logprobs=[{"False": math.log(0.75), "True": math.log(0.25)}])
GOOD = Reply('{"reason": "fine", "score": 8, "passed": true}')
BAD = Reply("I would rather not say.")


def judge(script: Any, template: str = "factuality", **settings: Any) -> LLMJudge:
    scripted = script if isinstance(script, ScriptedTransport) else transport(script)
    values = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "template": template, **settings}
    return LLMJudge(**{"transport": scripted, **values})


def ask(judge: LLMJudge, *texts: str, prompt: Prompt = PROMPT) -> list[Verdict]:
    run = run_virtual if judge.config.cache is None else asyncio.run  # virtual time does not wait for threads
    return run(judge.judge(prompt, [text_completion(text) for text in texts]))
