import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from llamarl.report.colours import KNOWN, PALETTE, colour_indices
from llamarl.report.files import encode
from llamarl.report.rundir import read_run
from llamarl.report.site.curves import charts_of, tabulate
from llamarl.report.site.document import file_values, write_run_page
from llamarl.report.site.overview import describe_run
from llamarl.report.site.rollouts import MAX_TEXT, Filter, RolloutIndex, sample_groups
from llamarl.report.site.shell import content_policy, embed, render_document

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202egnp\x1b[2J\x00\ud83d &amp;\u2028"


def values_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="values">(.*?)</script>', text, re.S)
    assert len(found) == 1
    return json.loads(found[0])


def group_record(step: int, texts: list[str], task: str = "words", reward: float = 1.0, **more: object) -> dict:
    samples = [
        {
            "text": text, "reward": reward, "finish_reason": "stop", "staleness": 0, "versions": [[step - 1, 2]],
            "token_ids": [1, 2], "logprobs": [-0.5, -1.0], "trainer_logprobs": None,
            "verdicts": {"format": {"status": "scored", "score": reward, "passed": reward > 0.5, "reason": ""}},
        }
        for text in texts
    ]  # fmt: skip
    head = {"step": step, "version": step - 1, "group": step, "epoch": 0, "prompt_id": f"p{step}", "task": task}
    return {
        **head,
        "messages": [{"role": "user", "content": f"prompt {step}"}],
        "answer": None,
        "samples": samples,
        **more,
    }


def write_groups(path: Path, records: list[dict]) -> None:
    path.write_bytes(b"".join(encode(record) + b"\n" for record in records))


def test_the_page_holds_the_run_in_one_file(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=60)
    page = write_run_page(run_dir, {"counts": {"issued": 5}, "reasons": {"unscored": 1}})
    assert page == run_dir / "index.html"
    values = values_of(page)
    run = values["run"]
    assert (run["name"], run["state"], run["step"], run["total_steps"]) == ("demo", "finished", 60, 60)
    assert run["ledger"] == {"counts": {"issued": 5}, "reasons": {"unscored": 1}}
    assert len(run["table"]["steps"]) == 60 and run["table"]["bin"] == 1
    assert values["rollouts"]["held_groups"] == values["rollouts"]["total_groups"] == 7
    assert values["timeline"]["busy"]["trainer"] > 0.5
    text = page.read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text.split('<script type="application/json"')[0])


def test_only_the_pages_own_style_and_script_may_count(example_run: Callable[..., Path]) -> None:
    document = render_document("x", {"mode": "file"})
    style, script = (
        re.findall(r"<style>(.*?)</style>", document, re.S),
        re.findall(r"<script>(.*)</script>", document, re.S),
    )
    assert len(style) == len(script) == 1
    policy = content_policy(style[0], script[0])
    assert policy in document and "unsafe" not in policy and "connect-src" not in policy
    assert "connect-src 'self'" in render_document("x", {}, may_ask_server=True)
    assert not re.search(r"<[a-z]+[^>]* (on[a-z]+|style)=", document)


def test_hostile_text_stays_inside_its_element(tmp_path: Path) -> None:
    assert json.loads(embed({"text": HOSTILE}))["text"] == HOSTILE
    assert "<" not in embed({"text": HOSTILE}) and "\u2028" not in embed({"text": HOSTILE})
    (tmp_path / "recipe.json").write_bytes(encode({"model": HOSTILE, "tasks": [{"name": HOSTILE}, {"name": "b"}]}))
    metrics = {"step": 1, "time": 1.0, f"task/{HOSTILE.replace('/', '')}/rollout/reward/mean": 0.5}
    (tmp_path / "metrics.jsonl").write_bytes(encode(metrics) + b"\n")
    write_groups(tmp_path / "rollouts.jsonl", [group_record(1, [HOSTILE], task=HOSTILE, prompt_id=HOSTILE)])
    (tmp_path / "messages.log").write_bytes(encode(HOSTILE) + b"\n\xff\xfe\n")
    page = write_run_page(tmp_path)
    document = page.read_text(encoding="utf-8")
    assert document.count("<script") == 2 and "<img" not in document
    assert values_of(page)["rollouts"]["groups"][0]["samples"][0]["text"] == HOSTILE


def test_a_run_opens_whatever_state_its_files_are_in(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"model": "m"}')
    assert values_of(write_run_page(tmp_path))["run"]["step"] == 0  # nothing but a recipe
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rollout/reward/mean": 0.5}\n{"step": 2, "rollout/rew')
    good = encode(group_record(1, ["a"]))
    (tmp_path / "rollouts.jsonl").write_bytes(good + b"\nnot json\n[1]\n" + good + b"\n" + good[:40])
    values = values_of(write_run_page(tmp_path))
    assert values["run"]["step"] == 1 and len(values["run"]["warnings"]) >= 1
    assert values["rollouts"]["held_groups"] == 2 and values["rollouts"]["skipped"] == 2


