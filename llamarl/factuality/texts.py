"""Answers of any origin, their claims scored, and evidence for each claim where there is a source of it.

text --decompose--> claims --detector, all texts in one call--> scores --look up--> rulings
"""

import asyncio
import contextlib
import glob
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError, EndpointError
from llamarl.factuality.asking import Helper
from llamarl.factuality.building import build_chat
from llamarl.factuality.claims import Claim, Ruling
from llamarl.factuality.decomposition import Decomposer, FactDecomposer, ModelDecomposer, SentenceDecomposer
from llamarl.factuality.detectors.detector import Detector
from llamarl.factuality.evidence import Evidence, open_evidence
from llamarl.factuality.facts import FactTable
from llamarl.factuality.labels import FactLabeller, Labeller, ModelLabeller, PassageFinder
from llamarl.factuality.scoring import ScoredClaim, TextClaims, list_claims, score_claims
from llamarl.factuality.settings import Scoring
from llamarl.generation.chats import Chat

STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class Text:
    """An answer to score."""

    name: str
    """The name of its file."""
    text: str
    num_broken: int = 0
    """Places that were no UTF-8; each became U+FFFD."""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """The claims of an answer with their scores."""

    source: Text
    found: TextClaims
    claims: list[ScoredClaim]
    rulings: list[Ruling | None] = field(default_factory=list)
    """The evidence for each claim, None where its source was down; empty where no evidence was asked for."""
    problems: list[str] = field(default_factory=list)
    """The reasons why evidence is missing."""

    def records(self) -> list[dict[str, Any]]:
        """The claims as `detect score --json` prints them."""
        records = [each.record() for each in self.claims]
        for record, ruling in zip(records, self.rulings, strict=False):
            record |= {"ruling": None} if ruling is None else {"ruling": ruling.record()}
        return records


def read_texts(patterns: Sequence[str]) -> list[Text]:
    """The files of some names and globs, each once, in their order.

    Raises:
        DataError: no such file, one that cannot be read, or one that is no text.
    """
    names = [name for pattern in patterns for name in _expand(pattern)]
    return [_read_text(name) for name in dict.fromkeys(names)]


def _expand(pattern: str) -> list[str]:
    if pattern == STANDARD_INPUT or os.path.exists(pattern):  # a file's name may hold brackets
        return [pattern]
    found = sorted(name for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not found:
        raise DataError(
            f"--text {pattern}: no such file; give the path of a text file, a glob, or - for standard input"
        )
    return found


def _read_text(name: str) -> Text:
    try:
        data = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
    except OSError as error:
        raise DataError(f"--text {name}: cannot be read ({error.strerror}); give the path of a text file") from None
    if b"\0" in data:
        raise DataError(f"--text {name}: holds zero bytes, so it is no UTF-8 text; convert it to UTF-8 first")
    text = data.decode("utf-8-sig", errors="replace")
    # A character U+FFFD that was there before is well-formed, so it is taken off the count.
    num_broken = text.count("\ufffd") - data.count("\ufffd".encode())
    return Text(name, text, num_broken)


@dataclass(slots=True)
class Instruments:
    """The things that texts are taken apart and looked up by."""

    decomposer: Decomposer
    labeller: Labeller | None = None
    """None: no evidence."""
    opened: Sequence[Chat | Evidence] = ()

    async def close(self) -> None:
        """Lets go of models and connections."""
        for each in self.opened:
            await each.close()


def build_instruments(settings: Scoring) -> Instruments:
    """The texts that the settings name.

    Raises:
        ConfigError, DataError, CheckpointError, MissingDependencyError: what one of them lacks.
    """
    table = FactTable.read(settings.facts, settings.relations) if settings.facts else None
    evidence = open_evidence(settings.corpus, settings.search)
    chat = helper = None
    if settings.helper is not None:
        chat = build_chat(settings, settings.helper, settings.helper_endpoint, settings.helper_api_key_env)
        helper = Helper(chat)
    decomposer: Decomposer = SentenceDecomposer()
    if settings.claims == "facts" and table is not None:
        decomposer = FactDecomposer(table)
    elif settings.claims == "model" and helper is not None:
        decomposer = ModelDecomposer(helper)
    labeller: Labeller | None = FactLabeller(table) if table is not None else None
    if evidence is not None and helper is not None:
        counts = {"num_queries": settings.num_queries, "num_passages": settings.num_passages}
        labeller = ModelLabeller(helper, evidence, **counts)
    elif evidence is not None:
        labeller = PassageFinder(evidence, settings.num_passages)
    return Instruments(decomposer, labeller, [each for each in (chat, evidence) if each is not None])


async def score_texts(
    texts: Sequence[Text],
    detector: Detector,
    instruments: Instruments,
    *,
    prompt: str = "",
    subject: str | None = None,
    max_in_flight: int = 16,
    on_looked_up: Callable[[int, int, int], object] = lambda done, total, failed: None,
) -> list[ScoredText]:
    """Scores the claims of all texts in one call of the detector, then looks them up.

    Args:
        texts: to score.
        detector: gives the scores.
        instruments: how texts are taken apart and claims looked up. Closed at the end.
        prompt: what the texts answer.
        subject: whom or what they are about.
        max_in_flight: claims that are looked up at a time.
        on_looked_up: told of claims looked up, all claims, and claims whose source was down.

    Raises:
        EndpointError: the helper did not list a text's claims, or no claim could be looked up.
        ConfigError: a server refuses the requests.
    """
    slots = asyncio.Semaphore(max_in_flight)

    async def take_apart(text: Text) -> TextClaims:
        async with slots:
            return await list_claims(text.text, instruments.decomposer, prompt=prompt, subject=subject)

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(instruments.close)
        found = list(await asyncio.gather(*map(take_apart, texts)))
        scored = iter(score_claims(detector, [claim for each in found for claim in each.claims]))
        results = [
            ScoredText(text, each, [next(scored) for _ in each.claims]) for text, each in zip(texts, found, strict=True)
        ]
        if instruments.labeller is not None:
            await _look_up(results, instruments.labeller, slots, on_looked_up)
    return results


async def _look_up(
    texts: Sequence[ScoredText],
    labeller: Labeller,
    slots: asyncio.Semaphore,
    on_looked_up: Callable[[int, int, int], object],
) -> None:
    total, done, failures = sum(len(text.claims) for text in texts), 0, list[str]()

    async def rule(claim: Claim) -> Ruling | None:
        nonlocal done
        ruling = None
        try:
            async with slots:
                ruling = Ruling.parse(await labeller.process(claim))
        except EndpointError as error:
            failures.append(str(error))
        done += 1
        on_looked_up(done, total, len(failures))
        return ruling

    for text in texts:
        before = len(failures)
        text.rulings.extend(await asyncio.gather(*(rule(each.claim) for each in text.claims)))
        text.problems.extend(failures[before:])
    if total and len(failures) == total:
        raise EndpointError(f"evidence: none of {total} claims could be looked up; the last: {failures[-1]}")
