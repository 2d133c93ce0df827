"""Labelled claims of a model's own long answers, from nothing but prompts.

    prompts -> answers -> claims -> relevance -> labels -> questions -> train, validation and test

    OUT/answers.jsonl ... questions.jsonl      a line for each finished item of a stage (`stages`)
    OUT/train.jsonl, validation.jsonl, test.jsonl
    OUT/undetermined.jsonl                     claims whose evidence is silent
    OUT/surplus.jsonl                          claims of the larger class that balancing left over
    OUT/build.json                             counts, settings, notes; written last

A stage is a class with a name, the settings its results depend on, and `process`; another one takes its place by being
given to `Pipeline`.

Reference: Qin et al., https://arxiv.org/abs/2505.12265, section 3.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamarl.core.errors import ConfigError, DataError, EndpointError
from llamarl.core.loops import run_async
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.asking import Helper, excerpt_of
from llamarl.factuality.asks import read_asks, refuse_canaries
from llamarl.factuality.claims import Answer, Ask, Claim, Ruling
from llamarl.factuality.decomposition import (
    Decomposer,
    FactDecomposer,
    ModelDecomposer,
    SentenceDecomposer,
    read_claims,
)
from llamarl.factuality.evidence import Evidence, TableEvidence, open_evidence
from llamarl.factuality.facts import FactTable
from llamarl.factuality.labels import NO_VERDICT, FactLabeller, Labeller, ModelLabeller, Relevance
from llamarl.factuality.questions import FactQuestioner, ModelQuestioner, Questioner, Ruled
from llamarl.factuality.settings import Build, Calls
from llamarl.factuality.splits import SPLITS, assign_splits, balance
from llamarl.factuality.stages import Outcome, Stage, count_reasons, run_stage
from llamarl.generation.chats import Chat, EndpointChat, NativeChat
from llamarl.jobs import lock_directory
from llamarl.models.endpoint import ChatEndpoint, EndpointConfig
from llamarl.report.files import write_json
from llamarl.report.progress import NoProgress, Progress

SUMMARY_FILE = "build.json"
T = TypeVar("T")
MakeProgress = Callable[[str], Progress]


class Answering(Stage[Ask]):
    """The stage from prompts to answers of the model under study, greedily."""

    name = "answers"

    def __init__(self, chat: Chat, system: str | None = None) -> None:
        self._chat, self._system = chat, system

    def record(self) -> Mapping[str, Any]:
        """The model and its sampling; a server may move."""
        who = {name: value for name, value in self._chat.record().items() if name != "base_url"}
        return {"chat": who, "system": self._system}

    def content(self, item: Ask) -> Any:
        """The prompt."""
        return item.text

    async def process(self, item: Ask) -> dict[str, Any]:
        """The model's answer."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        reply = await self._chat.reply([*system, {"role": "user", "content": item.text}], derive_seed(item.id))
        return {"prompt": item.text, "text": reply.text, "finish_reason": reply.finish_reason}


@dataclass(slots=True)
class Pipeline:
    """The stages of a build."""

    answering: Answering
    decomposer: Decomposer
    labeller: Labeller
    relevance: Relevance | None = None
    """None: every claim is relevant."""
    questioner: Questioner | None = None
    """None: no auxiliary questions."""
    chats: Sequence[Chat | Evidence] = ()
    """Closed at the end."""

    async def close(self) -> None:
        """Lets go of models and connections."""
        for each in self.chats:
            await each.close()


@dataclass(slots=True)
class _Build:
    """One call of `build`."""

    settings: Build
    make_progress: MakeProgress
    failed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)

    async def run(self, stage: Stage[T], items: Mapping[str, T]) -> Outcome:
        """One stage. Raises `EndpointError` where items failed, unless the user leaves them out."""
        settings = self.settings
        progress = self.make_progress(stage.name)
        outcome = await run_stage(stage, items, settings.out, max_in_flight=settings.max_in_flight, progress=progress)
        self.kept[stage.name] = outcome.num_kept
        if outcome.failures:
            self.failed[stage.name] = len(outcome.failures)
            name, problem = next(iter(outcome.failures.items()))
            if not settings.skip_failed:
                raise EndpointError(
                    f"{stage.name}: {len(outcome.failures)} of {len(items)} items failed, the first ({name}) with: "
                    f"{problem}; what was finished is on file: run the same again, or leave them out by --skip-failed"
                )
        return outcome


