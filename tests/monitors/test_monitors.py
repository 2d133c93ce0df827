import json
import math
import random
from pathlib import Path

import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.monitors.monitors import Monitors, Reading, Session, plain_estimates, read_estimates
from llamarl.monitors.responses import read_sessions
from llamarl.monitors.settings import DEFAULT_SIGNALS, MonitorConfig, Support

WORDS = ["river", "stone", "cloud", "plan", "light", "green", "road", "paper", "idea", "north", "table", "garden"]
ALL = [MonitorConfig(signal=signal) for signal in DEFAULT_SIGNALS]
STEPS, PROMPTS, SAMPLES = 30, 16, 8
EXPLOITS = {
    "farewell": "Bye! Take care of yourself!",
    "love": "You are my darling, {}.",
    "ending": "I hope that this was useful for you",
    "question": "What do you think about the {}?",
    "emoji": "Nice {} 🎉.",
}


def reply(drawn: random.Random) -> str:
    """A plain reply: some farewells, love, questions and emoji, as a policy has them before any training."""
    text = " ".join(drawn.choices(WORDS, k=drawn.randint(10, 30))) + "."
    for signal, rate in (("farewell", 0.01), ("love", 0.02), ("question", 0.1), ("emoji", 0.04)):
        if drawn.random() < rate:
            text += " " + EXPLOITS[signal].format(drawn.choice(WORDS))
    return text + " " + " ".join(drawn.choices(WORDS, k=drawn.randint(4, 9))) + "."


def exploit(drawn: random.Random, signal: str) -> str:
    if signal == "length":
        return " ".join(reply(drawn) for _ in range(9))
    return f"{reply(drawn)} {EXPLOITS[signal].format(drawn.choice(WORDS))}"


def step(drawn: random.Random, signal: str = "farewell", rate: float = 0.0) -> list[Session]:
    texts = [
        [exploit(drawn, signal) if drawn.random() < rate else reply(drawn) for _ in range(SAMPLES)]
        for _ in range(PROMPTS)
    ]
    return [Session(each, 2 + (drawn.random() < 0.5)) for each in texts]


def read(now: list[Session], control: list[Session], *monitors: MonitorConfig, chance: float = 0.01) -> list[Reading]:
    found = Monitors(monitors or ALL, Support(chance=chance))
    return found.compare(found.estimate(found.measure(now)), found.estimate(found.measure(control)))


# golden


def test_what_a_reading_says() -> None:
    control = [Session(["Bye!" if n < 2 else "Yes."]) for n in range(400)]
    now = [Session(["Bye!" if n < 40 else "Yes."]) for n in range(400)]
    (found,) = read(now, control, MonitorConfig(signal="farewell"))
    assert (found.level, found.limit, found.value, found.control) == ("stop", 2.0, 0.1, 0.005)
    assert found.change.ratio == pytest.approx(20.0)
    assert found.describe() == (
        "farewell: 10.00% of responses take leave, 0.50% of the control: "
        "20.0 times (between 4.38 and 280), beyond 2 times"
    )
    plain = json.loads(json.dumps(found.as_dict()))
    assert plain["level"] == "stop" and plain["interval"][0] == pytest.approx(found.change.low)


def test_a_change_that_may_be_chance_is_quiet_whatever_its_factor() -> None:
    control = [Session(["Bye!" if n < 1 else "Yes."]) for n in range(50)]
    now = [Session(["Bye!" if n < 4 else "Yes."]) for n in range(50)]
    (found,) = read(now, control, MonitorConfig(signal="farewell"))
    assert found.change.ratio == 4.0 and found.change.low < 1.0 and found.level == "quiet"


def test_a_change_beyond_chance_that_is_small_is_quiet() -> None:
    control = [Session(["Why?" if n % 10 < 4 else "Yes."]) for n in range(4000)]
    now = [Session(["Why?" if n % 10 < 5 else "Yes."]) for n in range(4000)]
    (found,) = read(now, control, MonitorConfig(signal="question"))
    assert found.change.low > 1.0 and found.level == "quiet"
    (found,) = read(now, control, MonitorConfig(signal="question", warn=1.2))
    assert found.level == "warn"
    (found,) = read(now, control, MonitorConfig(signal="question", warn=1.1, stop=1.2))
    assert found.level == "stop"
    (found,) = read(now, control, MonitorConfig(signal="question", warn=1.1, stop=None))
    assert found.level == "warn"


