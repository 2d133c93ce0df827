"""What is wrong with a run is said before anything starts: which setting, or which line of which file."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamarl.controller.prepare import Prepared, prepare
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import ConfigError, DataError
from llamarl.tasks.demo import DEMO_CHECKPOINT

CALIBRATED = {"type": "crpg"}
JUDGES = "def pay(prompt, completion):\n    return 1.0\ndef keep(prompt, completion):\n    return True\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten rows without ids on every second line, of which line 9 is too long, as it stands and as it is asked."""
    rows = [{"prompt": f"say {i}" if i != 4 else "w" * 600, "answer": i} for i in range(10)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    return file


def recipe(source: Path, **changes: Any) -> Recipe:
    judges = source.with_name("judges.py")
    judges.write_text(JUDGES)
    values = {
        "model": str(DEMO_CHECKPOINT),
        "judges": [{"function": f"{judges}:pay"}],
        "evaluation": {"num_prompts": 0},
        "schedule": {"steps": 1, "max_staleness": 0},
        "sampling": {"max_tokens": 16},
        **changes,
    }
    return Recipe.parse({**values, "data": {"source": str(source), **values.get("data", {})}})


def prepared(source: Path, **changes: Any) -> Prepared:
    return prepare(recipe(source, **changes))


def test_a_limit_of_the_template_is_told_where_a_prompt_meets_it(source: Path) -> None:
    source.write_text('{"prompt": "say"}\n')
    assert prepared(source).describe()["template_limits"] == []
    source.write_text('{"prompt": "say", "tools": [{"type": "function"}]}\n')
    (limit,) = prepared(source).describe()["template_limits"]
    assert limit.startswith("tools_ignored: ")


def test_template_arguments_are_checked(source: Path) -> None:
    source.write_text('{"prompt": "say"}\n')
    with pytest.raises(ConfigError, match=r"chat_template_args\.enable_thinking: .*no such variable"):
        prepared(source, chat_template_args={"enable_thinking": False})


def test_a_run_with_hosts_needs_their_secret_before_anything_starts(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_text('{"prompt": "say"}\n')
    where = {"engine": "monarch", "placement": {"hosts": ["10.0.0.2:26600"], "secret_env": "MINE"}}
    for secret, message in ((None, "MINE is not set"), ("short", "MINE has 5 characters")):
        monkeypatch.delenv("MINE", raising=False)
        if secret:
            monkeypatch.setenv("MINE", secret)
        with pytest.raises(ConfigError, match=message):
            prepared(source, **where)
    monkeypatch.setenv("MINE", "0123456789abcdef" * 2)
    assert prepared(source, **where).executor_names == ["trainer", "judge", "generator-0"]


@pytest.mark.parametrize(("fsdp", "is_idle"), [(8, False), (9, True)])
def test_ranks_are_told_of_and_those_without_work_too(source: Path, fsdp: int, is_idle: bool) -> None:
    source.write_text('{"prompt": "say"}\n')
    schedule = {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 8}
    where = {"engine": "monarch", "placement": {"trainer": {"fsdp": fsdp}}}
    (note,) = (note for note in prepared(source, schedule=schedule, **where).notes if note.startswith("trainer: "))
    assert note.startswith(f"trainer: {fsdp} ranks, fsdp {fsdp} x tp 1")
    assert ("a step has 8 completions" in note) is is_idle


# lengths


def test_a_prompt_that_is_too_long_is_named_by_file_and_line(source: Path) -> None:
    place = rf"^{source}, line 9: prompt '\w{{16}}' has \d+ tokens; .* positions leave \d+; .*on_bad_row='skip'"
    with pytest.raises(DataError, match=place):
        prepared(source)


def test_long_prompts_are_skipped_and_counted_where_bad_rows_are(source: Path) -> None:
    with source.open("a") as file:
        file.write('\n{"answer": "no prompt"}\n')
    found = prepared(source, data={"on_bad_row": "skip"})
    assert [row.answer for row in found.tasks[0].prompts] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [(row.line, row.reason) for row in found.skipped_rows] == [(20, "missing_prompt"), (9, "prompt_too_long")]
    assert found.describe()["skipped_rows"] == 2


def test_what_is_too_long_in_one_form_only_is_skipped_too(source: Path) -> None:
    file = source.with_name("mine.py")
    file.write_text(
        "from dataclasses import replace\n"
        "def ask(prompt):\n"
        "    text = 'w' * (600 if prompt.answer == 7 else 6)\n"
        "    return replace(prompt, messages=({'role': 'user', 'content': text},))\n"
    )
    coverage = [{"ask": f"{file}:ask", "samples": 4}]
    found = prepared(source, data={"on_bad_row": "skip"}, coverage=coverage, algorithm={"type": "raft"})
    assert [row.line for row in found.skipped_rows] == [9, 15]
    assert f"asked as {file}:ask has" in found.skipped_rows[1].problem


def test_held_out_prompts_are_skipped_like_the_others(source: Path) -> None:
    file = source.with_name("heldout.jsonl")
    file.write_text(json.dumps({"prompt": "held"}) + "\n" + json.dumps({"prompt": "h" * 600}) + "\n{}")
    evaluation = {"source": str(file), "num_prompts": 4}
    found = prepared(source, data={"on_bad_row": "skip"}, evaluation=evaluation)
    assert len(found.held_out) == 1
    assert [(Path(row.source).name, row.line) for row in found.skipped_rows] == [
        *(("heldout.jsonl", 3), ("rows.jsonl", 9), ("heldout.jsonl", 2))
    ]


def test_data_of_long_prompts_only_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "w" * 600}))
    with pytest.raises(DataError, match=r"no prompt is left to train; the first: .*rows\.jsonl, line 1: prompt"):
        prepared(file, data={"on_bad_row": "skip"})


