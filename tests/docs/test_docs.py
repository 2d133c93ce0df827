"""The docs are true: links lead somewhere, recipes parse, commands exist, examples run, generated pages are fresh."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from llamarl.cli.main import load_command, split_command
from llamarl.controller.overrides import merge, parse_overrides
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core import errors
from llamarl.core.config import models_in
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.detectors.method import find_method
from llamarl.factuality.settings import Train
from llamarl.factuality.training import train as train_claims
from llamarl.judges.resolve import SHIPPED
from llamarl.models.tiny import build_tiny
from llamarl.recipes import recipe_path
from llamarl.report import names
from llamarl.report.metrics import read_metrics
from llamarl.report.names import METRICS, describe
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.training.fit import fit
from llamarl.training.objectives import DPO, SFT, DPOConfig, Love, LoveConfig, RewardConfig, SFTConfig

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"(?:^<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
MAPS = ("index.md", "algorithms/index.md", "reference/instructions/index.md")
MINIMAL = {"model": "m", "data": {"source": "d"}, "judges": [{"function": "f"}]}
TINY = [
    *("--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4", "--evaluation.num-prompts", "4"),
    *("--sampling.max-tokens", "16", "--generator.slots", "16", "--threads", "1"),
]


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str
    file: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text[: m.start("text")].count("\n") + 1, m["kind"].strip(), m["text"], m["file"])
        for m in FENCE.finditer(text)
    ]


def of_kind(*kinds: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.kind in kinds]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def commands(block: Block) -> Iterator[list[str]]:
    for line in block.text.splitlines():
        line = re.sub(r" [<>] [\w./-]+(?= |$)", "", line)  # where a shell reads from and writes to
        for part in line.split("|") if line.startswith("cat ") else [line]:
            words = shlex.split(part, comments=True)
            if words:
                yield words


# links


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, wanted = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{target}: nothing there"
        if wanted:
            assert wanted in {anchor(h) for h in re.findall(r"^#+ (.+)$", there.read_text(), re.M)}, target


def test_every_page_is_on_the_map() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in (ROOT / "docs" / name for name in MAPS)
        for target in re.findall(r"\]\(([^)\s]+\.md[^)\s]*)\)", page.read_text())
    }
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "index.md"}
    assert not {str(page.relative_to(ROOT)) for page in pages - linked}


# recipes and commands


@pytest.mark.parametrize("block", of_kind("toml"), ids=str)
def test_recipes_parse(block: Block) -> None:
    """A block that names a model is a whole recipe; any other is laid over a minimal one."""
    values = tomllib.loads(block.text)
    Recipe.parse(values if "model" in values and values.keys() & {"data", "tasks"} else merge(MINIMAL, values))


@pytest.mark.parametrize("block", of_kind("bash", "console"), ids=str)
def test_commands_exist(block: Block) -> None:
    for words in commands(block):
        if words[0] == "llamarl":
            check_command(words[1:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words


def check_command(words: list[str]) -> None:
    if words == ["--help"]:
        return
    name, rest = split_command(words)
    command = load_command(name)
    if rest[-1:] == ["--help"]:
        return
    keywords = command.parse(rest)
    if command.takes_overrides:
        overrides = parse_overrides(keywords["overrides"])
        others = {"sft": SFTConfig, "dpo": DPOConfig, "reward train": RewardConfig, "feedback fit": LoveConfig}
        if name == "detect train":
            others[name] = find_method(keywords["settings"].method).Settings
        model, base = (others[name], {}) if name in others else (Recipe, MINIMAL)
        model.parse(merge(base, overrides))


def setting_names(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        found.add(prefix + name)
        for nested in models_in(field.annotation):
            found |= setting_names(nested, f"{prefix}{name}.")
    return found


def test_settings_in_the_text_exist() -> None:
    known = setting_names(Recipe)
    tables = "|".join(name for name in Recipe.model_fields if any(n.startswith(f"{name}.") for n in known))
    for page in PAGES:
        for name in re.findall(rf"`((?:{tables})\.[a-z_.0-9]+)(?: = [^`]*)?`", prose(page)):
            is_file = name.endswith((".md", ".py", ".html"))
            assert is_file or re.sub(r"\.\d+\.", ".", name) in known, f"{page.name}: {name}"


# examples


@pytest.mark.parametrize("block", of_kind("python", "python run"), ids=str)
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("block", of_kind("python run"), ids=str)
def test_python_examples_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


RUNNER = """
import json, shutil, subprocess, sys
from pathlib import Path
from llamarl.cli.main import main

