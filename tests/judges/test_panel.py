"""On virtual time: sleeps cost nothing, and a wait without a deadline raises."""

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llamarl.core.errors import ConfigError, DataError, JudgeError
from llamarl.core.records import Completion, Prompt, Sample, Status, Verdict
from llamarl.judges import FunctionJudge, Judge, JudgeInfo, JudgePanel, Seat, TRLJudge, text_completion
from llamarl.testing import ScriptedVerdicts as Scripted
from llamarl.testing import run_virtual

PROMPT = Prompt("p", ({"role": "user", "content": "x"},))
FOUR = [text_completion(text) for text in "abcd"]
HALF = [Verdict.scored(1.0, passed=True), Verdict.scored(0.0, passed=False)]


def panel_of(*judges: Judge | Seat, **options: Any) -> JudgePanel:
    return JudgePanel([each if isinstance(each, Seat) else Seat(each) for each in judges], **options)


def judged(*judges: Judge | Seat, **options: Any) -> tuple[Sample, ...]:
    return run_virtual(panel_of(*judges, **options).judge_group(PROMPT, FOUR))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    async def main() -> tuple[float, Any]:
        result = await work()
        return asyncio.get_running_loop().time(), result

    return run_virtual(main())


def test_every_completion_gets_every_verdict_and_one_reward() -> None:
    right = Scripted("right", [Verdict.scored(score) for score in (1, 0, 1, 0)])
    short = Scripted("short", Verdict.scored(0.5))
    samples = judged(Seat(right, weight=3.0), short)
    assert [sample.completion for sample in samples] == FOUR
    assert [sample.reward for sample in samples] == [0.875, 0.125, 0.875, 0.125]  # (3 * 1 + 0.5) / 4
    assert samples[0].verdicts == {"right": Verdict.scored(1), "short": Verdict.scored(0.5)}


def test_no_completions_no_samples() -> None:
    assert run_virtual(panel_of(Scripted("a", HALF[0])).judge_group(PROMPT, [])) == ()


def test_judges_run_at_the_same_time() -> None:
    panel = panel_of(*(Scripted(name, HALF[0], seconds=3.0) for name in "abc"))
    assert timed(lambda: panel.judge_group(PROMPT, FOUR))[0] == 3.0


# ---- judges that break


def test_a_late_judge_fails_at_its_deadline_and_the_others_keep_their_verdicts() -> None:
    panel = panel_of(Seat(Scripted("slow", HALF[0], seconds=100.0), timeout_seconds=5.0), Scripted("quick", HALF[0]))
    seconds, samples = timed(lambda: panel.judge_group(PROMPT, FOUR))
    assert seconds == 5.0
    assert samples[0].verdicts["slow"] == Verdict.failed("timed out after 5 s")
    assert samples[0].verdicts["quick"].score == 1.0
    assert samples[0].reward is None


def test_a_judge_that_ignores_its_cancellation_is_not_waited_for() -> None:
    class Stubborn(Scripted):
        async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
            try:
                await asyncio.sleep(100.0)
            except asyncio.CancelledError:
                await asyncio.sleep(1000.0)
            return []

    panel = panel_of(Seat(Stubborn("stubborn"), timeout_seconds=5.0))
    finished: list[float] = []

    async def main() -> None:
        await panel.judge_group(PROMPT, FOUR)
        finished.append(asyncio.get_running_loop().time())

    run_virtual(main())
    assert finished == [5.0]


def test_deadlines_may_differ_and_be_left_to_the_judge() -> None:
    own = Scripted("c", HALF[0], seconds=20.0)
    own.info = JudgeInfo(has_deadline=True)
    (sample, *_) = judged(
        Seat(Scripted("a", HALF[0], seconds=10.0), timeout_seconds=5.0),
        Seat(Scripted("b", HALF[0], seconds=20.0), timeout_seconds=None),
        Seat(own, timeout_seconds=5.0),
    )
    assert [sample.verdicts[name].status for name in "abc"] == [Status.FAILED, Status.SCORED, Status.SCORED]


