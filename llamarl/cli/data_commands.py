"""data instructions: prompts to train on, made without any data set."""

import argparse
import json

from llamarl.cli.common import Subparsers, add_command, print_json, say
from llamarl.core.errors import ConfigError

ALL = "all"
FORMS = """\
--format rows            to train on: one user message with all instructions, a paragraph for each later turn, since
                         training samples one reply per prompt. The judge: function = "instructions"
--format conversations   to evaluate with: turn by turn, each asking to revise the reply; eval multi-if --data FILE"""


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    data = commands.add_parser("data", help="make data", description="Make data.", allow_abbrev=False)
    instructions = add_command(
        data.add_subparsers(metavar="COMMAND", required=True),
        "instructions",
        run_instructions,
        help="write prompts whose instructions can be checked by program, to train on following them",
        examples="""
llamarl data instructions --language fr --count 1000 --out train.jsonl
llamarl data instructions --language all --count 500 --turns 3 --seed 1 --out train.jsonl
llamarl data instructions --turns 3 --format conversations --out held_out.jsonl
""",
    )
    instructions.description = f"{instructions.description}\n\n{FORMS}"
    instructions.add_argument(
        "--language",
        action="append",
        metavar="CODE",
        help="en, fr, ru, hi, it, pt, es, zh or all; repeatable (default en)",
    )
    instructions.add_argument("--count", type=int, default=100, help="prompts in each language (default 100)")
    instructions.add_argument(
        "--turns",
        type=int,
        default=1,
        help="1 to 3; the first has 1 to 3 instructions, each later one adds one (default 1)",
    )
    instructions.add_argument("--seed", type=int, default=0, help="equal seeds give equal prompts (default 0)")
    instructions.add_argument(
        "--format", choices=["rows", "conversations"], default="rows", help="to train on (default), or to evaluate with"
    )
    instructions.add_argument("--out", metavar="FILE", help="JSON lines; without it they go to standard output")


def run_instructions(arguments: argparse.Namespace) -> int:
    """`llamarl data instructions`."""
    from llamarl.data.jsonl import write_jsonl
    from llamarl.tasks.instructions import draw_drafts, to_conversation, to_row

    languages = _languages(arguments.language or ["en"])
    drafts = draw_drafts(languages, arguments.count, seed=arguments.seed, turns=arguments.turns)
    to_line = to_row if arguments.format == "rows" else to_conversation
    lines = (to_line(draft) for draft in drafts)
    if arguments.out is None:
        if arguments.json:
            raise ConfigError("--json describes the written file; give --out FILE")
        for line in lines:
            print(json.dumps(line, ensure_ascii=False))
        return 0
    written = write_jsonl(arguments.out, lines)
    if arguments.json:
        print_json({"file": arguments.out, "lines": written, "format": arguments.format, "languages": languages})
    else:
        say(f"{written} {arguments.format} in {', '.join(languages)} written to {arguments.out}")
    return 0


def _languages(chosen: list[str]) -> list[str]:
    """Each chosen language once, in the order given."""
    from llamarl.tasks.instructions import LANGUAGES

    codes = [code.strip() for part in chosen for code in part.split(",")]
    return list(LANGUAGES) if ALL in codes else list(dict.fromkeys(codes))
