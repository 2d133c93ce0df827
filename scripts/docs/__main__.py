"""Writes the generated pages and tables of docs/ from the code.

    python scripts/docs            # rewrites what has changed, and names it
    python scripts/docs --check    # changes nothing; exit status 1 if something is out of date

Whole pages: docs/reference/{settings,metrics,cli,errors}.md and docs/reference/instructions/*.md. Tables inside
hand-written pages stand between `<!-- generated: settings of NAME -->` and `<!-- end -->`: of algorithms and judges;
those of the planner (`planner_tables`) between `<!-- generated: planner NAME -->` and `<!-- end -->`; that of
generators (`generator_table`).
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from generator_table import fill_generators
from instruction_pages import instruction_pages
from judge_settings import judge_settings
from planner_tables import fill
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llamarl.algorithms import AlgorithmConfig
from llamarl.cli.main import COMMANDS, load_command
from llamarl.controller.placement_config import PlacementConfig
from llamarl.controller.recipe import Recipe
from llamarl.core import errors
from llamarl.core.config import models_in
from llamarl.factuality.detectors.fine_tuning import RateFTSettings
from llamarl.models.lora_config import LoraConfig
from llamarl.report import names
from llamarl.training.objectives import DPOConfig, LoveConfig, RewardConfig, SFTConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOTICE = "<!-- Written by `python scripts/docs`; edit the code, not this page. -->\n\n"
BLOCK = re.compile(r"(<!-- generated: settings of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ALGORITHMS: dict[str, type[BaseModel]] = {
    str(model.model_fields["type"].default): model for model in models_in(get_args(AlgorithmConfig)[0])
}
FIT_COMMANDS: dict[str, type[BaseModel]] = {
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "reward train": RewardConfig,
    "feedback fit": LoveConfig,
    "detect train": RateFTSettings,
}
AREAS = {
    "rollout": "What was sampled: the step's batch, whose tokens may be older than the step.",
    "train": "The loss and the update.",
    "algorithm": "What the algorithm made of the batch, for those that say so. Unjudged samples leave all but one.",
    "judge": "The judges, since the step before. `NAME` is the judge's name.",
    "watch": "The reward-hacking watch ([how it rings](../guides/reward-hacking.md)).",
    "eval": "The held-out prompts. These keys come in records of their own.",
    "data": "Prompts by fate, since the start of the run.",
    "weights": "The weight channel.",
    "time": "Where the time went.",
    "perf": "Speed.",
    "": "Of the record itself.",
}
"""Parts of the metrics page, in order."""


# ---- settings -------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every setting of a recipe and of the commands of supervised training."""
    intro = (
        "# Settings\n\n"
        "A recipe is a TOML file with these settings. On the command line each is `--dotted.name VALUE`, with `-` or\n"
        "`_` between words. An entry of a list has its number in the name: `--judges.0.weight 0.5`. An unknown name\n"
        "is refused with a suggestion. `llamarl train --list-settings` prints the same list.\n\n"
        "*unset* means that the setting is off, or that something else decides, as the text says.\n\n"
    )
    parts = [intro, "## Recipe\n\n", f"{summary(Recipe)}\n\n", table(plain_fields(Recipe), "")]
    for name, field in Recipe.model_fields.items():
        if name != "algorithm":
            parts += [section(name, model, field) for model in models_in(field.annotation)]
    for name, field in PlacementConfig.model_fields.items():
        parts += [section(f"placement.{name}", model, field) for model in models_in(field.annotation)]
    parts.append("\n## algorithm\n\nOne of these; `algorithm.type` says which. `aipo` where a recipe says nothing.\n")
    for name, model in sorted(ALGORITHMS.items()):
        page = "guides/write-an-algorithm.md" if name == "custom" else f"algorithms/{name}.md"
        parts.append(f'\n### type = "{name}"\n\n{summary(model)} See [{name}](../{page}).\n\n')
        parts.append(table(plain_fields(model), "algorithm."))
    for command, model in FIT_COMMANDS.items():
        parts.append(f"\n## Settings of `llamarl {command}`\n\n{summary(model)}\n\n" + table(plain_fields(model), ""))
    lead = one_line(SFTConfig.model_fields["lora"].description)
    parts.append(f"\n### lora\n\n{lead} {summary(LoraConfig)}\n\n" + table(plain_fields(LoraConfig), "lora."))
    return NOTICE + "".join(parts)


