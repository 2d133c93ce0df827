"""eval multi-if, eval ifeval, eval compare: how well a model follows instructions. `eval_budget` has eval budget."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import Subparsers, add_command, add_template_args, add_view_options, print_json, say
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.evals.chats import Chat
    from llamarl.evals.conversations import Conversations
    from llamarl.evals.replies import Replies

SAMPLING_SEED, GRADER_SEED = 42, 0

DEFAULTS = {
    "max_tokens": 1024,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 0,
    "min_p": 0.0,
    "stop": (),
    "system": None,
    "strip_thinking": "none",
    "max_in_flight": 16,
}
"""Options that say how replies are made."""
NATIVE_DEFAULTS = {"chat_template": None, "chat_template_args": None, "precision": "fp32", "device": "auto"}
ENDPOINT_DEFAULTS = {"api_key_env": None, "timeout": 120.0, "max_retries": 5, "extra": None}


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    parser = commands.add_parser("eval", help="measure a model", description="Measure a model.", allow_abbrev=False)
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    multi_if = add_command(
        benchmarks,
        "multi-if",
        run_multi_if,
        help="instruction following over three turns in eight languages (Multi-IF)",
        examples="""
llamarl eval multi-if --data builtin --model DIR
llamarl eval multi-if --data multiIF_20241018.csv --endpoint http://127.0.0.1:8000/v1 --model NAME --out OUT
llamarl eval multi-if --data facebook/Multi-IF --languages en,fr --grade responses.jsonl --out OUT --workers 4
the same command again goes on where a killed one stopped
""",
    )
    multi_if.add_argument(
        "--data", required=True, metavar="DATA", help="the released CSV, Parquet, JSON lines, a Hub id, or builtin"
    )
    multi_if.add_argument("--languages", metavar="CODES", help="such as en,fr (default: all)")
    multi_if.add_argument(
        "--turns", default="3", metavar="N", help="the first N turns, 1 to 3; 1,2 means 2 (default 3)"
    )
    _add_evaluation_options(multi_if, "official")

    ifeval = add_command(
        benchmarks,
        "ifeval",
        run_ifeval,
        help="instruction following in one turn (IFEval), by Google's checkers and the repaired ones",
        examples="""
llamarl eval ifeval --data input_data.jsonl --model DIR
llamarl eval ifeval --data google/IFEval --grade input_response_data.jsonl --out OUT
""",
    )
    ifeval.add_argument(
        "--data", required=True, metavar="DATA", help="Google's input_data.jsonl, a table of its columns, or a Hub id"
    )
    _add_evaluation_options(ifeval, "google")

    compare = add_command(
        benchmarks,
        "compare",
        run_compare,
        help="put two evaluations side by side, with intervals of their differences",
        examples="llamarl eval compare OUT_A OUT_B\nllamarl eval compare OUT_A OUT_B --out DIFFERENCE",
    )
    compare.add_argument("first", metavar="A", help="--out directory of an evaluation")
    compare.add_argument("second", metavar="B", help="another one, on the same data")
    compare.add_argument("--out", metavar="DIR", help="where comparison.json and comparison.png are written")

    from llamarl.cli.eval_budget import add_budget  # which uses the options of this module

    add_budget(benchmarks)


def _add_evaluation_options(parser: argparse.ArgumentParser, released: str) -> None:
    """What both benchmarks take; `released` is the mode of the benchmark's own grader."""
    parser.add_argument("--out", metavar="DIR", help="where everything is written (default: under runs/)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N conversations only")
    parser.add_argument(
        "--on-bad-row", choices=["error", "skip"], default="error", help="stop at a bad row (default), or list it"
    )
    who = parser.add_argument_group("who answers: --model DIR, --endpoint URL --model NAME, or --grade FILE")
    who.add_argument(
        "--model", metavar="NAME", help="checkpoint directory or Hub id; with --endpoint the server's name"
    )
    who.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    who.add_argument("--grade", metavar="FILE", help='grade these replies: lines of {"key", "turn", "response"}')
    add_generation_options(parser.add_argument_group("how it answers"))
    grading = parser.add_argument_group("grading")
    grading.add_argument(
        "--mode",
        choices=[released, "fixed", "both"],
        default="both",
        help="the released grader's verdicts, the repaired ones, or both side by side (default)",
    )
    grading.add_argument(
        "--sentence-splitter",
        choices=["punkt", "rules"],
        help=f"of {released} mode: NLTK's Punkt model (default), or our rules, which come close without its data",
    )
    grading.add_argument("--workers", type=int, default=1, metavar="N", help="processes that grade (default 1)")
    add_view_options(parser)


