import json
import math
from dataclasses import asdict

import pytest

from llamarl.functional.statistics import Share
from llamarl.training.reports import report_labels, report_pairs


def test_pairs_by_hand():
    # margins 2, -1, 0, 1; token differences 4, -2, 1, -3
    report = report_pairs([3.0, 0.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [(5, 1), (1, 3), (2, 1), (1, 4)])
    assert (report.accuracy.count, report.accuracy.value) == (4, 0.5)  # 2 and 1 are right, the tie is not
    assert report.margin_mean == 0.5
    # log(1 + e^-2) = 0.126928, log(1 + e) = 1.313262, log 2 = 0.693147, log(1 + e^-1) = 0.313262
    assert report.loss == pytest.approx((0.126928 + 1.313262 + 0.693147 + 0.313262) / 4, abs=1e-6)
    assert report.accuracy_where_chosen_is_longer.value == 0.5  # margins 2 and 0
    assert report.accuracy_where_chosen_is_shorter.value == 0.5  # margins -1 and 1
    # confidences 0.881, 0.731, 0.5, 0.731 with outcomes 1, 0, 0.5, 1, in bins of 0.05: two share one
    assert [b.count for b in report.bins] == [1, 2, 1]
    # (|0.5 - 0.5| + 2 |0.731059 - 0.5| + |0.880797 - 1|) / 4
    assert report.calibration_error == pytest.approx((2 * 0.231059 + 0.119203) / 4, abs=1e-6)


def test_length_correlations_by_hand():
    report = report_pairs([2.0, 4.0], [1.0, 3.0], [(20, 10), (40, 30)])  # score = tokens / 10
    assert report.length_correlation == pytest.approx(1.0)
    assert report.length_gap_correlation is None  # both margins are 1
    report = report_pairs([1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [(1, 2), (1, 4), (1, 3)])
    assert report.length_gap_correlation == pytest.approx(-1.0)  # margins 1, 3, 2; differences -1, -3, -2


def test_a_rule_that_rewards_length_is_seen():
    lengths = [(n, 10) for n in range(1, 20) if n != 10]
    report = report_pairs([float(a) for a, _ in lengths], [10.0] * 18, lengths)
    assert report.accuracy_where_chosen_is_longer.value == 1.0
    assert report.accuracy_where_chosen_is_shorter.value == 0.0


def test_labels_by_hand():
    report = report_labels([1.0, -1.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    assert report.accuracy.value == 0.5  # the first and, as 0 is not positive, the last
    assert (report.recall_of_positive.value, report.recall_of_negative.value) == (0.5, 0.5)
    # log(1 + e^-1), log(1 + e), log(1 + e^2), log 2
    assert report.loss == pytest.approx((0.313262 + 1.313262 + 2.126928 + 0.693147) / 4, abs=1e-6)


def test_huge_margins_and_single_rows_stay_finite():
    report = report_pairs([1e4], [-1e4], [(1, 1)])
    assert (report.loss, report.calibration_error, report.length_correlation) == (0.0, 0.0, None)
    assert report_pairs([-1e4], [1e4], [(1, 1)]).loss == pytest.approx(2e4)


def test_a_share_of_nothing_has_no_value():
    assert Share.of([]) == Share(0, None, 0.0, 1.0) and str(Share.of([])) == "- of 0"
    assert str(Share.of([True] * 8 + [False] * 2)) == "0.800 [0.490, 0.943] of 10"


def test_reports_are_plain_json_and_finite_metrics():
    for report in (report_pairs([1.0, 2.0], [0.0, 3.0], [(1, 2), (2, 1)]), report_labels([1.0], [1.0])):
        assert json.loads(json.dumps(asdict(report)))["accuracy"]["count"] >= 1
        metrics = report.metrics()
        assert metrics["eval/accuracy/low"] <= metrics["eval/accuracy"] <= metrics["eval/accuracy/high"]
        assert all(value is None or math.isfinite(value) for value in metrics.values())