def section(name: str, model: type[BaseModel], field: FieldInfo) -> str:
    """One table of the recipe under its heading."""
    is_list = get_origin(field.annotation) is tuple
    heading = f"[[{name}]]" if is_list else f"[{name}]"
    prefix = f"{name}.0." if is_list else f"{name}."
    parts = [heading_of(field, heading, model, "##"), table(plain_fields(model), prefix)]
    # Lists of tables, and the tables of a list's entries, are described where they stand alone.
    inner_tables = (
        [] if is_list else [f for f in model.model_fields.items() if get_origin(f[1].annotation) is not tuple]
    )
    for inner, nested in inner_tables:
        for each in models_in(nested.annotation):
            parts += [
                heading_of(nested, f"[{name}.{inner}]", each, "###"),
                table(plain_fields(each), f"{prefix}{inner}."),
            ]
    return "".join(parts)


def heading_of(field: FieldInfo, heading: str, model: type[BaseModel], level: str) -> str:
    """A table's heading, what the table is for, and what its settings are."""
    lead = f"{one_line(field.description)} " if field.description else ""
    return f"\n{level} {heading}\n\n{lead}{summary(model)}\n\n"


def plain_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields that are values, not tables of their own."""
    return {name: field for name, field in model.model_fields.items() if not models_in(field.annotation)}


def table(fields: dict[str, FieldInfo], prefix: str) -> str:
    """Name, type, default and meaning of each setting."""
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{prefix}{name}`", type_text(field), default_text(field), one_line(field.description))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def type_text(field: FieldInfo) -> str:
    """The type in words, with its bounds."""
    bounds = []
    for item in field.metadata:
        for sign, attribute in ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt")):
            if (bound := getattr(item, attribute, None)) is not None:
                bounds.append(f"{sign} {bound:g}")
    return " ".join([annotation_text(field.annotation), ", ".join(bounds)]).strip()


def annotation_text(annotation: Any) -> str:
    """A type in words."""
    plain = {bool: "true or false", int: "integer", float: "number", str: "text"}
    if annotation in plain:
        return plain[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return annotation_text(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is Sequence or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {annotation_text(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} {annotation_text(arguments[0])}s"
    if origin is dict:
        return f"table of {annotation_text(arguments[1])}s" if annotation_text(arguments[1]) else "table"
    texts = [annotation_text(argument) for argument in arguments if argument is not NoneType]
    return " or ".join(filter(None, texts))  # a file holds no objects of a program


def default_text(field: FieldInfo) -> str:
    """The default as TOML, or what stands in its place."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "*unset*" if value is None else f"`{toml(value)}`"


def toml(value: Any) -> str:
    """A plain value in TOML's notation."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return str(value)


# ---- metrics --------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Every metric a run writes."""
    parts = [
        NOTICE + "# Metrics\n\n"
        "A run appends one record per optimizer step to `metrics.jsonl`, and one per evaluation. A value that could\n"
        "not be measured is `null`. The text names the denominator of each mean and share.\n"
    ]
    known = dict(names.METRICS)
    known |= {f"judge/NAME/{what}": metric for what, metric in names._JUDGE_METRICS.items()}
    known["perf/memory/PROCESS"] = names.describe("perf/memory/PROCESS")
    for area, meaning in AREAS.items():
        rows = [
            "",
            f"## {area or 'record'}",
            "",
            meaning,
            "",
            "| metric | unit | better | meaning |",
            "|---|---|---|---|",
        ]
        for name, metric in known.items():
            if area_of(name) == area:
                rows.append(f"| `{name}` | {metric.unit} | {metric.better} | {metric.meaning} |")
        parts.append("\n".join(rows) + "\n")
    parts.append(
        "| `step` | steps |  | Optimizer steps done when the record was written. |\n"
        "| `time` | s |  | Seconds since 1970. |\n\n"
        "A judge in TRL's form may log numbers of its own; they appear as `judge/NAME/KEY`.\n"
    )
    return "".join(parts)


def area_of(name: str) -> str:
    """The part before the first slash."""
    return name.partition("/")[0] if "/" in name else ""


