"""feedback monitor, feedback gate: what a policy does more often than the control, and whether it may be released."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.feedback_commands import build_table
from llamarl.cli.options import Output, Positional
from llamarl.core.config import Metavar
from llamarl.feedback.gate_settings import Gate, Monitoring


class MonitorSettings(Monitoring):
    """Responses, the control's, and what is counted in both."""

    responses: Annotated[Positional[tuple[str, ...]], Metavar("RESPONSES")] = Field(min_length=1)
    """Responses: what llamarl generate --json prints, rows of {prompt, completion}, or whole conversations; several
    files, such as those of each week, are compared in turn."""
    report: Annotated[Path | None, Metavar("FILE.html")] = None
    """Write the report of one page here."""


class GateSettings(Gate):
    """A candidate policy, the control, and when the candidate is blocked."""

    candidate: Annotated[Positional[str], Metavar("CANDIDATE")]
    """The candidate's responses: what llamarl generate --json prints, or rows of {prompt, completion}."""


def monitor(settings: MonitorSettings, output: Output) -> int:
    """Count farewells, words of love, questions and more in responses, against the control's.

    A monitor speaks up where the change is beyond its factor and its interval leaves out 1. The exit status is 1 where
    one passed its stop.

    Examples:
        llamarl feedback monitor new.json --control control.json
        llamarl feedback monitor new.json --control control.json --signals farewell,love --languages en,es
        llamarl feedback monitor talks.jsonl --control old.jsonl --signals turns,length --json
        llamarl feedback monitor new.json --control control.json --phrases 'great question' --stop 3
        llamarl feedback monitor week1.json week2.json week3.json --control week0.json --report monitors.html
    """
    from llamarl.feedback.monitor_report import MONITOR_COLUMNS, SAYS, build_monitor_page, monitor_rows
    from llamarl.feedback.monitoring import monitor_in_turn
    from llamarl.report.console import SafeConsole
    from llamarl.report.page import check_page_path, write_page
    from llamarl.report.text import name_files

    if settings.report is not None:
        check_page_path(settings.report)
    result = monitor_in_turn(settings.responses, settings)
    if settings.report is not None:
        result["report"] = str(write_page(settings.report, build_monitor_page(result, settings)))
    if output.json:
        print_json(result)
        return int(result["level"] == "stop")
    for number, (name, look) in enumerate(
        zip(name_files(list(map(str, settings.responses))), result["looks"], strict=True)
    ):
        if len(settings.responses) > 1:
            say(f"{chr(10) if number else ''}{name}: {SAYS[look['level']]}")
        SafeConsole().print(build_table(MONITOR_COLUMNS, iter(monitor_rows(look["monitors"]))))
        for each in look["monitors"]:
            if each["level"] != "quiet":
                say(f"\n{each['text']}")
                for example in each["examples"]:
                    say(f"  {example}")
    if "report" in result:
        say(f"the report is {result['report']}")
    return int(result["level"] == "stop")


def gate(settings: GateSettings, output: Output) -> int:
    """Decide whether a policy may be released: exit status 0 if so, 1 if it is blocked, 2 if the input is wrong.

    Blocked is a candidate whose predicted love rate falls by more than --margin, beyond chance, or that passes the stop
    of a monitor. An undecided one passes, or is blocked with --undecided block. Candidate and control must have
    answered the same prompts.

    Examples:
        llamarl feedback gate new.json --control control.json --reward-model love
        llamarl feedback gate new.json --control control.json --reward-model love --margin 0.02 --undecided block
        llamarl feedback gate new.json --control control.json --reward-model love --report gate.html --json
    """
    from llamarl.feedback.gate import run_gate

    result = run_gate(settings)
    if output.json:
        print_json(result)
        return int(result["is_blocked"])
    from llamarl.feedback.gate_report import LOVE_COLUMNS, TITLES, love_rows
    from llamarl.feedback.monitor_report import MONITOR_COLUMNS, monitor_rows
    from llamarl.report.console import SafeConsole

    console = SafeConsole()
    console.print(build_table(LOVE_COLUMNS, iter(love_rows(result["love"]))))
    say()
    columns = ["candidate" if name == "responses" else name for name in MONITOR_COLUMNS]
    console.print(build_table(columns, iter(monitor_rows(result["monitors"]))))
    say()
    for reason in result["reasons"]:
        say(f"  {reason}")
    for each in result["monitors"]:
        if each["level"] == "warn":
            say(f"  warning: {each['text']}")
    for note in result["notes"]:
        say(f"  warning: {note}")
    becomes = f", which is {'blocked' if result['is_blocked'] else 'let pass'} (--undecided)"
    say(f"{TITLES[result['outcome']]}{becomes if result['outcome'] == 'undecided' else ''}")
    if "report" in result:
        say(f"the report is {result['report']}")
    return int(result["is_blocked"])