def test_judge_errors_are_retried_with_growing_jittered_pauses() -> None:
    judge = Scripted("a", JudgeError("429"), JudgeError("503"), HALF[0])
    panel = panel_of(judge, retry_seconds=2.0, jitter=random.Random(0))
    seconds, samples = timed(lambda: panel.judge_group(PROMPT, FOUR))
    draws = random.Random(0)
    assert seconds == pytest.approx(2.0 * draws.uniform(0.5, 1.5) + 4.0 * draws.uniform(0.5, 1.5))
    assert (judge.calls, samples[0].reward) == (3, 1.0)


def test_after_the_last_retry_the_judge_has_failed() -> None:
    judge = Scripted("a", JudgeError("down"))
    samples = judged(judge, max_retries=3)
    assert judge.calls == 4
    assert {sample.reward for sample in samples} == {None}
    assert samples[0].verdicts["a"].reason.startswith("JudgeError: down")


def test_retries_end_at_the_deadline() -> None:
    judge = Scripted("a", JudgeError("down"), seconds=3.0)
    (sample, *_) = judged(Seat(judge, timeout_seconds=10.0), max_retries=100)
    assert sample.verdicts["a"].reason == "timed out after 10 s"
    assert judge.calls < 5


def test_other_exceptions_fail_at_once_without_a_retry() -> None:
    judge = Scripted("a", TimeoutError("read timed out"))
    (sample, *_) = judged(Seat(judge, timeout_seconds=None))
    assert judge.calls == 1
    assert sample.verdicts["a"].reason.startswith("TimeoutError: read timed out")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([HALF[0]] * 3, "returned 3 verdicts for 4 completions"),
        ([HALF[0]] * 8, "returned 8 verdicts for 4 completions"),  # two for each
        ([], "returned 0 verdicts for 4 completions"),
        ("good", "returned str; a judge returns a list of Verdict"),
        ([1.0] * 4, "returned list; a judge returns a list of Verdict"),
        (None, "returned NoneType"),
    ],
)
def test_nonsense_fails_every_completion(answer: Any, reason: str) -> None:
    samples = judged(Scripted("a", answer))
    assert all(sample.verdicts["a"].reason.startswith(reason) and sample.reward is None for sample in samples)


def test_a_judge_of_weight_zero_only_watches() -> None:
    (sample, *_) = judged(Scripted("a", HALF[0]), Seat(Scripted("b", Verdict.failed("x")), weight=0.0))
    assert sample.reward == 1.0


def test_cancelling_the_call_cancels_the_judges() -> None:
    async def main() -> list[str]:
        ended = []

        class Long(Scripted):
            async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
                try:
                    await asyncio.sleep(100.0)
                finally:
                    ended.append(self.name)
                return []

        task = asyncio.create_task(panel_of(Long("a"), Long("b")).judge_group(PROMPT, FOUR))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)
        return ended

    assert run_virtual(main()) == ["a", "b"]


def test_a_judge_that_fails_64_samples_in_a_row_raises() -> None:
    panel = panel_of(Scripted("fine", HALF[0]), Scripted("dead", Verdict.failed("no key")))

    async def main() -> int:
        for count in range(1, 100):
            try:
                await panel.judge_group(PROMPT, FOUR)
            except JudgeError as error:
                assert str(error) == "judge 'dead' failed its last 64 samples; last: no key"
                return count * len(FOUR)
        return 0

    assert run_virtual(main()) == 64


def test_a_judge_that_cancels_itself_has_failed() -> None:
    async def client() -> None:
        task = asyncio.ensure_future(asyncio.sleep(1))
        task.cancel()
        await task

    class Client(Scripted):
        async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
            await client()
            raise AssertionError

    for timeout in (None, 10.0):
        (sample, *_) = judged(Seat(Client("http"), timeout_seconds=timeout))
        assert sample.reward is None and sample.verdicts["http"].reason == "cancelled itself"


