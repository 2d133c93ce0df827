"""The findings of an evaluation, as plain values: `results.json`.

    modes.official.pooled                  rates over all conversations, as the released code reports them
    modes.official.macro                   unweighted means over languages, as the paper's tables report them
    modes.official.languages.fr            rates of one language
        turns.1.strict.conversation        {"value", "low", "high", "of"}
        turns.1.overall                    mean of the four accuracies
        mean_over_turns                    mean of the overalls
        all_turns_passed.strict            conversations that pass at every turn
        transitions.1-2.strict.ifr_percent instructions followed at turn 1 and no longer at turn 2, of those followed
        transitions.1-2.strict.ecr_percent instructions not followed at turn 1, but at turn 2, of those not followed
    modes.official.instructions            strict and loose accuracy by instruction type and turn
    modes.official.ungradable              the instructions whose arguments make no sense
    failures, truncation, data, generation what else a reader must know
    keys                                   the conversations, by language

Accuracies are fractions. `low` and `high` bound the 95% percentile interval of a bootstrap over conversations; `of` is
the denominator. A value is null where its denominator is 0.
"""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llamarl
from llamarl.core.errors import DataError
from llamarl.evals import scores
from llamarl.evals.conversations import LANGUAGES, Conversation, Conversations
from llamarl.evals.groups import Bootstrap, GroupRates, group_rates, grouped_tree
from llamarl.evals.replies import Replies, Reply
from llamarl.evals.verdicts import GraderSettings, TurnVerdict, failures_of, places_of
from llamarl.functional.statistics import CONFIDENCE
from llamarl.judges.rules import Mode
from llamarl.report.files import read_json

RESULTS_FILE = "results.json"
VERDICTS_FILE = "verdicts.jsonl"
FIGURE_FILE = "accuracy.png"
MISSING = "no line in the file"

CHECKERS = {
    "official": "as released with Multi-IF (facebookresearch/Multi-IF), verdict by verdict; from those that Google "
    "released with IFEval they differ in number_words and number_sentences (by language), quotation (further pairs of "
    "marks) and a reply of blanks only",
    "google": "as Google released them with IFEval: those of Multi-IF, but in any language number_words counts runs "
    "of word characters and number_sentences splits as English; quotation takes straight marks only; and a reply of "
    "blanks only follows nothing",
    "fixed": "those released with Multi-IF, with their defects repaired",
}
"""The checkers that each mode uses, in words, for the record."""


def texts_of(replies: Replies) -> dict[tuple[str, int], str]:
    """The replies that can be graded."""
    return {place: reply.response for place, reply in replies.items() if reply.response is not None}


