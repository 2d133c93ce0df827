"""Prompts from files and the Hub, checked row by row; seeded, resumable streams of them. No torch here."""

from llamarl.data.jsonl import write_jsonl
from llamarl.data.prompts import PromptData, read_prompts
from llamarl.data.rows import TEXT_PROMPT, BadRow, prompt_to_row
from llamarl.data.stream import Issue, PromptStream

__all__ = [
    "TEXT_PROMPT",
    "BadRow",
    "Issue",
    "PromptData",
    "PromptStream",
    "prompt_to_row",
    "read_prompts",
    "write_jsonl",
]