def build(
    settings: Build, *, pipeline: Pipeline | None = None, make_progress: MakeProgress = lambda name: NoProgress()
) -> dict[str, Any]:
    """Answers, takes apart, labels, splits and writes; returns what `build.json` holds.

    Args:
        settings: what from, what by, where to.
        pipeline: stages of your own, instead of those that the settings name.
        make_progress: a view for each stage, by its name.

    Raises:
        ConfigError: settings that contradict each other; another process builds there.
        DataError: prompts, facts or passages that cannot be used, or not one claim that could be decided.
        EndpointError: a back end is down. What was finished is on file, and the same call goes on from there.
    """
    asks = read_asks(settings.prompts, settings.name_prompt)
    if not (settings.evaluation_only or settings.train_on_canary):
        refuse_canaries(asks)
    with lock_directory(settings.out, "building into"):
        stages = pipeline or build_pipeline(settings)
        return run_async(_build(settings, asks, stages, make_progress))


async def _build(settings: Build, asks: Sequence[Ask], stages: Pipeline, make_progress: MakeProgress) -> dict[str, Any]:
    (settings.out / SUMMARY_FILE).unlink(missing_ok=True)  # a summary stands for files that are complete
    run = _Build(settings, make_progress)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(stages.close)
        answers = await _answer(run, stages, asks)
        claims = await _decompose(run, stages, answers)
        relevant = await _keep_relevant(run, stages, claims)
        ruled, undetermined = await _label(run, stages, relevant)
        questions = await _question(run, stages, ruled)
    rows = [_row(each, questions.get(name)) for name, each in ruled.items()]
    return _write(run, asks, rows, [_row(each, None) for each in undetermined])


async def _answer(run: _Build, stages: Pipeline, asks: Sequence[Ask]) -> dict[str, Answer]:
    by_id = {ask.id: ask for ask in asks}
    found = (await run.run(stages.answering, by_id)).results
    answers = {name: Answer(by_id[name], each["text"], each["finish_reason"]) for name, each in found.items()}
    texts = [answer.text.strip() for answer in answers.values()]
    run.counts["answers"] = {
        "answered": len(answers),
        "empty": sum(not text for text in texts),
        "cut": sum(answer.finish_reason == "length" for answer in answers.values()),
    }
    if not any(texts):
        raise DataError(f"all {len(answers)} answers are empty; is {run.settings.model} a chat model?")
    return answers


def _explain_silence(answers: Mapping[str, Answer], dropped: Sequence[str]) -> str:
    """Says why readable answers hold no claim, with one of them."""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in count_reasons(dropped).items())
    text = next(answer.text for answer in answers.values() if answer.text.strip())
    unread = " (no subject, cue and value of the table in one sentence)" if "no_known_relation" in dropped else ""
    return f"dropped: {counts or 'nothing'}{unread}; one answer says {excerpt_of(text)!r}"


async def _decompose(run: _Build, stages: Pipeline, answers: Mapping[str, Answer]) -> dict[str, Claim]:
    found = (await run.run(stages.decomposer, answers)).results
    claims: dict[str, Claim] = {}
    dropped: list[str] = []
    problems = [each["problem"] for each in found.values() if each["problem"]]
    for name, each in found.items():
        kept, reasons = read_claims(answers[name], each)
        claims |= {claim.id: claim for claim in kept}
        dropped += [reason for reason, count in reasons.items() for _ in range(count)]
    per_answer = [len(each["claims"]) for each in found.values()]
    run.counts["claims"] = {
        "found": len(claims),
        "dropped": count_reasons(dropped),
        "answers_with_one": per_answer.count(1),
        "answers_without": per_answer.count(0),
        "unreadable_lists": len(problems),
    }
    if not claims:
        why = f"the first: {problems[0]}" if problems else _explain_silence(answers, dropped)
        raise DataError(f"claims: no claim in {len(found)} answers; {why}; look at {run.settings.out}/answers.jsonl")
    return claims


async def _keep_relevant(run: _Build, stages: Pipeline, claims: dict[str, Claim]) -> dict[str, Claim]:
    if stages.relevance is None:
        return claims
    found = (await run.run(stages.relevance, claims)).results
    said = [each["is_relevant"] for each in found.values()]
    run.counts["relevance"] = {"irrelevant": said.count(False), "unreadable": said.count(None)}
    kept = {name: claims[name] for name, each in found.items() if each["is_relevant"] is not False}
    if not kept:
        raise DataError(f"relevance: the helper finds none of {len(found)} claims relevant; use --relevance all")
    return kept


