import json
import math
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_detectors import claim_of, claims_of, write_tiny

from llamarl.core.errors import CheckpointError, ConfigError, DataError
from llamarl.factuality.asking import load_prompt
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.files import load_detector, save_detector
from llamarl.factuality.detectors.mlp import Mlp, fit_mlp
from llamarl.factuality.detectors.probe import Probe, ProbeSettings
from llamarl.factuality.detectors.probe_features import FeatureReader
from llamarl.functional.detection import search_threshold
from llamarl.scoring.states import PaddedStates

QUICK = {"max_epochs": 8, "hidden_size": 16, "learning_rates": (1e-2,)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return Backbone.load(write_tiny(tmp_path_factory.mktemp("tiny") / "model", num_hidden_layers=3), device="cpu")


def labelled(count, seed):
    """Claims whose last letter tells true from false: even a random model's states hold that."""
    rng = random.Random(seed)
    claims, labels = [], []
    for number in range(count):
        labels.append(number % 2 == 0)
        word = "".join(rng.choice("abcdefgh") for _ in range(rng.randrange(2, 9)))
        claims.append(claim_of(f"{word}{'A' if labels[-1] else 'Z'}", f"p/{number}"))
    return claims, labels


@pytest.fixture(scope="module")
def trained(backbone):
    return Probe.fit(backbone, labelled(80, 0), labelled(40, 1), ProbeSettings(**QUICK))


def assert_close(scores, others):
    """Up to the rounding of matrix products."""
    assert [score.p_factual for score in scores] == pytest.approx([score.p_factual for score in others], rel=1e-3)


# the classifier


def test_an_mlp_by_hand():
    mlp = Mlp(
        hidden_weight=torch.tensor([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.0]]),
        hidden_bias=torch.tensor([0.5, -1.0, 0.25]),
        output_weight=torch.tensor([2.0, -1.0, 3.0]),
        output_bias=torch.tensor(0.1),
    )
    # x = (2, 1): hidden (0.5, 1.0, -1.75 -> 0), 2 * 0.5 - 1.0 + 0.1 = 0.1
    # x = (-1, 2): hidden (-4.5 -> 0, 0.5, 1.25), -0.5 + 3.75 + 0.1 = 3.35
    torch.testing.assert_close(mlp(torch.tensor([[2.0, 1.0], [-1.0, 2.0]])), torch.tensor([0.1, 3.35]))


def test_standardisation_is_folded_into_the_first_layer():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))
    mean, scale, x = torch.randn(5), torch.rand(5) + 0.1, torch.randn(11, 5)
    torch.testing.assert_close(Mlp.fold(body, mean, scale)(x), body((x - mean) / scale)[:, 0])


