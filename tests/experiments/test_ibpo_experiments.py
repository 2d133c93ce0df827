import pytest

from experiments.common import Done, made_once
from experiments.ibpo import chain, votes
from experiments.ibpo.policy import best_gain, spread
from experiments.table import table
from llamarl.core.records import Prompt
from llamarl.evals.budget_samples import Attempt


def flat(accuracy, share=0.0, tokens=2.0):
    """The same at each of eight levels."""
    return [{"accuracy": accuracy, "share": share, "tokens": tokens}] * 8


# allocation


def test_a_share_goes_where_it_gains_most():
    # 0.3 at gain 0.8, then 0.1 of the 0.5 at gain 0.2; the level that loses gets nothing
    assert best_gain([0.2, 0.8, -0.5], [0.5, 0.3, 0.2], 0.4) == pytest.approx(0.3 * 0.8 + 0.1 * 0.2)
    assert best_gain([0.2, 0.8, -0.5], [0.5, 0.3, 0.2], 1.0) == pytest.approx(0.3 * 0.8 + 0.5 * 0.2)
    assert best_gain([0.2], [1.0], 0.0) == 0.0


def test_where_all_levels_are_alike_the_best_allocation_is_random():
    forms, own_forms = {"S": flat(0.2), "L": flat(1.0)}, {"S": flat(0.1), "L": flat(0.9)}
    found = chain.numbers(forms, flat(0.6, 0.5, 6.0), own_forms)
    assert found == pytest.approx(
        {"share": 0.5, "accuracy": 0.6, "random": 0.6, "oracle": 0.6, "own oracle": 0.5, "tokens": 6.0}
    )


def test_the_oracle_spends_on_hard_levels_first():
    # levels 1 and 2, weights 0.5 of 8 each, gain nothing: a share of 7/8 reaches everything that can be had
    short = [*flat(1.0)[:2], *flat(0.125)[2:]]
    forms = {"S": short, "L": flat(1.0)}
    found = chain.numbers(forms, flat(0.5, 0.875), forms)
    assert found["oracle"] == pytest.approx(1.0)
    assert found["random"] == pytest.approx(0.125 * (0.125 + 0.875 * 0.125) + 0.875)


def test_a_stated_budget_is_demonstrated_as_a_share():
    task = chain.chain.ChainTask(0)
    shown = [chain.budgeted(*task.demonstration(index)) for index in range(2000)]
    for budget in chain.BUDGETS:
        texts = [text for prompt, text in shown if prompt.info.get("budget") == budget]
        # of about 300; four standard deviations of a half are 0.115
        assert sum("think" in text for text in texts) / len(texts) == pytest.approx(budget, abs=0.115)
    unstated = [prompt for prompt, _ in shown if "budget" not in prompt.info]
    assert {str(prompt.messages[0]["content"])[0] for prompt in unstated} == {"S", "L"}


def test_claims_are_gaps_in_points():
    rows = [
        Done(
            "q+ 0.50", seed, 0.0, [], {"share": 0.52, "accuracy": 0.7, "random": 0.6, "oracle": 0.71, "own oracle": 0.7}
        )
        for seed in range(2)
    ]
    (claim,) = chain.claims(rows)
    assert claim.startswith("q+ 0.50: share minus q+ +2.0 ± 0.0 (+2.0, +2.0); minus random +10.0")
    assert chain.budget_of("conditioned 0.25") == 0.25 and chain.budget_of("sft") is None
    assert spread([1.0, 3.0]) == "+2.0 ± 12.7 (+1.0, +3.0)"  # t(0.975, 1) = 12.706, standard error 1


# votes that stop early


@pytest.mark.parametrize(
    ("answers", "enough", "most", "expected"),
    [
        ("aab", 2, 3, (2, True)),
        ("bab", 2, 3, (3, False)),
        ("bacad", 2, 5, (4, True)),
        ("bcade", 3, 5, (5, False)),
        ("abc", 2, 3, (3, True)),
        ("abc", 2, 1, (1, True)),
    ],
)
def test_sampling_ends_when_enough_agree(answers, enough, most, expected):
    assert votes.stopped(list(answers), "a", enough, most) == expected


def test_an_answer_that_is_none_costs_but_has_no_vote():
    assert votes.stopped([None, None, "a"], "a", 2, 3) == (3, True)
    assert votes.stopped([None, None], "a", 2, 2) == (2, False)


def test_early_stopping_costs_two_answers_where_all_agree():
    samples = [Attempt("p", number, True, "3") for number in range(9)]
    problem = Prompt("p", (), answer="3")
    points = votes.stopping({"p": samples}, [problem])
    assert set(points) == {(2.0, 1.0), (3.0, 1.0)}


# recipes and files


def test_every_arm_is_a_recipe(tmp_path):
    found = [chain.recipe(tmp_path, tmp_path, 0, algorithm) for algorithm in chain.ARMS.values()]
    found += [votes.recipe(tmp_path, 0, {"q_plus": 0.5}, is_covered) for is_covered in (True, False)]
    assert [sum(form.samples for form in recipe.coverage) for recipe in found] == [26] * len(chain.ARMS) + [32, 0]


def test_a_world_is_made_once_and_whole(tmp_path):
    made = []

    def make(directory):
        directory.mkdir()
        made.append(directory)
        if len(made) == 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        made_once(tmp_path / "w", make)
    assert not (tmp_path / "w").exists()
    for _ in range(2):
        assert made_once(tmp_path / "w", make) == tmp_path / "w"
    assert len(made) == 2 and not made[1].exists()


def test_an_arm_may_lack_a_number():
    number = {"mean": 0.5, "half_width": 0.1, "seeds": 3}
    record = {
        "arms": {"one": {"y": number}, "two": {"x": number, "y": number}},
        "environment": {},
        "date": "2026-01-01",
    }
    assert table(record).splitlines()[:4] == [
        "| arm | x | y |",
        "|---|---|---|",
        "| one |  | 0.500 ± 0.100 |",
        "| two | 0.500 ± 0.100 | 0.500 ± 0.100 |",
    ]