for words in json.load(sys.stdin):
    print("$", *words, flush=True)
    if words[0] == "llamarl":
        status = main(words[1:])
    else:
        status = subprocess.run(words).returncode
    assert status == 0, (words, status)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run", "steps"), [("quick-start", "first", 3), ("guides/write-a-task", "sums", 2)])
def test_a_guide_works(name: str, run: str, steps: int, tmp_path: Path) -> None:
    """Its files are written and its commands run in order, with smaller numbers, in a fresh folder with a model."""
    page = ROOT / "docs" / f"{name}.md"
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    sequence = [tiny(words) for block in blocks(page) if block.kind == "bash" for words in commands(block)]
    if not any(words[0] == "cp" for block in blocks(page) if block.kind == "bash" for words in commands(block)):
        shutil.copytree(DEMO_CHECKPOINT, tmp_path / "model")  # the reader's own
    result = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([words for words in sequence if words]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    summary = json.loads((tmp_path / "runs" / run / "summary.json").read_text())
    assert summary["steps"] == steps and summary["prompts_trained"] == 4 * steps
    assert name != "quick-start" or (tmp_path / "exported" / "model.safetensors").is_file()


def tiny(words: list[str]) -> list[str]:
    """The command with small numbers; nothing where it is about this machine's environment."""
    program, *rest = words
    if program in ("make", "source"):
        return []
    if program == "cp":
        return ["sh", "-c", f"cp -r {DEMO_CHECKPOINT} {rest[-1]}"]
    if program == "python":
        return [sys.executable, *rest]
    if rest[0] == "train":
        return [*words, *TINY, "--schedule.steps", "2"]
    if rest[0] == "resume":
        return [re.sub(r"^\d+$", "3", word) for word in words]
    return words


# reference pages


def test_generated_pages_are_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "docs"), "--check"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every key that tiny runs write: asynchronous AIPO, GRPO with its reference model, the rest, fine-tuning, DPO."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keys: set[str] = set()
    twice = ["--trainer.passes", "2", "--trainer.minibatches", "2"]
    for name, more in (("aipo", []), ("grpo", twice)):
        directory = tmp_path_factory.mktemp(name) / "run"
        options = [*TINY, "--schedule.steps", "2", "--algorithm.type", name, *more]
        train(Recipe.load(recipe_path("demo"), options), directory)
        keys |= {key for record in read_metrics(directory / "metrics.jsonl") for key in record}
    directory = tmp_path_factory.mktemp("tasks") / "run"
    train(Recipe.parse(one_task_each(["crpg", "codpo", "crraft", "raft", "ppo"])), directory)
    lines = read_metrics(directory / "metrics.jsonl")
    keys |= {re.sub(r"^task/\w+/", "", key) for record in lines for key in record}
    pairs = [{"prompt": f"write {n} words", "chosen": "moon " * n, "rejected": "cat " * n} for n in range(1, 13)]
    examples = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    reactions = [{**example, "label": index % 6 < 5, "user": str(index)} for index, example in enumerate(examples)]
    brief = {"num_steps": 1, "warmup_steps": 0}
    for objective, rows, held_out in (
        (SFT(SFTConfig.parse({**brief, "held_out": 1})), examples, None),
        (DPO(DPOConfig.parse({**brief, "held_out": 0.3})), pairs, None),
        (Love(LoveConfig.parse(brief)), reactions, reactions),
    ):
        directory = tmp_path_factory.mktemp("fit") / "out"
        fit(objective, DEMO_CHECKPOINT, rows, directory, eval_data=held_out)
        keys |= {key for record in read_metrics(directory / "metrics.jsonl") for key in record}
    keys |= train_detector(tmp_path_factory.mktemp("detector"))
    torch.set_num_threads(threads)
    return keys - {"step", "time"}


