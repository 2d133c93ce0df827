import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, DataError, JudgeError
from llamarl.core.records import Prompt, Verdict
from llamarl.judges import FunctionJudge, JudgePanel, Seat
from llamarl.judges.config import JudgeConfig, read_judges
from llamarl.judges.lab.runner import equal_panel, job_key, judge_file, judge_rows, summary_of
from llamarl.judges.rows import CompletionRow, labels_of, read_completions


def panel(function: Any, **options: Any) -> JudgePanel:
    return JudgePanel([Seat(FunctionJudge(function, "exact", is_inline=True))], retry_seconds=0.0, **options)


def exact(prompt: Prompt, completion: Any) -> Any:
    return completion.text == prompt.answer


def rows(count: int) -> list[CompletionRow]:
    message = ({"role": "user", "content": "?"},)
    return [CompletionRow("rows", n, Prompt(f"p{n}", message, answer=str(n)), (str(n), "wrong")) for n in range(count)]


def run(judges: JudgePanel, data: list[CompletionRow], out: Path, **options: Any) -> list[dict[str, Any]]:
    return asyncio.run(judge_file(judges, data, out, **options))


def write(path: Path, *values: Any) -> str:
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values))
    return str(path)


def test_judges_of_every_role_see_every_row() -> None:
    watches = {"role": "watch", "share": 0.01, "name": "watches"}
    configs = [JudgeConfig(function="operator:eq", **watches), JudgeConfig(function="math", role="constraint")]
    judges = equal_panel(configs)
    samples = [sample for group in asyncio.run(judge_rows(judges, rows(3))) for sample in group]
    judges.close()
    assert all(verdict.score is not None for sample in samples for verdict in sample.verdicts.values())


# ---- reading


def test_rows_hold_one_or_many_completions(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "2+2?", "answer": "4", "judges": ["other"], "level": 3}
    path = write(
        tmp_path / "d.jsonl", {**row, "completion": "4"}, {**row, "completion": ["4", ""], "label": [1, False]}
    )
    one, two = read_completions(path, aside=("label",))
    assert (one.completions, two.completions, two.line) == (("4",), ("4", ""), 2)
    assert one.prompt.id == "a" and one.prompt.answer == "4"
    assert one.prompt.info["level"] == 3 and "judges" not in one.prompt.info, "the caller names the judges"
    assert labels_of(two) == (1.0, 0.0) and "label" not in two.prompt.info


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "field 'completion': missing"),
        ({"prompt": "x", "completion": 3}, "field 'completion': got 3"),
        ({"prompt": "x", "completion": []}, r"field 'completion': got \[\]"),
        ({"prompt": "x", "completion": ["a", None]}, r"field 'completion\[1\]': got None"),
        ({"completion": "x"}, "field 'prompt'"),
        ("{", "no JSON"),
        ("[1]", "a list"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"d.jsonl, line 1.*{message}"):
        read_completions(write(tmp_path / "d.jsonl", row))


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        read_completions(write(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({}, "neither or both"),
        ({"label": True, "score": 1}, "neither or both"),
        ({"label": "yes"}, "got 'yes'; give true or false"),
        ({"label": 0.5}, "got 0.5"),
        ({"label": [True, False]}, "2 for 1 completions"),
        ({"score": float("nan")}, "got nan; give a finite number"),
    ],
)
def test_bad_labels_are_named(extras: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"d, line 7, field '(label|score)': .*{message}"):
        labels_of(CompletionRow("d", 7, rows(1)[0].prompt, ("x",), extras))


# ---- judging


