"""The main loop: one asyncio program drives the whole run. Start reading at `Controller._train`.

      prompts ──▶ generators ──▶ judges ──▶ buffer ──▶ algorithm.assign ──▶ trainer
                      ▲                                                        │
                      └────────────────── weights, version ◀───────────────────┘

    coroutine         consumes         produces              waits for                  unblocked by
    _issue            prompts          groups under way      the staleness budget       newer weights, drops
    _run_group (g)    one prompt       a ready group, drop   its generator, judges,     they, or their deadline
                                                             the reference
    _next_batch       ready groups     an assigned batch     B ready groups             _run_group
    _train            a batch          a version, metrics    _next_batch                it, while the step before trains
    sync              a version        generators serving    each generator             between two decode steps
    submit, collect   what groups ask  their answers         one generator, or judges   new questions; finished ones

A run of several tasks does this for all of them at once: each has its own prompts, judges, algorithm and staleness
account, and every step trains a batch of each. Every wait has a deadline except those of `_issue` and `_next_batch`,
which `_train`'s covers.
Samples pass through here as records; weights never do. `WorkBuffer` holds the staleness bound, `groups` the life of a
group up to its verdicts, `clients` the calls to executors.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from llamarl.controller.buffer import Ticket
from llamarl.controller.clients import JudgesClient, QueueClient, ReferenceScorer, TrainerClient
from llamarl.controller.evaluation import Evaluation, Evaluator, first_reason
from llamarl.controller.generators import GeneratorClient, GeneratorPool
from llamarl.controller.groups import Encode, GroupRunner
from llamarl.controller.guard import CollapseGuard
from llamarl.controller.ledger import Ledger
from llamarl.controller.metrics import RolloutStats
from llamarl.controller.observer import EvaluationRecord, Observer, StepRecord
from llamarl.controller.pulse import Pulse
from llamarl.controller.schedule import Schedule
from llamarl.controller.task import RunTask
from llamarl.core import metric_names as names
from llamarl.core.errors import HackingError, JudgeError, StallError
from llamarl.core.records import Assignment, Group, Prompt
from llamarl.core.sampling import Sampling

T = TypeVar("T")

POLL_SECONDS = 2.0
"""Longest wait of one `collect` call at a generator or the judges, in seconds."""

SaveCheckpoint = Callable[[int, float], Awaitable[None]]
"""`(version, mean reward)`: writes a checkpoint of the trainer."""


class Batch(NamedTuple):
    """The groups of one optimizer step and what each task's algorithm made of them."""

    groups: Mapping[str, list[Group]]
    """Task name -> its groups; the list of a task whose prompts have ended is empty."""
    assignments: list[Assignment]
    """One assignment per task, in the order of the tasks."""