def test_a_judge_that_watches_sees_its_share_of_groups_and_the_same_ones_again() -> None:
    def seen() -> list[str]:
        watches = Scripted("watches", HALF[0])
        panel = panel_of(Scripted("pays", HALF[0]), Seat(watches, role="watch", share=0.25))
        prompts = [Prompt(f"p{i}", PROMPT.messages) for i in range(200)]
        groups = [run_virtual(panel.judge_group(prompt, FOUR)) for prompt in prompts]
        assert all(sample.reward == 1.0 for group in groups for sample in group)
        chosen = [p.id for p, g in zip(prompts, groups, strict=True) if g[0].verdicts["watches"].score is not None]
        assert len(chosen) == watches.calls
        return chosen

    assert 30 < len(seen()) < 70 and seen() == seen()


def test_a_broken_judge_that_only_watches_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pays = Scripted("pays", Verdict.scored(1.0))
    watches, weighs_nothing = (Scripted(name, RuntimeError("boom")) for name in ("watches", "weighs nothing"))
    panel = panel_of(pays, Seat(watches, role="watch"), Seat(weighs_nothing, weight=0.0), max_retries=0)
    for _ in range(40):
        samples = run_virtual(panel.judge_group(PROMPT, FOUR))
        assert [sample.reward for sample in samples] == [1.0] * 4
    assert [record.getMessage()[:32] for record in caplog.records] == [
        "judge 'watches' failed its last ",
        "judge 'weighs nothing' failed it",
    ]


def test_one_scored_sample_ends_the_row_of_failures_but_abstaining_does_not() -> None:
    def rounds(between: Verdict) -> None:
        script = [Verdict.failed("x")] * 10 + [between] + [Verdict.failed("x")] * 10
        panel = panel_of(Scripted("a", *script))

        async def main() -> None:
            for _ in script:
                await panel.judge_group(PROMPT, FOUR)
                panel.metrics()  # reading the metrics does not forget the failures

        run_virtual(main())

    rounds(HALF[0])
    with pytest.raises(JudgeError, match="its last 64 samples"):
        rounds(Verdict.abstained())


# ---- which judges a row wants


def test_a_row_that_names_its_judges_makes_the_others_abstain() -> None:
    a, b = Scripted("a", HALF[0]), Scripted("b", HALF[1])
    prompt = Prompt("p", (), info={"judges": ["b"]})
    (sample, *_) = run_virtual(panel_of(a, b).judge_group(prompt, FOUR))
    assert (a.calls, sample.reward) == (0, 0.0)
    assert sample.verdicts["a"] == Verdict.abstained("the row names other judges")


def test_a_row_that_names_constraints_only_is_rewarded_for_meeting_them() -> None:
    panel = panel_of(
        Scripted("pays", Verdict.scored(3.0)),
        Seat(Scripted("holds", HALF * 2), role="constraint"),
        Seat(Scripted("other", HALF[1]), role="constraint"),
    )
    row = Prompt("p", PROMPT.messages, info={"judges": ["holds"]})
    samples = run_virtual(panel.judge_group(row, FOUR))
    assert [(sample.reward, sample.is_satisfied) for sample in samples] == [(1.0, True), (0.0, False)] * 2


def test_a_row_whose_judges_decide_nothing_is_a_data_error() -> None:
    panel = panel_of(Scripted("pays", HALF[0]), Seat(Scripted("sees", HALF[0]), role="watch"))
    with pytest.raises(DataError, match=r"prompt 'p': its judges \['sees'\] only watch"):
        panel.check([Prompt("p", PROMPT.messages, info={"judges": ["sees"]})])


def test_a_row_that_names_an_unknown_judge_is_a_data_error() -> None:
    prompt = Prompt("p7", (), info={"judges": ["exat"]})
    with pytest.raises(DataError, match=r"prompt 'p7': no judge 'exat'. Did you mean 'exact'\?"):
        run_virtual(panel_of(Scripted("exact", HALF[0])).judge_group(prompt, FOUR))


# ---- counters


