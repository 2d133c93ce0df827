"""One suite for every engine: whatever the adapter, the controller sees the same behaviour."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from probe import Broken, Leaving, Probe, Stubborn

from llamarl.core.errors import ConfigError, ExecutorLostError, JudgeError, MissingDependencyError, StallError
from llamarl.engine import ENGINES, InProcessEngine, build_engine

PATIENCE = 200.0
"""Seconds: deadlines against hanging, not measures of speed. Tests wait for events."""

PROCESSES = ("monarch", "ray")
"""Engines whose executors are processes."""
held: list[object] = []


def make(name: str, stop_timeout_seconds: float = PATIENCE):
    if name == "inprocess":
        return InProcessEngine(stop_timeout_seconds)
    options = ({"LLAMARL_TEST_COLOUR": "green"}, ["LLAMARL_TEST_TEARDOWN_LOG"], PATIENCE, stop_timeout_seconds)
    try:
        if name == "monarch":
            from llamarl.engine.monarch import MonarchEngine

            return MonarchEngine(*options)
        from llamarl.engine.ray import RayEngine
    except MissingDependencyError as error:
        pytest.skip(str(error))
    if not held:
        held.append(RayEngine())  # keeps Ray up between tests: it takes half a minute to start
    return RayEngine(*options)


def slow_if_ray(name: str):
    """Ray's processes take their time to start, and Ray itself takes longer."""
    return pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.timeout(900)]) if name == "ray" else name


def on(*names: str, **options: float):
    """Turns `async def scenario(engine)` into one test per engine, closed at its end."""

    def decorate(scenario):
        async def main(name):
            engine = make(name, **options)
            try:
                async with asyncio.timeout(2 * PATIENCE):
                    await scenario(engine)
            finally:
                await engine.close()

        @pytest.mark.parametrize("engine_name", [slow_if_ray(name) for name in names])
        def test(engine_name):
            asyncio.run(main(engine_name))

        test.__name__ = scenario.__name__
        return test

    return decorate


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    started = time.monotonic()
    while any(map(is_running, pids)):
        assert time.monotonic() - started < PATIENCE, f"{pids} are still there"
        time.sleep(0.02)


def wait_until_stopped(pid: int) -> None:
    started = time.monotonic()
    while not all(is_stopped(status) for status in Path(f"/proc/{pid}/task").glob("*/status")):
        assert time.monotonic() - started < PATIENCE, f"{pid} still runs"
        time.sleep(0.02)


def is_stopped(status: Path) -> bool:
    return "State:\tT" in status.read_text()


# calls


@on(*ENGINES)
async def test_sync_calls_run_in_order_one_at_a_time_on_the_thread_of_setup(engine):
    probe = await engine.spawn(Probe, name="probe")
    results = await asyncio.gather(*(probe.call("add", i) for i in range(20)))
    assert results == [list(range(i + 1)) for i in range(20)]
    assert await asyncio.gather(*(probe.call("alone", 0.01) for _ in range(4))) == [1, 1, 1, 1]
    assert await probe.call("on_setup_thread")


@on(*ENGINES)
async def test_async_calls_overlap(engine):
    probe = await engine.spawn(Probe, name="probe")
    waiting = [asyncio.create_task(probe.call("wait_for_go")) for _ in range(3)]
    await asyncio.sleep(0)
    await probe.call("give_go")  # returns only if it may overtake the three that wait
    assert await asyncio.gather(*waiting) == ["went"] * 3


@on(*PROCESSES)
async def test_async_calls_are_served_while_a_sync_call_runs(engine):
    probe = await engine.spawn(Probe, name="probe")
    busy = asyncio.create_task(probe.call("block", 2 * PATIENCE))
    await asyncio.sleep(0)
    await probe.call("give_go", timeout_seconds=PATIENCE)
    assert not busy.done()
    busy.cancel()
    probe.kill()


