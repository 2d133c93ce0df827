"""The hooks with which mkdocs builds docs/ into a site."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "place", "link", "led_to"),
    [
        ("docs/concepts/margins.md", "concepts/margins.md", "budget-program.md#x", "budget-program.md#x"),
        ("docs/algorithms/a.md", "algorithms/a.md", "../guides/many-tasks.md", "../guides/many-tasks.md"),
        ("docs/algorithms/a.md", "algorithms/a.md", "../../llamarl/core/seeds.py", "R/blob/main/llamarl/core/seeds.py"),
        ("docs/algorithms/a.md", "algorithms/a.md", "../../tests/algorithms", "R/tree/main/tests/algorithms"),
        ("docs/index.md", "index.md", "../CHANGELOG.md", "changelog.md"),
        ("CONTRIBUTING.md", "contributing.md", "docs/architecture.md", "architecture.md"),
        ("docs/guides/a.md", "guides/a.md", "../../experiments/results/b.png", "../assets/b.png"),
        ("docs/guides/a.md", "guides/a.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)  # fmt: skip
def test_links_lead_to_the_same_file(hooks: ModuleType, page: str, place: str, link: str, led_to: str) -> None:
    assert hooks.relink(f"a [b]({link}) c", ROOT / page, place, "R") == f"a [b]({led_to}) c"


def test_formulas_become_mathml(hooks: ModuleType) -> None:
    html = hooks.formula("\\begin{aligned}\na &= \\text{kl\\_coef} \\\\\nb &= \\frac{1}{2}\n\\end{aligned}")
    assert html.count("<mtr>") == 2 and "<mfrac>" in html and "kl_coef" in html and "&amp;" not in html