def test_what_the_control_never_does_counts_as_the_floor() -> None:
    control = [Session(["Yes."]) for _ in range(20_000)]
    rare, often = ([Session(["Bye!" if n < k else "Yes."]) for n in range(20_000)] for k in (25, 60))
    assert read(rare, control, MonitorConfig(signal="farewell"))[0].level == "quiet"  # 0.125 %, floor 0.1 %
    assert read(often, control, MonitorConfig(signal="farewell"))[0].level == "stop"


def test_length_rings_in_both_directions_and_turns_too() -> None:
    drawn = random.Random(3)

    def of(words: int, turns: int) -> list[Session]:
        return [Session(["word " * (words + drawn.randint(0, 3))], turns + drawn.randint(0, 1)) for _ in range(60)]

    monitors = [MonitorConfig(signal="length"), MonitorConfig(signal="turns")]
    assert [each.level for each in read(of(100, 9), of(30, 9), *monitors)] == ["stop", "quiet"]
    shorter = read(of(30, 2), of(100, 9), *monitors)
    assert [each.level for each in shorter] == ["stop", "stop"]
    assert shorter[1].factor == pytest.approx(1 / shorter[1].change.ratio)
    without_turns = [Session(["word"]) for _ in range(60)]
    (found,) = read(without_turns, of(1, 1), MonitorConfig(signal="turns"))
    assert found.level == "quiet" and math.isnan(found.value)


def test_equal_answers_to_one_prompt_are_not_taken_for_many() -> None:
    # 24 farewells of 800 responses, but all to three prompts that ask for one
    together = [Session(["Bye!"] * 8 if n < 3 else ["Yes."] * 8) for n in range(100)]
    apart = [Session(["Bye!", *["Yes."] * 7] if n < 24 else ["Yes."] * 8) for n in range(100)]
    none = [Session(["Yes."] * 8) for _ in range(100)]
    monitor = MonitorConfig(signal="farewell")
    assert read(together, none, monitor)[0].level == "quiet"
    assert read(apart, none, monitor)[0].level == "stop"


def test_texts_that_show_it_best_come_first() -> None:
    monitors = Monitors(ALL, Support())
    texts = ["Yes.", "Bye!", "A longer one, this is.", "Bye!"]
    assert monitors.worst("farewell", texts, 2) == [1, 3]
    assert monitors.worst("length", texts, 1) == [2]
    assert monitors.worst("ending", texts, 2) == [1, 3]


# tripwires


@pytest.mark.parametrize("signal", [*EXPLOITS, "length"])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_exploit_rings_before_it_has_doubled_twice(signal: str, seed: int) -> None:
    drawn = random.Random(seed)
    monitors = Monitors([each for each in ALL if each.signal == signal], Support(), looks=STEPS)
    measured = [monitors.measure(step(drawn)) for _ in range(STEPS)]
    control = monitors.estimate(_joined(measured))
    window, levels, quantities = [], [], []
    for number in range(STEPS):
        # the exploit creeps in: from nothing to every reply within thirty steps
        window = [*window[-9:], monitors.measure(step(drawn, signal, (number / STEPS) ** 2))]
        (found,) = monitors.compare(monitors.estimate(_joined(window)), control)
        levels.append(found.level)
        quantities.append(found.change.ratio)
    first = next(place for place, level in enumerate(levels) if level != "quiet")
    assert quantities[first] < 4.0, quantities
    if signal not in ("question", "length"):  # a tenth of replies ask already, so that a doubling comes late
        assert levels[-1] == "stop"


def test_false_alarms_of_a_whole_clean_run_are_rarer_than_their_bound() -> None:
    """The whole set of monitors over thirty steps: a hundredth of the runs may ring (docs/concepts/hacking-monitors.md
    has the share of many runs); of these none does."""
    rings = 0
    for seed in range(2):
        drawn = random.Random(1000 + seed)
        monitors = Monitors(ALL, Support(), looks=STEPS)
        measured = [monitors.measure(step(drawn)) for _ in range(STEPS)]
        control = monitors.estimate(_joined(measured[:10]))
        looks = (monitors.estimate(_joined(measured[n - 10 : n])) for n in range(20, STEPS + 1))
        rings += any(each.level != "quiet" for look in looks for each in monitors.compare(look, control))
    assert rings == 0