def add_generation_options(group: "argparse._ArgumentGroup") -> None:
    """Sampling as in the released Multi-IF script, and how to ask. Defaults: see `DEFAULTS`."""
    group.add_argument("--max-tokens", type=int, metavar="N", help="token limit of a reply (default 1024)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default 0.6)")
    group.add_argument("--top-p", type=float, metavar="P", help="keep tokens up to this probability (default 0.9)")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens (default 0: all)")
    group.add_argument("--min-p", type=float, metavar="P", help="drop tokens under this share of the likeliest")
    group.add_argument("--stop", action="append", metavar="TEXT", help="a string that ends a reply; repeatable")
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=f"of sampling (default {SAMPLING_SEED}); with --grade: of language detection and intervals "
        f"(default {GRADER_SEED})",
    )
    group.add_argument("--system", metavar="TEXT", help="a system message before each conversation")
    group.add_argument(
        "--strip-thinking",
        metavar="RULE",
        help="taken out of replies before grading and from the history: none (default), think for <think>...</think>, "
        "or a pair of marks OPEN,CLOSE",
    )
    group.add_argument("--max-in-flight", type=int, metavar="N", help="conversations at once (default 16)")
    group.add_argument("--chat-template", metavar="NAME", help="native: a .jinja file or a style's name")
    add_template_args(group, "native: ")
    group.add_argument("--precision", choices=["fp32", "bf16", "int8"], help="native: number format (default fp32)")
    group.add_argument("--device", metavar="DEVICE", help="native: where the model runs, such as cuda (default auto)")
    group.add_argument("--api-key-env", metavar="VARIABLE", help="endpoint: environment variable that holds the key")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="endpoint: of one try (default 120)")
    group.add_argument("--max-retries", type=int, metavar="N", help="endpoint: further tries (default 5)")
    group.add_argument("--extra", metavar="JSON", help="endpoint: further fields of each request, as a JSON object")


def run_multi_if(arguments: argparse.Namespace) -> int:
    """`llamarl eval multi-if`."""
    from llamarl.evals.conversations import read_conversations
    from llamarl.evals.replies import read_responses

    conversations = read_conversations(
        arguments.data,
        languages=arguments.languages.split(",") if arguments.languages else None,
        turns=_number_of_turns(arguments.turns),
        limit=arguments.limit,
        on_bad_row=arguments.on_bad_row,
    )
    graded = read_responses(arguments.grade) if arguments.grade else None
    return _evaluate(arguments, "multi-if", conversations, graded)


def run_ifeval(arguments: argparse.Namespace) -> int:
    """`llamarl eval ifeval`."""
    from llamarl.evals.conversations import read_conversations
    from llamarl.evals.ifeval import read_ifeval_responses

    conversations = read_conversations(arguments.data, turns=1, limit=arguments.limit, on_bad_row=arguments.on_bad_row)
    graded = read_ifeval_responses(arguments.grade, conversations) if arguments.grade else None
    return _evaluate(arguments, "ifeval", conversations, graded)


def run_compare(arguments: argparse.Namespace) -> int:
    """`llamarl eval compare`."""
    from llamarl.evals.comparison import ComparisonTable, compare, write_comparison
    from llamarl.report.console import SafeConsole

    comparison = compare(arguments.first, arguments.second)
    files = write_comparison(arguments.out, comparison) if arguments.out else []
    if arguments.json:
        print_json(comparison)
        return 0
    SafeConsole().print(ComparisonTable(comparison))
    for path in files:
        say(f"written {path}")
    return 0


def _evaluate(
    arguments: argparse.Namespace, benchmark: str, conversations: "Conversations", graded: "Replies | None"
) -> int:
    """Replies, verdicts, results, table and figure."""
    from llamarl.evals.evaluation import evaluate, generation_record
    from llamarl.evals.groups import Bootstrap
    from llamarl.evals.tables import ResultsTable
    from llamarl.evals.verdicts import IFEVAL_MODES, MODES, GraderSettings
    from llamarl.report.console import SafeConsole

    _settle(arguments)
    out = _out_directory(arguments, benchmark)
    seed = arguments.seed if graded is not None else GRADER_SEED
    both = IFEVAL_MODES if benchmark == "ifeval" else MODES
    modes = both if arguments.mode == "both" else (arguments.mode,)
    settings = GraderSettings(modes, arguments.sentence_splitter, seed)
    for mode in modes:
        settings.grader(mode)  # what is missing shows now, not after hours of generation
    replies = _hold(arguments, conversations, out) if graded is None else graded
    generation = generation_record(out if graded is None else Path(arguments.grade).parent)
    with _grading_bar(arguments, len(conversations)) as on_graded:
        results = evaluate(
            benchmark,
            conversations,
            replies,
            out,
            settings,
            generation=generation,
            bootstrap=Bootstrap(seed),
            workers=arguments.workers,
            on_graded=on_graded,
        )
    if arguments.json:
        print_json({"out": str(out), **results})
        return 0
    SafeConsole().print(ResultsTable(results))
    if graded is None and results["failures"]["turns"]:
        say("the same command again asks the failed turns once more")
    say(f"everything is in {out}; the figure is {out / 'accuracy.png'}")
    return 0