@on(*ENGINES)
async def test_exceptions_keep_class_and_message(engine):
    probe = await engine.spawn(Probe, name="probe")
    with pytest.raises(JudgeError) as judge_error:
        await probe.call("judge_error")
    assert str(judge_error.value) == "the judge broke: 3 of 4 votes missing"
    with pytest.raises(KeyError) as key_error:
        await probe.call("key_error")
    assert key_error.value.args == ("colour",)
    with pytest.raises(TimeoutError, match="the method's own") as own:
        await probe.call("own_timeout", timeout_seconds=30)
    assert not isinstance(own.value, StallError)
    with pytest.raises(AttributeError, match="no_such_method"):
        await probe.call("no_such_method")
    with pytest.raises(TypeError, match="echo"):
        await probe.call("echo")
    with pytest.raises(Exception, match="7 red"):  # one that cannot be unpickled still arrives
        await probe.call("odd_error")
    assert await probe.call("echo", "still here") == "still here"


@on(*PROCESSES)
async def test_exceptions_carry_the_remote_traceback(engine):
    probe = await engine.spawn(Probe, name="probe")
    with pytest.raises(JudgeError) as error:
        await probe.call("judge_error")
    assert "probe.py" in error.value.__notes__[0]
    assert str(probe.pids[0]) in error.value.__notes__[0]


@on(*ENGINES)
async def test_ranks_are_called_alone_or_together(engine):
    probe = await engine.spawn(Probe, name="probe", num_ranks=3)
    answers = await probe.call("whoami", rank=None)
    assert [answer[:2] for answer in answers] == [(0, 3), (1, 3), (2, 3)]
    assert [answer[2] for answer in answers] == probe.pids
    assert (await probe.call("whoami", rank=2))[:2] == (2, 3)
    with pytest.raises(JudgeError):
        await probe.call("judge_error", rank=None)
    with pytest.raises(ConfigError, match="rank of executor 'probe': must be below 3, got 3"):
        await probe.call("whoami", rank=3)


@on(*ENGINES)
async def test_a_megabyte_of_records_passes(engine):
    records = [{"id": i, "ids": tuple(range(i, i + 100)), "text": "x" * 200} for i in range(1000)]
    probe = await engine.spawn(Probe, name="probe")
    assert await probe.call("echo", records) == records


# cancel, deadlines


@on(*ENGINES)
async def test_a_cancelled_call_returns_at_once_and_cancels_the_method(engine):
    probe = await engine.spawn(Probe, name="probe")
    call = asyncio.create_task(probe.call("forever"))
    await probe.call("wait_for_begin")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await probe.call("wait_for_cancel", timeout_seconds=PATIENCE)
    assert await probe.call("echo", 2) == 2


@on(*ENGINES)
async def test_a_deadline_cancels_the_method(engine):
    probe = await engine.spawn(Probe, name="probe")
    seconds = 0.1
    while not await probe.call("has_begun"):  # on a busy machine the deadline may pass before the method begins
        with pytest.raises(StallError):
            await probe.call("forever", timeout_seconds=seconds)
        seconds *= 2
    await probe.call("wait_for_cancel", timeout_seconds=PATIENCE)


@on(*ENGINES)
async def test_a_deadline_names_executor_method_and_seconds(engine):
    probe = await engine.spawn(Probe, name="probe")
    with pytest.raises(StallError, match=r"^probe\.forever: no answer within 0\.2 s$"):
        await probe.call("forever", timeout_seconds=0.2)
    with pytest.raises(StallError, match=r"^probe\.block: no answer within 0\.1 s$"):
        await probe.call("block", 0.3, timeout_seconds=0.1)
    assert await probe.call("echo", "on time", timeout_seconds=PATIENCE) == "on time"


@on(*PROCESSES, stop_timeout_seconds=2.0)
async def test_a_stopped_process_is_a_stall_and_can_be_ended(engine):
    probe = await engine.spawn(Probe, name="probe")
    pids = probe.pids
    os.kill(pids[0], signal.SIGSTOP)
    wait_until_stopped(pids[0])  # the signal returns before every thread has come to rest
    with pytest.raises(StallError, match=r"probe\.echo: no answer within 1 s"):
        await probe.call("echo", 1, timeout_seconds=1)
    await probe.stop()
    wait_until_gone(pids)


# death


@on(*ENGINES)
async def test_death_fails_calls_under_way_and_later_ones(engine):
    probe = await engine.spawn(Probe, name="probe", num_ranks=2)
    calls = [asyncio.create_task(probe.call("forever", rank=rank)) for rank in (0, None)]
    await probe.call("echo", 1)
    probe.kill()
    for call in calls:
        with pytest.raises(ExecutorLostError, match=r"executor 'probe' rank [01] is lost"):
            await call
    with pytest.raises(ExecutorLostError, match="probe"):
        await probe.call("echo", 2)
    assert not probe.is_alive