def test_metrics_have_their_own_denominators_and_start_afresh() -> None:
    verdicts = [*HALF, Verdict.abstained(), Verdict.failed("x")]
    panel = panel_of(Scripted("a", verdicts, seconds=2.0))
    run_virtual(panel.judge_group(PROMPT, FOUR))
    assert panel.metrics() == {
        "judge/unscored_frac": 0.5,
        "judge/a/mean": 0.5,  # (1 + 0) / 2 scored
        "judge/a/count": 2.0,
        "judge/a/pass_rate": 0.5,
        "judge/a/abstain_rate": 0.25,  # 1 of 4
        "judge/a/error_rate": 0.25,
        "judge/a/latency_p95": 2.0,
    }
    fresh = panel.metrics()
    assert (fresh["judge/a/mean"], fresh["judge/a/count"], fresh["judge/a/error_rate"]) == (None, 0.0, None)


def test_what_a_trl_function_logs_is_a_metric() -> None:
    async def reward(completions, log_metric, **kwargs):
        log_metric("length", 3.0)
        return [1.0] * len(completions)

    panel = panel_of(TRLJudge(reward))
    run_virtual(panel.judge_group(PROMPT, FOUR))
    assert panel.metrics()["judge/reward/length"] == 3.0


def test_too_many_unscored_samples_in_the_window_are_flagged() -> None:
    failed, scored = Verdict.failed("x"), HALF[0]
    script = [[failed, scored, scored, scored]] * 4 + [[scored] * 4]
    panel = panel_of(Scripted("a", *script), unscored_window=16)
    states = []

    async def main() -> None:
        for _ in range(6):
            await panel.judge_group(PROMPT, FOUR)
            states.append((panel.unscored_fraction, panel.is_degraded))

    run_virtual(main())
    assert states[3] == (0.25, True)
    assert states[4:] == [(0.1875, False), (0.125, False)]  # the window forgets: 3 of 16, 2 of 16


def test_thirty_percent_faults_leave_no_bias() -> None:
    """Faulty verdicts leave the mean; counted as 0 they would pull 0.5 down to 0.35."""
    rng = random.Random(1)

    def faulty() -> list[Verdict]:
        return [Verdict.failed("fault") if rng.random() < 0.3 else rng.choice(HALF) for _ in FOUR]

    panel = panel_of(Scripted("a", *(faulty() for _ in range(2000))))

    async def main() -> list[float]:
        groups = [await panel.judge_group(PROMPT, FOUR) for _ in range(2000)]
        return [sample.reward for group in groups for sample in group if sample.reward is not None]

    rewards = run_virtual(main())
    assert len(rewards) / 8000 == pytest.approx(0.7, abs=0.02)
    assert sum(rewards) / len(rewards) == pytest.approx(0.5, abs=0.02)
    assert panel.is_degraded


