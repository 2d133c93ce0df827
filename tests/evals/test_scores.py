import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.evals import scores
from llamarl.evals.verdicts import TurnVerdict

STRICT_PROMPT = ("turns", "1", "strict", "conversation")
STRICT_INSTRUCTION = ("turns", "1", "strict", "instruction")


def verdicts(*conversations):
    """Each conversation is a list of turns, each turn a list of verdicts (strict; loose is the same)."""
    return [
        TurnVerdict(f"c{row}", turn, "official", tuple(values), tuple(values))
        for row, turns in enumerate(conversations)
        for turn, values in enumerate(turns, start=1)
        if values is not None
    ]


def rates(*conversations, num_turns=3):
    lengths = {f"c{row}": len(turns) for row, turns in enumerate(conversations)}
    counts = scores.count(verdicts(*conversations), lengths, num_turns)
    return scores.rates(counts.sum(axis=0), num_turns)


T, F = True, False

# golden


def test_multi_if_p2_instructions_are_pooled():
    found = rates([[T, F]], [[T]], num_turns=1)
    assert found[STRICT_PROMPT] == 1 / 2
    assert found[STRICT_INSTRUCTION] == pytest.approx(2 / 3)  # the mean of row rates would be 3/4
    assert found["turns", "1", "overall"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_strict_and_loose_are_kept_apart():
    found = [TurnVerdict("a", 1, "fixed", (F, T), (T, T)), TurnVerdict("b", 1, "fixed", (F,), (F,))]
    sums = scores.count(found, {"a": 1, "b": 1}, 1).sum(axis=0)
    four = {path[2:]: rate for path, rate in scores.rates(sums, 1).items() if len(path) == 4}
    assert four == {
        ("strict", "conversation"): 0,
        ("strict", "instruction"): pytest.approx(1 / 3),
        ("loose", "conversation"): 1 / 2,
        ("loose", "instruction"): pytest.approx(2 / 3),
    }


def test_forgetting_and_recovery():
    # Turn 1 -> 2, by position: followed 3, of them forgotten 1; not followed 2, of them recovered 1.
    found = rates([[T, F], [F, T, T]], [[T, T, F], [T, T, F, F]], num_turns=2)
    assert found["transitions", "1-2", "strict", "ifr_percent"] == pytest.approx(100 / 3)
    assert found["transitions", "1-2", "strict", "ecr_percent"] == 50


def test_all_turns_passed_is_stricter_than_any_turn():
    found = rates([[T], [T, T]], [[T], [T, F]], [[F], [T, T]], num_turns=2)
    assert found["all_turns_passed", "strict"] == pytest.approx(1 / 3)
    assert found["turns", "2", "strict", "conversation"] == pytest.approx(2 / 3)


def test_mean_over_turns():
    found = rates([[T], [F, T]], num_turns=2)
    # Turn 1: all four are 1. Turn 2: conversation 0, instruction 1/2, so 1/4.
    assert found["mean_over_turns",] == pytest.approx((1 + 1 / 4) / 2)


def test_two_turn_rows_are_in_no_third_turn():
    found = rates([[T], [T, T], [T, T, F]], [[T], [F, F]])
    assert found["turns", "3", "strict", "conversation"] == 0
    assert found["transitions", "2-3", "strict", "ifr_percent"] == 0
    counts = scores.count(verdicts([[T], [T, T], [T, T, F]], [[T], [F, F]]), {"c0": 3, "c1": 2}, 3)
    assert scores.denominators(counts.sum(axis=0), 3)["turns", "3", "strict", "conversation"] == 1


# what is left out


def test_failed_turns_are_in_no_denominator():
    found = rates([[T], None, [T, T, T]], [[F], [F, F], [F, F, F]])
    assert found["turns", "2", "strict", "instruction"] == 0
    assert found["all_turns_passed", "strict"] == 0  # c0 has not all its turns
    counts = scores.count(verdicts([[T], None, [T, T, T]]), {"c0": 3}, 3)
    of = scores.denominators(counts.sum(axis=0), 3)
    assert of["transitions", "1-2", "strict", "ifr_percent"] == of["transitions", "2-3", "strict", "ifr_percent"] == 0
    assert of["all_turns_passed", "strict"] == 0


def test_ungradable_slots_are_left_out_and_rows_of_nothing_else_too():
    found = rates([[T, None]], [[None]], [[F]], num_turns=1)
    assert found[STRICT_PROMPT] == 1 / 2
    assert found[STRICT_INSTRUCTION] == 1 / 2


def test_a_pair_with_an_ungradable_end_is_no_transition():
    found = rates([[T, None, T], [F, T, None]], num_turns=2)
    assert found["transitions", "1-2", "strict", "ifr_percent"] == 100  # one pair: T -> F
    assert math.isnan(found["transitions", "1-2", "strict", "ecr_percent"])


# properties

TURNS = st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6)


