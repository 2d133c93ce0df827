import pytest

from llamarl.report.accuracy_plot import plot_accuracy, plot_comparison


def rate(value, name="value"):
    return {name: value, "low": None if value is None else value - 0.1, "high": None if value is None else value + 0.1}


def group(num_turns, name="value", value=0.5):
    found = {
        "turns": {
            str(turn): {kind: {"conversation": rate(value, name), "instruction": rate(value, name)} for kind in KINDS}
            | {"overall": rate(value, name)}
            for turn in range(1, num_turns + 1)
        },
        "mean_over_turns": rate(value, name),
    }
    if num_turns > 1:
        changes = {"ifr_percent": rate(12.0, name), "ecr_percent": rate(None, name)}
        pairs = [f"{turn}-{turn + 1}" for turn in range(1, num_turns)]
        found["transitions"] = {pair: dict.fromkeys(KINDS, changes) for pair in pairs}
    return found


KINDS = ("strict", "loose")


def results(languages, num_turns, modes, name="value"):
    found = {
        "pooled": group(num_turns, name),
        "macro": group(num_turns, name),
        "languages": {code: group(num_turns, name, None if code == "zh" else 0.4) for code in languages},
        "instructions": {"punctuation:no_comma": {"all": {"strict": 0.5, "of": 4}}},
    }
    return {
        "benchmark": "multi-if",
        "a": "runs/a",
        "b": "runs/b",
        "data": {"conversations": 4, "turns": 12},
        "language_names": {"en": "English"},
        "modes": dict.fromkeys(modes, found),
    }


@pytest.mark.parametrize("modes", [["official", "fixed"], ["fixed"]])
@pytest.mark.parametrize(("languages", "num_turns"), [(["en", "zh"], 3), (["en"], 2), (["en"], 1), (["en", "fr"], 1)])
def test_every_shape_of_results_is_drawn(tmp_path, languages, num_turns, modes):
    path = plot_accuracy(results(languages, num_turns, modes), tmp_path / "new" / "accuracy.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize("num_turns", [1, 3])
def test_every_shape_of_comparison_is_drawn(tmp_path, num_turns):
    comparison = results(["en", "fr"], num_turns, ["official", "fixed"], name="difference")
    path = plot_comparison(comparison, tmp_path / "comparison.png")
    assert path.stat().st_size > 10_000
