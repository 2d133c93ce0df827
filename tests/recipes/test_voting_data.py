import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.data.asks import ask_in_mode, instruct
from llamarl.judges.voting import consensus, read_vote
from llamarl.models.tiny import char_tokenizer
from llamarl.recipes.voting_data import (
    build_asv,
    build_short,
    build_sv,
    build_vote,
    recorded_attempts,
)
from llamarl.training.sft_rows import read_sft_rows


def problem(index=0, answer="7", **info):
    return Prompt(f"p{index}", ({"role": "user", "content": "What is 3 + 4?"},), answer=answer, info=info)


def attempts(*answers):
    return [f"attempt {index}: \\boxed{{{answer}}}" for index, answer in enumerate(answers)]


# golden


def test_a_vote_ends_at_the_third_equal_answer():
    vote = read_vote(build_vote(attempts("7", "8", "7", "7", "7"), "7"))
    assert vote.answers == ("7", "8", "7", "7")
    assert vote.trials[3] == "attempt 3: \\boxed{7}" and vote.answer == "7"


def test_a_vote_without_consensus_takes_the_answer_of_most_trials():
    text = build_vote(attempts("1", "2", "7", "3", "4", "7", "5", "6"), "7")
    assert len(read_vote(text).trials) == 8 and read_vote(text).answer == "7"


@pytest.mark.parametrize(
    "answers",
    [("8", "7", "8", "8"), ("7", "7"), ("1", "2", "3", "4", "5", "6", "8", "7"), ()],
    ids=["wrong consensus", "too few", "wrong plurality", "none"],
)
def test_votes_that_are_wrong_or_undecided_are_not_built(answers):
    assert build_vote(attempts(*answers), "7") is None


def test_attempts_without_an_answer_and_votes_are_passed_over():
    texts = ["no idea", *attempts("7"), "[TRIAL]\\boxed{7}[/TRIAL]", "[TRIAL]\\boxed{7}", *attempts("7", "7")]
    assert len(read_vote(build_vote(texts, "7")).trials) == 3


def test_a_short_answer_is_the_first_right_attempt():
    assert build_short(attempts("8", "7.0", "7"), "7") == "attempt 1: \\boxed{7.0}"
    assert build_short(attempts("8"), "7") is None
    assert build_short(["[TRIAL]\\boxed{7}[/TRIAL]" * 2], "7") is None


def test_sv_rows_are_what_sft_reads():
    prompts = [problem(0, completions=attempts("7", "7", "8", "7")), problem(1, completions=attempts("8"))]
    built = build_sv(prompts, recorded_attempts)
    assert built.counts == {"voting": 1, "short": 0, "no right voting answer": 1}
    (row,) = built.rows
    assert (row["id"], row["group"], row["num_trials"]) == ("p0", "long", 4)
    assert "What is 3 + 4?" in row["messages"][0]["content"] and "[TRIAL]" in row["messages"][0]["content"]
    (encoded,) = read_sft_rows(built.rows, char_tokenizer())
    assert char_tokenizer().decode(encoded.token_ids).count("TRIAL") == 8


def test_asv_mixes_both_kinds_at_the_given_share():
    prompts = [problem(index, completions=attempts("7", "7", "7")) for index in range(400)]
    built = build_asv(prompts, recorded_attempts, voting_share=0.25, seed=1)
    assert 70 <= built.counts["voting"] <= 130  # 100 expected, standard deviation 8.7
    assert built.counts["voting"] + built.counts["short"] == 400
    assert {row["group"] for row in built.rows} == {"long", "short"}
    assert built.voting_share == built.counts["voting"] / 400
    assert built == build_asv(prompts, recorded_attempts, voting_share=0.25, seed=1)
    assert build_asv(prompts, recorded_attempts, voting_share=0.0).counts["voting"] == 0
    assert build_asv(prompts, recorded_attempts, voting_share=1.0).counts["short"] == 0


@pytest.mark.parametrize("accuracy", [0.3, 0.5, 0.7, 0.9])
def test_the_share_of_votes_does_not_depend_on_difficulty(accuracy):
    draw = random.Random(1)
    answers = [["7" if draw.random() < accuracy else draw.choice("345") for _ in range(16)] for _ in range(400)]
    prompts = [problem(index, completions=attempts(*each)) for index, each in enumerate(answers)]
    built = build_asv(prompts, recorded_attempts, voting_share=0.5)
    assert sum(built.counts.values()) == 400
    deviation = 0.5 / len(built.rows) ** 0.5
    assert abs(built.voting_share - 0.5) < 3 * deviation
    assert {row["id"] for row in built.rows} == {row["id"] for row in build_sv(prompts, recorded_attempts).rows}


def test_a_golden_solution_votes_with_itself():
    prompt = problem(solution="3 + 4 is \\boxed{7}")
    (row,) = build_sv([prompt], recorded_attempts).rows
    assert row["num_trials"] == 3
    assert build_sv([problem(answer="3 + 4 is \\boxed{7}")], recorded_attempts).rows == (row,)
    (short,) = build_asv([prompt], recorded_attempts, voting_share=0.0).rows
    assert short["messages"][-1]["content"] == "3 + 4 is \\boxed{7}"


def test_instructions_wrap_the_last_message_and_keep_the_others():
    chat = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "1 + 1?"})
    texts = {mode: instruct(Prompt("p", chat), mode) for mode in ("plain", "voting", "adaptive")}
    assert all(
        messages[0] == chat[0] and messages[1]["content"].endswith("Problem: 1 + 1?") for messages in texts.values()
    )
    assert len({messages[1]["content"] for messages in texts.values()}) == 3
    assert "[TRIAL]" not in texts["plain"][1]["content"]


def test_prompts_for_training_hold_no_solution():
    prompt = ask_in_mode(problem(solution="\\boxed{7}", completions=["a"], level=2), "adaptive")
    assert prompt.info == {"level": 2} and prompt.answer == "7" and prompt.id == "p0"
    assert "[TRIAL]" in prompt.messages[0]["content"]


# invariance


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12))
def test_built_votes_are_well_formed_and_right(numbers):  # P7
    text = build_vote(attempts(*numbers), "1")
    if text is None:
        return
    vote = read_vote(text)
    assert vote.group == "long" and vote.answer == "1" and len(vote.trials) <= 8
    assert consensus(vote.answers[:-1]) is None


# rejects


@pytest.mark.parametrize(
    "info", [{}, {"completions": []}, {"completions": ["a", 3]}, {"completions": "a"}, {"solution": 7}]
)
def test_rows_without_attempts_are_named(info):
    with pytest.raises(DataError, match=r"prompt 'p0': no attempts"):
        recorded_attempts(problem(answer="$\\boxed{7}$"))  # a box alone is no solution
    with pytest.raises(DataError, match=r"prompt 'p0': no attempts; give the row 'completions'"):
        recorded_attempts(problem(**info))


def test_completions_may_be_objects_with_a_text():
    assert recorded_attempts(problem(completions=[{"text": "a"}, "b"])) == ["a", "b"]


def test_rows_without_an_answer_and_bad_shares_are_refused():
    with pytest.raises(DataError, match=r"prompt 'p0': no answer"):
        build_sv([problem(answer=None, completions=["a"])], recorded_attempts)
    with pytest.raises(ConfigError, match=r"voting_share = 1.5"):
        build_asv([], recorded_attempts, voting_share=1.5)
    with pytest.raises(ConfigError, match=r"mode 'vote'"):
        instruct(problem(), "vote")
