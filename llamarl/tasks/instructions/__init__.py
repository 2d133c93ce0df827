"""Prompts with checkable instructions, drawn in eight languages, for training on the skill. No torch here.

draft = draw_draft("fr", seed=0, index=7, turns=3)
to_row(draft)              # {"id", "prompt", "task", "info": {"instructions": [...]}}: `InstructionJudge` grades it
to_conversation(draft)     # {"key", "language", "turns"}: `llamarl eval multi-if --data` reads it

The texts of each language are in `texts/`; `llamarl data instructions` writes files.
"""

from llamarl.tasks.instructions.conflicts import CONFLICTS, are_compatible
from llamarl.tasks.instructions.drafts import Draft, draw_draft, draw_drafts
from llamarl.tasks.instructions.forms import to_conversation, to_row
from llamarl.tasks.instructions.wordings import LANGUAGES

__all__ = [
    "CONFLICTS",
    "LANGUAGES",
    "Draft",
    "are_compatible",
    "draw_draft",
    "draw_drafts",
    "to_conversation",
    "to_row",
]