def build_results(
    benchmark: str,
    conversations: Conversations,
    replies: Replies,
    verdicts: Sequence[TurnVerdict],
    settings: GraderSettings,
    *,
    generation: Mapping[str, Any] | None = None,
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """Everything that `results.json` holds.

    Args:
        benchmark: its name.
        conversations: what was asked.
        replies: what came back.
        verdicts: of all modes.
        settings: of the graders.
        generation: how the replies were made, where that is known.
        bootstrap: of the intervals.
    """
    bootstrap = bootstrap or Bootstrap()
    by_mode = {mode: [verdict for verdict in verdicts if verdict.mode == mode] for mode in settings.modes}
    found = mode_results(conversations, by_mode, bootstrap)
    return {
        "benchmark": benchmark,
        "llamarl": llamarl.__version__,
        "language_names": {each.language: LANGUAGES[each.language] for each in conversations},
        "versions": {"python": platform.python_version(), "numpy": version("numpy")},
        "data": _data(conversations, replies),
        "generation": None if generation is None else dict(generation),
        "bootstrap": {
            "seed": bootstrap.seed,
            "num_resamples": bootstrap.num_resamples,
            "confidence": CONFIDENCE,
            "unit": "conversation",
        },
        "failures": _failures(conversations, replies),
        "truncation": _truncation(conversations, replies, generation is not None),
        "modes": {
            mode: {"grader": {"checkers": CHECKERS[mode], **settings.grader(mode).record()}, **found[mode]}
            for mode in settings.modes
        },
        "keys": _keys(conversations),
    }


def mode_results(
    conversations: Sequence[Conversation], verdicts: Mapping[Mode, Sequence[TurnVerdict]], bootstrap: Bootstrap
) -> dict[Mode, dict[str, Any]]:
    """The rates of each mode, by group and by instruction type.

    Args:
        conversations: what was asked.
        verdicts: by mode.
        bootstrap: of the intervals.
    """
    num_turns = max(len(each.turns) for each in conversations)
    lengths = {each.key: len(each.turns) for each in conversations}
    counts = {str(mode): scores.count(found, lengths, num_turns) for mode, found in verdicts.items()}
    groups = group_rates(counts, [each.language for each in conversations], num_turns, bootstrap)
    return {
        mode: {
            **grouped_tree({name: _tree(by_mode[mode]) for name, by_mode in groups.items()}),
            "instructions": _by_instruction(conversations, found),
            "ungradable": _ungradable(conversations, found),
        }
        for mode, found in verdicts.items()
    }


def read_results(directory: str | Path) -> dict[str, Any]:
    """The `results.json` of a directory. Raises `DataError` where there is none."""
    path = Path(directory) / RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the --out directory of a finished llamarl eval")
    results = read_json(path)
    if not isinstance(results.get("modes"), dict) or not isinstance(results.get("data"), dict):
        raise DataError(f"{path}: no results of llamarl eval; give the --out directory of a finished one")
    return results


def _data(conversations: Conversations, replies: Replies) -> dict[str, Any]:
    places = list(places_of(conversations))
    return {
        "source": conversations.source,
        "revision": conversations.revision,
        "conversations": len(conversations),
        "turns": len(places),
        "skipped_rows": [str(row) for row in conversations.skipped],
        "unused_replies": len(replies.keys() - set(places)),
    }


def _keys(conversations: Conversations) -> dict[str, list[str]]:
    """The keys of the evaluated conversations by language, which a later comparison needs."""
    keys: dict[str, list[str]] = defaultdict(list)
    for each in conversations:
        keys[each.language].append(each.key)
    return dict(keys)


def _failures(conversations: Conversations, replies: Replies) -> dict[str, Any]:
    """Turns that got no reply: they are in no denominator."""
    failed = failures_of(conversations, texts_of(replies))
    return {
        "turns": len(failed),
        "by_reason": dict(Counter(_reason(replies.get(place)) for place in failed).most_common()),
        "by_turn": dict(sorted(Counter(str(turn) for _, turn in failed).items())),
        "keys": list(dict.fromkeys(key for key, _ in failed)),
    }


def _reason(reply: Reply | None) -> str:
    return MISSING if reply is None else (reply.error or "no response")


def _truncation(conversations: Conversations, replies: Replies, is_known: bool) -> dict[str, Any]:
    """Replies cut at the token limit. Null rates: the file of replies does not say how they ended."""
    cut: Counter[str] = Counter()
    of: Counter[str] = Counter()
    for place in places_of(conversations):
        reply = replies.get(place)
        if reply is not None and reply.response is not None:
            of[str(reply.turn)] += 1
            cut[str(reply.turn)] += reply.finish_reason == "length"
    is_known = is_known or cut.total() > 0
    rate = {turn: cut[turn] / of[turn] if is_known else None for turn in sorted(of)}
    return {"rate": cut.total() / of.total() if is_known and of else None, "of": of.total(), "by_turn": rate}


def _tree(rates: GroupRates) -> dict[str, Any]:
    leaves: dict[scores.RatePath, dict[str, Any]] = {}
    for path, value in rates.point.items():
        low, high = rates.interval(path)
        leaves[path] = {"value": scores.or_none(value), "low": low, "high": high}
        if path in rates.of:
            leaves[path]["of"] = rates.of[path]
    return {"conversations": rates.num_conversations, **scores.nest(leaves)}


def _by_instruction(conversations: Sequence[Conversation], verdicts: Iterable[TurnVerdict]) -> dict[str, Any]:
    """Instruction type -> turn -> strict and loose accuracy; `all` pools the turns."""
    ids = {
        (each.key, number): [instruction["id"] for instruction in turn.instructions]
        for each in conversations
        for number, turn in enumerate(each.turns, start=1)
    }
    sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for verdict in verdicts:
        for id, strict, loose in zip(ids[verdict.key, verdict.turn], verdict.strict, verdict.loose, strict=True):
            for turn in (str(verdict.turn), "all"):
                if strict is not None:
                    entry = sums[id][turn]
                    entry[:] = entry[0] + strict, entry[1] + bool(loose), entry[2] + 1
    return {
        id: {
            turn: {"strict": strict / of, "loose": loose / of, "of": of}
            for turn, (strict, loose, of) in sorted(turns.items())
        }
        for id, turns in sorted(sums.items())
    }


def _ungradable(conversations: Sequence[Conversation], verdicts: Iterable[TurnVerdict]) -> list[dict[str, Any]]:
    turns = {(each.key, number): turn for each in conversations for number, turn in enumerate(each.turns, start=1)}
    return [
        {
            "key": verdict.key,
            "turn": verdict.turn,
            "position": position,
            "id": turns[verdict.key, verdict.turn].instructions[position]["id"],
            "reason": reason,
        }
        for verdict in verdicts
        for position, reason in sorted(verdict.ungradable.items())
    ]
