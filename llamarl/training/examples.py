"""Preference pairs or labelled completions, in TRL's formats, without leaks: for reward models, classifiers and DPO.

    pairs     {prompt, chosen, rejected, margin?}     text or messages
              {chosen, rejected, margin?}             whole texts or conversations: their common start is the prompt
    labels    {prompt, completion, label}             label true or false

A column `tools` goes to the chat template; others are ignored. Text is a user turn and its answer, as everywhere in
this package. A bad row is an error that names file and line, or skipped and counted.

Prompts are told apart without regard to case and spaces. The common start of two texts may hold words of their answers:
what tells it apart ends with its last "Assistant:" or other such mark. Without one the prompt is open: it may be any
that the texts begin with.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import BadRow, RowError, check_text, excerpt, read_tools, read_turns
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.config import ExampleConfig
from llamarl.training.objective import Rows, Source
from llamarl.training.sft_rows import SFTRow, without_opened_tag

Kind = Literal["pairs", "labels"]
TokenIds = tuple[int, ...]
Turns = list[Message]
Tools = Sequence[Mapping[str, Any]] | None
Encode = Callable[[Turns, Turns, Tools], tuple[TokenIds, int]]
"""Encodes a prompt with its answer: all token ids, and how many of them are the answer's.

Raises `RowError`, `DataError` or `ConfigError` for what it refuses."""
_WORDS = {"true": 1, "false": 0, "1": 1, "0": 0}
_ANSWER_MARK = re.compile(
    r"(?:^|\n)[#* \t]*(?:assistant|ai|bot|response|answer)[* \t]*:"
    r"|\[/inst\]|<\|assistant\|>|<[|\w]+>(?:assistant|model)\b(?:<\|\w+\|>)?",
    re.IGNORECASE,
)
"""Mark at which an answer begins in texts that are whole conversations."""
_SPACES = re.compile(r"[\s\x00-\x1f]+")


@dataclass(frozen=True, slots=True)
class Example:
    """One row, encoded."""

    sequences: tuple[TokenIds, ...]
    """Whole conversations: the chosen and the rejected one, or the one that is labelled."""
    lengths: tuple[int, ...]
    """Tokens of each answer, without its prompt."""
    prompt_key: str
    """The prompt in lower case with single spaces: rows with equal keys stay on one side of the split."""
    target: float
    """Margin of a pair; label of a labelled row, 1 or 0."""
    is_open: bool = False
    """True where the prompt may end earlier, since it is the common start of two texts."""

    @property
    def num_tokens(self) -> int:
        """Answer tokens, of both answers where there are two."""
        return sum(self.lengths)

    @property
    def key(self) -> str:
        """A hash of everything learned from; decides the row's place in the order of training."""
        return _hash([self.sequences, self.target])

    @property
    def claim(self) -> Any:
        """The row's statement on its `sequences`, whatever their order."""
        return self.sequences if len(self.sequences) == 2 else self.target


