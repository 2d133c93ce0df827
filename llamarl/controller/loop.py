"""The main loop: one asyncio program drives the whole run.

      prompts ──▶ generators ──▶ judge ──▶ buffer ──▶ algorithm.assign ──▶ trainer
                      ▲                                                       │
                      └────────────────── weights, version ◀──────────────────┘

    task          consumes          produces              waits for                  unblocked by
    _issue        prompts           requests              the staleness budget       newer weights, drops
    collect (g)   completions       judging tasks         generator g                its own decode steps
    _judge        one group         a ready group, drop   judge, reference           they, or their deadline
    judging       groups to judge   judged samples        the judge                  its judges
    _next_batch   ready groups      an assigned batch     B ready groups             _judge
    _train        a batch           a version, metrics    _next_batch                it, while the step before trains
    sync          a version         generators serving it each generator             between two decode steps

A run of several tasks does this for all of them at once: each has its own prompts, judges, algorithm and staleness
account, and every step trains a batch of each. Every wait has a deadline except those of `_issue` and `_next_batch`,
which `_train`'s covers.
Samples pass through here as records; weights never do. `core.protocols` are the only types known of the other side;
`WorkBuffer` holds the staleness bound.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from llamarl.controller.buffer import Ticket
from llamarl.controller.evaluation import Evaluation, Evaluator, first_reason
from llamarl.controller.groups import Asker, GroupMaker
from llamarl.controller.guard import CollapseGuard
from llamarl.controller.judging import JudgeQueue
from llamarl.controller.ledger import Ledger
from llamarl.controller.metrics import batch_metrics, by_task
from llamarl.controller.observer import Observer, StepRecord
from llamarl.controller.pool import GeneratorPool, Member, Work
from llamarl.controller.pulse import Pulse
from llamarl.controller.schedule import Schedule
from llamarl.controller.task import RunTask
from llamarl.core.errors import JudgeError, StallError
from llamarl.core.protocols import ExecutorHandle
from llamarl.core.records import Assignment, Completion, Group, Prompt, StepResult, WeightManifest
from llamarl.core.sampling import Sampling

T = TypeVar("T")

POLL_SECONDS = 2.0
"""How long one `collect` call waits at a generator or the judge."""

SaveCheckpoint = Callable[[int, float], Awaitable[None]]
"""`(version, mean reward)`: writes a checkpoint of the trainer."""


class Batch(NamedTuple):
    """What one step trains on."""

    groups: Mapping[str, list[Group]]
    """By task; none at all once the run is to end."""
    assignments: list[Assignment]
    """Of each task, in order."""


class Controller:
    """Drives one run from its current version to `schedule.steps`.

    Args:
        schedule: how much work, and how old it may be.
        tasks: what to train; the end of all their streams ends the run early.
        encode: prompt -> token ids.
        sampling: how completions of training prompts are drawn.
        trainer, judge: running executors (`core.protocols.Trainer`; `judges.executor.JudgeExecutor`).
        reference: the frozen reference policy (`training.reference.ReferenceExecutor`), where an algorithm needs it.
        pool: the generators, not yet started.
        ledger: the account of every prompt.
        observer: is told what happens (metrics, rollouts, live view).
        guard: stops a collapsing run.
        seed: of the run; every completion's seed derives from it.
        version: policy version of the trainer's weights now (0, or the checkpoint's).
        pulse: shared with the pool.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        tasks: Sequence[RunTask],
        encode: Callable[[Prompt], tuple[int, ...]],
        sampling: Sampling,
        trainer: ExecutorHandle,
        judge: ExecutorHandle,
        reference: ExecutorHandle | None = None,
        pool: GeneratorPool,
        ledger: Ledger,
        observer: Observer,
        guard: CollapseGuard,
        pulse: Pulse,
        seed: int = 0,
        version: int = 0,
    ) -> None:
        self.schedule, self.sampling = schedule, sampling
        self.tasks = {task.name: task for task in tasks}
        self._trainer, self._judge, self._pool, self._ledger = trainer, judge, pool, ledger
        self._observer, self._guard, self._pulse = observer, guard, pulse
        self.version = version
        self._judging = JudgeQueue(judge, schedule.judge_seconds, schedule.call_seconds)
        self._asker = Asker(encode, seed, max(max(1, len(task.forms)) for task in tasks))
        self._maker = GroupMaker(self._judging, encode, observer, reference, schedule.call_seconds)
        self._evaluator = Evaluator(self.tasks, self._asker, self._maker, pool, pulse, schedule.stall_seconds)
        for task in tasks:
            task.open(schedule, version)
        self._next_index = version * sum(task.prompts_per_step for task in tasks)
        self._is_stopping = self._is_over = False
        self._judge_error: JudgeError | None = None
        self._unsaved: StepRecord | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._syncing: asyncio.Task[None] | None = None

    async def run(self, evaluation: Evaluation | None = None, save: SaveCheckpoint | None = None) -> None:
        """Trains to the last step.

        Args:
            evaluation: held-out prompts, evaluated before, after, and every `schedule.evaluate_every` steps.
            save: called when a checkpoint is due, and after the last step.

        Raises:
            StallError, ExecutorLostError, JudgeError, CollapseError: why the run could not go on. Where only the judges
                broke, there is a checkpoint of the last step.
        """
        await self._pool.start(await self._publish())
        self._background(self._judging.submit())
        self._background(self._judging.collect(POLL_SECONDS))
        for member in self._pool.members:
            self._background(self._pool.collect(member, POLL_SECONDS))
        main = asyncio.create_task(self._evaluate_and_train(evaluation, save))
        try:
            await asyncio.wait([main, self._failure], return_when=asyncio.FIRST_COMPLETED)
            (main if main.done() else self._failure).result()
        finally:
            self._is_over = True
            if self._failure.done():
                self._failure.exception()  # heard, where the main task raised the same
            unfinished = [main, *self._tasks]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def stop(self) -> None:
        """Ends the run after the step under way, with a checkpoint."""
        self._is_stopping = True
        self._pulse.beat()

    def _background(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs `work` beside the main task. If it fails, so does the run: at once, or for a judge after the step."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._watch)
        return task

    def _watch(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if self._is_over:
            return
        error = StallError("a part of the loop was cancelled") if task.cancelled() else task.exception()
        if isinstance(error, JudgeError):
            self._judge_error = self._judge_error or error
            self.stop()
        elif error and not self._failure.done():
            self._failure.set_exception(error)

    async def _evaluate_and_train(self, evaluation: Evaluation | None, save: SaveCheckpoint | None) -> None:
        try:
            if self.version == 0:
                await self._evaluate(evaluation)
            self._background(self._issue())
            await self._train(evaluation, save)
        except JudgeError:
            await self._save(save)  # nothing is wrong with the steps taken
            raise

    async def _issue(self) -> None:
        """Starts groups as soon as the staleness budget and a generator have room."""
        while True:
            member = await self._pulse.wait_for(self._member_to_feed, lambda: "room for another group")
            works: list[Work] = []
            while len(works) < self._pool.room(member) and (task := self._task_to_feed(member)) is not None:
                item = next(task.stream, None)
                if item is None:
                    task.buffer.is_exhausted = True
                    self._pulse.beat()
                else:
                    works.append(self._start(task, *item, version=member.version or 0))
            if works:
                await self._pool.submit(member, works)
            if all(task.buffer.is_exhausted for task in self.tasks.values()):
                return

    def _member_to_feed(self) -> Member | None:
        member = self._pool.with_room()
        return member if member is not None and self._task_to_feed(member) is not None else None

    def _task_to_feed(self, member: Member) -> RunTask | None:
        """The task furthest behind among those that may start a group on this generator's weights."""
        version, steps = member.version, self.schedule.steps
        if version is None:
            return None
        able = [task for task in self.tasks.values() if task.may_issue(version, steps)]
        return min(able, key=lambda task: task.progress, default=None)

    def _start(self, task: RunTask, epoch: int, prompt: Prompt, version: int) -> Work:
        ticket = Ticket(self._next_index, epoch, prompt, version)
        self._next_index += 1
        task.num_issued += 1
        task.buffer.issue(ticket)
        self._ledger.issue(epoch, prompt.id)

        def restart(version: int) -> None:
            task.buffer.restart(ticket.index, version)
            self._ledger.issue(epoch, prompt.id)

        requests = self._asker.requests(ticket.index, epoch, prompt, task.asked(prompt), self.sampling)
        return Work(requests, lambda done: self._judge_later(task, ticket, done), restart)

    def _judge_later(self, task: RunTask, ticket: Ticket, completions: tuple[Completion, ...]) -> None:
        self._background(self._judge_group(task, ticket, completions))

    async def _judge_group(self, task: RunTask, ticket: Ticket, completions: tuple[Completion, ...]) -> None:
        """Judges one group as soon as it is generated; it becomes ready, or is dropped with its reason."""
        prompt = ticket.prompt
        group = await self._maker.made(task, prompt, completions, ticket.index, ticket.epoch)
        reason = task.fate(group)
        if reason:
            task.buffer.drop(ticket.index)
            task.dropped[reason] += 1
            self._ledger.drop(ticket.epoch, prompt.id, self.version + 1, reason)
        else:
            task.buffer.finish(ticket.index, group)
            self._ledger.finish(ticket.epoch, prompt.id)
        self._observer.on_group(group, dropped=reason)
        self._pulse.beat()
        if reason:
            self._check_drops(task, group)

    def _check_drops(self, task: RunTask, group: Group) -> None:
        """Raises `JudgeError` where nearly all that is generated for a step is for nothing."""
        rounds, size = self.schedule.max_rounds, task.prompts_per_step
        if rounds is None or task.dropped.total() < rounds * size:
            return
        raise JudgeError(
            f"{self._title(task.name)}no batch for step {self.version + 1} after {task.dropped.total()} dropped groups "
            f"(schedule.max_rounds={rounds} x {size} prompts): {_counted(task.dropped)}; the last was prompt "
            f"{group.prompt.id!r} ({first_reason([group])}), rewards {group.rewards[:8]}. Where judges abstain or "
            "fail, look at their reasons; where rewards are equal, the prompts are too easy or too hard, or the judge "
            "says the same of everything; or raise schedule.max_rounds"
        )

    async def _train(self, evaluation: Evaluation | None, save: SaveCheckpoint | None) -> None:
        """One optimizer step per batch; its weights travel to the generators while the next batch is awaited."""
        schedule, record = self.schedule, None
        upcoming = self._background(self._next_batch())
        while self.version < schedule.steps:
            started = asyncio.get_running_loop().time()
            batch = await self._awaited(upcoming)
            waited = asyncio.get_running_loop().time() - started
            if self._is_stopping or not any(batch.groups.values()):
                break  # somebody asked to stop, or the stream ended
            upcoming = self._background(self._next_batch())
            self._unsaved = record = await self._step(batch, waited)
            self._observer.on_step(record)
            self._guard.check(self.version, record.reward, record.metrics["rollout/response_len/mean"])
            if record.metrics.get("judge/is_degraded"):
                self._is_stopping = True
            if self.version < schedule.steps and not self._is_stopping:
                if schedule.checkpoint_every and self.version % schedule.checkpoint_every == 0:
                    await self._save(save)
                if schedule.evaluate_every and self.version % schedule.evaluate_every == 0:
                    await self._evaluate(evaluation)
        await self._save(save)
        if self._judge_error is not None:
            raise self._judge_error
        if record is None:
            return  # a finished run was resumed, or stopped before its first step
        if record.metrics.get("judge/is_degraded"):
            raise JudgeError(
                f"version {self.version}: {record.metrics['judge/unscored_frac']:.0%} of the last samples could not be "
                "judged, so the run stopped with a checkpoint; mend the judges, then resume"
            )
        if evaluation is not None and not self._is_stopping:
            await self._evaluate(evaluation)
            self._unsaved = record  # the checkpoint also holds what the evaluation found
            await self._save(save)

    async def _save(self, save: SaveCheckpoint | None) -> None:
        """A checkpoint of the newest step, unless it has one."""
        record, self._unsaved = self._unsaved, None
        if save and record:
            await save(self.version, record.reward)

    async def _next_batch(self) -> Batch:
        """The next batch and its assignments: prepared as soon as its groups are ready, whatever the trainer does."""
        groups = await self._pulse.wait_for(self._take_groups, self._describe_pending)
        assignments = [await self._assigned(self.tasks[name], taken) for name, taken in groups.items()]
        return Batch(groups, assignments)

    async def _assigned(self, task: RunTask, groups: Sequence[Group]) -> Assignment:
        if getattr(task.algorithm, "assigns_in_thread", False):
            return await asyncio.to_thread(task.assign, groups)
        return task.assign(groups)

    async def _awaited(self, upcoming: "asyncio.Task[Batch]") -> Batch:
        """The batch, before the deadline."""
        limit = self.schedule.stall_seconds
        with self._observer.span("trainer", "wait"):
            done, _ = await asyncio.wait([upcoming], timeout=limit)
        if not done:
            raise StallError(f"no progress for {limit:g} s while waiting for {self._describe_pending()}")
        return upcoming.result()

    async def _step(self, batch: Batch, waited: float) -> StepRecord:
        batches, assignments = batch
        groups = [group for taken in batches.values() for group in taken]
        watched = self._observer.watched(self.version + 1, groups)
        rollouts = batch_metrics(batches, assignments, self.version) | {"time/wait_batch": waited}
        with self._observer.span("trainer", "train"):
            result: StepResult = await self._trainer.call(
                "train",
                assignments,
                watched,
                [task.weight for task in self.tasks.values()],
                timeout_seconds=self.schedule.call_seconds,
            )
        self.version = result.version
        self._ledger.commit_step(self.version, [(group.epoch, group.prompt.id) for group in groups])
        await self._synced()
        proofs = [member.proof for member in self._pool.members if member.proof is not None]
        manifest = await self._publish()
        self._syncing = self._background(self._pool.sync(manifest))
        judged = await self._judge_status()
        trained = {**result.metrics, **by_task(list(self.tasks), result.task_metrics)}
        metrics = {**rollouts, **trained, **judged, **self._look(batches)}
        return StepRecord(self.version, metrics["rollout/reward/mean"], metrics, tuple(groups), proofs, result.logprobs)

    def _look(self, batches: Mapping[str, list[Group]]) -> dict[str, float]:
        """Lets each task's reward-hacking watch see its batch; says what rings."""
        looks = {name: self.tasks[name].watch.look(self.version, batch) for name, batch in batches.items()}
        for name, (_, alarms) in looks.items():
            for alarm in alarms:
                self._observer.on_message(f"reward hacking? {name}, {alarm.text}")
                self._is_stopping |= self.tasks[name].watch.config.should_stop
        metrics = [found for found, _ in looks.values()]
        return metrics[0] if len(metrics) == 1 else by_task(list(looks), metrics)

    async def _judge_status(self) -> dict[str, float]:
        """What the judges counted since the last call."""
        status: dict[str, float | None] = await self._judge.call("status", timeout_seconds=self.schedule.call_seconds)
        return {name: value for name, value in status.items() if value is not None}

    async def _publish(self) -> WeightManifest:
        with self._observer.span("trainer", "publish"):
            manifest: WeightManifest = await self._trainer.call("publish", timeout_seconds=self.schedule.call_seconds)
        return manifest

    async def _synced(self) -> None:
        """Waits until every generator serves the weights published last."""
        if self._syncing is not None:
            with self._observer.span("trainer", "wait for sync"):
                await asyncio.wait([self._syncing])
            self._syncing.result()

    async def _evaluate(self, evaluation: Evaluation | None) -> None:
        """Answers and judges the held-out prompts with the newest weights."""
        if evaluation is None:
            return
        await self._synced()
        with self._observer.span("trainer", "wait for evaluation"):
            groups = await self._evaluator.groups(evaluation, self.version)
        await self._judge_status()  # the next step's judge metrics are of training prompts only
        self._observer.on_evaluation(self.version, groups, self._held_out_metrics(groups))

    def _held_out_metrics(self, groups: Sequence[Group]) -> dict[str, float]:
        """What algorithms find worth knowing of held-out answers."""
        found: dict[str, dict[str, float]] = {}
        for name, task in self.tasks.items():
            own = [group for group in groups if len(self.tasks) == 1 or group.prompt.task == name]
            if own and hasattr(task.algorithm, "held_out_metrics"):
                values = task.algorithm.held_out_metrics(own)
                found[name] = {f"eval/algorithm/{key}": value for key, value in values.items()}
        if len(self.tasks) == 1:
            return next(iter(found.values()), {})
        return by_task(list(found), list(found.values()))

    def _take_groups(self) -> dict[str, list[Group]] | None:
        """A batch's groups of every task, none at all once the run is to end, or None while one must wait."""
        if self._is_stopping:
            return {}
        if not all(task.buffer.has_batch for task in self.tasks.values()):
            return None
        for task in self.tasks.values():
            task.dropped.clear()
        return {name: task.buffer.take_batch() or [] for name, task in self.tasks.items()}

    def _describe_pending(self) -> str:
        waiting = {name: task for name, task in self.tasks.items() if not task.buffer.has_batch}
        return "; ".join(self._title(name) + _pending(task) for name, task in waiting.items())

    def _title(self, task: str) -> str:
        return f"task {task}, " if len(self.tasks) > 1 else ""


def _pending(task: RunTask) -> str:
    buffer = task.buffer
    dropped = f"; dropped since the last step: {_counted(task.dropped)}" if task.dropped else ""
    waiting = [f"{t.prompt.id!r} (epoch {t.epoch}, since version {t.version})" for t in buffer.blocking()]
    return (
        f"batch {buffer.next_version}: {buffer.num_ready} of {buffer.batch_groups} groups are ready, "
        f"{len(waiting)} pending: {', '.join(waiting[:8]) or 'none'}{dropped}"
    )


def _counted(dropped: Mapping[str, int]) -> str:
    names = {"unscored": "with failed judges", "abstained": "where judges abstained", "no_signal": "of equal rewards"}
    return ", ".join(f"{count} {names[reason]}" for reason, count in dropped.items())
