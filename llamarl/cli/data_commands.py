"""data instructions: prompts to train on, made without any data set."""

import json
from typing import Annotated, Literal

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output
from llamarl.core.config import Config, Metavar, Words
from llamarl.core.errors import ConfigError


class InstructionSettings(Config):
    """Prompts with instructions that a program can check."""

    languages: Annotated[Words, Metavar("CODES")] = ("en",)
    """Languages of the prompts: en, fr, ru, hi, it, pt, es, zh, or all."""
    count: int = 100
    """Prompts in each language."""
    turns: int = 1
    """Turns, 1 to 3: the first has 1 to 3 instructions, each later one adds one."""
    seed: int = 0
    """Equal seeds give equal prompts."""
    format: Literal["rows", "conversations"] = "rows"
    """Rows to train on, or conversations to evaluate with."""
    out: Annotated[str | None, Metavar("FILE")] = None
    """File of JSON lines; without it they go to standard output."""


def instructions(settings: InstructionSettings, output: Output) -> int:
    """Write prompts whose instructions can be checked by program, to train on following them.

    --format rows            to train on: one user message with all instructions, a paragraph for each later turn, since
                             training samples one reply per prompt. The judge: function = "instructions"
    --format conversations   to evaluate with: turn by turn, each asking to revise the reply; eval multi-if --data FILE

    Examples:
        llamarl data instructions --languages fr --count 1000 --out train.jsonl
        llamarl data instructions --languages all --count 500 --turns 3 --seed 1 --out train.jsonl
        llamarl data instructions --turns 3 --format conversations --out held_out.jsonl
    """
    from llamarl.data.jsonl import write_jsonl
    from llamarl.tasks.instructions import LANGUAGES, draw_drafts, to_conversation, to_row

    languages = list(LANGUAGES) if "all" in settings.languages else list(dict.fromkeys(settings.languages))
    drafts = draw_drafts(languages, settings.count, seed=settings.seed, turns=settings.turns)
    to_line = to_row if settings.format == "rows" else to_conversation
    lines = (to_line(draft) for draft in drafts)
    if settings.out is None:
        if output.json:
            raise ConfigError("--json describes the written file; give --out FILE")
        for line in lines:
            print(json.dumps(line, ensure_ascii=False))
        return 0
    written = write_jsonl(settings.out, lines)
    if output.json:
        print_json({"file": settings.out, "lines": written, "format": settings.format, "languages": languages})
    else:
        say(f"{written} {settings.format} in {', '.join(languages)} written to {settings.out}")
    return 0
