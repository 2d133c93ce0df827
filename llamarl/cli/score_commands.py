"""detect score, detect serve: the claims of texts, with their probability to be factual."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.options import LiveOutput
from llamarl.core.errors import ConfigError
from llamarl.factuality.settings import DetectServing, Scoring

if TYPE_CHECKING:
    from llamarl.factuality.texts import ScoredText


def score(settings: Scoring, output: LiveOutput) -> int:
    """Mark the doubtful claims of a text, each with its probability to be factual.

    The text is shown with its doubtful claims in brackets; --out writes a page with all of them coloured in place. With
    --facts, --corpus or --search each claim is looked up too. --json prints a list of {claim, span, p_factual, mass},
    with a problem where a claim has no score; of several texts, an object with a list for each file.
    With --claims-file, labelled claims become the rows that detect eval reads.

    Examples:
        llamarl detect score --text answer.txt --detector detector
        llamarl detect score --text answer.txt --detector detector --prompt "Tell me about Lyon." --out page.html
        llamarl detect score --text 'answers/*.txt' --detector detector --facts facts.csv --relations relations.toml
        llamarl detect score --text - --detector detector --json < answer.txt
        llamarl detect score --claims-file claims/test.jsonl --detector detector --out scores.jsonl
    """
    return _score_file(settings, output) if settings.claims_file else _score_texts(settings, output)


def _score_texts(settings: Scoring, output: LiveOutput) -> int:
    from llamarl.core.loops import run_async
    from llamarl.factuality import score_report as report
    from llamarl.factuality.detectors.files import load_detector
    from llamarl.factuality.scoring import resolve_threshold
    from llamarl.factuality.texts import build_instruments, read_texts, score_texts
    from llamarl.report.page import check_page_path, write_page

    out = check_page_path(settings.out) if settings.out else None
    texts = read_texts(settings.text)
    if out is not None and out.exists() and any(_is_file(out, text.name) for text in texts):
        raise ConfigError(f"--out {out}: holds the text, which the page would replace; give another name")
    instruments = build_instruments(settings)
    detector = load_detector(settings.detector, settings.model, device=settings.device, precision=settings.precision)
    threshold = resolve_threshold(settings.threshold, detector.threshold)
    with show_progress("claims looked up", output) as update:
        scored = run_async(
            score_texts(
                texts,
                detector,
                instruments,
                prompt=settings.prompt,
                subject=settings.subject,
                max_in_flight=settings.max_in_flight,
                on_looked_up=update,
            )
        )
    if out is not None:
        write_page(out, report.build_page(scored, detector.name, threshold, settings.prompt))
    if output.json:
        lists = {text.source.name: text.records() for text in scored}
        print_json(lists if len(lists) > 1 else next(iter(lists.values())))
        return 0
    for text in scored:
        _show(text, threshold, has_title=len(scored) > 1)
    say(f"{detector.name}: a claim is doubtful at {threshold:.3f} or below")
    if out is not None:
        say(f"written: {out}")
    return 0


def _is_file(path: Path, name: str) -> bool:
    return Path(name).exists() and path.samefile(name)


def _show(text: "ScoredText", threshold: float, *, has_title: bool) -> None:
    from llamarl.factuality import score_report as report
    from llamarl.report.console import SafeConsole

    console = SafeConsole()
    if has_title:
        say(f"== {text.source.name}")
    console.print(report.mark_text(text, threshold), soft_wrap=True)
    say()
    for line in report.list_lines(text, threshold):
        say(line)
    say(report.summarize(text, threshold))
    for warning in report.list_warnings(text):
        say(f"note: {warning}")


def _score_file(settings: Scoring, output: LiveOutput) -> int:
    from llamarl.factuality.detectors.files import load_detector
    from llamarl.factuality.scoring import score_file

    assert settings.out is not None  # the settings see to it
    detector = load_detector(settings.detector, settings.model, device=settings.device, precision=settings.precision)
    with show_progress("claims", output) as update:
        summary = score_file(detector, settings.claims_file, settings.out, on_done=update)
    if output.json:
        print_json(summary)
        return 0
    for line in _describe_scores(summary):
        say(line)
    return 0


def _describe_scores(summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{summary['scored']:,} of {summary['claims']:,} claims scored"
    for problem, count in summary["unscored"].items():
        yield f"warning: no score for {count:,}, which are left out: {problem}"
    if summary["low_mass"]:
        yield f"warning: {summary['low_mass']:,} scores are in doubt: True and False had less than half the probability"
    yield f"written: {summary['file']}"


def serve(settings: DetectServing) -> int:
    """Serve a detector over HTTP: POST /v1/detect, GET /health, GET /metrics.

    A request is {"text": ..., "prompt"?: ..., "subject"?: ...}; the answer is the list that detect score --json prints.
    Claims of requests that wait share a forward pass. SIGTERM lets accepted requests finish and refuses new ones; the
    exit status is then 0, or 1 if some were cut off.

    Examples:
        llamarl detect serve --detector detector
        curl -s http://127.0.0.1:8000/v1/detect -d '{"text": "Lyon is a city in Spain."}'
        DETECT_TOKEN=... llamarl detect serve --detector detector --host 0.0.0.0 --token-env DETECT_TOKEN
    """
    import asyncio

    from llamarl.factuality.decomposition import SentenceDecomposer
    from llamarl.factuality.detectors.files import load_detector
    from llamarl.factuality.scoring import resolve_threshold, score_text
    from llamarl.factuality.service import DetectService

    detector = load_detector(settings.detector, settings.model, device=settings.device, precision=settings.precision)
    threshold = resolve_threshold(settings.threshold, detector.threshold)
    # The first forward pass is slow, and shows whether the model can answer at all: no request should pay for that.
    score_text("The sun rises in the east.", detector)

    async def run() -> int:
        service = DetectService(detector, SentenceDecomposer(), settings, threshold)
        num_cut = await service.run(lambda url: say(f"{detector.name} at {url}/v1/detect; Ctrl-C ends it"))
        say(f"answered {service.http.num_finished:,} requests{f', cut off {num_cut:,}' if num_cut else ''}")
        return int(num_cut > 0)

    return asyncio.run(run())
