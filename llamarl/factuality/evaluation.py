"""The worth of detectors' scores: thresholds from validation claims, everything else on test claims.

    results = evaluate(Evaluation(scores=["probe.jsonl", "prompt.jsonl"]))
    results["methods"]["probe"]["bacc"], results["differences"][0]["bacc"]

The claims of one answer share facts, so intervals are over prompts: a resample draws prompts with all their claims, the
same ones for every method. Thresholds stay as they were chosen. Where a class has few test claims, which may be in
order by luck, the interval of the area is widened to what a score interval allows, and a note says so.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from llamarl.factuality.scores import Method, ScoredClaims, read_scores
from llamarl.factuality.settings import Evaluation
from llamarl.functional.detection import (
    Array,
    Band,
    RankedPairs,
    balanced_accuracy,
    cluster_interval,
    count_claims,
    count_single,
    coverage_curve,
    rank_interval,
    roc_curve,
    search_band,
    search_threshold,
    share_unknown,
    sum_clusters,
)
from llamarl.functional.statistics import calibration_error, percentile_interval, reliability, resample_sums

MAX_CURVE_POINTS = 200
FEW_CLAIMS = 30
"""Fewer claims of a class than this make an area under the curve that the next few could overturn."""
MAX_NAMED = 3
"""Prompts that a note names."""
NO_BAND: Mapping[str, None] = dict.fromkeys(
    ("low", "high", "bacc_unknown", "bacc_unknown_interval", "unknown_share", "bacc_decided", "validation")
)


def evaluate(settings: Evaluation) -> dict[str, Any]:
    """Judges each method, and all pairs of methods on the test claims that both have scored.

    Returns:
        `methods`: name -> its results; `differences`: b minus a for each pair, with paired intervals; `notes`. The
        results of a single method stand at the top as well.

    Raises:
        DataError: see `read_scores`.
    """
    methods = read_scores(settings.scores, settings.columns)
    found = {method.name: evaluate_method(method, settings) for method in methods}
    pairs = itertools.combinations(methods, 2)
    results: dict[str, Any] = {
        "methods": found,
        "differences": [_compare(a, b, found, settings) for a, b in pairs],
        "settings": settings.model_dump(mode="json", exclude={"out"}),
    }
    return {**(next(iter(found.values())) if len(found) == 1 else {}), **results}


def evaluate_method(method: Method, settings: Evaluation) -> dict[str, Any]:
    """The results of one method."""
    validation, test = method.validation, method.test
    threshold = search_threshold(validation.scores, validation.labels)
    band = search_band(
        validation.scores, validation.labels, settings.hybrid_min_bacc, constraint=settings.hybrid_constraint
    )
    counts = {"single": count_single(test.scores, test.labels, threshold)}
    if band is not None:
        counts["hybrid"] = count_claims(test.scores, test.labels, band.low, band.high)
    drawn = dict(zip(counts, _resample(list(counts.values()), test, settings.seed), strict=True))
    pairs = RankedPairs.of(test.scores, test.labels)
    before = count_single(validation.scores, validation.labels, threshold).sum(axis=0)
    bins = reliability(test.scores.tolist(), test.labels.astype(float).tolist(), settings.bins)
    positives, negatives = int(test.labels.sum()), int((~test.labels).sum())
    right = counts["single"].sum(axis=0)
    auc_interval = _bound_area(pairs, test)
    return {
        "source": method.source,
        "threshold": threshold,
        "bacc": float(balanced_accuracy(right)),
        "bacc_interval": _interval(balanced_accuracy(drawn["single"]), test),
        "auc": pairs.value,
        "auc_interval": auc_interval,
        "recall": {"factual": float(right[0] / positives), "hallucinated": float(right[2] / negatives)},
        "hybrid": _describe_band(band, counts, drawn, test),
        "calibration": {"error": calibration_error(bins), "bins": [asdict(each) for each in bins]},
        "coverage": [asdict(point) for point in coverage_curve(test.scores, test.labels, threshold)],
        "roc": _thin(roc_curve(test.scores, test.labels)),
        "validation": {**_describe_claims(validation), "bacc": float(balanced_accuracy(before))},
        "test": _describe_claims(test),
        "notes": [*_warn_of_few(method, pairs.value, auc_interval), *_note(method, band, settings)],
    }


def _describe_band(
    band: Band | None, counts: Mapping[str, Array], drawn: Mapping[str, Array], test: ScoredClaims
) -> dict[str, Any]:
    """Two thresholds on the test claims; all null where validation has no pair that meets the constraint."""
    if band is None:
        return dict(NO_BAND)
    sums = counts["hybrid"].sum(axis=0)
    decided = float(balanced_accuracy(sums))
    return {
        "low": band.low,
        "high": band.high,
        "bacc_unknown": float(balanced_accuracy(sums, "right")),
        "bacc_unknown_interval": _interval(balanced_accuracy(drawn["hybrid"], "right"), test),
        "unknown_share": float(share_unknown(sums)),
        "bacc_decided": None if np.isnan(decided) else decided,
        "validation": {"bacc_unknown": band.bacc_unknown, "unknown_share": band.unknown_share},
    }


def _describe_claims(claims: ScoredClaims) -> dict[str, int]:
    factual = int(claims.labels.sum())
    return {
        "claims": len(claims.ids),
        "factual": factual,
        "hallucinated": len(claims.ids) - factual,
        "prompts": len(set(claims.prompts)),
    }


def _warn_of_few(method: Method, area: float, interval: tuple[float, float] | None) -> Iterator[str]:
    """Yields what few claims of a class make of the numbers."""
    for split, claims in (("test", method.test), ("validation", method.validation)):
        counts = _describe_claims(claims)
        if min(counts["factual"], counts["hallucinated"]) >= FEW_CLAIMS:
            continue
        few = f"{counts['factual']} factual and {counts['hallucinated']} hallucinated {split} claims, which is few"
        if split == "validation":
            yield f"{few}: the thresholds hang on single claims"
        elif interval is None:
            yield f"{few}: the AUC, {area:.3f}, says little"
        else:
            yield f"{few}: the AUC, {area:.3f}, may be anything from {interval[0]:.3f} to {interval[1]:.3f} (95%)"


def _note(method: Method, band: Band | None, settings: Evaluation) -> Any:
    """Yields what a reader of the numbers should know."""
    if not method.has_prompts:
        yield "no row names its prompt, so claims are taken for independent and the intervals are too narrow"
    elif shared := [each for each in dict.fromkeys(method.test.prompts) if each in set(method.validation.prompts)]:
        named = ", ".join(map(repr, shared[:MAX_NAMED])) + (", ..." if len(shared) > MAX_NAMED else "")
        yield f"{len(shared)} prompts have claims in both splits, which may leak facts into the threshold: {named}"
    if len(set(method.test.prompts)) < 2:
        yield "all test claims are of one prompt, so there are no intervals"
    if band is None:
        yield (
            f"no two thresholds reach a validation BAcc above {settings.hybrid_min_bacc:g} of "
            f"{'the decided claims' if settings.hybrid_constraint == 'decided' else 'all claims'}: no hybrid"
        )


def _resample(counts: Sequence[Array], claims: ScoredClaims, seed: int) -> list[Array]:
    """Resampled sums of several tables of counts over the same claims; a resample draws the same prompts for all."""
    tables = sum_clusters(np.hstack(counts), claims.prompts)
    return np.split(resample_sums(tables, seed), len(counts), axis=1)


def _interval(drawn: Array, claims: ScoredClaims) -> tuple[float, float] | None:
    """The 95 % interval; None with a single prompt, which says nothing about others."""
    return percentile_interval(drawn) if len(set(claims.prompts)) > 1 else None


def _bound_area(pairs: RankedPairs, claims: ScoredClaims) -> tuple[float, float] | None:
    """The 95 % interval of the area, within 0 and 1; None with a single prompt.

    With few claims of a class the normal interval alone is too narrow, down to no width at all where they are in order.
    """
    found = cluster_interval(pairs.value, pairs.influence, claims.prompts)
    if found is None:
        return None
    low, high = max(0.0, found[0]), min(1.0, found[1])
    positives = int(claims.labels.sum())
    negatives = len(claims.labels) - positives
    if min(positives, negatives) >= FEW_CLAIMS:
        return low, high
    least, most = rank_interval(pairs.value, positives, negatives)
    return min(low, least), max(high, most)


def _thin(curve: tuple[Array, Array]) -> dict[str, list[float]]:
    """The curve with at most `MAX_CURVE_POINTS` of its points, the ends among them."""
    places = np.unique(np.linspace(0, len(curve[0]) - 1, MAX_CURVE_POINTS).round().astype(int))
    return {name: values[places].tolist() for name, values in zip(("false", "true"), curve, strict=True)}


def _compare(a: Method, b: Method, found: Mapping[str, Any], settings: Evaluation) -> dict[str, Any]:
    """Differences, b minus a, on the test claims that both have."""
    known = set(b.test.ids)
    ids = [each for each in a.test.ids if each in known]
    result: dict[str, Any] = {"a": a.name, "b": b.name, "claims": len(ids)}
    result |= {"only_a": len(a.test.ids) - len(ids), "only_b": len(b.test.ids) - len(ids)}
    nothing = dict.fromkeys(("bacc", "bacc_interval", "auc", "auc_interval"))
    if not ids:
        return {**result, **nothing, "problem": "no test claim in common"}
    first, second = a.test.pick(ids), b.test.pick(ids)
    if first.prompts != second.prompts and a.has_prompts and b.has_prompts:
        return {**result, **nothing, "problem": "the two name different prompts for the same claims"}
    if not np.array_equal(first.labels, second.labels):
        return {**result, **nothing, "problem": "the two label the same claims differently"}
    if first.labels.all() or not first.labels.any():
        return {**result, **nothing, "problem": "the claims in common are of one class"}
    clusters = first if a.has_prompts else second
    counts = [
        count_single(claims.scores, claims.labels, found[method.name]["threshold"])
        for claims, method in ((first, a), (second, b))
    ]
    drawn = _resample(counts, clusters, settings.seed)
    areas = [RankedPairs.of(claims.scores, claims.labels) for claims in (first, second)]
    change = areas[1].value - areas[0].value
    values = [float(balanced_accuracy(table.sum(axis=0))) for table in counts]
    return {
        **result,
        "bacc": values[1] - values[0],
        "bacc_interval": _interval(balanced_accuracy(drawn[1]) - balanced_accuracy(drawn[0]), clusters),
        "auc": change,
        "auc_interval": cluster_interval(change, areas[1].influence - areas[0].influence, clusters.prompts),
        "problem": None,
    }