# ---- construction


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        ("", {}, "need at least one, and give each a different 'name'"),
        ("aa", {}, "need at least one, and give each a different 'name'"),
        ("a", {"weight": 0.0}, "at least one judge needs a positive weight"),
        ("ab", {"role": "watch"}, "at least one judge needs a positive weight"),
    ],
)
def test_rejects_panels_that_cannot_work(names: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        panel_of(*(Seat(Scripted(name, HALF[0]), **fields) for name in names))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, r"weight of judge 'a': got -1\.0; use a number from 0 to 1e\+30"),
        ({"weight": math.nan}, "weight of judge 'a': got nan"),
        ({"share": 0.5}, "judge 'a' sees a share of 0.5, but decides about every sample"),
        ({"share": 0.0, "role": "watch"}, "share of judge 'a': got 0.0; use a number above 0, at most 1"),
        ({"role": "constrain"}, r"role of judge 'a': got 'constrain'\. Did you mean 'constraint'"),
    ],
)
def test_rejects_seats(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Seat(Scripted("a", HALF[0]), **fields)


def test_rejects_a_judge_without_a_name_and_a_constraint_that_only_scores() -> None:
    with pytest.raises(ConfigError, match="a judge of class ScriptedVerdicts has no name; give its class a 'name'"):
        Seat(Scripted("", HALF[0]))
    scores = Scripted("a", HALF[0])
    scores.info = JudgeInfo(can_pass=False)
    with pytest.raises(ConfigError, match="judge 'a' is a constraint, but only scores; give it a threshold"):
        Seat(scores, role="constraint")


# ---- roles

PASSES, VIOLATES = HALF


def test_constraints_decide_satisfaction_and_leave_the_reward_alone() -> None:
    score = Scripted("score", Verdict.scored(0.5))
    rule = Scripted("rule", [PASSES, VIOLATES, Verdict.abstained(), Verdict.failed("down")])
    watcher = Scripted("watcher", VIOLATES)
    samples = judged(score, Seat(rule, role="constraint"), Seat(watcher, role="watch"))
    assert [sample.is_satisfied for sample in samples] == [True, False, True, None]  # cgpo D1
    assert [sample.reward for sample in samples] == [0.5, 0.5, 0.5, None]


def test_without_constraints_every_sample_is_satisfied() -> None:
    assert [sample.is_satisfied for sample in judged(Scripted("a", VIOLATES))] == [True] * 4  # cgpo P7


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_order_of_judges_changes_nothing(order: tuple[int, ...]) -> None:
    judges = [
        Scripted("score", [Verdict.scored(x) for x in (1, 2, 3, 4)]),
        Seat(Scripted("first", [PASSES, VIOLATES, PASSES, PASSES]), role="constraint"),
        Seat(Scripted("second", [PASSES, PASSES, Verdict.failed("down"), VIOLATES]), role="constraint"),
    ]
    samples = judged(*(judges[i] for i in order))
    assert [(sample.reward, sample.is_satisfied) for sample in samples] == [
        (1, True),
        (2, False),
        (None, None),
        (4, False),
    ]


def test_only_constraints_reward_satisfaction() -> None:
    panel = panel_of(
        Seat(Scripted("rule", PASSES), role="constraint"), Seat(Scripted("other", HALF * 2), role="constraint")
    )
    samples = run_virtual(panel.judge_group(PROMPT, FOUR))
    assert [sample.reward for sample in samples] == [1.0, 0.0, 1.0, 0.0]  # cgpo D8
    metrics = panel.metrics()
    assert (metrics["judge/satisfied_frac"], metrics["judge/rule/violation_rate"]) == (0.5, 0.0)
    assert metrics["judge/other/violation_rate"] == 0.5
    assert panel.metrics()["judge/satisfied_frac"] is None, "counted since the last call"


def test_a_constraint_that_only_scores_has_failed() -> None:
    samples = judged(Scripted("a", PASSES), Seat(Scripted("rule", Verdict.scored(1.0)), role="constraint"))
    assert samples[0].verdicts["rule"].reason.startswith("a constraint judge says pass or fail")
    assert (samples[0].reward, samples[0].is_satisfied) == (None, None)


def test_a_panel_without_constraints_logs_none_of_their_metrics() -> None:
    panel = panel_of(Scripted("a", PASSES))
    run_virtual(panel.judge_group(PROMPT, FOUR))
    assert not {"judge/satisfied_frac", "judge/a/violation_rate"} & panel.metrics().keys()


# ---- judges whose other methods break


class Careless(Scripted):
    """Raises in one method, or returns a value there."""

    def __init__(self, name: str, method: str, outcome: Any) -> None:
        super().__init__(name, HALF[0])
        self.method, self.outcome, self.is_closed = method, outcome, False

    def _do(self, method: str, otherwise: Any = None) -> Any:
        if method != self.method:
            return otherwise
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def check(self, prompt: Prompt) -> None:
        self._do("check")

    def load(self) -> None:
        self._do("load")

    def metrics(self) -> Any:
        return self._do("metrics", {"calls": 1})

    def close(self) -> None:
        self.is_closed = True
        self._do("close")

    async def aclose(self) -> None:
        self._do("aclose")
        self.close()


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (ValueError("no count"), "metrics raised ValueError: no count"),
        (SystemExit(3), "metrics raised SystemExit: 3"),
        (None, "metrics returned NoneType; return numbers"),
        ({"good": 1.0, "bad": "many"}, "metrics returned 'many' as 'bad'; return numbers"),
        ({1: 1.0}, "metrics returned 1.0 as 1; return numbers"),
    ],
)
def test_metrics_that_fail_cost_only_themselves_and_one_message(
    outcome: Any, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    panel = panel_of(Careless("odd", "metrics", outcome), Careless("fine", "", None))
    run_virtual(panel.judge_group(PROMPT, FOUR))
    metrics = panel.metrics()
    assert (metrics["judge/odd/count"], metrics["judge/fine/calls"]) == (4.0, 1.0)
    assert not {"judge/odd/good", "judge/odd/calls"} & metrics.keys()
    panel.metrics()
    (message,) = caplog.messages
    assert message.startswith(f"judge 'odd': {problem}")


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), SystemExit("x"), GeneratorExit("x"), JudgeError("x")]
)
def test_a_check_or_load_that_raises_names_the_judge(error: BaseException) -> None:
    with pytest.raises(ConfigError, match=r"^prompt 'p' \(task .*\), judge 'odd': .*x"):
        panel_of(Careless("odd", "check", error)).check([PROMPT])
    with pytest.raises(JudgeError, match=r"^judge 'odd' does not load: .*x"):
        panel_of(Careless("odd", "load", error)).load()
    with pytest.raises(ConfigError, match=r"^judge 'odd' does not load: model: none"):
        panel_of(Careless("odd", "load", ConfigError("model: none"))).load()


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit("x"), asyncio.CancelledError(), JudgeError("x")])
@pytest.mark.parametrize("method", ["close", "aclose"])
def test_a_judge_that_fails_to_close_hinders_no_other(
    method: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    odd, fine = Careless("odd", method, error), Careless("fine", "", None)
    panel = panel_of(odd, fine)
    if method == "close":
        panel.close()
    else:
        run_virtual(panel.aclose())
    assert fine.is_closed
    (message,) = caplog.messages
    assert message.startswith("judge 'odd' ") and message.partition(" while it closed")[1]


def test_a_panel_closes_no_borrowed_judge() -> None:
    lent, own = Careless("lent", "", None), Careless("own", "", None)
    panel = panel_of(Seat(lent, is_borrowed=True), own)
    panel.close()
    run_virtual(panel.aclose())
    assert (lent.is_closed, own.is_closed) == (False, True)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("name", "", "Careless has no name"),
        ("name", None, "name=None"),
        ("name", 3, "name=3"),
        ("info", None, "judge 'odd': info=None; .*JudgeInfo"),
        ("info", {"version": "1"}, "judge 'odd': info={'version': '1'}"),
    ],
)
def test_a_judge_that_is_declared_wrongly_is_refused(field: str, value: Any, problem: str) -> None:
    judge = Careless("odd", "", None)
    setattr(judge, field, value)
    with pytest.raises(ConfigError, match=problem):
        Seat(judge)


@pytest.mark.parametrize("seconds", [None, 5.0])
@pytest.mark.parametrize("error", [GeneratorExit("enough"), SystemExit("enough")])
def test_a_judge_that_raises_what_ends_programs_has_failed(error: BaseException, seconds: float | None) -> None:
    class Ending(Scripted):
        async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
            await asyncio.sleep(1.0)
            raise error

    def end(prompt: Prompt, completion: Completion) -> bool:
        raise error

    for judge in (Ending("odd"), FunctionJudge(end, "odd", is_inline=True)):
        (sample, *_) = judged(Seat(judge, timeout_seconds=seconds), Scripted("fine", HALF[0]))
        assert sample.verdicts["odd"].reason.startswith(f"{type(error).__name__}: enough")
        assert sample.verdicts["fine"].score == 1.0