def test_a_file_holds_a_stated_sample_with_the_first_and_the_last_group(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    write_groups(path, [group_record(step, ["x" * 500] * 4) for step in range(1, 401)])
    held = sample_groups(path, 100_000)
    steps = [group["step"] for group in held["groups"]]
    assert held["total_groups"] == 400 and 10 < held["held_groups"] < 100
    assert steps[0] == 1 and steps[-1] == 400 and steps == sorted(steps)
    assert len(json.dumps(held)) < 250_000


def test_long_texts_are_cut_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    write_groups(path, [group_record(1, ["y" * (1 << 20), "short"])])
    (group,) = sample_groups(path, 8 << 20)["groups"]
    long, short = group["samples"]
    assert len(long["text"]) == MAX_TEXT and long["full_length"] == 1 << 20
    assert short["text"] == "short" and "full_length" not in short
    index = RolloutIndex(path)
    index.grow()
    assert len(index.read(1, is_whole=True)["samples"][0]["text"]) == 1 << 20
    assert index.read(2) is None
    index.close()


@pytest.fixture
def index(tmp_path: Path) -> RolloutIndex:
    path = tmp_path / "rollouts.jsonl"
    records = [
        group_record(step, ["cat", "DOG" if step == 3 else "fish"], task="a" if step % 2 else "b", reward=step / 10)
        for step in range(1, 11)
    ]
    records[4]["samples"][0]["finish_reason"] = "length"
    records[5]["samples"][0]["verdicts"]["late"] = {"status": "failed", "score": None, "passed": None, "reason": "x"}
    write_groups(path, records)
    found = RolloutIndex(path)
    assert found.grow()
    return found


@pytest.mark.parametrize(
    ("query", "steps"),
    [
        ({}, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"text": "dog"}, [3]),
        ({"text": "prompt 1"}, [10, 1]),
        ({"task": "b"}, [10, 8, 6, 4, 2]),
        ({"prompt": "p1"}, [10, 1]),
        ({"step_from": "3", "step_to": "5"}, [5, 4, 3]),
        ({"reward_from": "0.9"}, [10, 9]),
        ({"reward_to": "0.1"}, [1]),
        ({"version": "4"}, [5]),
        ({"cut": "1"}, [5]),
        ({"judge": "late"}, [6]),
        ({"judge": "format", "outcome": "fail"}, [5, 4, 3, 2, 1]),
        ({"outcome": "failed"}, [6]),
        ({"steps": "1-2,9-9"}, [9, 2, 1]),
        ({"task": "b", "outcome": "pass", "step_to": "8"}, [8, 6]),
        ({"task": "'; DROP TABLE groups; --"}, []),
    ],
)
def test_groups_are_found(index: RolloutIndex, query: dict[str, str], steps: list[int]) -> None:
    found = index.find(Filter.parse(query))
    assert [head["step"] for head in found["heads"]] == steps and found["next"] is None


def test_pages_of_a_search_join_without_gap_or_repeat(index: RolloutIndex) -> None:
    for query in ({}, {"text": "cat"}):
        steps, start = [], None
        while True:
            found = index.find(Filter.parse(query), start, 3)
            steps += [head["step"] for head in found["heads"]]
            start = found["next"]
            if start is None:
                break
        assert steps == list(range(10, 0, -1))


def test_the_index_grows_with_the_file_and_is_built_anew_when_it_was_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    index = RolloutIndex(path)
    assert index.grow() and index.progress()["groups"] == 0  # no file yet
    write_groups(path, [group_record(1, ["a"]), group_record(2, ["b"])])
    index.grow()
    with path.open("ab") as file:
        file.write(encode(group_record(3, ["c"])) + b"\n" + b'{"step": 4, "sam')
    index.grow()
    assert index.progress() | {"share": 0} == {"groups": 3, "samples": 3, "share": 0, "skipped": 0}
    index.close()
    again = RolloutIndex(path)  # what was read before is not read again
    assert again.progress()["groups"] == 3
    write_groups(path, [group_record(9, ["z"])])
    again.grow()
    assert [head["step"] for head in again.find(Filter())["heads"]] == [9]
    assert again.choices()["steps"] == [9]
    again.close()


def test_a_damaged_index_is_built_anew_and_a_read_only_folder_has_one_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    write_groups(path, [group_record(1, ["a"])])
    (tmp_path / "rollouts.index.sqlite").write_bytes(b"no database" * 500)
    index = RolloutIndex(path)
    index.grow()
    assert index.progress()["groups"] == 1
    index.close()
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    write_groups(blocked / "rollouts.jsonl", [group_record(1, ["a"])])
    (blocked / "rollouts.index.sqlite").mkdir()  # nothing can be written under this name
    index = RolloutIndex(blocked / "rollouts.jsonl")
    index.grow()
    assert index.progress()["groups"] == 1
    index.close()