class Controller:
    """Drives one run from its current version to `schedule.steps`.

    Args:
        schedule: how much work, and how old it may be.
        tasks: what to train; the end of all their streams ends the run early.
        encode: prompt -> token ids.
        sampling: how completions of training prompts are drawn.
        trainer, judges: clients of running executors.
        scorer: the frozen reference policy, where an algorithm needs it.
        pool: the generators, not yet started.
        ledger: the account of every prompt.
        observer: is told what happens (metrics, rollouts, live view).
        guard: stops a collapsing run.
        pulse: shared with the pool.
        seed: of the run; every completion's seed derives from it.
        version: policy version of the trainer's weights now (0, or the checkpoint's).
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        tasks: Sequence[RunTask],
        encode: Encode,
        sampling: Sampling,
        trainer: TrainerClient,
        judges: JudgesClient,
        scorer: ReferenceScorer | None = None,
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
        self.version = version
        self._trainer, self._judges, self._pool, self._ledger = trainer, judges, pool, ledger
        self._observer, self._guard, self._pulse = observer, guard, pulse
        self._runner = GroupRunner(encode, seed, judges, scorer)
        self._evaluator = Evaluator(self.tasks, self._runner, pool, pulse, schedule.stall_seconds)
        for task in tasks:
            task.open(schedule, version)
        self._next_index = version * sum(task.prompts_per_step for task in tasks)
        self._is_stopping = self._is_over = False
        self._judge_error: JudgeError | None = None
        self._hacking: list[str] = []
        """The monitors' reason to end the run."""
        self._unsaved: StepRecord | None = None
        """The newest step, until a checkpoint holds it."""
        self._background_tasks: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._syncing: asyncio.Task[None] | None = None

    async def run(self, evaluation: Evaluation | None = None, save: SaveCheckpoint | None = None) -> None:
        """Trains to the last step.

        Args:
            evaluation: held-out prompts, evaluated before, after, and every `schedule.evaluate_every` steps.
            save: called when a checkpoint is due, and after the last step.

        Raises:
            StallError, ExecutorLostError, JudgeError, CollapseError, HackingError: why the run could not go on. Where
                only the judges broke, or the watch stopped it, there is a checkpoint of the last step.
        """
        await self._pool.start(await self._trainer.publish())
        clients: list[QueueClient[Any]] = [self._judges, *self._pool.members]
        for client in clients:
            self._background(client.submit())
            self._background(client.collect(POLL_SECONDS))
        main = asyncio.create_task(self._evaluate_and_train(evaluation, save))
        try:
            # The failure of a background task ends the main loop even while it waits for that task's work.
            await asyncio.wait([main, self._failure], return_when=asyncio.FIRST_COMPLETED)
            (main if main.done() else self._failure).result()
        finally:
            self._is_over = True
            if self._failure.done():
                self._failure.exception()  # heard, where the main task raised the same
            unfinished = [main, *self._background_tasks]
            for task in unfinished:
                task.cancel()
            # Their `finally` blocks run before the caller stops the executors that they use.
            await asyncio.gather(*unfinished, return_exceptions=True)

    def stop(self) -> None:
        """Ends the run after the step under way, with a checkpoint."""
        self._is_stopping = True
        self._pulse.notify()

    async def _evaluate_and_train(self, evaluation: Evaluation | None, save: SaveCheckpoint | None) -> None:
        try:
            if self.version == 0:
                await self._evaluate(evaluation)
            self._background(self._issue())
            await self._train(evaluation, save)
        except JudgeError:
            await self._save(save)  # nothing is wrong with the steps taken
            raise

    # The main loop

    async def _train(self, evaluation: Evaluation | None, save: SaveCheckpoint | None) -> None:
        """One optimizer step per batch; its weights travel to the generators while the next batch is awaited."""
        schedule, record = self.schedule, None
        upcoming = self._background(self._next_batch())
        while self.version < schedule.steps:
            started = asyncio.get_running_loop().time()
            batch = await self._await_batch(upcoming)
            waited = asyncio.get_running_loop().time() - started
            if batch is None or self._is_stopping:
                break
            upcoming = self._background(self._next_batch())  # assigned while the trainer is at this one
            self._unsaved = record = await self._step(batch, waited)
            self._observer.on_step(record)
            self._guard.check(self.version, record.rollouts.reward, record.rollouts.response_length)
            if record.judges.is_degraded:
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
        if record.judges.is_degraded:
            raise JudgeError(
                f"version {self.version}: {record.judges.unscored_fraction:.0%} of the last samples could not be "
                "judged, so the run stopped with a checkpoint; mend the judges, then resume"
            )
        if self._hacking:
            raise HackingError(
                f"{'; '.join(self._hacking)}. The run stopped with a checkpoint. Forbid what you see there with a "
                "constraint judge or lower its reward's weight; or, if it is meant, raise the monitor's `stop` "
                "(watch.monitors) or leave out `watch.should_stop`, and resume"
            )
        if evaluation is not None and not self._is_stopping:
            await self._evaluate(evaluation)
            self._unsaved = record  # the checkpoint also holds what the evaluation found
            await self._save(save)

    async def _await_batch(self, upcoming: "asyncio.Task[Batch | None]") -> Batch | None:
        """The batch, or None where the run is to end. Raises `StallError` at the deadline."""
        limit = self.schedule.stall_seconds
        with self._observer.span("trainer", "wait"):
            # `wait_for` would take a time-out raised by the work for this deadline.
            done, _ = await asyncio.wait([upcoming], timeout=limit)
        if not done:
            raise StallError(f"no progress for {limit:g} s while waiting for {self._describe_pending()}")
        return upcoming.result()

    async def _step(self, batch: Batch, waited: float) -> StepRecord:
        """Trains a batch, records it, and sends the new weights on their way."""
        groups = [group for taken in batch.groups.values() for group in taken]
        watched = self._observer.choose_watched(self.version + 1, groups)
        rollouts = RolloutStats.measure(groups, self.version)
        task_metrics = self._measure_tasks(batch)
        result = await self._trainer.train(batch.assignments, watched, [task.weight for task in self.tasks.values()])
        self.version = result.version
        self._ledger.commit_step(self.version, [(group.epoch, group.prompt.id) for group in groups])
        await self._await_sync()  # a channel holds two versions: nobody may still read the one that goes
        proofs = [member.proof for member in self._pool.members if member.proof is not None]
        manifest = await self._trainer.publish()
        self._syncing = self._background(self._pool.sync(manifest))
        judges = await self._judges.read_status()
        self._look(batch, task_metrics)
        for (name, own), learnt in zip(task_metrics.items(), result.task_metrics, strict=True):
            judged = judges.task_metrics.get(name, {})
            own.update(learnt, **{key: value for key, value in judged.items() if value is not None})
        metrics = {
            **rollouts.as_metrics(),
            names.TIME_WAIT_BATCH: waited,
            names.UNSCORED: judges.unscored_fraction,
            names.DEGRADED: float(judges.is_degraded),
            **result.metrics,
        }
        trained = [sample for assignment in batch.assignments for sample in assignment.samples]
        return StepRecord(
            version=self.version,
            rollouts=rollouts,
            judges=judges,
            metrics=metrics,
            task_metrics=task_metrics,
            groups=tuple(groups),
            proofs=proofs,
            trainer_logprobs=result.logprobs,
            trained={(each.group, each.trajectory.key): each for each in trained if each.group in watched},
        )

    def _measure_tasks(self, batch: Batch) -> dict[str, dict[str, float]]:
        """Each task's numbers of the batch it is about to train, and what its algorithm counted."""
        found = {}
        for (name, groups), assignment in zip(batch.groups.items(), batch.assignments, strict=True):
            own = RolloutStats.measure(groups, self.version).as_metrics() if groups else {}
            found[name] = own | {f"algorithm/{key}": value for key, value in assignment.metrics.items()}
        return found

    # Groups: issued under the staleness bound, run each by its own coroutine, taken as batches

    async def _issue(self) -> None:
        """Starts groups as soon as the staleness budget and a generator have room."""
        while not all(task.buffer.is_exhausted for task in self.tasks.values()):
            generator = await self._pulse.wait_for(self._find_generator, lambda: "room for another group")
            while generator.room > 0 and (task := self._find_task(generator)) is not None:
                item = next(task.stream, None)
                if item is None:
                    task.buffer.is_exhausted = True
                    self._pulse.notify()
                else:
                    self._start_group(task, *item, generator)

    def _find_generator(self) -> GeneratorClient | None:
        generator = self._pool.find_room()
        return generator if generator is not None and self._find_task(generator) is not None else None

    def _find_task(self, generator: GeneratorClient) -> RunTask | None:
        """The task furthest behind among those that may start a group on this generator's weights."""
        version, steps = generator.version, self.schedule.steps
        if version is None:
            return None
        able = [task for task in self.tasks.values() if task.may_issue(version, steps)]
        return min(able, key=lambda task: task.progress, default=None)

    def _start_group(self, task: RunTask, epoch: int, prompt: Prompt, generator: GeneratorClient) -> None:
        """Enters a group in every account and starts its coroutine."""
        ticket = Ticket(self._next_index, epoch, prompt, generator.version or 0)
        self._next_index += 1
        # All accounts before the coroutine, which begins later: `_issue` asks them again at once.
        task.num_issued += 1
        task.buffer.issue(ticket)
        self._ledger.issue(epoch, prompt.id)
        generator.reserve()
        self._background(self._run_group(task, ticket, generator))

    async def _run_group(self, task: RunTask, ticket: Ticket, generator: GeneratorClient) -> None:
        """The whole life of a training group: complete, judge, settle."""

        def restart(version: int) -> None:
            task.buffer.restart(ticket.index, version)
            self._ledger.issue(ticket.epoch, ticket.prompt.id)

        variants = task.prompt_variants(ticket.prompt)
        group = await self._runner.run_group(ticket, task, generator, variants, self.sampling, restart)
        self._settle(task, ticket, group)

    def _settle(self, task: RunTask, ticket: Ticket, group: Group) -> None:
        """A judged group becomes ready to train, or is dropped with its reason."""
        reason = task.reason_to_drop(group)
        if reason:
            task.buffer.drop(ticket.index)
            task.dropped[reason] += 1
            self._ledger.drop(ticket.epoch, ticket.prompt.id, self.version + 1, reason)
        else:
            task.buffer.finish(ticket.index, group)
            self._ledger.finish(ticket.epoch, ticket.prompt.id)
        self._observer.on_group(group, dropped=reason)
        self._pulse.notify()
        if reason:
            self._check_drops(task, group)

    def _check_drops(self, task: RunTask, group: Group) -> None:
        """Raises `JudgeError` where nearly all that is generated for a step is for nothing."""
        rounds, size = self.schedule.max_rounds, task.prompts_per_step
        if rounds is None or task.dropped.total() < rounds * size:
            return
        raise JudgeError(
            f"task {task.name}, no batch for step {self.version + 1} after {task.dropped.total()} dropped groups "
            f"(schedule.max_rounds={rounds} x {size} prompts): {_count(task.dropped)}; the last was prompt "
            f"{group.prompt.id!r} ({first_reason([group])}), rewards {group.rewards[:8]}. Where judges abstain or "
            "fail, look at their reasons; where rewards are equal, the prompts are too easy or too hard, or the judge "
            "says the same of everything; or raise schedule.max_rounds"
        )

    async def _next_batch(self) -> Batch | None:
        """The next batch, assigned as soon as its groups are ready; None where the run ends."""
        await self._pulse.wait_for(lambda: self._is_stopping or not self._find_waiting(), self._describe_pending)
        if self._is_stopping or all(task.buffer.is_over for task in self.tasks.values()):
            return None
        groups = {name: task.take_batch() for name, task in self.tasks.items()}
        return Batch(groups, [await self._assign(self.tasks[name], taken) for name, taken in groups.items()])

    def _find_waiting(self) -> list[RunTask]:
        """Finds the tasks that hold up the next batch."""
        return [task for task in self.tasks.values() if not (task.buffer.has_batch or task.buffer.is_over)]

    async def _assign(self, task: RunTask, groups: Sequence[Group]) -> Assignment:
        if task.needs.assigns_in_thread:
            # A solver may take seconds, in which this loop must serve generators and judges.
            return await asyncio.to_thread(task.assign, groups)
        return task.assign(groups)

    def _describe_pending(self) -> str:
        return "; ".join(f"task {task.name}, {_describe_batch(task)}" for task in self._find_waiting())

    # What is done beside the steps

    def _look(self, batch: Batch, task_metrics: Mapping[str, dict[str, float]]) -> None:
        """Shows each task's reward-hacking watch its groups, adds what it measures, and says its alarms."""
        for name, groups in batch.groups.items():
            watch = self.tasks[name].watch
            metrics, alarms = watch.look(self.version, groups)
            task_metrics[name].update(metrics)
            for alarm in alarms:
                self._observer.on_message(f"possible reward hacking in task {name}: {alarm.text}")
                if watch.config.should_stop or alarm.is_stop:
                    self._is_stopping = True
                    self._hacking.append(f"task {name}, {alarm.text}")

    async def _await_sync(self) -> None:
        """Waits until every generator serves the weights published last."""
        if self._syncing is not None:
            with self._observer.span("trainer", "wait for sync"):
                # `wait`, as awaiting the task itself would cancel it along with this wait.
                await asyncio.wait([self._syncing])
            self._syncing.result()

    async def _evaluate(self, evaluation: Evaluation | None) -> None:
        """Answers and judges the held-out prompts with the newest weights."""
        if evaluation is None:
            return
        await self._await_sync()
        with self._observer.span("trainer", "wait for evaluation"):
            groups = await self._evaluator.evaluate(evaluation, self.version)
        await self._judges.read_status()  # the next step's judge metrics are of training prompts only
        found = {name: self._measure_held_out(self.tasks[name], own) for name, own in groups.items()}
        self._observer.on_evaluation(EvaluationRecord(self.version, groups, found))

    def _measure_held_out(self, task: RunTask, groups: Sequence[Group]) -> dict[str, float]:
        """Returns the metrics of held-out answers that the task's algorithm computes, under `eval/algorithm/`."""
        values = task.credit.held_out_metrics(groups) if groups else {}
        return {f"eval/algorithm/{key}": value for key, value in values.items()}

    async def _save(self, save: SaveCheckpoint | None) -> None:
        """A checkpoint of the newest step, unless it has one."""
        record, self._unsaved = self._unsaved, None
        if save and record:
            await save(self.version, record.rollouts.reward)

    # Coroutines beside the main loop

    def _background(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Runs `work` beside the main loop. If it fails, so does the run: at once, or for a judge after the step."""
        task = asyncio.create_task(work)
        self._background_tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: "asyncio.Task[Any]") -> None:
        self._background_tasks.discard(task)
        if self._is_over:
            return
        error = StallError("a part of the loop was cancelled") if task.cancelled() else task.exception()
        if isinstance(error, JudgeError):
            self._judge_error = self._judge_error or error
            self.stop()
        elif error and not self._failure.done():
            self._failure.set_exception(error)


def _describe_batch(task: RunTask) -> str:
    """Says for the message of a stall what a task's next batch has and lacks."""
    buffer = task.buffer
    dropped = f"; dropped since the last step: {_count(task.dropped)}" if task.dropped else ""
    waiting = [
        f"{ticket.prompt.id!r} ({'being judged' if ticket.is_complete else 'being completed'}, epoch {ticket.epoch}, "
        f"since version {ticket.version})"
        for ticket in buffer.blocking()
    ]
    return (
        f"batch {buffer.next_version}: {buffer.num_ready} of {buffer.batch_groups} groups are ready, "
        f"{len(waiting)} pending: {', '.join(waiting[:8]) or 'none'}{dropped}"
    )


def _count(dropped: Mapping[str, int]) -> str:
    names = {"unscored": "with failed judges", "abstained": "where judges abstained", "no_signal": "of equal rewards"}
    return ", ".join(f"{count} {names[reason]}" for reason, count in dropped.items())
