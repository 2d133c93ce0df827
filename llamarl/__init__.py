"""llamarl: asynchronous, off-policy-corrected RL post-training of language models.

    import llamarl

    run = llamarl.train(model="path/to/checkpoint", data=rows, judges=[reward], schedule={"steps": 100})
    run.export("trained")

Importing the package loads nothing heavy: torch comes with the first call.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamarl.api import Run, dpo, generate, judge, resume, sft, train
    from llamarl.core.records import Completion, Prompt, Verdict

__all__ = ["Completion", "Prompt", "Run", "Verdict", "dpo", "generate", "judge", "resume", "sft", "train"]
__version__ = "0.1.0"

_HOMES = dict.fromkeys(("Completion", "Prompt", "Verdict"), "llamarl.core.records")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'llamarl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "llamarl.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