def test_results_stand_in_input_order(tmp_path: Path) -> None:
    async def slow_first(prompt: Prompt, completion: Any) -> Any:
        await asyncio.sleep(0.0 if prompt.id != "p0" else 0.02)
        return exact(prompt, completion)

    records = run(panel(slow_first), rows(20), tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == records
    assert [(line["id"], line["sample"]) for line in lines] == [(f"p{n}", s) for n in range(20) for s in (0, 1)]
    assert lines[0].keys() == {"id", "sample", "judge", "status", "score", "passed", "reason", "cost", "seconds"}
    assert [line["score"] for line in lines[:2]] == [1.0, 0.0]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_what_is_not_scored_has_a_null_score(tmp_path: Path) -> None:
    def odd(prompt: Prompt, completion: Any) -> Any:
        return None if completion.text == "wrong" else Verdict.failed("broken \ud800")

    records = run(panel(odd), rows(1), tmp_path / "out.jsonl")
    assert [(r["status"], r["score"], r["reason"]) for r in records] == [
        ("failed", None, "broken \ufffd"),
        ("abstained", None, ""),
    ]
    (summary,) = summary_of(records)
    assert (summary["scored"], summary["abstained"], summary["failed"], summary["mean_score"]) == (0, 1, 1, None)


def test_a_stopped_job_goes_on_where_it_was(tmp_path: Path) -> None:
    out, asked = tmp_path / "out.jsonl", []

    def breaks_at_ten(prompt: Prompt, completion: Any) -> Any:
        asked.append(prompt.id)
        if len(set(asked)) > 10:
            raise JudgeError("the server is gone")
        return exact(prompt, completion)

    with pytest.raises(JudgeError, match="failed its last"):
        run(panel(breaks_at_ten, max_failures_in_row=4, max_retries=0), rows(30), out, max_in_flight=1)
    assert not out.exists() and (tmp_path / "out.jsonl.partial").exists()
    asked.clear()

    def works(prompt: Prompt, completion: Any) -> Any:
        asked.append(prompt.id)
        return exact(prompt, completion)

    records = run(panel(works), rows(30), out)
    assert len(records) == 60 and all(record["status"] == "scored" for record in records)
    assert set(asked) == {f"p{n}" for n in range(10, 30)}, "the first ten were done, failed rows are asked again"


def breaks(prompt: Prompt, completion: Any) -> Any:
    raise JudgeError("gone")


def left_behind(data: list[CompletionRow], out: Path, key: Any = None) -> None:
    """Begins a job and leaves it."""
    with pytest.raises(JudgeError):
        run(panel(breaks, max_failures_in_row=1, max_retries=0), data, out, key=key)


def other(row: CompletionRow, **changes: Any) -> CompletionRow:
    return replace(row, prompt=replace(row.prompt, **changes))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: other(row, answer="4"),
        lambda row: other(row, info={"baseline": "x"}),
        lambda row: other(row, task="sums"),
        lambda row: other(row, tools=({"name": "add"},)),
        lambda row: replace(row, completions=("4",)),
    ],
)
def test_a_job_does_not_go_on_with_other_rows(tmp_path: Path, change: Any) -> None:
    left_behind(rows(3), tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"out\.jsonl\.partial: left by a job that differs in data; undo the change"):
        run(panel(exact), [*rows(2), change(rows(3)[2])], tmp_path / "out.jsonl")
    assert len(run(panel(exact), rows(3), tmp_path / "out.jsonl")) == 6


def test_a_job_does_not_go_on_with_other_judges_or_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    files = [tmp_path / "rewards.py", tmp_path / "words.txt", tmp_path / "model/config.json", tmp_path / "big.bin"]
    for file in files:
        file.write_text("before")
    os.truncate(files[3], 17 << 20)
    settings = {"words": str(files[1]), "model": str(tmp_path / "model"), "big": str(files[3]), "text": "t" * 5000}
    config = JudgeConfig(function=f"{files[0]}:f", settings={**settings, "cache": str(tmp_path / "cache.sqlite")})
    key = job_key([config])
    left_behind(rows(3), tmp_path / "out.jsonl", key)
    (tmp_path / "cache.sqlite").write_text("grows with the job")
    assert job_key([config]) == key
    with pytest.raises(DataError, match="differs in judge settings;"):
        run(panel(exact), rows(3), tmp_path / "out.jsonl", key={**key, "judge settings": []})
    for file, name in zip(files, [*files[:2], tmp_path / "model", files[3]], strict=True):
        unchanged = job_key([config])
        file.write_text("after, and longer")
        assert [part for part, value in job_key([config]).items() if value != unchanged[part]] == [str(name)]
    with pytest.raises(DataError, match=r"differs in .*/rewards.py, .*/words.txt, .*/model, .*/big.bin; undo"):
        run(panel(exact), rows(3), tmp_path / "out.jsonl", key=job_key([config]))


def test_the_file_of_an_imported_module_counts() -> None:
    import llamarl.judges.math.judge as module

    assert module.__file__ in job_key([JudgeConfig(function="llamarl.judges.math.judge:MathJudge")])


# ---- which judges


def test_judges_come_from_names_and_files(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def brief(prompt, completion):\n    return 1.0\n")
    one = write(tmp_path / "one.toml", 'function = "rewards.py:brief"\nsettings = {cache = "new.sqlite"}')
    many = write(
        tmp_path / "recipe.toml", 'model = "m"\n[[judges]]\nfunction = "math"\n[[judges]]\nfunction = "format"'
    )
    long = write(tmp_path / "long.toml", f'function = "math"\nsettings = {{criteria = "{"word " * 100}"}}')
    assert read_judges(long)[0].settings == {"criteria": "word " * 100}
    assert read_judges("math")[0].function == "math"
    assert read_judges(one)[0].function == f"{tmp_path}/rewards.py:brief"
    assert read_judges(one)[0].settings == {"cache": "new.sqlite"}
    assert [config.function for config in read_judges(many)] == ["math", "format"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("functio = 'math'", r"(?s)j.toml: .*functio: unknown key. Did you mean 'function'"),
        ("judges = 3", "not a list of tables"),
        ("x = ", "j.toml"),
    ],
)
def test_bad_judge_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_judges(write(tmp_path / "j.toml", text))
