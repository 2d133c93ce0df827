import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.functional.constrained import kl_factor, sequence_kl

# golden


def test_sequence_kl_by_hand():
    # (-1 + 2) + (-0.5 + 0.2) = 1 - 0.3
    assert sequence_kl([-1.0, -0.5], [-2.0, -0.2]) == pytest.approx(0.7)
    assert sequence_kl([-1.0, -0.5], [-2.0, -0.2], "mean") == pytest.approx(0.35)
    assert sequence_kl([-1.0], [-math.inf]) == math.inf  # what the reference never says is out of bounds


def test_kl_factor_by_hand():  # cgpo P4
    assert [kl_factor(kl, 4.0) for kl in (0.0, 1.0, 4.0, 9.0, math.inf)] == [1.0, 0.75, 0.0, 0.0, 0.0]
    assert kl_factor(-2.0, 4.0) == 1.5  # one sample's estimate may be negative
    assert kl_factor(-2.0, 4.0, clamp=True) == 1.0


# invariance


@given(st.floats(-50.0, 50.0), st.floats(0.0, 10.0), st.floats(0.1, 100.0))
def test_the_factor_never_rises_with_the_distance(kl, further, kl_max):  # cgpo P4
    assert kl_factor(kl + further, kl_max) <= kl_factor(kl, kl_max)
    assert 0.0 <= kl_factor(kl, kl_max, clamp=True) <= 1.0


# rejects


def test_rejects_unequal_lengths():
    with pytest.raises(ValueError, match="2 log-probs but 1"):
        sequence_kl([-1.0, -1.0], [-1.0])
