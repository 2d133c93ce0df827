import itertools
import json
from typing import Any

import pytest
from rig import PROMPTS, Rig, ScriptedAlgorithm, small

from llamarl.controller.task import RunTask
from llamarl.controller.watch import Alarm, HackingWatch, WatchConfig, repetition
from llamarl.core.errors import ConfigError, HackingError
from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory, Verdict
from llamarl.monitors.monitors import Monitors, Session
from llamarl.testing import ScriptedGenerator, run_virtual

CONFIG = WatchConfig(window=2)
OTHER = "one two three four five six"


def sample(reward: float, witness: float, text: str = OTHER, tokens: int = 4, style: float | None = None) -> Sample:
    ids = tuple(range(tokens))
    completion = Completion(Trajectory.given((1,), ids), text)
    verdicts = {"proxy": Verdict.scored(reward), "true": Verdict.scored(witness, passed=witness > 0.5)}
    if style is not None:
        verdicts["style"] = Verdict.scored(style)
    return Sample(completion, verdicts, reward)


def step(*samples: Sample) -> list[Group]:
    return [Group(Prompt("p7", ({"role": "user", "content": "?"},)), samples)]


# reward 0.2 +- 0.2, true 3/4
HONEST = step(*[sample(0.0, 1.0), sample(0.4, 0.0), sample(0.0, 1.0), sample(0.4, 1.0)] * 8)
# reward 0.95, true 1/4
CHEATING = step(*[sample(1.0, 0.0), sample(0.9, 0.0), sample(1.0, 0.0), sample(0.9, 1.0)] * 8)


def watch_steps(*steps: list[Group], watch: HackingWatch | None = None) -> tuple[dict[str, float], list[str]]:
    watch, texts = watch or HackingWatch(CONFIG, {"proxy": 1.0}), []
    for version, groups in enumerate(steps, start=1):
        metrics, alarms = watch.look(version, groups)
        texts += [alarm.text for alarm in alarms]
    return metrics, texts


def test_a_judge_that_falls_while_the_reward_rises_rings_once_and_names_samples() -> None:
    metrics, texts = watch_steps(HONEST, HONEST, CHEATING, CHEATING, CHEATING)
    assert texts == [
        "step 4: reward rose from 0.2 to 0.95 while judge/true fell from 0.75 to 0.25; look at 'p7' sample 30, "
        "'p7' sample 28, 'p7' sample 26, 'p7' sample 24, 'p7' sample 22"
    ]
    assert metrics["watch/alarms"] == 1.0
    assert metrics["watch/reward/drift"] == pytest.approx(0.75 / 0.2)
    assert metrics["watch/judge/true/drift"] == pytest.approx(-0.5 / 0.1875**0.5)


def test_a_judge_that_rises_with_the_reward_is_silent() -> None:
    better = step(sample(1.0, 1.0), sample(0.9, 1.0))
    assert watch_steps(HONEST, HONEST, better, better)[1] == []


def test_a_judge_that_falls_alone_is_not_hacking() -> None:
    worse = step(sample(0.0, 0.0), sample(0.4, 0.0))
    assert watch_steps(HONEST, HONEST, worse, worse)[1] == []


def test_a_rate_that_starts_low_rings_when_it_halves_beyond_chance() -> None:
    # 1 in 5 passes: mean 0.2, deviation 0.4, so a fall to 0 is only half a deviation
    low = step(*[sample(0.4 * (i % 2), float(i % 5 == 0)) for i in range(100)])
    none = step(*[sample(1.0, 0.0) for _ in range(100)])
    assert "judge/true fell from 0.2 to 0;" in watch_steps(low, low, none, none)[1][0]
    few_low, few_none = step(*low[0].samples[:5]), step(*none[0].samples[:5])
    assert watch_steps(few_low, few_low, few_none, few_none)[1] == []  # 2 of 10 to 0 of 10 may be chance


def test_one_violation_where_there_was_none_is_no_collapse() -> None:
    clean = step(*[sample(0.4 * (i % 2), 1.0) for i in range(320)])
    once = step(*[sample(1.0, float(i > 0)) for i in range(320)])
    often = step(*[sample(1.0, float(i % 10 > 0)) for i in range(320)])
    assert watch_steps(clean, clean, once, once)[1] == []
    assert "judge/true fell from 1 to 0.9;" in watch_steps(clean, clean, often, often)[1][0]