def test_max_tokens_that_leave_no_room_at_all_are_no_fault_of_the_data(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"^sampling\.max_tokens=5000: the model has 512 positions .* below 512"):
        prepared(source, sampling={"max_tokens": 5000})


# places


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_a_judge_misses_is_named_by_file_and_line(tmp_path: Path, isolation: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n{"prompt": "3 + 3 ="}\n')
    with pytest.raises(ConfigError, match=rf"^{file}, line 2: prompt '\w+' .*judge 'math': answer is missing"):
        prepared(file, judges=[{"function": "math", "isolation": isolation}])


def test_errors_about_no_row_name_none(source: Path) -> None:
    source.write_text('{"prompt": "say 1"}')
    with pytest.raises(ConfigError, match=r"^judges: "):
        prepared(source, judges=[{"function": "format"}, {"function": "format"}])


# devices


@pytest.mark.parametrize("field", ["trainer", "generator"])
@pytest.mark.parametrize("device", ["xpu:63", "meta", "no device"])
def test_a_device_that_is_not_there_is_refused(source: Path, field: str, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}\.device='{device}': torch .* finds only cpu.* here; name one"):
        prepared(source, **{field: {"device": device}})


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_processor_is_always_there(source: Path, device: str) -> None:
    prepared(source, trainer={"device": device}, data={"limit": 2})


# calibrated rewards


def judges_of(source: Path, *names: str, **roles: str) -> list[dict[str, Any]]:
    file = source.with_name("judges.py")
    return [{"function": f"{file}:{name}", "role": roles.get(name, "reward")} for name in names]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_calibrated_reward_needs_margins(source: Path, isolation: str) -> None:
    raw = {"function": "reward_model", "settings": {"model": "nowhere"}, "isolation": isolation}
    with pytest.raises(ConfigError, match=r"calibrated' \(task 'default'\): judge 'reward_model' pays raw rewards"):
        prepared(source, data={"limit": 2}, algorithm=CALIBRATED, judges=[raw])
    watched = [*judges_of(source, "pay"), {**raw, "settings": {"model": str(DEMO_CHECKPOINT)}, "weight": 0.0}]
    with pytest.raises(ConfigError, match="not a sequence classifier"):  # of weight 0 it may: the next check speaks
        prepared(source, data={"limit": 2}, algorithm=CALIBRATED, judges=watched)


@pytest.mark.parametrize("algorithm", ["crpg", "crraft"])
def test_a_calibrated_reward_needs_a_judge_that_pays(source: Path, algorithm: str) -> None:
    changes = {"data": {"limit": 2}, "judges": judges_of(source, "keep", keep="constraint")}
    with pytest.raises(ConfigError, match=r"no judge pays, .*set algorithm\.reward='constant'"):
        prepared(source, algorithm={"type": algorithm}, **changes)
    prepared(source, algorithm={"type": algorithm, "reward": "constant"}, **changes)


def test_a_row_of_constraints_only_has_no_margin_either(source: Path) -> None:
    source.write_text('{"prompt": "a", "judges": ["pay", "keep"]}\n{"prompt": "b", "judges": ["keep"]}\n')
    judges = judges_of(source, "pay", "keep", keep="constraint")
    with pytest.raises(ConfigError, match=rf"^{source}, line 2: algorithm\.reward='calibrated'.* of which none pays"):
        prepared(source, algorithm=CALIBRATED, judges=judges)
    prepared(source, algorithm={**CALIBRATED, "reward": "as_is"}, judges=judges)


# settings that do not go together


@pytest.mark.parametrize(
    ("algorithm", "remedy"),
    [
        ("rloo", r"algorithm\.type='aipo'"),
        ("crpg", r"algorithm\.off_policy='aipo'"),
        ("raft", r"algorithm\.off_policy='aipo'"),
        ("codpo", r"algorithm\.off_policy='as_is'"),
    ],
)
def test_stale_samples_are_refused_with_a_setting_that_allows_them(source: Path, algorithm: str, remedy: str) -> None:
    schedule = {"steps": 1, "max_staleness": 1}
    with pytest.raises(ConfigError, match=rf"no off-policy correction.*; set schedule.max_staleness=0 or {remedy}"):
        recipe(source, algorithm={"type": algorithm}, schedule=schedule)
    name, value = remedy.replace("\\", "").removeprefix("algorithm.").replace("'", "").split("=")
    recipe(source, algorithm={"type": algorithm, name: value}, schedule=schedule)


@pytest.mark.parametrize(
    ("algorithm", "remedy"), [("rloo", r"algorithm\.type='aipo'"), ("codpo", r"algorithm\.off_policy='as_is'")]
)
def test_several_updates_are_refused_without_a_ratio(source: Path, algorithm: str, remedy: str) -> None:
    for trainer in ({"passes": 2}, {"minibatches": 2}):
        with pytest.raises(ConfigError, match=rf"trainer\.passes=. x trainer\.minibatches=.: .*no ratio.* or {remedy}"):
            recipe(source, algorithm={"type": algorithm}, trainer=trainer)
    recipe(source, algorithm={"type": "raft"}, trainer={"passes": 2})  # imitation


def test_several_updates_fit_the_batch_and_make_up_for_staleness(source: Path) -> None:
    schedule = {"steps": 1, "max_staleness": 1, "prompts_per_step": 4}
    recipe(source, schedule=schedule, trainer={"passes": 2, "minibatches": 4})
    with pytest.raises(ConfigError, match=r"trainer\.minibatches=5: a step has 4 prompts.*set it to at most 4"):
        recipe(source, schedule=schedule, trainer={"minibatches": 5})
    with pytest.raises(ConfigError, match=r"trainer\.behavior_cap=none.*schedule\.max_staleness=1; set"):
        recipe(source, schedule=schedule, trainer={"passes": 2, "behavior_cap": None})
    recipe(source, schedule={**schedule, "max_staleness": 0}, trainer={"passes": 2, "behavior_cap": None})
    recipe(source, schedule=schedule, trainer={"behavior_cap": None})  # one update: nothing to cap


@pytest.mark.parametrize("filters", [{"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_filtered_samples_of_a_server_train_only_what_learns_by_heart(source: Path, filters: dict[str, float]) -> None:
    ((name, value),) = filters.items()
    server = {"generators": [{"kind": "vllm", "url": "http://127.0.0.1:9"}]}
    with pytest.raises(ConfigError, match=rf"sampling\.{name}={value}: algorithm\.type='aipo' .*do not tell.*; leave"):
        recipe(source, sampling=filters, algorithm={"type": "aipo"}, placement=server)
    with pytest.raises(ConfigError, match=rf"sampling\.{name}={value}: algorithm\.type='raft'"):
        recipe(source, sampling=filters, algorithm={"type": "raft", "off_policy": "aipo"}, placement=server)
    recipe(source, sampling=filters, algorithm={"type": "raft"}, placement=server)
    recipe(source, sampling={"temperature": 0.7}, algorithm={"type": "aipo"}, placement=server)
    recipe(source, sampling=filters, algorithm={"type": "aipo"})


# the algorithm


def test_settings_of_an_algorithm_without_its_type_ask_for_it(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.type: required beside other settings, but not given"):
        recipe(source, algorithm={"kl_coef": 0.1})


# judges, called once


def write_judge(source: Path, code: str) -> dict[str, Any]:
    file = source.with_name("mine.py")
    file.write_text(code)
    return {"judges": [{"function": f"{file}:reward"}], "data": {"on_bad_row": "skip"}}


def test_a_column_that_no_row_has_is_named_at_the_judge_s_own_line(source: Path) -> None:
    changes = write_judge(
        source, "\n\ndef reward(completions, solution, **kwargs):\n    return [1.0 for _ in completions]\n"
    )
    message = (
        rf"{source}, line 1: .*'reward': {source.with_name('mine.py')}:3: needs a column 'solution'.*data\.mapping"
    )
    with pytest.raises(ConfigError, match=message):
        prepared(source, **changes)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def reward(prompt, completion):\n    return prompt.info['solution']\n", r"KeyError: 'solution' \(FILE:2\)"),
        ("def reward(prompt, completion):\n    return solution\n", r"NameError: .*\(FILE:2\)"),
        ("import json\ndef reward(prompt, completion):\n    return json.loads('{')\n", r"JSONDecodeError.*\(FILE:3\)"),
        ("def reward(completions, **kwargs):\n    return kwargs['solution']\n", r"KeyError: 'solution' \(FILE:2\)"),
        ("def reward(completion, answer, state):\n    return state['x']\n", r"KeyError: 'x' \(FILE:2\)"),
        ("def reward(prompt, completion):\n    return 'good'\n", "returned"),
        ("def reward(prompt, completion):\n    return float('nan')\n", "nan"),
    ],
)
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_judge_that_always_fails_is_refused_before_the_run(
    source: Path, code: str, reason: str, isolation: str
) -> None:
    changes = write_judge(source, code)
    changes["judges"][0] |= {"isolation": isolation, "workers": 1}
    expected = reason.replace("FILE", str(source.with_name("mine.py")))
    with pytest.raises(ConfigError, match=rf"judge 'reward' failed on every .* of prompt .*{expected}.*; mend it"):
        prepared(source, **changes)


@pytest.mark.parametrize(
    "code",
    [
        "def reward(prompt, completion):\n    return float(completion.text)\n",  # reads the bare answer only
        "def reward(prompt, completion):\n    return 1.0 / len(completion.token_ids) + prompt.info.get('x', 0)\n",
        "def reward(prompt, completion):\n    return None\n",
        "seen = set()\ndef reward(prompt, completion):\n    seen.add(prompt.id)\n    return 1.0 / (len(seen) - 1)\n",
    ],
)
def test_a_judge_that_fails_now_and_then_is_none_of_them(source: Path, code: str) -> None:
    assert not any("judge" in note for note in prepared(source, **write_judge(source, code)).notes)


def test_a_watching_judge_that_fails_is_a_note(source: Path) -> None:
    changes = write_judge(source, "def reward(p, c):\n    return 1.0\ndef look(p, c):\n    raise OSError('gone')\n")
    changes["judges"].append({"function": f"{source.with_name('mine.py')}:look", "role": "watch"})
    note = next(note for note in prepared(source, **changes).notes if "judge" in note)
    assert "'look' failed" in note and "OSError: gone" in note and "goes on without it" in note


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_judges_that_cost_something_are_not_called_and_it_is_said(source: Path, isolation: str) -> None:
    code = (
        "from llamarl.judges import Judge, JudgeInfo\n"
        "class Paid(Judge):\n    name, info = 'paid', JudgeInfo(cost_class='paid')\n"
        "    async def judge(self, prompt, completions):\n        raise AssertionError('called')\n"
        "def reward():\n    return Paid()\n"
    )
    changes = write_judge(source, code)
    changes["judges"][0] |= {"settings": {}, "isolation": isolation}
    notes = prepared(source, **changes).notes
    assert "judge 'paid' was not tried: it is paid; only its settings were checked" in notes


def test_variables_that_judges_read_reach_executors_of_their_own(source: Path) -> None:
    source.with_name("judges.py").write_text(JUDGES)
    llm = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "template": "safety", "api_key_env": "JUDGE_KEY"}
    judges = [{"function": f"{source.with_name('judges.py')}:pay"}, {"function": "llm", "settings": llm}]
    assert recipe(source, judges=judges, pass_environment=["MINE"]).passed_variables == {"JUDGE_KEY", "MINE"}
    with pytest.raises(ConfigError, match=r"pass_environment\.0: must match .*got 'A=secret'"):
        recipe(source, pass_environment=["A=secret"])


# held-out prompts and devices


@pytest.mark.parametrize(
    ("asked", "taken", "note"),
    [
        (1, 1, None),
        (
            9,
            2,
            "held-out prompts: 2 from SOURCE, at most a fifth of its 10 rows, where evaluation.num_prompts allows 9",
        ),
    ],
)
def test_fewer_held_out_prompts_than_asked_for_are_a_note(
    source: Path, asked: int, taken: int, note: str | None
) -> None:
    found = prepared(
        source, evaluation={"num_prompts": asked}, sampling={"max_tokens": 16}, data={"on_bad_row": "skip"}
    )
    assert len(found.tasks[0].held_out) == taken
    assert [n for n in found.notes if "held-out" in n] == (
        [] if note is None else [note.replace("SOURCE", str(source))]
    )


def test_the_first_note_says_where_the_run_computes(source: Path) -> None:
    found = prepared(source, data={"on_bad_row": "skip"}, generator={"device": "cpu"})
    assert found.notes[0].startswith("device: trainer on ") and "generators on cpu (" in found.notes[0]
    assert found.describe()["devices"]["generators"] == "cpu"


@pytest.mark.parametrize("field", ["trainer", "generator"])
@pytest.mark.parametrize("name", ["cuda:63", "gpu", "meta"])
def test_a_device_that_is_not_here_is_refused(source: Path, field: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}\.device='{name}': torch .* finds only cpu"):
        prepared(source, **{field: {"device": name}})
