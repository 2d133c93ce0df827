"""feedback ab, feedback ab plan: did an arm change the love rate, and how long must a test run?"""

from typing import Annotated

from pydantic import Field

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.feedback_commands import build_table
from llamarl.cli.options import LiveOutput, Output, Positional
from llamarl.core.config import Metavar
from llamarl.feedback.ab_settings import AbPlan, AbTest


class AbSettings(AbTest):
    """Files of a test, and how its arms are compared."""

    files: Positional[Annotated[tuple[str, ...], Metavar("FILE")]] = Field(min_length=1)
    """Files or globs of .jsonl, .csv, .tsv or .parquet: one row a message shown (user, arm, reacted, ts), or one a user
    (user, arm, messages, reactions)."""


def compare(settings: AbSettings, output: LiveOutput) -> int:
    """Compare arms of an A/B test: relative change of the love rate, its intervals, guardrails, what to make of it.

    The love rate is reactions by messages shown. Messages of one user are alike: intervals and p are over users. The
    interval is for one look, on a day fixed before the test; the always-valid one may be looked at every day.

    Examples:
        llamarl feedback ab test.parquet --control base --report test.html
        llamarl feedback ab 'days/*.jsonl' --control base --margins turns=-0.02 --margins thumbs_down=0.05
        llamarl feedback ab users.csv --control A --columns arm=variant --covariate loves_before
        llamarl feedback ab test.parquet --control base --shares base=0.9 --shares warm=0.1
        llamarl feedback ab test.parquet --control base --json
    """
    from llamarl.feedback.ab import compare_arms

    with show_progress("MB", output, can_go_on=False) as update:
        result = compare_arms(settings, on_progress=update)
    if output.json:
        print_json(result)
        return 0
    from llamarl.feedback import ab_report as report
    from llamarl.report.console import SafeConsole

    console = SafeConsole()
    console.print(build_table(report.RATE_COLUMNS, iter(report.rate_rows(result))))
    say()
    console.print(build_table(report.CHANGE_COLUMNS, iter(report.change_rows(result))))
    if guardrails := list(report.guardrail_rows(result)):
        say()
        console.print(build_table(report.GUARDRAIL_COLUMNS, iter(guardrails)))
    say()
    verdicts = [result["size_verdict"], *(arm["verdict"] for arm in result["arms"].values() if arm["verdict"])]
    for verdict in verdicts:
        say(f"{verdict['title']}. {verdict['text']}")
    crossed = result["dropped"]["user_in_two_arms"]
    if crossed["users"]:
        say(f"note: {report.describe_crossing(crossed)}")
    if "report" in result:
        say(f"the report is {result['report']}")
    return 0


def plan(settings: AbPlan, output: Output) -> int:
    """Plan an A/B test: users and days that find a change of the love rate, and the power after each day.

    Messages of one user are alike and users differ in how many they see, so that messages count for fewer; take both
    numbers from an earlier test (feedback ab FILE --json: user_correlation, activity_spread) where there was one.

    Examples:
        llamarl feedback ab plan --base-rate 0.02 --change 0.1 --users-per-day 2000
        llamarl feedback ab plan --base-rate 0.02 --change 0.05 --users-per-day 9000 --returning 0.7
        llamarl feedback ab plan --base-rate 0.018 --change 0.1 --users-per-day 500 --report plan.html
    """
    from llamarl.feedback.ab import plan_test

    result = plan_test(settings)
    if output.json:
        print_json(result)
        return 0
    from llamarl.feedback import ab_report as report
    from llamarl.report.console import SafeConsole

    SafeConsole().print(build_table(report.PLAN_COLUMNS, iter(report.plan_rows(result))))
    say()
    say(". ".join(report.describe_plan(result)))
    if "report" in result:
        say(f"the page is {result['report']}")
    return 0
