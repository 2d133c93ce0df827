"""Sampled groups on disk, with all that judges, generators and trainer said of them, and completions side by side.

One line of `rollouts.jsonl` is one group:

    {"step": 10, "version": 9, "prompt_id": "p1", "task": "words", "messages": [...], "answer": null, "group": 80,
     "epoch": 0, "samples": [{"text": "...", "reward": 1.0, "staleness": 1, "verdicts": {"format": {...}}, ...}]}
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from llamarl.core.errors import DataError
from llamarl.core.records import Group, Sample, Status, TrainSample, Verdict
from llamarl.report.files import JsonlFile, Record, read_jsonl
from llamarl.report.text import format_number, one_line, visible

TrainerLogprobs = Mapping[tuple[int, int], Sequence[float]]
"""(group index, position of the sample) -> the trainer's log-prob of each of its tokens."""
Trained = Mapping[tuple[int, int], TrainSample]
"""(group index, position of the sample) -> how it trained; absent where it did not."""
Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens included."""
MAX_BYTES_PER_CHARACTER = 4
"""Most bytes of a character in UTF-8; as many tokens, at most, share one."""


@dataclass(frozen=True, slots=True)
class LoggedSample:
    """A judged completion as the log keeps it."""

    text: str
    reward: float | None
    finish_reason: str
    staleness: int
    """Trainer version minus the oldest token version."""
    verdicts: Mapping[str, Verdict]
    versions: tuple[tuple[int, int], ...]
    """Runs of (policy version, how many tokens in a row)."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]
    """The generator's log-prob of each token, to four decimals; None where it was not finite."""
    trainer_logprobs: tuple[float | None, ...] | None = None
    """The same of the trainer, where known."""
    tokens: tuple[str, ...] | None = None
    """The text that each token adds (`token_texts`); None where the run did not write it."""
    advantage: float | tuple[float, ...] | None = None
    """The advantage it trained with, for the whole or each token; None where it did not train, or nobody wrote it."""
    loss_mask: tuple[int, ...] | None = None
    """1 for each token that trained, 0 for the others; None where all did."""

    @property
    def is_passed(self) -> bool | None:
        """See `is_passed`."""
        return is_passed(self.verdicts)


@dataclass(frozen=True, slots=True)
class LoggedGroup:
    """All samples of one prompt as the log keeps them."""

    step: int
    version: int
    """Policy version of the trainer when the group was trained."""
    group: int
    epoch: int
    prompt_id: str
    task: str
    messages: tuple[Mapping[str, Any], ...]
    answer: Any
    samples: tuple[LoggedSample, ...]