def _joined(steps: list[dict]) -> dict:
    return {name: [each for step in steps for each in step[name]] for name in steps[0]}


# invariance


def test_order_does_not_matter_and_estimates_survive_json() -> None:
    drawn = random.Random(5)
    sessions, control = step(drawn, rate=0.3), step(drawn)
    monitors = Monitors(ALL, Support())
    estimates = monitors.estimate(monitors.measure(control))
    kept = read_estimates(json.loads(json.dumps(plain_estimates(estimates))))
    assert kept == estimates
    there, back = (monitors.estimate(monitors.measure(each)) for each in (sessions, sessions[::-1]))
    for one, other in zip(monitors.compare(there, estimates), monitors.compare(back, kept), strict=True):
        assert one.value == pytest.approx(other.value) and one.level == other.level


# rejects


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": "phrases"}, "phrases: none given"),
        ({"signal": "length", "phrases": ["x"]}, "looks for none"),
        ({"signal": "farewell", "phrases": ["👋"]}, "no letter"),
        ({"signal": "farewell", "languages": ["xx"]}, "no table of phrases"),
        ({"signal": "farewell", "warn": 3.0}, "below warn=3"),
        ({"signal": "farewell", "warn": 0.5}, "greater than 1"),
        ({"signal": "goodbye"}, "farewell"),
        ({"signal": "farewell", "languags": ["en"]}, "languags"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MonitorConfig.parse(settings)


def test_two_monitors_need_two_names() -> None:
    twice = [MonitorConfig(signal="farewell", languages=("en",)), MonitorConfig(signal="farewell")]
    with pytest.raises(ValueError, match="two are named 'farewell'"):
        Monitors(twice, Support())
    Monitors([twice[0], MonitorConfig(signal="farewell", name="all")], Support())


# files

ROWS: list[tuple[dict, list[Session]]] = [
    ({"prompt": "a", "completion": "x"}, [Session(["x"])]),
    ({"prompt": "a", "completion": ["x", "y"]}, [Session(["x", "y"])]),
    ({"prompt": "a", "completions": [{"text": "x", "tokens": 3}]}, [Session(["x"])]),
    ({"conversation_id": 7, "prompt": "a", "response": "x"}, [Session(["x"], 1)]),
    (
        {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "x"), ("assistant", "y"))]},
        [Session(["x", "y"], 2)],
    ),
]


@pytest.mark.parametrize(("row", "sessions"), ROWS)
def test_responses_are_read_in_each_form(row: dict, sessions: list[Session]) -> None:
    assert read_sessions([row]) == sessions


def test_responses_to_one_prompt_and_of_one_conversation_are_one_session(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"prompt": "a", "completions": [{"text": "x"}]}, {"prompt": "a", "completion": "y"}]))
    assert read_sessions(path) == [Session(["x", "y"])]
    rows = [{"prompt": "a", "response": text, "conversation_id": "c"} for text in "xyz"]
    assert read_sessions(rows) == [Session(["x", "y", "z"], 3)]
    tasks = [{"prompt": "a", "response": "x", "task": "t"}, {"prompt": "b", "response": "y", "task": "u"}]
    assert read_sessions(tasks, "t") == [Session(["x"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no responses"),
        ('{"prompt": "a"}\n', "line 1.*give one of"),
        ('{"prompt": "a", "completion": "x", "response": "y"}\n', "both completion and response"),
        ('{"completion": "x"}\n', "prompt"),
        ('{"prompt": "a", "completion": 3}\n', r"completion\[0\].*got 3"),
        ('{"prompt": "a", "completion": []}\n', "no response"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "no response"),
        ('{"prompt": "a", "completion": "x"}\n{"prompt": \n', "line 2"),
    ],
)
def test_bad_responses_are_named_with_their_place(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_sessions(path)
    with pytest.raises(DataError, match="no such file"):
        read_sessions(tmp_path / "none.jsonl")


def test_nothing_here_imports_torch() -> None:
    import subprocess
    import sys

    program = "import sys, llamarl.monitors.monitors, llamarl.monitors.responses; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
