import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.records import Prompt, text_completion
from llamarl.judges.canary import check_canaries
from llamarl.judges.math import MathJudge
from llamarl.judges.voting import (
    MAX_TRIALS,
    VotingJudge,
    consensus,
    group,
    num_begun,
    plurality,
    read_vote,
    spelled_alike,
    write_vote,
)

QUESTION = Prompt("q", ({"role": "user", "content": "What is 3 + 4?"},), answer="7")


def trials(*answers):
    return "".join(f"[TRIAL]so \\boxed{{{answer}}}[/TRIAL]\n" for answer in answers)


# golden


def test_the_first_answer_to_reach_three_decides_whatever_is_restated():
    vote = read_vote(trials("7", "8", "7.0", r"\frac{14}{2}") + r"thus \boxed{8}")
    assert (vote.answer, vote.group, vote.problem) == ("7", "long", None)
    assert vote.answers == ("7", "8", "7.0", r"\frac{14}{2}")
    assert vote.num_answers == 4


def test_without_consensus_the_restated_answer_counts_else_the_last_trial_s():
    assert read_vote(trials("7", "8") + r"the first convinces: \boxed{7}").answer == "7"
    assert read_vote(trials("7", "8") + "I can't say").answer == "8"
    assert read_vote("[TRIAL]\\boxed{7}[/TRIAL][TRIAL]no idea[/TRIAL]").answer is None


def test_a_plain_answer_is_short():
    vote = read_vote(r"3 + 4 is \boxed{7}")
    assert (vote.group, vote.answer, vote.trials, vote.num_answers) == ("short", "7", (), 1)
    assert read_vote("").answer is None and read_vote("").group == "short"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (r"[TRIAL]\boxed{7}", "unclosed"),
        (trials("7") + "[TRIAL]", "unclosed"),
        ("[TRIAL]a[TRIAL]b[/TRIAL][/TRIAL]", "nested"),
        ("a[/TRIAL]", "unopened"),
        (trials("7") + "[/TRIAL]", "unopened"),
        (trials("7"), "single"),
        (trials(*"12345678", "9"), "too_many"),
        (trials("7", "7", "7", "7"), "continued"),
        (trials("7", "8", "7", "7", "8"), "continued"),
        ("[trial]7[/trial]", "misspelled"),
        (trials("7", "8") + "[ TRIAL]7[/TRIAL]", "misspelled"),
        (trials("7", "8").replace("[/TRIAL]", "[/Trial]"), "misspelled"),
    ],
)
def test_malformed_votes_have_no_group_and_no_answer(text, problem):
    vote = read_vote(text)
    assert (vote.problem, vote.group, vote.answer, vote.trials) == (problem, None, None, ())


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("[TRIAL 3]", "[/TRIAL 3]"),
        ("[Trial1]", "[/Trial1]"),
        ("[trial #3]", "[/trial #3]"),
        ("[TRIAL_3]", "[/TRIAL_3]"),
        ("[TRIAL-A]", "[/TRIAL-A]"),
        ("[TRIAL A:]", "[/TRIAL A]"),
        ("[TRIALS]", "[/TRIALS]"),
        ("[TRIAL three]", "[/TRIAL three]"),
        ("[TRIAL IV]", "[/TRIAL IV]"),
        ("[TRIAL 3/8]", "[/TRIAL]"),
        ("[TRIAL 3 of 8]", "[/TRIAL 3 of 8]"),
        ("[TRIAL No. 3]", "[/TRIAL No. 3]"),
        ("[3. TRIAL]", "[/3. TRIAL]"),
        ("[3rd trial]", "[/3rd trial]"),
        ("[THIRD TRIAL]", "[/THIRD TRIAL]"),
        ("[TRIAL START]", "[TRIAL END]"),
        ("[BEGIN TRIAL]", "[END TRIAL]"),
        ("<TRIAL>", "</TRIAL>"),
        ("<trial 3>", "</trial>"),
        ('<trial id="3">', "</trial>"),
        ("<|TRIAL|>", "<|/TRIAL|>"),
        ("【TRIAL】", "【/TRIAL】"),
        ("\\[TRIAL\\]", "\\[/TRIAL\\]"),
        ("[ trial ]", "[/trial]"),
        ("[TRIAL>", "[/TRIAL>"),
        ("[TRIAL]", "{/TRIAL}"),
        ("[TRIAL 1]", "(/TRIAL: by algebra)"),
    ],
)
def test_whatever_looks_like_a_tag_makes_a_vote_malformed_and_is_counted(opening, closing):
    text = "\n".join(rf"{opening} so \boxed{{7}} {closing}" for _ in range(8))
    vote = read_vote(text + r" The final answer is \boxed{7}")
    assert (vote.problem, vote.group, vote.answer) == ("misspelled", None, None)
    assert num_begun(text) == 8
    assert read_vote(rf"{closing} \boxed{{7}}").group is None