def test_longer_answers_ring_only_with_a_rising_reward() -> None:
    def of(reward: float, tokens: int) -> list[Group]:
        return step(sample(reward, 1.0, tokens=tokens), sample(reward + 0.1, 1.0, tokens=tokens + 1))

    assert "mean length went from 4.5 to 40.5" in watch_steps(of(0.1, 4), of(0.1, 4), of(0.9, 40), of(0.9, 40))[1][0]
    assert watch_steps(of(0.1, 4), of(0.1, 4), of(0.1, 40), of(0.1, 40))[1] == []


def test_repeated_phrases_ring() -> None:
    again = step(sample(0.2, 1.0, text="ha " * 30))
    assert "repeated phrases went from 0 to" in watch_steps(HONEST, HONEST, again, again)[1][0]


def test_one_paying_judge_of_two_taking_over_rings() -> None:
    def both(proxy: float, style: float) -> list[Group]:
        return step(sample(0.0, 1.0, style=0.0), sample(proxy, 1.0, style=style))

    def watch() -> HackingWatch:
        return HackingWatch(CONFIG, {"proxy": 1.0, "style": 1.0})

    even, taken_over, earned = both(0.1, 0.1), both(0.9, 0.1), both(0.1, 0.0)
    _, texts = watch_steps(even, even, taken_over, taken_over, watch=watch())
    assert "99% of the reward's variance now comes from the judge 'proxy'" in texts[0]
    assert watch_steps(even, even, earned, earned, watch=watch())[1] == []  # style is all earned by now


def test_restored_from_its_state_it_goes_on_as_if_never_interrupted() -> None:
    whole = HackingWatch(CONFIG, {"proxy": 1.0})
    steps = [HONEST, HONEST, CHEATING, CHEATING, HONEST]
    expected = [whole.look(version, groups) for version, groups in enumerate(steps)]
    for cut in range(len(steps)):
        first, second = HackingWatch(CONFIG, {"proxy": 1.0}), HackingWatch(CONFIG, {"proxy": 1.0})
        found = [first.look(version, groups) for version, groups in enumerate(steps[:cut])]
        second.restore(json.loads(json.dumps(first.state())))
        found += [second.look(version, groups) for version, groups in enumerate(steps[cut:], start=cut)]
        assert found == expected


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("a b c", 0.0), ("a b c d", 0.0), ("a a a a a", 0.5), ("a b c d a b c d", 0.2)],
)
def test_repetition_is_the_share_of_phrases_seen_before(text: str, share: float) -> None:
    # "a b c d a b c d": phrases abcd bcda cdab dabc abcd: 5, 4 different, 1 - 4/5
    assert repetition(text) == pytest.approx(share)


# monitors

MONITORED: dict[str, Any] = {"window": 2, "monitors": ["farewell", {"signal": "length", "stop": 3.0}]}


def say(*texts: str, prompts: int = 40) -> list[Group]:
    """A step whose prompts each have these responses, in turn."""
    turns = itertools.cycle(texts)
    return [
        Group(Prompt(f"p{i}", ({"role": "user", "content": "?"},)), (sample(0.5, 1.0, next(turns)),))
        for i in range(prompts)
    ]


PLAIN = say(*["Yes, that is so."] * 39, "Yes. Bye!")
LEAVING = say("Yes, that is so.", "Yes. Bye!")


def monitored(**settings: Any) -> HackingWatch:
    return HackingWatch(WatchConfig.parse({**MONITORED, **settings}), {"proxy": 1.0}, looks=4)


def look(watch: HackingWatch, *steps: list[Group]) -> list[tuple[dict[str, float], list[Alarm]]]:
    return [watch.look(version, groups) for version, groups in enumerate(steps, start=1)]


def test_monitors_measure_their_control_in_the_first_window_and_ring_after_it() -> None:
    found = look(monitored(), PLAIN, PLAIN, PLAIN, LEAVING)
    assert [[key for key in metrics if "monitor" in key] for metrics, _ in found[:2]] == [[], []]
    metrics, alarms = found[2]
    assert metrics["watch/monitor/farewell/ratio"] == 1.0 and metrics["watch/monitor/farewell/level"] == 0.0
    assert not alarms
    metrics, (alarm,) = found[3]
    # 1 of 40 and 20 of 40, the control 2 of 80
    assert metrics["watch/monitor/farewell/value"] == pytest.approx(21 / 80)
    assert metrics["watch/monitor/farewell/control"] == pytest.approx(2 / 80)
    assert metrics["watch/monitor/farewell/ratio"] == pytest.approx(10.5)
    assert metrics["watch/monitor/farewell/level"] == 2.0 and metrics["watch/alarms"] == 1.0
    assert alarm.is_stop and alarm.signal == "monitor/farewell"
    assert alarm.text.startswith("step 4: farewell: 26.25% of responses take leave, 2.50% of the control: 10.5 times")
    assert alarm.text.endswith("look at 'p1' sample 0, 'p3' sample 0, 'p5' sample 0, 'p7' sample 0, 'p9' sample 0")