@dataclass(frozen=True, slots=True)
class ExampleData:
    """The usable rows of a source and those left out."""

    examples: tuple[Example, ...]
    skipped: tuple[BadRow, ...]
    has_tools: bool = False
    """True where a row offers tools."""

    @property
    def skip_counts(self) -> dict[str, int]:
        """Rows left out by reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.skipped).most_common())


def read_rows(
    data: Source, eval_data: Source | None, kind: Kind, encode: Encode, config: ExampleConfig, split: str | None
) -> Rows[Example]:
    """Reads the rows to train on, and splits off or reads those to measure on; no prompt is on both sides.

    Raises:
        DataError: see `read_examples`, `hold_out`, `without_leaks`.
    """
    train = read_examples(data, kind, encode, config, split)
    if eval_data is None:
        kept, held_out = hold_out(train.examples, config.held_out)
        return Rows(kept, held_out, train.skip_counts, conversations=[((), train.has_tools)])
    evaluation = read_examples(eval_data, kind, encode, config, split)
    source = str(data) if isinstance(data, str | Path) else "rows"
    kept, num_leaks = without_leaks(train, evaluation.examples, config, source)
    skipped = train.skip_counts | {f"evaluation: {name}": n for name, n in evaluation.skip_counts.items()}
    skipped |= {"leak": num_leaks} if num_leaks else {}
    has_tools = train.has_tools or evaluation.has_tools
    return Rows(kept, evaluation.examples, skipped, conversations=[((), has_tools)])


def read_examples(
    source: str | Path | Iterable[Mapping[str, Any]],
    kind: Kind,
    encode: Encode,
    config: ExampleConfig,
    split: str | None = None,
) -> ExampleData:
    """Reads and encodes a JSONL, Parquet or CSV file, a glob, a Hub id or a list of mappings.

    Bad rows are malformed ones, conversations over `config.max_tokens`, pairs of equal answers, repetitions of an
    earlier row (the first stays), and rows that contradict each other (none of them stays).

    Raises:
        DataError: a bad row, with `config.on_bad_row="error"`; or no usable row at all.
    """
    reader = _Reader(kind, encode, config.max_tokens)
    good: list[tuple[str, int, Example]] = []
    skipped: list[BadRow] = []
    for name, line, row in raw_rows(source, split):
        try:
            good.append((name, line, reader.read(row)))
        except RowError as error:
            _refuse(error.at(name, line), config, skipped)
    examples = _consistent(good, lambda bad: _refuse(bad, config, skipped))
    if not examples:
        first = f"; the first of {len(skipped)} bad rows: {skipped[0]}" if skipped else ""
        raise DataError(f"{source if isinstance(source, str | Path) else 'rows'}: no usable row{first}")
    return ExampleData(tuple(examples), tuple(skipped), reader.has_tools)


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Splits into training and held-out rows by a hash of the prompt, the same in every run and for growing data.

    Raises:
        DataError: a share that leaves one side empty.
    """
    if share == 0.0:
        return list(examples), []
    sides: tuple[list[Example], list[Example]] = ([], [])
    prompts = _same_prompts(examples)
    for example in examples:
        sides[derive_seed("held out", prompts[example.prompt_key]) < share * 2**63].append(example)
    if not all(sides):
        raise DataError(
            f"held_out={share} of {len(set(prompts.values()))} prompts leaves {len(sides[0])} rows to train on and "
            f"{len(sides[1])} to measure on; add data, change held_out, give --eval-data, or set held_out=0"
        )
    return sides


def without_leaks(
    train: ExampleData, held_out: Sequence[Example], config: ExampleConfig, source: str
) -> tuple[list[Example], int]:
    """The training rows whose prompt is not in the evaluation data, and how many were.

    Raises:
        DataError: there are some, with `config.on_bad_row="error"`; or nothing is left.
    """
    prompts = _same_prompts([*train.examples, *held_out])
    known = {prompts[example.prompt_key] for example in held_out}
    clean = [example for example in train.examples if prompts[example.prompt_key] not in known]
    num_leaks = len(train.examples) - len(clean)
    if num_leaks and config.on_bad_row == "error":
        is_open = any(example.is_open for example in (*train.examples, *held_out))
        doubt = "; where texts only begin alike, give both files a column 'prompt'" if is_open else ""
        raise DataError(
            f"{source}: {num_leaks} training rows have a prompt of the evaluation data, so the measured accuracy would "
            f"be too good; remove them, or set on_bad_row='skip' to leave them out of training{doubt}"
        )
    if not clean:
        raise DataError(f"{source}: every training prompt is in the evaluation data; nothing is left to train on")
    return clean, num_leaks


def _same_prompts(examples: Iterable[Example]) -> dict[str, str]:
    """Each prompt's key -> one key for all that may be the same prompt.

    An open prompt may be any whose words it begins with; then those are no longer told apart either.
    """
    is_open: dict[str, bool] = {}
    for example in examples:
        is_open[example.prompt_key] = example.is_open or is_open.get(example.prompt_key, False)
    shorter: dict[str, str] = {}
    begun: list[str] = []  # keys that the current one begins with; sorting puts them just before it
    for key in sorted(is_open):
        while begun and not key.startswith(begun[-1] + " "):
            begun.pop()
        if is_open[key]:
            shorter |= zip([*begun[1:], key], begun, strict=False)
        begun.append(key)

    def shortest(key: str) -> str:
        while key in shorter:
            key = shorter[key]
        return key

    return {key: shortest(key) for key in is_open}


def _refuse(bad: BadRow, config: ExampleConfig, skipped: list[BadRow]) -> None:
    if config.on_bad_row == "error":
        raise DataError(f"{bad}, or set on_bad_row='skip'")
    skipped.append(bad)


