"""The report of the offline evaluator: one page."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import llamarl
from llamarl.feedback.description_report import format_share
from llamarl.report.figures import Curve, Dot, LineChart, Row, RowChart, Tone
from llamarl.report.page import Page, Section, Table, Verdict

SCORE_COLUMNS = ("policy", "P[Love]", "95% interval", "responses", "characters a response")


def build_evaluation_page(result: Mapping[str, Any]) -> Page:
    """The page of what `feedback.evaluate` returns."""
    names = list(result["policies"])
    return Page(
        title="Policies by predicted love",
        subtitle=f"{', '.join(names)}, on {result['prompts']:,} prompts",
        parts=[
            *(Verdict("bad", "These scores may mean nothing", f"{note}.") for note in result["notes"]),
            *_verdicts(result["changes"], is_doubtful=bool(result["notes"])),
            *_sections(result),
        ],
        footer_note=str(result["reward_model"]),
        footer=f"llamarl {llamarl.__version__}, feedback evaluate. P[Love]: {PurePath(result['reward_model']).name}. "
        "All intervals are 95%, from a bootstrap over prompts.",
    )


def _verdicts(changes: Mapping[str, Any], *, is_doubtful: bool) -> Iterator[Verdict]:
    against = changes["against"]
    for name, change in changes["policies"].items():
        tone = _judge(change)
        verb = {"good": "is predicted to be loved more", "bad": "is predicted to be loved less"}.get(tone)
        title = f"{name} {verb} than {against}" if verb else f"{name} and {against} cannot be told apart"
        yield Verdict("unsure" if is_doubtful else tone, title, f"{_say(change)}, prompt by prompt.")


def _sections(result: Mapping[str, Any]) -> Iterator[Section]:
    policies, changes = result["policies"], result["changes"]
    yield Section(
        "Scores",
        [
            "Mean corrected P[Love] of each policy's responses to the same prompts.",
            RowChart(
                "Predicted love rate",
                [
                    Row(name, [Dot(each["score"], each["interval"], format_share(each["score"], each["interval"]))])
                    for name, each in policies.items()
                ],
                unit="%",
                marks=[result["base_rate"]],
                caption=f"The line: {result['base_rate']:.2%}, the share of loved messages in the log that P[Love] was "
                "fitted on.",
            ),
            Table(
                SCORE_COLUMNS,
                [
                    [name, f"{each['score']:.3%}", _between(each["interval"]), f"{each['responses']:,}",
                     f"{each['mean_characters']:.0f}"]
                    for name, each in policies.items()
                ],
            ),
        ],
    )  # fmt: skip
    if changes["policies"]:
        yield Section(
            f"Change against {changes['against']}",
            [
                "Compared prompt by prompt: intervals of scores may overlap where the change is beyond doubt.",
                RowChart(
                    "Relative change of P[Love]",
                    [
                        Row(
                            name,
                            [Dot(each["relative_change"], each["relative_interval"], _say(each), tone=_judge(each))],
                        )
                        for name, each in changes["policies"].items()
                    ],
                    unit="%",
                    marks=[0.0],
                    is_signed=True,
                ),
            ],
        )
    if "online" in result:
        yield _show_online(policies, result["online"])


def _show_online(policies: Mapping[str, Any], online: Mapping[str, Any]) -> Section:
    r = "not defined"
    if online["pearson"] is not None:
        r = "{:.3f} ({:.3f} to {:.3f})".format(online["pearson"], *online["pearson_interval"])
    dots = [Curve(name, [(policies[name]["score"], rate)], style="dots") for name, rate in online["rates"].items()]
    rows = [[name, f"{policies[name]['score']:.3%}", f"{rate:.3%}"] for name, rate in online["rates"].items()]
    return Section(
        "Offline against online",
        [
            f"Pearson's r of {online['policies']} policies: {r}.",
            LineChart("Love rate online", dots, x="mean P[Love]", x_unit="%", unit="%"),
            Table(["policy", "P[Love]", "love rate online"], rows),
        ],
    )


def _judge(change: Mapping[str, Any]) -> Tone:
    low, high = change["relative_interval"] or (-1.0, 1.0)
    return "good" if low > 0.0 else "bad" if high < 0.0 else "unsure"


def _say(change: Mapping[str, Any]) -> str:
    ends = change["relative_interval"]
    between = f" ({ends[0]:+.2%} to {ends[1]:+.2%})" if ends else ""
    return f"{change['relative_change']:+.2%}{between}"


def _between(interval: tuple[float, float] | None) -> str:
    return "not known" if interval is None else f"{interval[0]:.3%} to {interval[1]:.3%}"