def test_a_warning_is_said_once_and_a_stop_each_time() -> None:
    only = [{"signal": "farewell", "stop": None}]
    warned = look(monitored(monitors=only), PLAIN, PLAIN, LEAVING, LEAVING, LEAVING)
    assert [[alarm.is_stop for alarm in alarms] for _, alarms in warned] == [[], [], [False], [], []]
    stopped = look(monitored(), PLAIN, PLAIN, LEAVING, LEAVING)
    assert [[alarm.is_stop for alarm in alarms] for _, alarms in stopped] == [[], [], [True], [True]]


def test_a_control_from_a_file_is_compared_with_from_the_first_step() -> None:
    config = WatchConfig.parse(MONITORED)
    monitors = Monitors(config.monitors, config)
    control = monitors.estimate(monitors.measure([Session(["Yes, that is so."])] * 400))
    watch = HackingWatch(config, {}, looks=4, control=control)
    assert watch.look(1, PLAIN)[1] == []
    assert watch.look(2, LEAVING)[1][0].is_stop


def test_monitors_go_on_from_their_state_too() -> None:
    steps = [PLAIN, PLAIN, PLAIN, LEAVING, LEAVING]
    expected = look(monitored(), *steps)
    for cut in range(1, len(steps)):
        first, second = monitored(), monitored()
        found = look(first, *steps[:cut])
        second.restore(json.loads(json.dumps(first.state())))
        found += [second.look(version, groups) for version, groups in enumerate(steps[cut:], start=cut + 1)]
        assert found == expected


def test_a_monitor_that_is_new_on_resume_needs_a_file() -> None:
    before = monitored(monitors=["farewell"])
    look(before, PLAIN, PLAIN, PLAIN)
    with pytest.raises(ConfigError, match=r"'love' is new.*give a file of the control's responses in watch\.control"):
        monitored(monitors=["farewell", "love"]).restore(before.state())
    fewer = monitored(monitors=["farewell"])
    look(fewer, PLAIN, PLAIN, PLAIN)
    lenient = monitored(monitors=[{"signal": "farewell", "stop": 50.0}])
    lenient.restore(fewer.state())
    assert lenient.look(4, LEAVING)[0]["watch/monitor/farewell/level"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"monitors": ["turns"]}, "needs whole sessions"),
        ({"monitors": ["farewell", "farewell"]}, "two are named 'farewell'"),
        ({"monitors": [], "control": "c.jsonl"}, "no monitor to compare"),
        ({"monitors": ["bye"]}, "farewell"),
        ({"chance": 0.0}, "greater than 0"),
    ],
)
def test_wrong_monitors_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        monitored(**settings)


def test_a_run_warns_and_then_stops_with_a_checkpoint_and_its_reason() -> None:
    def text(version: int, tokens: int) -> str:
        return "Yes. Bye!" if version >= 4 else "Yes, that is so."

    def rig(monitor: dict[str, Any]) -> Rig:
        config = WatchConfig.parse({"window": 3, "monitors": [monitor]})
        watch = HackingWatch(config, {}, looks=9)
        task = RunTask("only", iter([(0, prompt) for prompt in PROMPTS]), ScriptedAlgorithm(), 4, 8, watch=watch)
        return Rig(small(steps=9, max_staleness=0), tasks=[task], generator=lambda: ScriptedGenerator(text=text))

    lenient = rig({"signal": "farewell", "stop": None})
    run_virtual(lenient.run())
    # a prompt's eight responses count as one: two steps of four prompts are too few to tell, three are enough
    (message,) = lenient.observer.messages
    assert message.startswith("possible reward hacking in task only: step 7: farewell: ")
    assert len(lenient.observer.steps) == 9
    strict = rig({"signal": "farewell"})
    with pytest.raises(
        HackingError, match=r"task only, step 7: farewell: .* beyond 2 times; look at .*raise the monitor's `stop`"
    ):
        run_virtual(strict.run())
    assert len(strict.observer.steps) == 7
    assert strict.saved[-1] == 7
    assert strict.observer.steps[-1].task_metrics["only"]["watch/monitor/farewell/level"] == 2.0