def _consistent(good: Sequence[tuple[str, int, Example]], refuse: Callable[[BadRow], None]) -> list[Example]:
    """Rows that neither repeat nor contradict another."""
    first: dict[frozenset[TokenIds], tuple[str, int, Example]] = {}
    contradicted: set[frozenset[TokenIds]] = set()
    for name, line, example in good:
        subject = frozenset(example.sequences)
        other_name, other_line, other = first.setdefault(subject, (name, line, example))
        where = f"{other_name}, line {other_line}"
        if example.claim != other.claim:
            contradicted.add(subject)
            refuse(RowError("contradiction", "", f"says the opposite of {where}", "keep neither").at(name, line))
        elif other is not example:
            refuse(RowError("duplicate", "", f"the same as {where}", "remove it").at(name, line))
    for subject in contradicted:
        name, line, _ = first.pop(subject)
        refuse(RowError("contradiction", "", "a later row says the opposite", "keep neither").at(name, line))
    return [example for _, _, example in first.values()]


class ConversationEncoder:
    """Encodes whole conversations as the chat template writes them, for what judges them.

    Args:
        tokenizer: of the model.
        is_response_only: leave out prompt and chat template.
    """

    def __init__(self, tokenizer: Tokenizer, is_response_only: bool = False) -> None:
        self._tokenizer, self._is_response_only = tokenizer, is_response_only

    def __call__(self, prompt: Turns, answer: Turns, tools: Tools) -> tuple[TokenIds, int]:
        """Token ids of the conversation, and how many are the answer's. Raises `RowError` or `ConfigError`."""
        from llamarl.models.classifier import conversation_ids, text_ids

        if self._is_response_only:
            if not answer[-1].get("content"):
                remedy = "without is_response_only it may do"
                raise RowError("no_text", "completion", "the answer has no text", remedy)
            ids = text_ids(self._tokenizer, answer[-1]["content"])
            return ids, len(ids)
        ids = conversation_ids(self._tokenizer, prompt, answer, tools)
        return ids, max(0, len(ids) - len(self._tokenizer.encode_chat(prompt, tools)))


