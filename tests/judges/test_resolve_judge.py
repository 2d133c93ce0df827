from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import ConfigError
from llamarl.judges import FunctionJudge, Judge, TRLJudge, VerlJudge, as_judge, load_judge
from llamarl.judges.lab.runner import judge_card

REWARDS = """
from llamarl.core.records import Verdict
from llamarl.judges import FunctionJudge, Judge

def ours(prompt, completion):
    return 1.0

def trl_style(completions, **kwargs):
    return [1.0] * len(completions)

def trl_length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def verl_style(data_source, solution_str, ground_truth, extra_info=None):
    return 1.0

def anything(*args):
    return 1.0

def alone(text):
    return 1.0

class Exact:
    def __call__(self, prompt, completion):
        return True

exact = Exact()
class Limit(Judge):
    def __init__(self, limit, *, name="limit"):
        self.limit, self.name = limit, name

    async def judge(self, prompt, completions):
        return [Verdict.scored(float(len(c.text) <= self.limit)) for c in completions]

def shorter_than(limit=10):
    return lambda prompt, completion: len(completion.text) < limit

def broken(limit):
    return 1 / 0

def nothing():
    return None

ready = FunctionJudge(ours, "ready")
number = 3
"""


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS)
    return str(path)


@pytest.mark.parametrize(
    ("attribute", "kind", "name"),
    [
        ("ours", FunctionJudge, "ours"),
        ("trl_style", TRLJudge, "trl_style"),
        ("trl_length", TRLJudge, "trl_length"),
        ("verl_style", VerlJudge, "verl_style"),
        ("anything", FunctionJudge, "anything"),
        ("exact", FunctionJudge, "Exact"),
        ("ready", FunctionJudge, "ready"),
        ("Exact", FunctionJudge, "Exact"),  # a class is built
    ],
)
def test_each_shape_of_function_becomes_its_judge(rewards: str, attribute: str, kind: type, name: str) -> None:
    judge = load_judge(f"{rewards}:{attribute}")
    assert isinstance(judge, kind) and isinstance(judge, Judge)
    assert judge.name == name


def test_a_name_can_be_given_but_not_to_a_ready_judge(rewards: str) -> None:
    assert load_judge(f"{rewards}:ours", "mine").name == "mine"
    with pytest.raises(ConfigError, match="is a judge named 'ready'; it cannot be renamed to 'mine'"):
        load_judge(f"{rewards}:ready", "mine")


# ---- settings


def test_a_class_is_built_with_its_settings(rewards: str) -> None:
    judge = load_judge(f"{rewards}:Limit", settings={"limit": 3})
    assert (judge.name, judge.limit) == ("limit", 3)  # type: ignore[attr-defined]
    assert load_judge(f"{rewards}:Limit", "brief", settings={"limit": 3}).name == "brief"


def test_a_function_builds_a_judge_where_settings_are_given(rewards: str) -> None:
    assert isinstance(load_judge(f"{rewards}:shorter_than", "brief", settings={}), FunctionJudge)
    assert load_judge(f"{rewards}:shorter_than", "brief", settings={"limit": 3}).name == "brief"


@pytest.mark.parametrize(
    ("attribute", "settings", "message"),
    [
        ("Limit", None, "settings.limit: required, but not given"),
        ("Limit", {"limit": 1, "nam": "x"}, r"settings.nam: unknown key. Did you mean 'name'\?"),
        ("broken", {"limit": 1}, "building it from its settings failed: ZeroDivisionError"),
        ("nothing", {}, "what .*:nothing builds is a NoneType; name a function"),
        ("ours", {"limit": 1}, r"settings.limit: unknown key. Choose one of: completion, prompt"),
        ("ready", {"limit": 1}, "takes no settings; they are for a class"),
        ("number", {"limit": 1}, "takes no settings"),
    ],
)
def test_settings_that_do_not_fit_are_refused(rewards: str, attribute: str, settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_judge(f"{rewards}:{attribute}", settings=settings)


def test_modules_and_nested_attributes_are_found() -> None:
    assert load_judge("operator:eq").name == "eq"
    assert load_judge("os:path.join").name == "join"


def test_shipped_judges_go_by_their_bare_name() -> None:
    assert load_judge("format").name == "format"
    with pytest.raises(ConfigError, match=r"no shipped judge 'fromat'. Did you mean 'format'\?.*'file.py:function'"):
        load_judge("fromat")


@pytest.mark.parametrize(
    ("name", "cost_class"),
    [("instructions", "free"), ("math", "free"), ("code", "free"), ("classifier", "local"), ("reward_model", "local")],
)
def test_shipped_judges_have_a_version_and_a_cost_class(name: str, cost_class: str) -> None:
    settings = {"model": "no/such"} if cost_class == "local" else {}
    card = judge_card(load_judge(name, settings=settings))
    assert (card["judge"], card["cost_class"]) == (name, cost_class) and card["version"]


def test_a_file_runs_once_and_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    specs = []
    for folder, score in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "reward.py"
        file.write_text(f"def judge(prompt, completion):\n    return {score}\n")
        specs.append(f"{file}:judge")
    one, two, again = (load_judge(spec).function(None, None) for spec in [*specs, specs[0]])  # type: ignore[attr-defined]
    assert (one, two, again) == (1.0, 2.0, 1.0)
    assert load_judge(specs[0]).function is load_judge(specs[0]).function  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("our", r"has no 'our'. Did you mean 'ours'\?"),
        ("alone", r"\(text\) is no judge's signature; take \(prompt, completion\), or TRL's"),
        ("number", "is a int; name a function"),
    ],
)
def test_wrong_attributes_are_refused(rewards: str, attribute: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_judge(f"{rewards}:{attribute}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (":judge", "':judge' names nothing; write 'module:name'"),
        ("rewards:", "names nothing"),
        ("no_such_module_x:judge", "no module 'no_such_module_x'; install it, or name a file"),
        ("llamarl.nosuch:judge", "no module 'llamarl.nosuch'"),
    ],
)
def test_wrong_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_judge(spec)


def test_a_missing_file_suggests_its_neighbour(rewards: str) -> None:
    with pytest.raises(ConfigError, match=r"reward.py: no such file. Did you mean 'rewards.py'\?"):
        load_judge(rewards.replace("rewards.py", "reward.py") + ":ours")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def judge(:\n", "running the file failed: SyntaxError"),
        ("import no_such_module_y\n", "ModuleNotFoundError: No module named 'no_such_module_y'"),
        ("\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*broken.py:3\)"),
        ("raise SystemExit(2)\n", "SystemExit: 2"),
    ],
)
def test_a_file_that_breaks_is_named_with_its_line(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    for _ in range(2):  # the second time too: a broken file is not taken for loaded
        with pytest.raises(ConfigError, match=message):
            load_judge(f"{path}:judge")


def test_a_module_that_breaks_is_told_from_one_that_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "needy_rewards.py").write_text("import no_such_module_z\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"importing needy_rewards failed: ModuleNotFoundError.*no_such_module_z"):
        load_judge("needy_rewards:judge")


def test_functions_in_hand_become_judges_too() -> None:
    assert isinstance(as_judge(lambda completions, **kwargs: []), TRLJudge)
    assert isinstance(as_judge(max), FunctionJudge)  # a builtin without signature
