"""Turns replies into everything that an evaluation leaves in its directory.

OUT/verdicts.jsonl    {"key", "turn", "mode", "strict": [...], "loose": [...]} a line
OUT/results.json      rates, intervals, and what they depend on (see `results`)
OUT/accuracy.png      accuracy by turn and language; forgetting and recovery
OUT/report.html       the same, with all tables, as a page that opens by double click
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.evals.conversations import Conversations
from llamarl.evals.groups import Bootstrap
from llamarl.evals.replies import SETTINGS_FILE, Replies
from llamarl.evals.results import FIGURE_FILE, RESULTS_FILE, VERDICTS_FILE, build_results, texts_of
from llamarl.evals.verdicts import GraderSettings, grade_replies, places_of, write_verdicts
from llamarl.report.files import read_json, write_json


def evaluate(
    benchmark: str,
    conversations: Conversations,
    replies: Replies,
    out: str | Path,
    settings: GraderSettings | None = None,
    *,
    generation: dict[str, Any] | None = None,
    bootstrap: Bootstrap | None = None,
    workers: int = 1,
    on_graded: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Grades the replies, writes the three files, and returns the results.

    Args:
        benchmark: its name.
        conversations: what was asked.
        replies: what came back; turns without a reply are failures, counted and in no denominator.
        out: directory, made where absent.
        settings: of the graders.
        generation: how the replies were made, where that is known.
        bootstrap: of the intervals.
        workers: processes that grade.
        on_graded: called with the number of conversations just graded.

    Raises:
        DataError: there is no reply to any turn.
        ConfigError, MissingDependencyError, JudgeError: see `grade_replies`.
    """
    settings = settings or GraderSettings()
    texts = texts_of(replies)
    places = set(places_of(conversations))
    if not places & texts.keys():
        if places & replies.keys():
            raise DataError(
                f"none of the {len(replies)} replies holds a response; each is a failure, so nothing can be graded"
            )
        raise DataError(
            f"none of the {len(replies)} replies belongs to a turn of {conversations.source}; do keys and turns match?"
        )
    verdicts = grade_replies(conversations, texts, settings, workers=workers, on_graded=on_graded)
    results = build_results(
        benchmark, conversations, replies, verdicts, settings, generation=generation, bootstrap=bootstrap
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_verdicts(out / VERDICTS_FILE, verdicts)
    write_json(out / RESULTS_FILE, results)
    draw(results, out)
    return results


def draw(results: dict[str, Any], out: Path) -> None:
    """Writes the figure of an evaluation and its page."""
    from llamarl.evals.accuracy_report import PAGE_FILE, build_page
    from llamarl.report.accuracy_plot import plot_accuracy
    from llamarl.report.page import write_page

    plot_accuracy(results, out / FIGURE_FILE)
    write_page(out / PAGE_FILE, build_page(results))


def generation_record(directory: str | Path) -> dict[str, Any] | None:
    """The settings with which the replies in a directory were made; None where nothing says so."""
    path = Path(directory) / SETTINGS_FILE
    return read_json(path) if path.is_file() else None