@pytest.mark.parametrize(
    "text",
    [
        "We proceed by trial and error. Trial 1: heads.",
        "We find it [trial and error] quickly, or by [trial division].",
        "[industrial] [trialogue] [a fair trial was held]",
        "a (trial) of a (second trial), trial [1] and trial <b>two</b>",
        r"P[trial 1] = p and E[trial] = 1, so \text{trial} + n_{trial 2} and \mathbb{E}[\text{number of trials}]",
        "n < trial and trial > 3, or n<trials and m>3",
        "the array [trial_count, trials per day] and <trial run>",
        r"## Step 1: the first trial fails [1 trial in 6 succeeds]",
    ],
)
def test_ordinary_words_are_no_tags(text):
    assert read_vote(text + r" so \boxed{7}").group == "short"
    assert num_begun(text) == 0


def test_eight_trials_and_a_third_equal_answer_at_the_end_are_fine():
    assert read_vote(trials(*"12345678")).group == "long"
    assert read_vote(trials(*"1234567", "7")).answer == "7"  # twice is no consensus: the last trial
    assert read_vote(trials("7", "8", "7", "8", "7")).answer == "7"


def test_a_trial_without_an_answer_has_no_vote():
    text = trials("7", "7") + "[TRIAL]hmm[/TRIAL]" + trials("8")
    assert read_vote(text).answers == ("7", "7", None, "8")
    assert read_vote(text).answer == "8"


def test_consensus_and_plurality():
    assert consensus(["1", "2", "1", None, "1", "2", "2"]) == "1"
    assert consensus(["1", "2", "1", "2"]) is None
    assert plurality(["1", "2", "2", "1"]) == "1" and plurality(["1", "2", "2"]) == "2"
    assert plurality([]) is plurality([None]) is None


def test_equal_answers_take_the_first_spelling():
    assert spelled_alike(["1/2", "7", None, "0.5", "7.0", r"\frac12"]) == ["1/2", "7", None, "1/2", "7", "1/2"]
    assert plurality(["7", "1/2", "0.5", "7", r"\frac{1}{2}"]) == "1/2"


def test_a_completion_that_the_limit_cut_has_no_group():
    text = trials("7", "7")
    assert group(QUESTION, text_completion(text)) == "long"
    assert group(QUESTION, text_completion(text, "length")) is None
    assert group(QUESTION, text_completion("7 is", "length")) is None


# invariance


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=MAX_TRIALS), st.integers(0, 4))
def test_what_is_written_is_read_back(numbers, final):  # P7
    answers = [str(number) for number in numbers]
    cut = next((i + 1 for i in range(len(answers)) if answers[: i + 1].count(answers[i]) == 3), len(answers))
    texts = [f"Step.\n\nThe final answer is $\\boxed{{{answer}}}$." for answer in answers[:cut]]
    vote = read_vote(write_vote(texts, str(final)))
    assert (vote.trials, vote.answers, vote.group) == (tuple(texts), tuple(answers[:cut]), "long")
    assert vote.answer == (consensus(answers[:cut]) or str(final))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["[TRIAL]", "[/TRIAL]", "[trial]", r"\boxed{1}", r"\boxed{2}", "\\boxed{", "x", "\n"])))
def test_any_text_is_read(parts):
    vote = read_vote("".join(parts))
    assert vote.group in ("long", "short", None) and (vote.group is None) == (vote.problem is not None)
    assert len(vote.trials) == len(vote.answers) <= MAX_TRIALS


# the judge


def judged(*texts, prompt=QUESTION):
    judge = VotingJudge(MathJudge(is_symbolic=False))
    return asyncio.run(judge.judge(prompt, [text_completion(text) for text in texts]))


def test_the_judge_compares_the_final_answer():
    right, wrong, plain, none = judged(
        trials("7", "8", "7", "7"), trials("8", "7", "8", "8") + r"\boxed{7}", r"\boxed{7}", trials("7", "8")[:-3]
    )
    assert (right.score, right.passed) == (1.0, True)
    assert (wrong.score, wrong.passed) == (0.0, False)
    assert plain.score == 1.0
    assert (none.score, none.reason) == (0.0, "malformed vote: unclosed")


def test_a_malformed_vote_scores_zero_even_with_the_right_answer():
    (verdict,) = judged(trials("7", "7", "7", "7"))
    assert (verdict.score, verdict.reason) == (0.0, "malformed vote: continued")


def test_the_judge_abstains_where_math_does_and_knows_right_answers():
    (verdict,) = judged(trials("7"), prompt=Prompt("q", QUESTION.messages))
    assert verdict.score is None and verdict.status == "abstained"
    asyncio.run(check_canaries(VotingJudge(), [(QUESTION, trials("7", "7", "7")), (QUESTION, "7 it is: \\boxed{7}")]))


def test_it_says_of_itself_what_the_math_judge_inside_says() -> None:
    assert VotingJudge().info.has_deadline and MathJudge().info.version in VotingJudge().info.version