@given(first=TURNS)
@settings(max_examples=30, deadline=None)
def test_multi_if_p5_identical_verdicts_forget_and_recover_nothing(first):
    same = rates(*([row, [*row, T]] for row in first), num_turns=2)
    flipped = rates(*([row, [*(not value for value in row), T]] for row in first), num_turns=2)
    values = {value for row in first for value in row}
    for name, needed in (("ifr_percent", T), ("ecr_percent", F)):
        path = ("transitions", "1-2", "strict", name)
        if needed in values:
            assert same[path] == 0
            assert flipped[path] == 100
        else:
            assert math.isnan(same[path])


@given(first=TURNS, added=st.booleans())
@settings(max_examples=30, deadline=None)
def test_multi_if_p5_what_the_next_turn_adds_is_in_no_denominator(first, added):
    plain = rates(*([row, list(row)] for row in first), num_turns=2)
    longer = rates(*([row, [*row, added, added]] for row in first), num_turns=2)
    for name in ("ifr_percent", "ecr_percent"):
        path = ("transitions", "1-2", "strict", name)
        np.testing.assert_equal(plain[path], longer[path])


@given(first=TURNS, seed=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_conversations_changes_nothing(first, seed):
    shuffled = list(first)
    seed.shuffle(shuffled)
    np.testing.assert_equal(rates(*([r] for r in first), num_turns=1), rates(*([r] for r in shuffled), num_turns=1))


# macro means

PUBLISHED = """
T1 .877 .856 .898 .835 .871 .891 .895 .912 .858
T1 .853 .836 .882 .815 .842 .873 .868 .886 .824
T1 .843 .874 .853 .789 .812 .878 .858 .876 .805
T1 .815 .860 .842 .789 .718 .840 .832 .850 .786
T1 .854 .907 .868 .801 .825 .864 .876 .871 .817
T1 .826 .890 .837 .783 .759 .862 .847 .847 .783
T1 .837 .881 .869 .822 .681 .865 .867 .882 .831
T2 .783 .834 .820 .633 .775 .819 .811 .804 .766
T2 .772 .802 .800 .684 .763 .812 .782 .809 .728
T2 .724 .784 .745 .601 .708 .760 .740 .749 .705
T2 .705 .756 .752 .619 .634 .731 .734 .729 .685
T2 .782 .843 .822 .692 .754 .793 .801 .800 .748
T2 .742 .814 .774 .629 .707 .781 .778 .757 .697
T2 .715 .764 .769 .664 .582 .753 .738 .747 .700
T3 .707 .773 .738 .531 .709 .759 .714 .733 .703
T3 .681 .742 .716 .576 .668 .701 .708 .714 .627
T3 .631 .701 .653 .501 .621 .647 .645 .645 .631
T3 .609 .678 .653 .490 .537 .633 .639 .634 .608
T3 .707 .786 .753 .587 .677 .740 .727 .716 .670
T3 .668 .749 .718 .519 .640 .710 .696 .689 .622
T3 .609 .672 .645 .527 .497 .648 .645 .626 .608
"""


@pytest.mark.parametrize("line", PUBLISHED.split("\n")[1:-1])
def test_multi_if_p8_macro_means_are_those_of_the_published_table(line):
    average, *languages = map(float, line.split()[1:])
    found = scores.macro([{("overall",): np.array(value)} for value in languages])
    assert found["overall",] == pytest.approx(average, abs=0.0005 + 1e-9)


def test_macro_leaves_out_languages_without_a_value():
    found = scores.macro([{("r",): np.array([0.2, np.nan])}, {("r",): np.array([0.4, np.nan])}])
    np.testing.assert_allclose(found["r",], [0.3, np.nan])