def toy(count, seed, offset=100.0):
    """Two classes apart in one of three features, of which one is large, and one never varies."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) % 2).float()
    x = torch.randn(count, 3, generator=generator) * torch.tensor([0.01, 50.0, 0.0])
    x[:, 0] += 0.05 * labels
    return x + offset, labels


FIT = {"learning_rate": 1e-2, "hidden_size": 8, "weight_decay": 0.0, "max_epochs": 40, "patience": 5, "batch_size": 16}


def test_fitting_parts_what_differs_whatever_its_scale():
    fit = fit_mlp(*toy(200, 0), toy(100, 1), **FIT, seed=0)
    x, labels = toy(100, 2)
    assert ((fit.mlp(x) > 0) == (labels > 0.5)).float().mean() > 0.95
    logits = fit.mlp(toy(100, 1)[0])
    assert fit.loss == pytest.approx(
        torch.nn.functional.binary_cross_entropy_with_logits(logits, toy(100, 1)[1]).item(), rel=1e-4
    )


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, again, other = (fit_mlp(*toy(60, 0), toy(30, 1), **FIT, seed=seed).mlp for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.hidden_weight, again.hidden_weight)
    assert not torch.equal(one.hidden_weight, other.hidden_weight)


def test_training_stops_early_and_keeps_the_best_epoch():
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), (torch.arange(40) % 2).float()
    contrary = noise[0], 1.0 - noise[1]
    fit = fit_mlp(*noise, contrary, **{**FIT, "max_epochs": 1000}, seed=0)
    assert fit.epoch <= 2  # what it learns is wrong there, so the first epochs are the best


def test_classes_count_the_same_however_many_claims_they_have():
    x = torch.zeros(100, 2)
    labels = torch.tensor([1.0] * 90 + [0.0] * 10)
    fit = fit_mlp(x, labels, (x, labels), **{**FIT, "max_epochs": 200, "patience": 200}, seed=0)
    assert fit.loss == pytest.approx(math.log(2), abs=0.01)
    assert fit.mlp(x[:1]).sigmoid().item() == pytest.approx(0.5, abs=0.05)


# features


def test_variants_are_those_of_the_paper(backbone):
    claims = claims_of("Lyon is in France.", "Nice.", "里昂在法国。")
    prompt = load_prompt("detect")
    ids = [backbone.encode(prompt, claim=claim.text).ids for claim in claims]
    features = FeatureReader(backbone, layer=2).read(ids, backbone.prefix_of(prompt))
    for row, sequence in enumerate(ids):
        with torch.no_grad():
            states = backbone.model(torch.tensor([sequence]), output_hidden_states=True).hidden_states[1:]
        last, tokens = states[-1][0, -1], states[-1][0].mean(dim=0)
        expected = {
            "last": last,
            "tokens": tokens,
            "layers": (states[0][0, -1] + states[1][0, -1] + states[2][0, -1]) / 3,
            "last_and_tokens": (last + tokens) / 2,
            "layer": states[1][0, -1],
        }
        for name, value in expected.items():
            torch.testing.assert_close(features.pick(name)[row], value, rtol=1e-4, atol=1e-4)


def test_features_are_computed_once_and_read_again(backbone, tmp_path):
    prompt = load_prompt("detect")
    ids = [backbone.encode(prompt, claim=f"City {number}.").ids for number in range(300)]
    prefix = backbone.prefix_of(prompt)
    fresh = FeatureReader(backbone).read(ids, prefix)
    cached = FeatureReader(backbone, cache=tmp_path / "states").read(ids, prefix)
    first, second = sorted((tmp_path / "states").iterdir(), key=lambda file: file.stat().st_size, reverse=True)
    marked = {name: tensor + 1.0 for name, tensor in load_file(first).items()}
    save_file(marked, first)
    second.write_bytes(second.read_bytes()[:100])  # torn: computed again
    again = FeatureReader(backbone, cache=tmp_path / "states").read(ids, prefix)
    assert torch.equal(cached.last, fresh.last)
    assert torch.equal(again.last[:256], fresh.last[:256] + 1.0) and torch.equal(again.last[256:], fresh.last[256:])
    other = FeatureReader(backbone, layer=1, cache=tmp_path / "states").read(ids[:2], prefix)
    torch.testing.assert_close(other.last, fresh.last[:2])
    assert other.layer.shape == other.last.shape


def test_both_ways_to_read_states_give_the_same_scores(backbone, trained):
    claims = claims_of("abcA", "abcZ", "a")
    expected = trained.score(claims)
    other = Probe(backbone, trained.settings, mlp=trained.mlp)
    other._features._read_states = PaddedStates(backbone.model)
    assert_close(other.score(claims), expected)


# the detector


def test_a_probe_learns_what_the_states_hold(trained):
    claims, labels = labelled(60, 2)
    scores = [score.p_factual for score in trained.score(claims)]
    threshold = search_threshold(*map(torch.Tensor.numpy, (torch.tensor(scores), torch.tensor(labels))))
    assert sum((p > threshold) == label for p, label in zip(scores, labels, strict=True)) > 50
    assert all(score.mass is None for score in trained.score(claims))


def test_the_best_of_the_grid_is_taken(backbone):
    settings = ProbeSettings(**{**QUICK, "learning_rates": (1e-2, 1e-6)})
    probe = Probe.fit(backbone, labelled(80, 0), labelled(40, 1), settings)
    assert len(probe.trials) == 8
    best = max(probe.trials, key=lambda trial: (trial.bacc, -trial.loss))
    assert probe.settings.variants == (best.variant,) and probe.settings.learning_rates == (best.learning_rate,)


def test_training_twice_gives_the_same_probe_and_a_cache_changes_nothing(backbone, trained, tmp_path):
    again = Probe.fit(backbone, labelled(80, 0), labelled(40, 1), ProbeSettings(**QUICK), cache=tmp_path)
    assert torch.equal(again.mlp.hidden_weight, trained.mlp.hidden_weight) and again.trials == trained.trials


@pytest.mark.parametrize("layer", [1, 3])
def test_one_chosen_layer(backbone, layer, tmp_path):
    settings = ProbeSettings(**QUICK, layer=layer)
    probe = Probe.fit(backbone, labelled(80, 0), labelled(40, 1), settings)
    assert [trial.variant for trial in probe.trials] == ["layer"]
    save_detector(probe, tmp_path / "probe")
    claims = claims_of("abcA", "abcZ")
    assert_close(load_detector(tmp_path / "probe", device="cpu").score(claims), probe.score(claims))


def test_the_same_scores_from_disk_and_no_pickle(trained, tmp_path):
    trained.threshold = 0.4
    save_detector(trained, tmp_path / "probe")
    assert sorted(file.name for file in (tmp_path / "probe").iterdir()) == [
        "detector.json",
        "probe.safetensors",
        "trials.json",
    ]
    loaded = load_detector(tmp_path / "probe", device="cpu")
    claims = claims_of("abcA", "abcZ", "Lyon is in France.")
    assert_close(loaded.score(claims), trained.score(claims))
    assert (loaded.threshold, loaded.settings, loaded.trials) == (0.4, trained.settings, trained.trials)


def test_claims_that_cannot_be_read_are_problems_and_not_trained_on(backbone, trained):
    long = claim_of("Lyon is old. " * 3000)
    bad, good = trained.score([long, claim_of("abcA")])
    assert bad.p_factual is None and "tokens" in bad.problem and good.p_factual is not None
    assert trained.score([]) == []
    claims, labels = labelled(80, 0)
    probe = Probe.fit(backbone, ([long, *claims], [True, *labels]), labelled(40, 1), ProbeSettings(**QUICK))
    assert torch.equal(probe.mlp.hidden_weight, trained.mlp.hidden_weight)


def test_one_class_and_unknown_layers_are_refused(backbone):
    claims, _ = labelled(4, 0)
    with pytest.raises(DataError, match="train: 4 claims of one class"):
        Probe.fit(backbone, (claims, [True] * 4), labelled(4, 1))
    with pytest.raises(ConfigError, match="has 3 layers"):
        Probe.fit(backbone, labelled(4, 0), labelled(4, 1), ProbeSettings(layer=4))


@pytest.mark.parametrize("spoil", ["text", "shape", "names", "nan"])
def test_broken_weights_are_refused(trained, tmp_path, spoil):
    directory = tmp_path / "probe"
    save_detector(trained, directory)
    tensors = trained.mlp.tensors()
    if spoil == "shape":
        tensors["hidden_weight"] = tensors["hidden_weight"][:, :5].contiguous()
    elif spoil == "names":
        tensors["more"] = tensors.pop("output_bias")
    elif spoil == "nan":
        tensors["hidden_bias"] = tensors["hidden_bias"] * math.nan
    save_file(tensors, directory / "probe.safetensors")
    if spoil == "text":
        (directory / "probe.safetensors").write_text("no weights")
    record = json.loads((directory / "detector.json").read_text())
    record["files"] = {}  # as if somebody had made them fit
    (directory / "detector.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"probe\.safetensors"):
        load_detector(directory, device="cpu")
