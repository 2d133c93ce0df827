"""The two forms of a drawn conversation: a row to train on, and a conversation to evaluate with."""

from typing import Any

from llamarl.tasks.instructions.drafts import Draft

TASK = "instructions"
"""The task of training rows, for `[[tasks]]` of a recipe."""


def to_row(draft: Draft) -> dict[str, Any]:
    """A training row: one user message that asks for everything, graded by `InstructionJudge`.

    Training samples one reply per row, so what the user says in later turns stands in the same message, a paragraph
    each. `info` holds the instructions of all turns and the language.
    """
    texts = draft.texts
    paragraphs = _with_leads(draft, texts.additions)
    return {
        "id": draft.key,
        "prompt": [{"role": "user", "content": "\n\n".join(paragraphs)}],
        "task": TASK,
        "info": {"instructions": list(draft.instructions[-1]), "language": draft.language},
    }


def to_conversation(draft: Draft) -> dict[str, Any]:
    """A line of an evaluation file: `{key, language, turns: [{prompt, instructions}]}`, instructions cumulative."""
    prompts = _with_leads(draft, draft.texts.follow_ups)
    turns = zip(prompts, draft.instructions, strict=True)
    return {
        "key": draft.key,
        "language": draft.language,
        "turns": [{"prompt": prompt, "instructions": list(instructions)} for prompt, instructions in turns],
    }


def _with_leads(draft: Draft, leads: tuple[str, ...]) -> list[str]:
    """The messages, each but the first with a phrase that leads to it."""
    chosen = [leads[(draft.variant + position) % len(leads)] for position in range(len(draft.messages))]
    later = [lead.format(instruction=message) for lead, message in zip(chosen, draft.messages, strict=True)]
    return [draft.messages[0], *later[1:]]