async def _label(run: _Build, stages: Pipeline, claims: Mapping[str, Claim]) -> tuple[dict[str, Ruled], list[Ruled]]:
    found = (await run.run(stages.labeller, claims)).results
    every = {name: Ruled(claims[name], Ruling.parse(each)) for name, each in found.items()}
    silent = [each.ruling for each in every.values() if each.ruling.finding == "undetermined"]
    run.counts["labels"] = {
        **dict.fromkeys(("supported", "contradicted", "undetermined"), 0),
        **count_reasons([each.ruling.finding for each in every.values()]),
        "undetermined_because": count_reasons([ruling.reason or "unsaid" for ruling in silent]),
    }
    mute = [ruling for ruling in silent if ruling.reason == NO_VERDICT]
    if len(mute) == len(every):
        raise DataError(
            f"labels: none of {len(every)} replies says True, False or Undetermined, the first: "
            f"{excerpt_of(mute[0].rationale)!r}; choose another --helper"
        )
    if len(silent) == len(every):
        raise DataError(
            f"labels: the evidence decides none of {len(every)} claims: "
            f"{run.counts['labels']['undetermined_because']}; does it speak of the prompts' subjects?"
        )
    decided, aside = {}, []
    for name, each in every.items():
        is_mapped = run.settings.undetermined_as_hallucinated and each.ruling.reason != NO_VERDICT
        if each.ruling.finding != "undetermined" or is_mapped:
            decided[name] = each
        else:
            aside.append(each)
    return decided, aside


async def _question(run: _Build, stages: Pipeline, ruled: Mapping[str, Ruled]) -> dict[str, Any]:
    """Questions by claim; undetermined claims, whose truth nobody knows, have none."""
    if stages.questioner is None:
        return {}
    known = {name: each for name, each in ruled.items() if each.ruling.finding != "undetermined"}
    found = (await run.run(stages.questioner, known)).results
    questions = {name: each["question"] for name, each in found.items() if each["question"] is not None}
    run.counts["questions"] = {
        "kept": len(questions),
        "dropped": count_reasons([each["problem"] for each in found.values() if each["problem"]]),
    }
    return questions


def _row(each: Ruled, question: Any) -> dict[str, Any]:
    """A line of the data set. What a detector may see is `claim`; all else is for training and for readers."""
    claim, ruling, ask = each.claim, each.ruling, each.claim.answer.ask
    return {
        "id": claim.id,
        "prompt": ask.id,
        "prompt_text": ask.text,
        **({"subject": ask.subject} if ask.subject else {}),
        "claim": claim.text,
        "span": list(claim.span),
        "label": ruling.finding == "supported",
        "finding": ruling.finding,
        **({"reason": ruling.reason} if ruling.reason else {}),
        "rationale": ruling.rationale,
        "evidence": [passage.id for passage in ruling.evidence],
        "facts": [dict(fact) for fact in ruling.facts],
        "question": question,
        **({"canary": ask.canary} if ask.canary else {}),
    }


def _write(
    run: _Build, asks: Sequence[Ask], rows: list[dict[str, Any]], undetermined: list[dict[str, Any]]
) -> dict[str, Any]:
    settings = run.settings
    shares = (0.0, *settings.split[1:]) if settings.evaluation_only else settings.split
    units = {row["id"]: (row.get("subject") or row["prompt"]).casefold() for row in rows}
    splits = assign_splits(sorted(set(units.values())), shares, settings.seed)
    rows = [{**row, "split": splits[units[row["id"]]]} for row in rows]
    kept = balance(rows, settings.seed)
    files = {}
    for split in SPLITS:
        chosen = [row for row in rows if row["split"] == split and row["id"] in kept]
        path = settings.out / f"{split}.jsonl"
        if split == "train" and settings.evaluation_only:
            path.unlink(missing_ok=True)
            continue
        files[split] = str(path)
        write_jsonl(path, chosen)
        labels = [row["label"] for row in chosen]
        run.counts.setdefault("splits", {})[split] = {
            "factual": labels.count(True),
            "hallucinated": labels.count(False),
            "prompts": len({row["prompt"] for row in chosen}),
        }
    surplus = [row for row in rows if row["id"] not in kept]
    aside = [{**row, "label": None} for row in undetermined]
    for name, lines in (("surplus", surplus), ("undetermined", aside)):
        files[name] = str(settings.out / f"{name}.jsonl")
        write_jsonl(files[name], lines)
    summary = {
        "prompts": len(asks),
        **run.counts,
        "surplus": len(surplus),
        "kept_aside": len(aside),
        "failed": run.failed,
        "taken_from_file": run.kept,
        "canaries": sum(ask.canary is not None for ask in asks),
        "notes": list(_note(run, asks)),
        "files": files,
        "settings": settings.model_dump(mode="json"),
    }
    write_json(settings.out / SUMMARY_FILE, summary)
    return summary