class AnswerEncoder:
    """Encodes an answer as a policy would generate it behind the prompt, for what trains the policy.

    Args:
        tokenizer: of the policy.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, prompt: Turns, answer: Turns, tools: Tools) -> tuple[TokenIds, int]:
        """Token ids of prompt and answer, and how many are the answer's. Raises `RowError`, `DataError`, `ConfigError`.

        One turn is the answer: of several, the earlier ones would differ in what the last one is given.
        """
        if len(answer) > 1:
            problem = f"the answers begin to differ {len(answer)} turns before the end"
            raise RowError("several_turns", "", problem, "let chosen and rejected differ in the last turn only")
        messages = without_opened_tag([*prompt, *answer], tools, self._tokenizer)
        row = SFTRow.of_chat(messages, self._tokenizer, tools)
        if not row.prompt_ids:
            raise RowError("no_prompt", "prompt", "the prompt has no tokens", "give it a text")
        return (*row.prompt_ids, *row.token_ids), row.num_tokens


class _Reader:
    """Reads rows of one kind."""

    def __init__(self, kind: Kind, encode: Encode, max_tokens: int) -> None:
        self._kind, self._encode, self._max_tokens = kind, encode, max_tokens
        self.has_tools = False

    def read(self, row: dict[str, Any] | RowError) -> Example:
        """Reads and encodes one row. Raises `RowError`."""
        if isinstance(row, RowError):
            raise row
        row = {name: value for name, value in row.items() if value is not None}
        prompt, answers, target = _read_pair(row) if self._kind == "pairs" else read_labelled(row)
        tools = read_tools(row.get("tools"))
        self.has_tools = self.has_tools or bool(tools)
        try:
            encoded = [self._encode(prompt, answer, tools) for answer in answers]
        except ConfigError as error:
            raise RowError("template", "", str(error), "change the messages") from None
        except DataError as error:
            raise RowError("answer", "", str(error), "mend or remove the row") from None
        sequences, lengths = tuple(ids for ids, _ in encoded), tuple(length for _, length in encoded)
        if (longest := max(map(len, sequences))) > self._max_tokens:
            raise RowError("too_long", "", f"{longest} tokens", f"max_tokens is {self._max_tokens}; raise it")
        if len(set(sequences)) < len(sequences):
            raise RowError("equal_answers", "", "chosen and rejected are equal", "remove the row")
        told, is_open = prompt, False
        if "prompt" not in row and isinstance(row["chosen"], str):
            told, is_open = _sure_start(prompt[0]["content"], answers)
        return Example(sequences, lengths, _prompt_key(told, tools), target, is_open)


def _read_pair(row: Mapping[str, Any]) -> tuple[Turns, list[Turns], float]:
    """Reads prompt, both answers and margin of a preference pair."""
    for field in ("chosen", "rejected"):
        if field not in row:
            raise RowError("missing_field", field, f"fields are {sorted(row)}", "a pair has 'chosen' and 'rejected'")
        check_text(row[field], field)  # before texts are split at the end of their common start
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, answers = _text_pair(row.get("prompt"), chosen, rejected)
    else:
        prompt, answers = _chat_pair(row.get("prompt"), _answer(chosen, "chosen"), _answer(rejected, "rejected"))
    return prompt, answers, _margin(row.get("margin", 0.0))


def _text_pair(prompt: Any, chosen: str, rejected: str) -> tuple[Turns, list[Turns]]:
    if prompt is None:  # TRL's rule: the common start, up to a space that both share
        end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
        end -= end > 0 and chosen[end - 1] == " "
        if not chosen[:end].strip():
            raise RowError("no_prompt", "prompt", "chosen and rejected share no start", "add a column 'prompt'")
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    return read_turns(prompt, "prompt", "user"), [[_turn("assistant", text)] for text in (chosen, rejected)]


def _chat_pair(prompt: Any, chosen: Turns, rejected: Turns) -> tuple[Turns, list[Turns]]:
    """Conversations that start before the assistant hold their prompt themselves, whatever the prompt column says."""
    are_whole = {turns[0]["role"] not in ("assistant", "tool") for turns in (chosen, rejected)}
    if are_whole == {False}:
        if prompt is None:
            raise RowError("no_prompt", "prompt", "the answers hold none and there is no such column", "add it")
        return read_turns(prompt, "prompt", "user"), [chosen, rejected]
    if chosen == rejected:
        raise RowError("equal_answers", "", "chosen and rejected are equal", "remove the row")
    room = min(len(chosen), len(rejected)) - 1
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen[:room], rejected, strict=False)))
    if not shared:
        raise RowError("no_prompt", "chosen", "chosen and rejected share no first message", "give both one prompt")
    return chosen[:shared], [chosen[shared:], rejected[shared:]]


def read_labelled(row: Mapping[str, Any]) -> tuple[Turns, list[Turns], float]:
    """Prompt, answer (the only one of the list) and label, 1 or 0, of a labelled row. Raises `RowError`."""
    for field in ("prompt", "completion", "label"):
        if field not in row:
            raise RowError("missing_field", field, f"fields are {sorted(row)}", "give prompt, completion and label")
    label = _WORDS.get(str(row["label"]).strip().lower())
    if label is None:
        raise RowError("bad_label", "label", f"{excerpt(row['label'])} is neither true nor false", "use true or false")
    return read_turns(row["prompt"], "prompt", "user"), [_answer(row["completion"], "completion")], float(label)


def _answer(value: Any, field: str) -> Turns:
    """An answer, or a conversation that ends with one: text or messages of which the last is the assistant's."""
    turns = read_turns(value, field, "assistant")
    if turns[-1]["role"] != "assistant":
        problem = f"the last message is of role {turns[-1]['role']!r}"
        raise RowError("bad_messages", f"{field}[{len(turns) - 1}].role", problem, "end with the assistant's")
    return turns


def _sure_start(start: str, answers: Sequence[Turns]) -> tuple[Turns, bool]:
    """Finds what two texts with this common start surely have in common of a prompt, and whether that is open."""
    marks = list(_ANSWER_MARK.finditer(start))
    if marks:
        return [_turn("user", start[: marks[-1].end()])], False
    if start[-1].isalnum() and any(answer[0]["content"][:1].isalnum() for answer in answers):
        start = " ".join(start.split()[:-1]) or start  # the last word goes on in an answer, so it is the answer's
    return [_turn("user", start)], True


def _prompt_key(prompt: Turns, tools: Tools) -> str:
    parts = [json.dumps(tools, sort_keys=True)] if tools else []
    for turn in prompt:
        parts += [turn["role"], turn.get("content", "")]
        rest = {name: value for name, value in turn.items() if name not in ("role", "content") and value is not None}
        parts += [json.dumps(rest, sort_keys=True)] if rest else []
    return _SPACES.sub(" ", " ".join(parts).casefold()).strip()


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _margin(value: Any) -> float:
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise RowError("bad_margin", "margin", f"{excerpt(value)} is no finite number", "use a number or leave it out")
    return margin


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