def train_detector(directory: Path) -> set[str]:
    """Every key that the training of a detector writes."""
    build_tiny("llama", directory / "model", max_position_embeddings=512)
    claims = [{"id": f"p{n}/0", "prompt": f"p{n}", "claim": f"{n} is even.", "label": n % 2 == 0} for n in range(12)]
    (directory / "claims").mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        write_jsonl(directory / "claims" / f"{split}.jsonl", claims[4 * number : 4 * number + 4])
    brief = {"num_steps": 1, "num_epochs": None, "warmup_steps": 0, "lora": {"rank": 2}}
    places = {"data": directory / "claims", "model": str(directory / "model"), "out": directory / "out"}
    train_claims(Train.parse({**places, "method": "fine_tuning"}), brief)
    return {key for record in read_metrics(directory / "out" / "training" / "metrics.jsonl") for key in record}


def one_task_each(algorithms: list[str]) -> dict[str, Any]:
    """A run whose tasks are the demo's, each with another algorithm."""
    room = ["--sampling.max-tokens", "48"]  # so that some answers are right, and there are pairs
    plain = Recipe.load(recipe_path("demo"), [*TINY, *room, "--schedule.steps", "2", "--schedule.max-staleness", "0"])
    values = plain.model_dump(mode="json", exclude={"data", "judges", "algorithm", "tasks"})
    judges = [*plain.judges, plain.judges[0].model_copy(update={"name": "kept", "role": "constraint"})]
    source = {"data": plain.data, "judges": judges, "held_out": plain.evaluation.source}
    settings = {name: {"type": name, "mask_truncated": name == "crpg"} for name in algorithms}
    tasks = [{"name": name, "algorithm": settings[name], **source} for name in algorithms]
    return {**values, "evaluation": {"num_prompts": 4}, "tasks": tasks}


def test_every_metric_of_a_run_is_explained(written: set[str]) -> None:
    assert not sorted(key for key in written if not describe(key).meaning)


def test_every_explained_metric_is_written_by_some_run(written: set[str]) -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    explained = {name for name in METRICS if f"`{name}`" in page}
    assert explained == written & METRICS.keys()


def test_metrics_in_the_text_exist() -> None:
    patterns = ("judge/NAME/KEY", "algorithm/NAME", "eval/algorithm/NAME")
    areas = {name.partition("/")[0] for name in METRICS if "/" in name}
    for page in PAGES:
        for name in re.findall(r"`([a-z]+/[A-Za-z_/0-9]+)`", prose(page)):
            if name.partition("/")[0] in areas:
                assert describe(name).meaning or name in patterns, f"{page.name}: {name}"


def test_every_error_has_advice() -> None:
    guide = (ROOT / "docs" / "guides" / "when-something-breaks.md").read_text()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and kind.__bases__[0] is errors.LlamaRLError:
            assert f"| `{name}` |" in guide, name


def test_the_summary_s_fields_are_explained() -> None:
    from dataclasses import fields

    from llamarl.report.summary import RunSummary

    page = (ROOT / "docs" / "reference" / "run-directory.md").read_text()
    assert [field.name for field in fields(RunSummary) if f"`{field.name}`" not in page] == []


@pytest.mark.parametrize(
    "config",
    [
        *("aipo", "cispo", "dapo", "dr_grpo", "grpo", "gspo", "reinforce_pp", "rloo"),
        *("ppo", "raft", "online_dpo", "crpg", "codpo", "crraft"),
    ],
)
def test_every_algorithm_explains_what_it_logs(config: str) -> None:
    page = (ROOT / "docs" / "algorithms" / f"{config}.md").read_text()
    clips = () if config in ("online_dpo", "codpo") else ("clip_frac/low", "clip_frac/high")
    for key in ("loss", "ratio/mean", "ppo_kl", *clips, "entropy", "kl_ref"):
        assert f"| `train/{key}` |" in page, key


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_judge_has_a_page_of_the_same_form(name: str) -> None:
    page = (ROOT / "docs" / "judges" / f"{name}.md").read_text()
    headings = re.findall(r"^## (.+)$", page, re.M)
    for heading in ("The verdict", "Settings", "Cost", "Try it", "Known holes", "What it logs"):
        assert heading in headings, heading
    assert f"<!-- generated: settings of {name} -->\n| setting |" in page


def test_every_metric_of_a_judge_is_explained_on_a_judge_s_page() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "judges").glob("*.md"))
    assert [what for what in names._JUDGE_METRICS if f"| `judge/NAME/{what}` |" not in text] == []