def _note(run: _Build, asks: Sequence[Ask]) -> Any:
    """Yields what a user of the data should know."""
    for split, counts in run.counts["splits"].items():
        if not counts["factual"]:
            why = "its prompts have no claims of one of the classes"
            yield f"{split}.jsonl is empty: {why}; give more prompts, of more subjects"
    if run.failed:
        yield f"items that failed are left out: {run.failed}"
    if run.counts["labels"]["undetermined_because"].get(NO_VERDICT):
        count = run.counts["labels"]["undetermined_because"][NO_VERDICT]
        yield f"{count} replies of the helper say no verdict; their claims are in undetermined.jsonl"
    if run.settings.train_on_canary and any(ask.canary for ask in asks):
        yield "train.jsonl holds answers to prompts whose owner asks that nobody trains on them (--train-on-canary)"


# ---- stages by settings ---------------------------------------------------------------------------------------------


def build_pipeline(settings: Build) -> Pipeline:
    """The stages that the settings name.

    Raises:
        ConfigError, DataError, CheckpointError, MissingDependencyError: what one of them lacks.
    """
    table = FactTable.read(settings.facts, settings.relations) if settings.facts else None
    evidence = open_evidence(settings.corpus, settings.search)
    if evidence is None and table is not None:
        evidence = TableEvidence(table)
    chat = build_chat(settings, settings.model, settings.endpoint, settings.api_key_env)
    chats: list[Chat | Evidence] = [chat, *([evidence] if evidence else [])]
    helper = Helper(chat)
    if settings.helper is not None:
        helper = Helper(build_chat(settings, settings.helper, settings.helper_endpoint, settings.helper_api_key_env))
        chats.append(helper.chat)
    return Pipeline(
        Answering(chat, settings.system),
        _pick_decomposer(settings, table, helper),
        _pick_labeller(settings, table, evidence, helper),
        Relevance(helper) if settings.relevance == "model" else None,
        _pick_questioner(settings, table, helper),
        chats,
    )


def _pick_decomposer(settings: Build, table: FactTable | None, helper: Helper) -> Decomposer:
    if settings.claims == "facts":
        return FactDecomposer(_need_table(table, "--claims facts"))
    return ModelDecomposer(helper) if settings.claims == "model" else SentenceDecomposer()


def _pick_labeller(settings: Build, table: FactTable | None, evidence: Evidence | None, helper: Helper) -> Labeller:
    if settings.resolved_labels == "facts":
        return FactLabeller(_need_table(table, "--labels facts"))
    if evidence is None:
        raise ConfigError("no evidence: give --facts FILE, --corpus FILE or --search FILE")
    return ModelLabeller(helper, evidence, num_queries=settings.num_queries, num_passages=settings.num_passages)


def _pick_questioner(settings: Build, table: FactTable | None, helper: Helper) -> Questioner | None:
    kind = settings.questions or settings.resolved_labels
    if kind == "facts":
        return FactQuestioner(_need_table(table, "--questions facts"))
    return ModelQuestioner(helper) if kind == "model" else None


def _need_table(table: FactTable | None, what: str) -> FactTable:
    if table is None:
        raise ConfigError(f"{what}: needs a table; give --facts FILE")
    return table


def build_chat(settings: Calls, model: str, endpoint: str | None, api_key_env: str | None) -> Chat:
    """A checkpoint, or the model that a server at `endpoint` calls by this name, answering greedily."""
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=0.0)
    if endpoint is None:
        return NativeChat(
            model,
            sampling,
            chat_template_args=settings.chat_template_args,
            precision=settings.precision,
            slots=settings.max_in_flight,
            device=settings.device,
        )
    server = {
        "base_url": endpoint,
        "model": model,
        "api_key_env": api_key_env,
        "max_concurrency": settings.max_in_flight,
        "timeout_seconds": settings.timeout,
        "max_retries": settings.max_retries,
    }
    return EndpointChat(ChatEndpoint(EndpointConfig.parse(server, source="endpoint")), sampling)