@on(*PROCESSES)
async def test_sigkill_from_outside_ends_the_call_under_way(engine):
    probe = await engine.spawn(Probe, name="probe")
    other = await engine.spawn(Probe, name="other")
    call = asyncio.create_task(probe.call("forever"))
    await probe.call("echo", 1)
    os.kill(probe.pids[0], signal.SIGKILL)
    with pytest.raises(ExecutorLostError, match="is lost"):
        await call
    assert not probe.is_alive
    assert await other.call("echo", "unharmed") == "unharmed"


@on(*PROCESSES)
async def test_sigkill_of_an_idle_rank_is_seen_by_the_next_call(engine):
    probe = await engine.spawn(Probe, name="probe", num_ranks=2)
    os.kill(probe.pids[1], signal.SIGKILL)
    with pytest.raises(ExecutorLostError):
        await probe.call("forever", rank=None, timeout_seconds=PATIENCE)


@on(*ENGINES)
async def test_an_executor_that_exits_is_lost(engine):
    for method in ("leave", "leave_async"):
        probe = await engine.spawn(Probe, name=method)
        with pytest.raises(ExecutorLostError, match=method):
            await probe.call(method, timeout_seconds=PATIENCE)
        with pytest.raises(ExecutorLostError, match=method):
            await probe.call("echo", 1, timeout_seconds=PATIENCE)


@on(*ENGINES)
async def test_respawn_under_the_same_name(engine):
    for value in range(3):
        probe = await engine.spawn(Probe, name="probe")
        assert await probe.call("add", value) == [value]  # nothing is left of the one before
        with pytest.raises(ConfigError, match="executor 'probe' already runs"):
            await engine.spawn(Probe, name="probe")
        probe.kill()
        with pytest.raises(ExecutorLostError):
            await probe.call("add", value)
        await probe.stop()


# start and stop


@on(*ENGINES)
async def test_setup_that_raises_fails_the_spawn_and_frees_the_name(engine):
    with pytest.raises(ValueError, match="no such model"):
        await engine.spawn(Broken, name="probe", num_ranks=2)
    probe = await engine.spawn(Probe, name="probe")
    assert await probe.call("echo", 1) == 1


@on(*ENGINES)
async def test_num_ranks_below_one_is_refused(engine):
    with pytest.raises(ConfigError, match="num_ranks of executor 'probe': must be at least 1, got 0"):
        await engine.spawn(Probe, name="probe", num_ranks=0)


@on(*ENGINES)
async def test_factories_may_be_partials_and_closures(engine):
    class Local(Probe):
        def __init__(self, greeting):
            self.greeting = greeting

        def greet(self):
            return self.greeting

    first = await engine.spawn(partial(Local, "good day"), name="first")
    second = await engine.spawn(lambda: Local("hello"), name="second")
    assert (await first.call("greet"), await second.call("greet")) == ("good day", "hello")


@on(*ENGINES)
async def test_stop_fails_calls_under_way_and_is_idempotent(engine):
    probe = await engine.spawn(Probe, name="probe")
    call = asyncio.create_task(probe.call("forever"))
    await probe.call("echo", 1)
    await asyncio.gather(probe.stop(), probe.stop())
    with pytest.raises(ExecutorLostError, match="probe"):
        await asyncio.wait_for(call, PATIENCE)
    with pytest.raises(ExecutorLostError, match="stopped"):
        await probe.call("echo", 1)
    await probe.stop()


@on(*ENGINES)
async def test_an_error_of_teardown_is_raised_and_still_ends_the_executor(engine):
    probe = await engine.spawn(Stubborn, name="probe")
    with pytest.raises(RuntimeError, match="teardown failed"):
        await probe.stop()
    assert not probe.is_alive