# ---- command line ---------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command with its arguments."""
    parts = [
        NOTICE + "# Command line\n\n"
        "Exit status: 0 done; 1 the run failed; 2 the input is wrong; 130 interrupted. Messages go to standard error.\n"
        "Every command takes `--help`; `llamarl --help` lists them, and `llamarl --version` prints the version.\n"
    ]
    for command in map(load_command, COMMANDS):
        summary, _, details = command.description.partition("\n")
        parts.append(f"\n## llamarl {command.name}\n\n{summary}\n")
        if details.strip():
            parts.append(f"\n```text\n{details.strip()}\n```\n")
        parts.append("\n| argument | meaning |\n|---|---|\n")
        parts += [argument_row(action) for action in command.parser._actions if action.dest != "help"]
        if command.takes_overrides:
            where = f"#settings-of-llamarl-{command.name.replace(' ', '-')}" if command.name in FIT_COMMANDS else ""
            parts.append(f"| `--dotted.name VALUE` | any [setting](settings.md{where}) |\n")
        parts.append(f"\n```bash\n{command.examples}\n```\n")
    return "".join(parts)


def argument_row(action: argparse.Action) -> str:
    """One argument."""
    value = "" if action.nargs == 0 else f" {action.metavar}"
    flags = ", ".join(f"`{flag}{value}`" for flag in action.option_strings)
    meaning = one_line(action.help).replace("%%", "%").replace("|", "\\|")
    return f"| {flags or f'`{action.metavar}`'} | {meaning} |\n"


# ---- errors ---------------------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Every error class."""
    rows = [
        NOTICE + "# Errors\n\n"
        "Every error that this package raises on purpose is a `LlamaRLError`, and a standard exception too, so that\n"
        "either may be caught. A message names what is wrong, its value, and what to do. What to do about each kind\n"
        "is in [When something breaks](../guides/when-something-breaks.md).\n\n"
        "| class | also a | exit status | meaning |\n|---|---|---|---|\n"
    ]
    wrong_input = (errors.ConfigError, errors.DataError, errors.MissingDependencyError)
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and kind.__bases__[0] is errors.LlamaRLError:
            status = 2 if issubclass(kind, wrong_input) else 1
            rows.append(f"| `{name}` | `{kind.__bases__[1].__name__}` | {status} | {one_line(kind.__doc__)} |\n")
    return "".join(rows)


# ---- shared ---------------------------------------------------------------------------------------------------------


def summary(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return one_line((inspect.getdoc(thing) or "").split("\n\n")[0])


def one_line(text: str | None) -> str:
    """The text without line breaks."""
    return " ".join((text or "").split())


def outdated() -> dict[Path, str]:
    """What differs from what the code says: path -> wanted content."""
    pages = {"settings": settings_page, "metrics": metrics_page, "cli": cli_page, "errors": errors_page}
    wanted = {DOCS / "reference" / f"{name}.md": page() for name, page in pages.items()}
    wanted |= {DOCS / "reference" / "instructions" / name: text for name, text in instruction_pages().items()}
    tables: dict[str, Callable[[str], str]] = {
        "algorithms": lambda name: table(plain_fields(ALGORITHMS[name]), "algorithm."),
        "judges": lambda name: table(judge_settings(name), ""),
    }
    for folder, write in tables.items():
        for path in sorted((DOCS / folder).glob("*.md")):
            text = path.read_text(encoding="utf-8")
            wanted[path] = BLOCK.sub(lambda match, write=write: match[1] + write(match[2]) + match[3], text)
    for path in (DOCS / "guides" / "plan-a-run.md", DOCS / "guides" / "generate-with-vllm.md"):
        wanted[path] = fill(fill_generators(path.read_text(encoding="utf-8")))
    return {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python scripts/docs", description="Writes the generated parts of docs/.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if something is out of date"
    )
    is_check = parser.parse_args().check
    found = outdated()
    for path, text in found.items():
        print(f"{'out of date' if is_check else 'wrote'}: {path.relative_to(ROOT)}")
        if not is_check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if found and is_check:
        print("run: python scripts/docs")
    return int(bool(found) and is_check)


if __name__ == "__main__":
    sys.exit(main())
