from dataclasses import asdict, replace

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, text_completion
from llamarl.data.prompts import read_prompts
from llamarl.tasks.format import (
    MAX_TOKENS,
    WORDS,
    Constraints,
    FormatTask,
    constraints_of,
    judge,
    keyword_reward,
    partial_judge,
    write_prompts,
)


def prompt_for(*constraints):
    wanted = Constraints(*constraints)
    return Prompt(id="p", messages=({"role": "user", "content": wanted.request},), info=asdict(wanted))


def completion(text):
    return text_completion(text)


# golden


@pytest.mark.parametrize(
    ("constraints", "request_text"),
    [
        ((3, "moon", True, True), "write 3 words with moon, upper, end !"),
        ((2, "cat", False, False), "write 2 words with cat"),
        ((5, "dog", True, False), "write 5 words with dog, upper"),
        ((4, "king", False, True), "write 4 words with king, end !"),
    ],
)
def test_request_names_the_constraints(constraints, request_text):
    assert Constraints(*constraints).request == request_text


@pytest.mark.parametrize(
    ("constraints", "text", "violated"),
    [
        ((3, "moon", True, True), "MOON BIRD CAT!", ""),
        ((2, "cat", False, False), "cat dog.", ""),
        ((2, "cat", False, False), "cat cat.", ""),  # repeating a word is not forbidden
        ((3, "moon", True, True), "MOON CAT!", "count"),
        ((3, "moon", True, True), "BIRD DOG CAT!", "keyword"),
        ((3, "moon", True, True), "moon bird cat!", "case"),
        ((3, "moon", True, True), "MOON bird CAT!", "case"),
        ((3, "moon", True, True), "MOON BIRD CAT.", "end"),
        ((2, "cat", False, False), "cat dog!", "end"),
        ((2, "cat", False, False), "cat dog", "end"),
        ((2, "cat", False, False), "cat dgo.", "vocabulary"),
        ((2, "cat", False, False), "cat  dog.", "count, vocabulary"),  # an empty third word between the spaces
        ((2, "cat", False, False), "cat dog..", "vocabulary"),  # "dog." is no word
        ((2, "cat", True, True), "", "count, keyword, end, vocabulary"),
    ],
)
def test_verdict_is_one_or_names_what_is_violated(constraints, text, violated):
    verdict = judge(prompt_for(*constraints), completion(text))
    assert (verdict.score, verdict.passed, verdict.reason) == (float(not violated), not violated, violated)


def test_partial_judge_scores_the_share_of_five():
    prompt = prompt_for(3, "moon", True, True)
    assert partial_judge(prompt, completion("MOON CAT.")).score == pytest.approx(3 / 5)  # keyword, case, vocabulary
    assert partial_judge(prompt, completion("MOON BIRD CAT!")).passed
    assert not partial_judge(prompt, completion("MOON BIRD CAT.")).passed


@pytest.mark.parametrize(
    ("text", "reward"),
    [("moon.", 0.25), ("MOON moon cat!", 0.5), ("moonmoon", 0.0), ("", 0.0), ("moon " * 8, 2.0), ("moon " * 30, 2.0)],
)
def test_keyword_reward_counts_and_caps(text, reward):
    assert keyword_reward(prompt_for(2, "moon", False, False), completion(text)) == reward


def test_the_proxy_prefers_a_cheat_to_a_right_answer():
    prompt = prompt_for(2, "cat", False, False)
    right, cheat = completion("cat dog."), completion("cat cat cat cat cat cat cat cat")
    assert judge(prompt, right).score == 1.0 and judge(prompt, cheat).score == 0.0
    assert keyword_reward(prompt, right) < keyword_reward(prompt, cheat)


@pytest.mark.parametrize("one_judge", [judge, partial_judge])
def test_abstains_on_prompts_of_other_tasks(one_judge):
    assert one_judge(Prompt("p", ()), completion("x")).status is Status.ABSTAINED
    assert constraints_of(Prompt("p", (), info={"num_words": 2})) is None


def test_other_info_does_not_disturb_the_judge():
    prompt = prompt_for(2, "cat", False, False)
    more = replace(prompt, info={**prompt.info, "source": "mine"})
    assert judge(more, completion("cat dog.")).passed


# invariance


def test_prompts_depend_on_seed_split_and_index_only():
    task = FormatTask(3)
    assert task.prompt(5) == FormatTask(3).prompts(6)[5]
    assert task.prompts(50) != FormatTask(4).prompts(50)
    assert len({p.id for s in ("train", "heldout") for p in FormatTask(3, s).prompts(200)}) == 400


def test_no_request_is_in_both_splits_and_together_they_are_all():
    seen = {split: {content(FormatTask(0, split).prompt(i)) for i in range(3000)} for split in ("train", "heldout")}
    assert not seen["train"] & seen["heldout"]
    assert len(seen["train"] | seen["heldout"]) == 4 * len(WORDS) * 2 * 2
    assert 0.15 < len(seen["heldout"]) / 320 < 0.25


def content(prompt):
    (message,) = prompt.messages
    return message["content"]


def test_info_describes_the_message():
    for prompt in FormatTask().prompts(100):
        assert constraints_of(prompt).request == content(prompt)


def test_a_right_answer_exists_for_every_prompt_and_fits():
    for prompt in FormatTask().prompts(300):
        wanted = constraints_of(prompt)
        answer = " ".join([wanted.keyword] * wanted.num_words) + ("!" if wanted.has_bang else ".")
        answer = answer.upper() if wanted.is_upper else answer
        assert judge(prompt, completion(answer)).passed
        assert len(answer) + 1 <= MAX_TOKENS


def test_demonstrations_follow_each_constraint_as_often_as_documented():
    parts = [constraints_of(p).parts(text) for p, text in map(FormatTask().demonstration, range(4000))]
    shares = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    # count: .7 + .3 / 4 by chance; keyword: .7 + .3 x (about 1 in 6.1 that 2 to 5 random words hold it), and less
    # because a short answer replaces one word only; case and end: .7; standard error below .008
    assert shares["count"] == pytest.approx(0.775, abs=0.03)
    assert shares["keyword"] == pytest.approx(0.7 + 0.3 * 0.16, abs=0.03)
    assert shares["case"] == pytest.approx(0.7, abs=0.03)
    assert shares["end"] == pytest.approx(0.7, abs=0.03)
    assert shares["vocabulary"] == 1.0


def test_demonstrations_are_seeded():
    assert FormatTask(1).demonstration(7) == FormatTask(1).demonstration(7)
    assert [FormatTask(1).demonstration(i)[1] for i in range(20)] != [
        FormatTask(2).demonstration(i)[1] for i in range(20)
    ]


def test_written_rows_hold_the_prompts(tmp_path):
    assert write_prompts(tmp_path / "rows.jsonl", 20, seed=2, split="heldout") == 20
    assert list(read_prompts(tmp_path / "rows.jsonl")) == FormatTask(2, "heldout").prompts(20)


# rejects


def test_rejects_an_unknown_split():
    with pytest.raises(ConfigError, match="'test'"):
        FormatTask(0, "test")
