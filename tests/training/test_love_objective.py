import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError, DataError
from llamarl.models.tiny import char_tokenizer
from llamarl.training.love_report import Prior, Scored, report_love
from llamarl.training.objectives import Love, LoveConfig
from llamarl.training.objectives.love import draw_rows


def rows(count, loved, **fields):
    return [{"prompt": f"p{n}", "completion": f"c{n}", "label": n < loved, **fields} for n in range(count)]


def read(train, held_out, **settings):
    objective = Love(LoveConfig(**settings))
    return objective, objective.read(train, held_out, None, char_tokenizer("llama3"), None)


# golden


def test_the_gradient_of_the_loss_is_probability_minus_label():
    objective, data = read(rows(100, 10), rows(40, 10))
    members = [data.train[0], data.train[-1]]
    logits = torch.tensor([[0.7], [-1.2]], requires_grad=True)
    losses, metrics = objective.losses(logits, members)
    losses.sum().backward()
    labels = torch.tensor([[float(row.is_loved)] for row in members])
    assert torch.allclose(logits.grad, torch.sigmoid(logits.detach()) - labels, atol=1e-6)
    total, count = metrics["train/positive_frac"]
    assert (float(total), count) == (float(labels.sum()), 2)


def test_the_prior_is_the_rate_of_the_rows_and_the_share_of_the_draws():
    objective, data = read(rows(400, 10), rows(40, 10))
    assert objective.prior == Prior(0.025, 0.1)
    drawn = objective.epoch_order(data.train, 0)
    assert len(drawn) == 400 and sum(data.train[index].is_loved for index in drawn) == 40
    assert objective.epoch_order(data.train, 0) == drawn != objective.epoch_order(data.train, 1)


def test_a_rate_above_the_share_stays():
    objective, data = read(rows(50, 20), rows(40, 10))
    assert objective.prior == Prior(0.4, 0.4)
    assert sorted(objective.epoch_order(data.train, 3)) == list(range(50))


# properties


@given(st.integers(1, 60), st.integers(1, 400), st.floats(0.02, 0.9), st.integers(0, 9))
def test_draws_have_the_share_and_no_row_is_favoured(loved, others, share, seed):
    labels = [True] * loved + [False] * others
    drawn = draw_rows(labels, share, random.Random(seed))
    assert len(drawn) == len(labels)
    assert abs(sum(labels[index] for index in drawn) - share * len(labels)) <= 0.5
    counts = [drawn.count(index) for index in range(len(labels))]
    for side in (counts[:loved], counts[loved:]):
        assert max(side) - min(side) <= 1


def test_batches_have_the_share_on_average():
    drawn = draw_rows([True] * 20 + [False] * 1980, 0.1, random.Random(0))
    batches = [sum(index < 20 for index in drawn[start : start + 50]) / 50 for start in range(0, 2000, 50)]
    assert sum(batches) / len(batches) == pytest.approx(0.1)
    assert min(batches) > 0.0 or max(batches) < 0.4  # shuffled, not in blocks
    assert max(batches) < 0.3


# the report


def scored(logits, labels, **fields):
    return [
        Scored(logit, label, f"u{n}", n + 5, {"surface": ("web", "ios")[n % 2]}, **fields)
        for n, (logit, label) in enumerate(zip(logits, labels, strict=True))
    ]


def test_a_constant_score_reports_half_and_the_base_rate():
    report = report_love(scored([0.3] * 60, [n % 6 == 0 for n in range(60)]), Prior(0.02, 0.1))
    assert report.auroc == 0.5 and report.length_correlation is None
    assert len(report.bins) == 1 and report.bins[0].count == 60


def test_the_report_does_not_depend_on_the_order_of_rows():
    rng = random.Random(2)
    rows = scored([rng.gauss(0, 1) for _ in range(50)], [rng.random() < 0.3 for _ in range(50)])
    report, other = report_love(rows, Prior(0.02, 0.1)), report_love(rows[::-1], Prior(0.02, 0.1))
    assert report.auroc == other.auroc and report.brier == pytest.approx(other.brier)
    assert set(report.by["surface"]) == {"ios", "web"}
    assert report.by["surface"]["web"].messages + report.by["surface"]["ios"].messages == report.messages == 50


def test_a_segment_without_love_has_no_auroc():
    rows = scored([0.1, 0.2, 0.3, 0.4], [True, False, True, False])
    report = report_love(rows, Prior(0.02, 0.1))
    assert report.by["surface"]["ios"].auroc is None and report.by["surface"]["ios"].observed_rate == 0.0


# rejects


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        (rows(100, 9), rows(100, 20), "9 loved messages to train on and 20 to measure on, and it takes 10 of each"),
        (rows(100, 20), rows(100, 3), "20 loved messages to train on and 3 to measure on"),
        (rows(20, 20), rows(100, 20), "every message to train on is loved"),
        ([], rows(100, 20), "no usable row"),
        ([{"prompt": "p", "completion": "c"}], rows(100, 20), "no usable row .* first of 1 bad rows: .*label"),
    ],
)
def test_rows_that_teach_nothing_are_refused(train, held_out, words):
    with pytest.raises(DataError, match=words):
        read(train, held_out)


def test_bad_rows_are_counted_or_named():
    bad = [*rows(60, 20), {"prompt": "p", "completion": "c", "label": "perhaps"}]
    _, data = read(bad, [*rows(60, 20), {"prompt": "p", "completion": "long" * 100, "label": True}], max_tokens=120)
    assert data.skipped == {"bad_label": 1, "held out: too_long": 1}
    with pytest.raises(DataError, match="rows, line 61, field 'label': 'perhaps' is neither true nor false"):
        read(bad, rows(60, 20), on_bad_row="error")


def test_rows_to_measure_on_must_be_given():
    objective = Love(LoveConfig())
    with pytest.raises(ConfigError, match="eval_data: missing"):
        objective.read(rows(60, 20), None, None, char_tokenizer("llama3"), None)
    with pytest.raises(ConfigError, match="rows are not read yet"):
        print(objective.prior)