class RolloutLog:
    """Writes a few groups every few steps to `rollouts.jsonl`.

    Args:
        path: of the file.
        every: log at step 1 and at steps divisible by this.
        per_step: how many groups, spread evenly over the step's groups.
        decode: for the text of single tokens; None leaves it out.
    """

    def __init__(self, path: str | Path, every: int = 10, per_step: int = 2, decode: Decode | None = None) -> None:
        self._file = JsonlFile(path)
        self._every = every
        self._per_step = per_step
        self._decode = decode

    def write(
        self,
        step: int,
        version: int,
        groups: Sequence[Group],
        trainer_logprobs: TrainerLogprobs | None = None,
        trained: Trained | None = None,
    ) -> int:
        """Logs this step's share of groups, if it is the step's turn; returns how many.

        Args:
            step: of the trainer.
            version: the trainer's policy version that these groups met, for their staleness.
            groups: all groups of the step.
            trainer_logprobs: where the trainer's own log-probs are known.
            trained: how samples trained.
        """
        chosen = self.choose(step, groups)
        for group in chosen:
            record = _group_record(step, version, group)
            for position, sample in enumerate(record["samples"]):
                own = (trainer_logprobs or {}).get((group.index, position))
                sample["trainer_logprobs"] = None if own is None else _round_logprobs(own)
                sample |= _training_record((trained or {}).get((group.index, position)))
                if self._decode is not None:
                    sample["tokens"] = token_texts(sample["token_ids"], self._decode)
            self._file.append(record)
        return len(chosen)

    def choose(self, step: int, groups: Sequence[Group]) -> list[Group]:
        """The groups that `write` will log."""
        if step != 1 and step % self._every:
            return []
        count = min(self._per_step, len(groups))
        return [groups[position * len(groups) // count] for position in range(count)]

    def rewind(self, step: int) -> int:
        """Drops the groups logged after `step`, for a run that resumes from there; returns how many went."""
        return self._file.keep_only(lambda record: record.get("step", 0) <= step)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        self._file.close()


def read_rollouts(path: str | Path) -> list[LoggedGroup]:
    """The logged groups in file order; a torn last line is left out.

    Raises:
        DataError: no such file or a broken line; names file, line and field.
    """
    records = read_jsonl(path, required={"step": int, "samples": list, "messages": list})
    return [_read_group(record, f"{path}, record {number}") for number, record in enumerate(records, start=1)]


def token_texts(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds. Of a character made of several tokens, the last one has it, the others nothing."""
    texts, start = [], 0
    for end in range(1, len(token_ids) + 1):
        before = list(token_ids[max(0, start - 1) : start])  # some decoders drop the space before a first word
        text = decode([*before, *token_ids[start:end]])[len(decode(before)) :]
        is_part = text.endswith("\N{REPLACEMENT CHARACTER}") and end - start < MAX_BYTES_PER_CHARACTER
        if is_part and end < len(token_ids):
            texts.append("")
        else:
            texts.append(text)
            start = end
    return texts


def is_passed(verdicts: Mapping[str, Verdict]) -> bool | None:
    """True where a completion passes every judge that says pass or fail; None where none of them says so."""
    passes = [verdict.passed for verdict in verdicts.values() if verdict.passed is not None]
    return all(passes) if passes else None


def side_by_side(before: Sequence[Group], after: Sequence[Group], width: int = 100, samples: int = 1) -> Table:
    """A table of the same prompts' completions before and after training, with pass or fail and the judges' reasons.

    Args:
        before: judged groups, matched with `after` by prompt id.
        after: prompts that `before` lacks are left out.
        width: characters of the whole table.
        samples: how many completions of each prompt to show.
    """
    later = {group.prompt.id: group for group in after}
    column = max(10, (width - 10) * 3 // 8)
    table = Table(show_lines=True, width=width, title_justify="left")
    table.add_column("prompt", width=max(10, width - 10 - 2 * column), overflow="fold")
    for name, groups in (("before", before), ("after", after)):
        table.add_column(f"{name}  {_pass_count(groups)}", width=column, overflow="fold")
    for group in before:
        if group.prompt.id in later:
            cells = [_samples_cell(item, samples) for item in (group, later[group.prompt.id])]
            table.add_row(Text(visible(last_message(group.prompt.messages)), style="dim"), *cells)
    return table


def last_message(messages: Sequence[Mapping[str, Any]]) -> str:
    """The content of the last turn."""
    return str(messages[-1].get("content", "")) if messages else ""


def verdict_line(name: str, verdict: Verdict, width: int | None = None) -> str:
    """One verdict in words: `format 0.5 fail: no keyword`."""
    if verdict.status is Status.SCORED:
        mark = {True: " pass", False: " fail", None: ""}[verdict.passed]
        head = f"{name} {format_number(verdict.score)}{mark}"
    else:
        head = f"{name} {verdict.status}"
    return one_line(f"{head}: {verdict.reason}" if verdict.reason else head, width)


def mark(passed: bool | None) -> Text:
    """A coloured tick, cross or dot."""
    symbol, style = {True: ("✓", "bold green"), False: ("✗", "bold red"), None: ("·", "dim")}[passed]
    return Text(symbol, style=style)


def _pass_count(groups: Sequence[Group]) -> str:
    passes = [is_passed(sample.verdicts) for group in groups for sample in group.samples]
    judged = [passed for passed in passes if passed is not None]
    return f"({sum(judged)}/{len(judged)} pass)" if judged else ""


def _samples_cell(group: Group, count: int) -> Text:
    cell = Text()
    for sample in group.samples[:count]:
        cell.append("\n" if cell else "").append_text(mark(is_passed(sample.verdicts)))
        cell.append(f" {visible(sample.completion.text.strip())}")
        for name, verdict in sample.verdicts.items():
            if verdict.reason or not verdict.passed:
                cell.append(f"\n{verdict_line(name, verdict)}", style="dim")
    return cell


def _group_record(step: int, version: int, group: Group) -> Record:
    prompt = group.prompt
    return {
        "step": step,
        "version": version,
        "group": group.index,
        "epoch": group.epoch,
        "prompt_id": prompt.id,
        "task": prompt.task,
        "messages": [dict(message) for message in prompt.messages],
        "answer": prompt.answer,
        "samples": [_sample_record(sample, version) for sample in group.samples],
    }


def _sample_record(sample: Sample, version: int) -> Record:
    completion, trajectory = sample.completion, sample.completion.trajectory
    return {
        "text": completion.text,
        "reward": sample.reward,
        "finish_reason": completion.finish_reason,
        "staleness": version - trajectory.oldest_version if trajectory.versions else 0,
        "verdicts": {name: _verdict_record(verdict) for name, verdict in sample.verdicts.items()},
        "versions": trajectory.versions,
        "token_ids": list(completion.token_ids),
        "logprobs": _round_logprobs(completion.logprobs),
    }


def _training_record(trained: TrainSample | None) -> Record:
    """The advantage, and the loss mask where a token is left out."""
    if trained is None:
        return {"advantage": None}
    values = trained.advantages
    advantage = [round(each, 6) for each in values] if isinstance(values, array) else round(float(values), 6)
    return {"advantage": advantage} | ({} if trained.loss_mask is None else {"loss_mask": list(trained.loss_mask)})


def _verdict_record(verdict: Verdict) -> Record:
    fields = ("status", "score", "passed", "reason", "cost", "seconds")
    return {name: getattr(verdict, name) for name in fields}


def _round_logprobs(logprobs: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in logprobs]


def _read_group(record: Record, where: str) -> LoggedGroup:
    try:
        samples = tuple(_read_sample(sample) for sample in record["samples"])
        plain = {name: record[name] for name in ("step", "version", "group", "epoch", "prompt_id", "task", "answer")}
        return LoggedGroup(**plain, messages=tuple(record["messages"]), samples=samples)
    except KeyError as error:
        raise DataError(f"{where}: no key {error}; delete the line or restore the file") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: {error}; delete the line or restore the file") from None


def _read_sample(record: Record) -> LoggedSample:
    verdicts = {
        name: Verdict(**{**verdict, "status": Status(verdict["status"])})
        for name, verdict in record["verdicts"].items()
    }
    trainer, tokens, advantage = record["trainer_logprobs"], record.get("tokens"), record.get("advantage")
    return LoggedSample(
        text=record["text"],
        reward=record["reward"],
        finish_reason=record["finish_reason"],
        staleness=record["staleness"],
        verdicts=verdicts,
        versions=tuple((version, count) for version, count in record["versions"]),
        token_ids=tuple(record["token_ids"]),
        logprobs=tuple(record["logprobs"]),
        trainer_logprobs=None if trainer is None else tuple(trainer),
        tokens=None if tokens is None else tuple(tokens),
        advantage=tuple(advantage) if isinstance(advantage, list) else advantage,
        loss_mask=None if record.get("loss_mask") is None else tuple(record["loss_mask"]),
    )
