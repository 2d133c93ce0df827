import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.planner.cost import Workload
from llamarl.planner.devices import find_device
from llamarl.planner.lengths import Lengths
from llamarl.planner.search import Answer, Limits, Misfit, Plan, Search
from llamarl.planner.shapes import public_shape


def search(model: str = "llama-3.1-8b", gpu: str = "h100", staleness: int = 1, prompts: int = 64) -> Search:
    workload = Workload(prompts, 8, Lengths(512, 2048), 128.0)
    return Search(public_shape(model), find_device(gpu), workload, Limits(staleness))


def plans(answer: Answer | Misfit) -> list[Plan]:
    assert isinstance(answer, Answer)
    return [plan for plan in (answer.asynchronous, answer.synchronous) if plan is not None]


# golden


def test_eight_billion_on_sixteen() -> None:
    answer = search().find(16)
    assert isinstance(answer, Answer) and answer.best.mode == "asynchronous"
    assert answer.best.trainer.layout.ranks + answer.best.generators.ranks <= 16


def test_without_staleness_a_plan_is_synchronous() -> None:
    answer = search(staleness=0).find(16)
    assert isinstance(answer, Answer) and answer.best.mode == "synchronous" and answer.asynchronous is None


def test_what_cannot_fit_says_why_and_what_would() -> None:
    big = search("llama-3.1-405b")
    answer = big.find(16)
    assert isinstance(answer, Misfit) and "weights" in answer.reason and "moments" in answer.reason
    number = big.nearest(16)
    assert number is not None and isinstance(big.find(number), Answer)
    assert isinstance(big.find(number // 2), Misfit)


def test_one_device_that_holds_both_sides_in_turns() -> None:
    workload = Workload(16, 8, Lengths(60, 256), 30.0)
    answer = Search(public_shape("llama-3.1-8b"), find_device("b200"), workload, Limits()).find(1)
    assert isinstance(answer, Answer) and answer.best.mode == "synchronous" and answer.best.is_shared


# invariance


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b"]), st.integers(2, 48), st.sampled_from(["h100", "h200"]))
def test_plans_fit_their_devices(model: str, devices: int, gpu: str) -> None:
    one = search(model, gpu)
    answer = one.find(devices)
    if isinstance(answer, Misfit):
        return
    for plan in plans(answer):
        assert sum(plan.trainer.memory.values()) <= one.room
        assert sum(plan.generators.memory.values()) <= one.room
        used = max(plan.trainer.layout.ranks, plan.generators.ranks)
        assert (used if plan.is_shared else plan.trainer.layout.ranks + plan.generators.ranks) <= devices
        assert plan.step_seconds >= plan.trainer.seconds


@settings(max_examples=8, deadline=None)
@given(st.integers(4, 32))
def test_more_memory_is_never_slower(devices: int) -> None:
    small, large = search(gpu="h100").find(devices), search(gpu="h200").find(devices)
    if isinstance(small, Answer):
        assert isinstance(large, Answer)
        assert large.best.step_seconds <= small.best.step_seconds * 1.001


# rejects


def test_no_devices() -> None:
    with pytest.raises(ConfigError, match="gpus=0"):
        search().find(0)
