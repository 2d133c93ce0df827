"""The table of kinds of generators, from `generation.capabilities`."""

import re

from llamarl.generation.capabilities import KINDS, Capabilities

BLOCK = re.compile(r"(<!-- generated: generators -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_generators(text: str) -> str:
    """The page with its table of generators written anew, where it has one."""
    return BLOCK.sub(lambda match: f"{match[1]}{_table()}{match[2]}", text)


def _table() -> str:
    fields = {name: field for name, field in Capabilities.model_fields.items() if name != "kind"}
    rows = [["", *(f"`{kind.kind}`" for kind in KINDS)], ["---"] * (1 + len(KINDS))]
    for name, field in fields.items():
        rows.append([str(field.description), *(_show(getattr(kind, name)) for kind in KINDS)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _show(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
