import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.planner.lengths import Lengths, mix

# golden


def test_equal_lengths() -> None:
    lengths = Lengths(100, 100)
    assert lengths.sample(5) == pytest.approx([100] * 5, rel=1e-3)
    assert lengths.mean_context == pytest.approx(50, rel=1e-3)


def test_without_a_limit_the_mean_is_a_log_normals() -> None:
    lengths = Lengths(100, 1_000_000)
    # E = exp(mu + s^2 / 2), so the median is 100 exp(-0.32)
    assert lengths.quantile(0.5) == pytest.approx(72.6149, rel=1e-4)


# invariance


@given(st.floats(0.02, 0.95), st.integers(64, 10_000), st.floats(0.2, 1.5))
def test_the_mean_is_as_given_and_nothing_is_longer_than_the_limit(share: float, longest: int, spread: float) -> None:
    lengths = Lengths(share * longest, longest, spread)
    sample = lengths.sample(4000)
    assert sum(sample) / len(sample) == pytest.approx(lengths.mean, rel=0.02)
    assert sample == sorted(sample) and sample[-1] <= longest
    assert lengths.mean / 2 <= lengths.mean_context <= longest / 2 + 1e-6


@given(st.lists(st.floats(1, 100), min_size=1, max_size=500))
def test_mixing_keeps_every_length(lengths: list[float]) -> None:
    assert sorted(mix(lengths)) == sorted(lengths)


# rejects


@pytest.mark.parametrize(("mean", "longest"), [(0, 10), (11, 10), (-1, 10)])
def test_a_mean_beyond_the_longest(mean: float, longest: int) -> None:
    with pytest.raises(ConfigError, match="give MEAN,MAX"):
        Lengths(mean, longest)
