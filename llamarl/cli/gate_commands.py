"""feedback monitor, feedback gate: what a policy does more often than the control, and whether it may be released."""

from typing import Annotated

from llamarl.cli.common import print_json, say
from llamarl.cli.feedback_commands import build_table
from llamarl.cli.options import Output, Positional
from llamarl.core.config import Metavar
from llamarl.feedback.gate_settings import Gate, Monitoring


class MonitorSettings(Monitoring):
    """Responses, the control's, and what is counted in both."""

    responses: Annotated[Positional[str], Metavar("RESPONSES")]
    """Responses: what llamarl generate --json prints, rows of {prompt, completion}, or whole conversations."""


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
    """
    from llamarl.feedback.monitoring import monitor

    result = monitor(settings.responses, settings)
    if output.json:
        print_json(result)
        return int(result["level"] == "stop")
    from llamarl.feedback.gate_report import MONITOR_COLUMNS, monitor_rows
    from llamarl.report.console import SafeConsole

    columns = ["responses" if name == "candidate" else name for name in MONITOR_COLUMNS]
    SafeConsole().print(build_table(columns, iter(monitor_rows(result["monitors"]))))
    for each in result["monitors"]:
        if each["level"] != "quiet":
            say(f"\n{each['text']}")
            for example in each["examples"]:
                say(f"  {example}")
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
    from llamarl.feedback.gate_report import LOVE_COLUMNS, MONITOR_COLUMNS, TITLES, love_rows, monitor_rows
    from llamarl.report.console import SafeConsole

    console = SafeConsole()
    console.print(build_table(LOVE_COLUMNS, iter(love_rows(result["love"]))))
    say()
    console.print(build_table(MONITOR_COLUMNS, iter(monitor_rows(result["monitors"]))))
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
