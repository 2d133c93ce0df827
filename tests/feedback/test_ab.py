import csv
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.feedback import AbPlan, AbTest, compare_arms, plan_test
from llamarl.feedback.ab_rows import read_rows
from llamarl.feedback.ab_verdicts import judge_arm
from llamarl.functional.experiments import Moments, always_valid_interval, difference_p, log_change, relative
from tests.pages import read_page

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


def row(user: str, arm: str, reacted: object = False, ts: object = "2025-03-01T10:00:00Z", **more: object) -> Row:
    return {"user": user, "arm": arm, "reacted": reacted, "ts": ts, **more}


def write(path: Path, rows: list[Any]) -> Path:
    """JSON lines; a row that is text is a line as it stands."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def draw_rows(seed: int = 0, users: int = 120, arms: tuple[str, ...] = ("base", "warm")) -> list[Row]:
    """Messages of users over four days, with two numbers beside."""
    rng = np.random.default_rng(seed)
    rows = []
    for who in range(users):
        arm, liking, before = arms[who % len(arms)], rng.lognormal(-2.0, 0.7), round(rng.random(), 3)
        for _ in range(1 + rng.poisson(4)):
            ts = f"2025-03-{1 + rng.integers(4):02d}T{rng.integers(24):02d}:00:00Z"
            more = {"turns": int(rng.poisson(3)), "down": bool(rng.random() < 0.1), "before": before}
            rows.append(row(f"u{who}", arm, bool(rng.random() < min(0.9, liking)), ts, **more))
    return rows


def sum_users(rows: list[Row], arm: str, until: str = "9999") -> Moments:
    """The moments of an arm, from its rows."""
    users: dict[str, list[int]] = {}
    for each in rows:
        if each["arm"] == arm and each["ts"][:10] <= until:
            counts = users.setdefault(each["user"], [0, 0])
            counts[0] += each["reacted"]
            counts[1] += 1
    return Moments.of(*np.array(list(users.values())).T)


def compare(path: Path, **settings: Any) -> dict[str, Any]:
    values = {"files": [str(path)], "control": "base", "threads": 1, "resamples": 400}
    return compare_arms(AbTest.parse({**values, **settings}), now=NOW)


# golden


def test_rates_by_hand(tmp_path):
    """Base: 1 of 2 and 0 of 2; warm: 1 of 1 and 1 of 3."""
    rows = [row("a", "base", True), row("a", "base"), row("b", "base"), row("b", "base")]
    rows += [row("c", "warm", True), row("d", "warm", True), row("d", "warm"), row("d", "warm")]
    result = compare(write(tmp_path / "test.jsonl", rows))
    base, warm = result["arms"]["base"], result["arms"]["warm"]
    assert [(arm["users"], arm["messages"], arm["reactions"], arm["rate"]) for arm in (base, warm)] == [
        (2, 4, 1, 0.25),
        (2, 4, 2, 0.5),
    ]
    assert (base["relative_change"], warm["relative_change"]) == (0.0, 1.0)
    assert base["interval"] == base["always_valid_interval"] == (0.0, 0.0)
    assert warm["p"] == difference_p(Moments(2, 4, 2, 2, 4, 10), Moments(1, 4, 2, 1, 2, 8))
    assert result["sample_ratio_p"] == 1.0
    assert warm["always_valid_interval"] == (-1.0, None)  # too few reactions to say anything yet
    json.dumps(result, allow_nan=False)


def test_what_is_printed_is_computed_from_the_users_sums(tmp_path):
    rows = draw_rows()
    result = compare(write(tmp_path / "test.jsonl", rows))
    base, warm = (sum_users(rows, arm) for arm in ("base", "warm"))
    found = result["arms"]["warm"]
    assert found["p"] == pytest.approx(difference_p(warm, base))
    always = relative(always_valid_interval(log_change(warm, base), 0.1))
    assert found["always_valid_interval"] == pytest.approx(always)
    low, high = found["interval"]
    assert low < found["relative_change"] < high
    assert found["p_corrected"] == found["p"]


def test_each_day_knows_the_users_so_far(tmp_path):
    rows = draw_rows(3)
    result = compare(write(tmp_path / "test.jsonl", rows))
    assert [each["day"] for each in result["by_day"]] == [f"2025-03-0{day}" for day in range(1, 5)]
    for each in result["by_day"]:
        base, warm = (sum_users(rows, arm, each["day"]) for arm in ("base", "warm"))
        found = each["arms"]["warm"]
        assert found["users"] == warm.users
        assert found["messages"] == sum(1 for r in rows if r["arm"] == "warm" and r["ts"][:10] == each["day"])
        assert found["relative_change"] == pytest.approx(warm.ratio / base.ratio - 1)
        if min(warm.total, base.total) >= 10:
            always = relative(always_valid_interval(log_change(warm, base), 0.1))
            assert found["always_valid_interval"] == pytest.approx(always)


def test_guardrails_hold_break_or_stay_open(tmp_path):
    rows = []
    for who in range(400):
        arm = ("base", "warm")[who % 2]
        worse = arm == "warm" and who % 4 == 1
        noise = [1, 11][who // 2 % 2]
        numbers = {"same": 5, "worse": 2 if worse else 1, "noisy": noise, "never": 0}
        rows.append(row(f"u{who}", arm, who % 8 < 2, **numbers))
    path = write(tmp_path / "test.jsonl", rows)
    margins = {"same": -0.02, "worse": 0.1, "noisy": -0.02, "never": 0.05}
    found = compare(path, guardrails=["noisy"], margins=margins)["arms"]["warm"]["guardrails"]
    states = {"noisy": "open", "same": "held", "worse": "broken", "never": "held"}
    assert {name: each["state"] for name, each in found.items()} == states
    assert found["never"]["relative_change"] is None
    assert found["worse"]["relative_change"] == pytest.approx(0.5)
    assert found["same"]["interval"] == (0.0, 0.0)
    assert found["worse"]["p_corrected"] == pytest.approx(4 * found["worse"]["p"])
    verdict = compare(path, margins=margins)["arms"]["warm"]["verdict"]
    assert verdict["tone"] == "bad" and "worse got worse" in verdict["title"]


def test_a_covariate_takes_out_noise(tmp_path):
    rng = np.random.default_rng(5)
    rows = []
    for who in range(600):
        liking = rng.uniform(0.05, 0.6)
        rows += [
            row(f"u{who}", ("base", "warm")[who % 2], bool(rng.random() < liking), before=liking) for _ in range(20)
        ]
    result = compare(write(tmp_path / "test.jsonl", rows), covariate="before")
    cuped = result["arms"]["warm"]["cuped"]
    assert cuped["variance_reduction"] > 0.5
    always = cuped["always_valid_interval"]
    assert always[0] < cuped["interval"][0] < cuped["relative_change"] < cuped["interval"][1] < always[1]
    assert result["users_without_covariate"] == 0


def test_many_arms_are_corrected_and_some_can_be_left_out(tmp_path):
    path = write(tmp_path / "test.jsonl", draw_rows(1, arms=("base", "cold", "hot", "warm")))
    arms = compare(path)["arms"]
    assert list(arms) == ["base", "cold", "hot", "warm"]
    assert min(arms[name]["p_corrected"] / arms[name]["p"] for name in ("cold", "hot", "warm")) >= 1.0
    smallest = min(("cold", "hot", "warm"), key=lambda name: arms[name]["p"])
    assert arms[smallest]["p_corrected"] == pytest.approx(min(1.0, 3 * arms[smallest]["p"]))
    assert list(compare(path, arms=["warm"])["arms"]) == ["base", "warm"]


@pytest.mark.parametrize(
    ("interval", "title"),
    [
        ((0.01, 1.8), "warm raised the love rate, if this is the planned end"),
        ((-0.01, 1.8), "No change of the love rate by warm can be told from chance"),
        ((-0.01, None), "No change of the love rate by warm can be told from chance"),
    ],
)
def test_a_small_p_claims_nothing_that_the_interval_denies(interval, title):
    arm = {"relative_change": 0.6, "interval": interval, "p_corrected": 0.048, "always_valid_interval": (-0.7, 7.0)}
    verdict = judge_arm("warm", arm | {"guardrails": {}}, 1)
    assert verdict["title"] == title
    assert ("this is the border" in verdict["text"]) == (interval[0] < 0)


# dropped, and said


def test_a_user_in_two_arms_is_named_and_in_none(tmp_path):
    rows = draw_rows()
    clean = compare(write(tmp_path / "clean.jsonl", rows))
    crossed = [row("both", "base", True), row("both", "warm", True), row("both", "warm")]
    result = compare(write(tmp_path / "test.jsonl", [*crossed, *rows]))
    assert result["dropped"] == {"user_in_two_arms": {"users": 1, "rows": 3, "first": ["both"]}}
    assert result["rows"] == len(rows) + 3
    assert result["arms"] == clean["arms"]


def test_arms_of_wrong_size_are_said_before_all_else(tmp_path):
    rows = [row(f"u{who}", "base" if who < 300 else "warm", who % 3 == 0) for who in range(500)]
    path = write(tmp_path / "test.jsonl", rows)
    result = compare(path)
    assert result["sample_ratio_p"] < 1e-4 and result["size_verdict"]["tone"] == "bad"
    planned = compare(path, shares={"base": 3, "warm": 2})
    assert planned["sample_ratio_p"] == 1.0
    assert planned["sample_ratio"]["base"]["planned"] == 0.6


# invariance


def test_files_of_all_kinds_and_rows_of_users_say_the_same(tmp_path):
    rows = draw_rows()
    lines = write(tmp_path / "test.jsonl", rows)
    expected = compare(lines, margins={"turns": -0.1}, covariate="before")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    with open(tmp_path / "test.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("test.parquet", "test.csv"):
        assert compare(tmp_path / name, margins={"turns": -0.1}, covariate="before") == expected
    users: dict[str, Row] = {}
    for each in rows:
        sums = users.setdefault(each["user"], {"user": each["user"], "arm": each["arm"], "messages": 0, "reactions": 0})
        sums["messages"] += 1
        sums["reactions"] += int(each["reacted"])
    of_users = compare(write(tmp_path / "users.jsonl", list(users.values())))
    assert of_users["by_day"] == []
    names = ("rate", "relative_change", "interval", "p", "always_valid_interval")
    assert [of_users["arms"]["warm"][name] for name in names] == [expected["arms"]["warm"][name] for name in names]


def test_a_test_in_many_files_is_one_test(tmp_path):
    rows = draw_rows()
    whole = compare(write(tmp_path / "whole.jsonl", rows))
    for place in range(3):
        write(tmp_path / f"part-{place}.jsonl", rows[place::3])
    assert compare(tmp_path / "part-*.jsonl") == whole


def test_other_names_of_columns_and_spellings_of_truth(tmp_path):
    spellings = (True, 0, 1.0, "false", "1", "TRUE")
    rows = [
        {"uid": who, "variant": ("warm", "base")[who % 2], "heart": spellings[who % 6], "at": 1740823200}
        for who in range(60)
    ]
    columns = {"user": "uid", "arm": "variant", "reacted": "heart", "ts": "at"}
    arms = compare(write(tmp_path / "test.jsonl", rows), columns=columns)["arms"]
    assert (arms["base"]["reactions"], arms["warm"]["reactions"]) == (10, 30)


def test_a_guardrail_may_be_called_like_a_field_or_anything(tmp_path):
    odd = {"messages": 2, "day": 3, "line": 4, "a'b\"c": 5, "number turns": 6}
    path = write(tmp_path / "test.jsonl", [each | odd for each in GOOD])
    found = compare(path, guardrails=["reacted", *odd])["arms"]["warm"]["guardrails"]
    assert {name: each["mean"] for name, each in found.items()} == {"reacted": 0.5, **odd}


def test_space_around_names_does_not_matter(tmp_path):
    rows = [each | {"user": f" {each['user']}" if place % 2 else each["user"]} for place, each in enumerate(GOOD * 2)]
    assert compare(write(tmp_path / "test.jsonl", rows))["arms"]["warm"]["users"] == 6


def test_a_day_ends_at_midnight_of_the_zone(tmp_path):
    rows = [row(f"u{who}", ("base", "warm")[who % 2], who < 4, "2025-03-01T23:30:00Z") for who in range(8)]
    settings = AbTest(files=(str(write(tmp_path / "test.jsonl", rows)),), control="base", time_zone="Europe/Paris")
    assert list(read_rows(settings, NOW).arms["base"].days) == [date(2025, 3, 2)]


# rejects

GOOD = [row(f"u{who}", ("base", "warm")[who % 2], who % 4 < 2, turns=1, before=0.5) for who in range(12)]


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"user": None}, {}, "line 13: user: missing"),
        ({"user": ["a"]}, {}, "line 13: user: neither text nor a number"),
        ({"arm": " "}, {}, "line 13: arm: missing"),
        ({"arm": True}, {}, "line 13: arm: neither text nor a number 'true'"),
        ({"reacted": "yes"}, {}, "line 13: reacted: neither true nor false 'yes'"),
        ({"reacted": 2}, {}, "line 13: reacted: neither true nor false '2'"),
        ({"reacted": None}, {}, "line 13: reacted: missing"),
        ({"ts": None}, {}, "line 13: ts: missing"),
        ({"ts": "yesterday"}, {}, "line 13: ts: no time 'yesterday'"),
        ({"ts": "1999-12-31T10:00:00Z"}, {}, "line 13: ts: impossible time, not between 2000-01-01 and 2026-01-02"),
        ({"ts": "2026-02-01T10:00:00Z"}, {}, "line 13: ts: impossible time"),
        ({"turns": "many"}, {"guardrails": ["turns"]}, "line 13: turns: not a number 'many'"),
        ({"turns": "nan"}, {"margins": {"turns": -0.1}}, "line 13: turns: not a number 'nan'"),
        (
            {"user": "u1", "before": 0.6},
            {"covariate": "before"},
            "before: differs between rows of 1 users",
        ),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_counted_is_named(tmp_path, changes, settings, words):
    path = write(tmp_path / "test.jsonl", [*GOOD, row("x", "warm", True, turns=1, before=0.5) | changes])
    before = path.read_bytes()
    with pytest.raises(DataError) as error:
        compare(path, report=tmp_path / "report.html", **settings)
    assert words in str(error.value)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["test.jsonl"]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([], {}, "the files hold no row"),
        (["{}"], {}, "no column 'user', 'arm', 'reacted', 'ts'"),
        (["{", *GOOD], {}, "line 1: no JSON"),
        (["[1]", *GOOD], {}, "line 1: no JSON object"),
        ([{"user": 1, "reacted": True, "ts": 1}], {}, "no column 'arm'"),
        ([{"user": 1, "arm": "base", "reactions": 1}], {}, "no column 'messages'"),
        (GOOD, {"guardrails": ["dwell"]}, "no column 'dwell'"),
        (GOOD, {"control": "bas"}, "control: no row is of arm 'bas'. Did you mean 'base'?"),
        (GOOD, {"arms": ["hot"]}, "arms: no row is of arm 'hot'"),
        (GOOD, {"shares": {"base": 1}}, "shares: arm 'warm'"),
        (GOOD, {"columns": {"who": "user"}}, "columns: 'who' is no field"),
        (GOOD, {"files": ["nowhere.jsonl"]}, "nowhere.jsonl: no such file"),
        (GOOD, {"report": "report.txt"}, "ends in .html"),
        (
            [each for each in GOOD if each["arm"] == "base"],
            {},
            "all rows are of arm 'base'",
        ),
        (
            [each | {"reacted": each["arm"] == "base"} for each in GOOD],
            {},
            "arm 'warm': no reaction to 6 messages of 6",
        ),
        ([*GOOD[:-1:2], row("u1", "warm", True)], {}, "arm 'warm' has one user"),
        ([row("a", "base", True), row("a", "warm", True)], {}, "each of its users is in another arm too"),
        ([*GOOD, {**GOOD[0], "turns": None}], {"guardrails": ["none"]}, "no column 'none'"),
        (
            [each | {"none": None} for each in GOOD],
            {"guardrails": ["none"]},
            "none: fewer than two users of arm 'base'",
        ),
        ([each | {"none": None} for each in GOOD], {"covariate": "none"}, "none: no row has a value"),
        (
            [{"user": who, "arm": "ab"[who % 2], "messages": 1, "reactions": 2} for who in range(4)],
            {"control": "a"},
            "reactions: more than messages",
        ),
        (
            [{"user": who, "arm": "ab"[who % 2], "messages": 1.5, "reactions": 1} for who in range(4)],
            {"control": "a"},
            "messages: not a count '1.5'",
        ),
    ],
    ids=str,
)
def test_a_test_that_cannot_be_compared_is_refused(tmp_path, monkeypatch, rows, settings, words):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "test.jsonl", rows)
    with pytest.raises((ConfigError, DataError)) as error:
        compare(path, **settings)
    assert words in str(error.value)


def test_a_torn_parquet_and_columns_of_lists_are_named(tmp_path):
    good = tmp_path / "good.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), good)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"torn\.parquet: no readable Parquet"):
        compare(torn)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([each | {"user": [1]} for each in GOOD]), good)
    with pytest.raises(DataError, match="user: values of type list<"):
        compare(good)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{k: v for k, v in GOOD[0].items() if k != "arm"}]), good)
    with pytest.raises(DataError, match="no column 'arm'; it has user, reacted, ts, turns, before"):
        compare(good)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"margins": {"turns": 0}}, "turns=0: a relative change above -1 that is not 0"),
        ({"margins": {"turns": -1}}, "turns=-1"),
        ({"shares": {"base": 0}}, "base=0: must be above 0"),
        ({"arms": ["base"]}, "'base' is the control"),
        ({"expected_change": 0}, "expected_change"),
    ],
)
def test_settings_that_mean_nothing(settings, words):
    with pytest.raises(ConfigError) as error:
        AbTest.parse({"files": ["x.jsonl"], "control": "base", **settings})
    assert words in str(error.value)


# the report


def test_a_report_holds_what_was_found(tmp_path):
    rows = [each | {"user": f"<b>{each['user']}"} for each in draw_rows(2)]
    rows += [row("<i>both", "base", True), row("<i>both", "warm", True)]
    for each in rows:
        each["arm"] = each["arm"].replace("warm", "<script>warm")
    result = compare(
        write(tmp_path / "test.jsonl", rows),
        margins={"turns": -0.5},
        covariate="before",
        report=tmp_path / "report.html",
    )
    html = (tmp_path / "report.html").read_text()
    assert result["report"] == str(tmp_path / "report.html")
    assert "<script>warm" not in html and "<i>both" not in html
    page = read_page(tmp_path / "report.html")
    assert {"<script>warm", "<script>warm + before"} <= set(page.texts) and "<i>both" in " ".join(page.texts)
    assert [part["title"] for part in page.parts("section")] == [
        "Love rate",
        "Day by day",
        "Guardrails",
        "Sample ratio",
        "How it was computed",
    ]
    assert [part["title"] for part in page.parts("rows")] == [
        "Love rate",
        "Relative change of the love rate",
        "Relative change of guardrails",
    ]
    assert len(page.parts("lines")) == 1
    assert result["arms"]["<script>warm"]["verdict"]["title"] in page.texts


# plans


def plan(**settings: Any) -> dict[str, Any]:
    return plan_test(AbPlan.parse({"base_rate": 0.02, "change": 0.1, "users_per_day": 2000, **settings}))


def test_a_plan_ends_on_the_first_day_with_the_power(tmp_path):
    found = plan(correlation=0.0, spread=0.0, messages_per_user=1.0)
    before, at = found["curve"][found["days"] - 2], found["curve"][found["days"] - 1]
    assert before["power"] < 0.8 <= at["power"] == found["power"]
    # 16 p (1 - p) / difference^2 of each arm, for a power of 80%
    assert found["users_per_arm"] == pytest.approx(16 * 0.021 * 0.979 / 0.002**2, rel=0.03)
    assert found["users"] == found["days"] * 2000 == found["messages"]
    assert found["detectable_change"] == pytest.approx(0.1, abs=0.002)


def test_what_makes_a_test_longer():
    usual = plan()["days"]
    assert plan(correlation=0.1)["days"] > usual
    assert plan(arms=4)["days"] > usual
    assert plan(returning=0.8)["days"] > usual
    assert plan(power=0.9)["days"] > usual
    assert plan(change=-0.1)["days"] < usual  # a lower rate varies less
    assert plan(design_effect=1.0)["days"] < usual


def test_the_same_users_again_and_again_may_never_be_enough():
    found = plan(returning=1.0, users_per_day=100, correlation=0.2, max_days=60)
    assert found["days"] is None and found["users"] == 100
    assert found["power"] < 0.5 and len(found["curve"]) == 60


def test_a_plans_page_shows_its_curve(tmp_path):
    found = plan(report=tmp_path / "plan.html")
    page = read_page(tmp_path / "plan.html")
    assert any(text.startswith(f"{found['days']} days find a change of +10.0%") for text in page.texts)
    power, change = page.parts("lines")
    assert power["marks"] == {"x": [found["days"]], "y": [0.8]} and len(power["table"]["steps"]) == len(found["curve"])
    assert change["marks"]["y"] == [0.1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"change": 0}, "0 cannot be found"),
        ({"base_rate": 0.6, "change": 0.7}, "is no rate"),
        ({"base_rate": 0}, "base_rate"),
    ],
)
def test_plans_of_nothing(settings, words):
    with pytest.raises(ConfigError, match=words):
        plan(**settings)