def _settle(arguments: argparse.Namespace) -> None:
    """Fills in defaults; refuses options that would do nothing."""
    if arguments.grade:
        who, used = "--grade", {}
        if arguments.model or arguments.endpoint:
            raise ConfigError("--grade grades replies that exist; leave out --model and --endpoint")
        if not arguments.out:
            raise ConfigError("--grade needs --out DIR, where verdicts and results are written")
    elif not arguments.model:
        raise ConfigError("who answers? give --model DIR, or --endpoint URL --model NAME, or --grade FILE")
    elif arguments.endpoint:
        who, used = "--endpoint", DEFAULTS | ENDPOINT_DEFAULTS
    else:
        who, used = "a native model", DEFAULTS | NATIVE_DEFAULTS
    for name in DEFAULTS | NATIVE_DEFAULTS | ENDPOINT_DEFAULTS:
        if getattr(arguments, name) is None:
            setattr(arguments, name, used.get(name))
        elif name not in used:
            raise ConfigError(f"--{name.replace('_', '-')} does nothing with {who}; leave it out")
    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: give at least 1")
    if arguments.seed is None:
        arguments.seed = GRADER_SEED if arguments.grade else SAMPLING_SEED


def _out_directory(arguments: argparse.Namespace, benchmark: str) -> Path:
    """The same for the same model, so that typing a command again goes on."""
    if arguments.out:
        return Path(arguments.out)
    name = re.sub(r"[^\w.-]+", "-", str(arguments.model)).strip("-.") or "model"
    return Path("runs") / f"{benchmark}-{name}"


def _hold(arguments: argparse.Namespace, conversations: "Conversations", out: Path) -> "Replies":
    """Has the model answer what it has not answered yet."""
    from llamarl.evals.progress import make_progress
    from llamarl.evals.runner import run_conversations

    replies = run_conversations(
        conversations,
        build_chat(arguments),
        out,
        max_in_flight=arguments.max_in_flight,
        seed=arguments.seed,
        system=arguments.system,
        strip_thinking=arguments.strip_thinking,
        progress=make_progress(quiet=arguments.quiet, plain=arguments.plain),
    )
    return {(reply.key, reply.turn): reply for reply in replies}


def build_chat(arguments: argparse.Namespace) -> "Chat":
    """Who answers: `model` natively, or behind `endpoint`."""
    from llamarl.core.sampling import Sampling
    from llamarl.evals.chats import EndpointChat, NativeChat
    from llamarl.models.endpoint import ChatEndpoint, EndpointConfig
    from llamarl.models.template_args import parse_template_args

    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "stop")
    sampling = Sampling.parse({name: getattr(arguments, name) for name in names})
    if arguments.max_in_flight < 1:
        raise ConfigError(f"--max-in-flight {arguments.max_in_flight}: give at least 1")
    if not arguments.endpoint:
        return NativeChat(
            arguments.model,
            sampling,
            chat_template=arguments.chat_template,
            chat_template_args=parse_template_args(arguments.chat_template_args),
            precision=arguments.precision,
            slots=arguments.max_in_flight,
            device=arguments.device,
        )
    config = EndpointConfig.parse(
        {
            "base_url": arguments.endpoint,
            "model": arguments.model,
            "api_key_env": arguments.api_key_env,
            "max_concurrency": arguments.max_in_flight,
            "timeout_seconds": arguments.timeout,
            "max_retries": arguments.max_retries,
        },
        source="--endpoint",
    )
    return EndpointChat(ChatEndpoint(config), sampling, extra=_extra(arguments.extra))


def _extra(text: str | None) -> dict[str, Any]:
    try:
        extra = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--extra {text!r}: no JSON ({error}); give an object such as '{{\"top_k\": 20}}'") from None
    if not isinstance(extra, dict):
        raise ConfigError(f"--extra {text!r}: give a JSON object such as '{{\"top_k\": 20}}'")
    return extra


@contextmanager
def _grading_bar(arguments: argparse.Namespace, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that moves as conversations are graded, where somebody may look at it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamarl.report.console import SafeConsole

    console = SafeConsole(stderr=True)
    columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_hidden = arguments.quiet or arguments.plain or not console.is_terminal
    with Progress(*columns, console=console, disable=is_hidden, transient=True) as progress:
        bar = progress.add_task("", total=total)
        yield lambda count: progress.advance(bar, count)


def _number_of_turns(text: str) -> int:
    """`2` and `1,2` are the first two turns: a later turn needs those before it."""
    numbers = text.split(",")
    if numbers != [str(number) for number in range(1, len(numbers) + 1)] and (len(numbers) > 1 or not text.isdigit()):
        raise ConfigError(f"--turns {text}: give 1, 2 or 3; a later turn needs those before it")
    return int(numbers[-1])