def test_every_metric_has_a_place_of_its_own() -> None:
    keys = [
        "rollout/reward/mean", "eval/reward/mean", "task/a/rollout/reward/mean", "task/a/eval/reward/mean",
        "judge/format/pass_rate", "task/a/judge/x/y/error_rate", "algorithm/used/long",
        "algorithm/budget/0.5/slack/long", "eval/algorithm/used/long", "watch/monitor/farewell/ratio", "something/new",
        "task/a/something/new", "train/lr", "perf/memory/main", "perf/memory/trainer",
    ]  # fmt: skip
    charts = charts_of([*keys, "step", "time", "policy_version"])
    assert sorted(curve.key for chart in charts for curve in chart.curves) == sorted(keys)
    by_title = {chart.title: chart for chart in charts}
    assert [curve.label for curve in by_title["Reward"].curves] == ["training", "held-out"]
    assert [curve.is_points for curve in by_title["Reward"].curves] == [False, True]
    assert [curve.label for curve in by_title["Reward by task"].curves] == ["a", "a, held-out"]
    assert {curve.label for curve in by_title["Trained share"].curves} == {"long", "long, held-out"}
    assert by_title["Slack"].curves[0].label == "q+ 0.5: long" and by_title["Slack"].group == "Budget"
    assert by_title["Failed verdicts"].curves[0].label == "a: x/y"
    memory = by_title["Memory of processes"]
    assert [curve.label for curve in memory.curves] == ["main", "trainer"] and memory.as_dict()["scale"] == "bytes"


def test_an_evaluation_is_no_second_step_and_long_runs_are_binned() -> None:
    records = [{"step": 0, "eval/r": 0.1}, {"step": 1, "a": 2.0}, {"step": 1, "eval/r": 0.2}, {"step": 2, "a": None}]
    table = tabulate(records)
    assert table["steps"] == [0, 1, 2]
    assert table["values"] == {"a": [None, 2.0, None], "eval/r": [0.1, 0.2, None]}
    long = tabulate([{"step": step, "a": float(step % 5)} for step in range(1, 10_001)], max_points=2000)
    assert long["bin"] == 5 and len(long["steps"]) == 2000
    assert long["values"]["a"][3] == 2.0 and (long["low"]["a"][3], long["high"]["a"][3]) == (0.0, 4.0)


def test_names_keep_their_colours_whoever_stands_beside_them() -> None:
    assert colour_indices(["train", "generate"]) == {"generate": KNOWN["generate"], "train": KNOWN["train"]}
    assert colour_indices(["b", "a"]) == colour_indices(["a", "b"])
    assert colour_indices(iter(["math"]))["math"] == colour_indices(["math"])["math"]
    eight = colour_indices(f"task {number}" for number in range(len(PALETTE)))
    assert sorted(eight.values()) == list(range(len(PALETTE)))
    assert set(colour_indices(f"t{number}" for number in range(50)).values()) <= set(range(len(PALETTE)))


def test_alarms_and_restarts_stand_at_their_steps(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    records = [
        {"step": step, "time": 1_767_225_600.0 + 10 * step, "watch/alarms": float(step > 3)} for step in range(1, 6)
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(encode(record) + b"\n" for record in records))
    (tmp_path / "messages.log").write_text("garbage\n2000-01-01T00:00:00 judge lost (boom); starting it again\n")
    events = describe_run(read_run(tmp_path))["events"]
    assert [(event["step"], event["kind"]) for event in events] == [(0, "restart"), (4, "alarm")]
    assert file_values(read_run(tmp_path))["mode"] == "file"


def test_shares_stand_in_per_cent_and_monitors_beside_their_warning_and_stop(tmp_path: Path) -> None:
    monitors = [{"signal": "length", "warn": 1.5, "stop": None}, {"signal": "love", "warn": 1.5, "stop": 3.0}]
    (tmp_path / "recipe.json").write_text(json.dumps({"watch": {"monitors": monitors}}))
    metrics = {"step": 1, "rollout/truncated_frac": 0.25, "watch/monitor/love/ratio": 1.2, "rollout/reward/mean": 0.5}
    (tmp_path / "metrics.jsonl").write_bytes(encode(metrics) + b"\n")
    charts = {chart["title"]: chart for chart in describe_run(read_run(tmp_path))["charts"]}
    assert (charts["Truncated"]["scale"], charts["Truncated"]["unit"], charts["Reward"]["scale"]) == ("%", "", "")
    marks = charts["Monitors, times the control"]["marks"]
    assert dict(zip(marks["y"], marks["names"], strict=True)) == {1.0: "control", 1.5: "warns", 3.0: "stops"}