@pytest.mark.parametrize("engine_name", [slow_if_ray(name) for name in ENGINES])
def test_teardown_runs_once_per_rank_and_nothing_is_left(engine_name, tmp_path, monkeypatch):
    log = tmp_path / "teardown.log"
    monkeypatch.setenv("LLAMARL_TEST_TEARDOWN_LOG", str(log))

    async def main():
        engine = make(engine_name)
        handles = [await engine.spawn(Probe, name=name, num_ranks=2) for name in ("a", "b")]
        await handles[0].stop()
        await engine.close()
        await engine.close()
        return [pid for handle in handles for pid in handle.pids if pid != os.getpid()]

    pids = asyncio.run(main())
    assert sorted(log.read_text().split()) == ["0", "0", "1", "1"]
    wait_until_gone(pids)


@on("inprocess")
async def test_50_spawns_and_stops(engine):
    for cycle in range(50):
        probe = await engine.spawn(Probe, name="probe")
        assert await probe.call("echo", cycle) == cycle
        await probe.stop()


@on(*PROCESSES)
async def test_4_spawns_and_stops_of_processes(engine):
    await cycle(engine, 4)


@pytest.mark.slow
@on(*PROCESSES)
async def test_50_spawns_and_stops_of_processes(engine):
    await cycle(engine, 50)


async def cycle(engine, times: int) -> None:
    for value in range(times):
        probe = await engine.spawn(Probe, name="probe")
        pids = probe.pids
        assert await probe.call("echo", value) == value
        await probe.stop()
        wait_until_gone(pids)


@on(*PROCESSES)
async def test_environment_reaches_the_children(engine):
    probe = await engine.spawn(Probe, name="probe")
    assert await probe.call("variable", "LLAMARL_TEST_COLOUR") == "green"


def test_children_get_the_variables_that_are_named_and_no_others(monkeypatch):
    for name in ("SECRET_OF_MINE", "KEY_OF_A_JUDGE", "OMP_OF_MINE"):
        monkeypatch.setenv(name, f"value of {name}")
    make("monarch")

    async def main():
        engine = build_engine("monarch", {"OURS": "set"}, passed=["KEY_OF_A_JUDGE", "NOWHERE"])
        try:
            probe = await engine.spawn(Probe, name="probe")
            names = ("SECRET_OF_MINE", "KEY_OF_A_JUDGE", "OMP_OF_MINE", "NOWHERE", "OURS", "PATH")
            values = [await probe.call("variable", name) for name in names]
            assert values == [None, "value of KEY_OF_A_JUDGE", "value of OMP_OF_MINE", None, "set", os.environ["PATH"]]
            assert b"SECRET_OF_MINE" not in Path(f"/proc/{probe.pids[0]}/environ").read_bytes()
        finally:
            await engine.close()

    asyncio.run(main())


def test_a_process_ends_by_its_handlers_and_is_not_taken_apart(tmp_path):
    """With torch in it that takes seconds, and on a busy machine longer than an engine waits before it kills."""

    async def main():
        engine = make("monarch")
        try:
            handle = await engine.spawn(partial(Leaving, str(tmp_path)), name="probe")
            child = await handle.call("start_child", timeout_seconds=PATIENCE)
            await handle.stop()
            wait_until_gone([*handle.pids, child])
        finally:
            await engine.close()

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["handlers ran"]


def test_what_is_left_of_a_lost_executor_is_killed_and_not_asked(tmp_path):
    """A rank that waits for the dead one does not end by itself, and every second of waiting holds up the restart."""

    async def main():
        engine = make("monarch")
        try:
            handle = await engine.spawn(partial(Leaving, str(tmp_path)), name="probe", num_ranks=2)
            os.kill(handle.pids[1], signal.SIGKILL)
            with pytest.raises(ExecutorLostError):
                await handle.call("pid", rank=1, timeout_seconds=PATIENCE)
            await handle.stop()
            wait_until_gone(handle.pids)
        finally:
            await engine.close()

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_children_end_with_a_killed_controller():
    make("monarch")
    program = (
        "import asyncio\nfrom probe import Probe\nfrom llamarl.engine import build_engine\n"
        "async def main():\n"
        "    probe = await build_engine('monarch').spawn(Probe, name='probe', num_ranks=2)\n"
        "    print(*probe.pids, flush=True)\n"
        "    await probe.call('forever')\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.getcwd()])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        process.send_signal(signal.SIGKILL)
        wait_until_gone(pids)


def test_unknown_engine_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="no engine 'slurm'; choose one of: inprocess, monarch, ray"):
        build_engine("slurm")
