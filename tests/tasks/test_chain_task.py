from dataclasses import replace

import pytest

from llamarl.core.errors import ConfigError
from llamarl.core.records import Prompt, Status, text_completion
from llamarl.data.prompts import read_prompts
from llamarl.tasks.chain import (
    LEVEL_WEIGHTS,
    MAX_LEVEL,
    UNIFORM,
    Chain,
    ChainTask,
    adaptive,
    group,
    judge,
    long,
    permutations,
    short,
    with_budget,
    with_mode,
    write_prompts,
)


def completion(text):
    return text_completion(text)


def prompt_of(chain):
    return Prompt("p", (), answer=str(chain.states[-1]), info={"start": chain.start, "operations": chain.operations})


# golden


def test_states_follow_the_permutations():
    first, second = permutations()["a"], permutations()["b"]
    assert Chain(3, "ab").states == [first[3], second[first[3]]]
    assert all(sorted(p) == list(range(8)) for p in permutations().values())


def test_requests_have_one_width_and_name_the_mode():
    assert Chain(3, "ab").request("S") == "S3ab......"
    assert Chain(0, "fedcbaab").request("A") == "A0fedcbaab"


def test_responses_state_the_answer_at_once_or_in_steps():
    chain = Chain(3, "ab")
    one, two = chain.states
    assert chain.response(False) == str(two)
    assert chain.response(True) == f"<think>{one}{two}</think>{two}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", "short"),
        ("<think>123</think>5", "long"),
        ("<think>1</think>5", "long"),
        ("<think></think>5", None),
        ("<think>12", None),
        ("<think>12</think>", None),
        ("<think>1</think>55", None),
        ("55", None),
        ("", None),
        ("9", None),
        ("a", None),
        ("5\n", None),
    ],
)
def test_groups_go_by_form_alone(text, expected):
    prompt = prompt_of(Chain(3, "ab"))
    assert group(prompt, completion(text)) == expected
    verdict = judge(prompt, completion(text))
    assert (verdict.reason == "malformed") == (expected is None)


def test_the_judge_reads_the_last_state():
    chain = Chain(3, "ab")
    answer = chain.states[-1]
    wrong = (answer + 1) % 8
    texts = [str(answer), f"<think>0</think>{answer}", str(wrong), f"<think>{answer}</think>{wrong}"]
    verdicts = [judge(prompt_of(chain), completion(text)) for text in texts]
    assert [v.score for v in verdicts] == [1.0, 1.0, 0.0, 0.0]
    assert [v.passed for v in verdicts] == [True, True, False, False]
    assert verdicts[2].reason == f"said {wrong}"


def test_the_judge_abstains_from_other_tasks():
    assert judge(Prompt("p", ()), completion("5")).status is Status.ABSTAINED


@pytest.mark.parametrize("index", range(40))
def test_demonstrations_are_right_and_keep_to_their_mode(index):
    prompt, text = ChainTask(3).demonstration(index)
    mode = prompt.messages[0]["content"][0]
    assert judge(prompt, completion(text)).score == 1.0
    assert group(prompt, completion(text)) in {"S": ("short",), "L": ("long",), "A": ("short", "long")}[mode]


# invariance


def test_the_mix_of_demonstrations_and_their_curriculum():
    task = ChainTask(0)
    pairs = [task.demonstration(index, 0.1) for index in range(2000)]
    modes = [prompt.messages[0]["content"][0] for prompt, _ in pairs]
    for mode, expected in {"S": 700, "L": 400, "A": 900}.items():
        assert abs(modes.count(mode) - expected) < 90  # four standard deviations
    assert max(p.info["level"] for (p, _), mode in zip(pairs, modes, strict=True) if mode == "S") == 3
    assert {p.info["level"] for (p, _), mode in zip(pairs, modes, strict=True) if mode == "L"} == set(range(1, 9))
    late = [task.demonstration(index, 1.0)[0] for index in range(2000)]
    assert {p.info["level"] for p in late if p.messages[0]["content"][0] == "S"} == set(range(1, 9))


def test_prompts_are_functions_of_seed_split_and_index():
    assert ChainTask(1).prompts(5) == ChainTask(1).prompts(9)[:5] != ChainTask(2).prompts(5)


def test_no_chain_is_in_both_splits():
    def chains(split):
        return {(p.info["start"], p.info["operations"]) for p in ChainTask(0, split, UNIFORM).prompts(600)}

    assert not chains("train") & chains("heldout")
    assert {len(operations) for _, operations in chains("heldout")} == set(range(1, 9))


def test_levels_follow_their_weights():
    levels = [p.info["level"] for p in ChainTask(0).prompts(4000)]
    for level, weight in enumerate(LEVEL_WEIGHTS, 1):
        expected = weight / sum(LEVEL_WEIGHTS)
        assert levels.count(level) / 4000 == pytest.approx(expected, abs=0.025)  # four standard deviations
    assert {p.info["level"] for p in ChainTask(0, level_weights=(0, 0, 1)).prompts(20)} == {3}


def test_a_mode_changes_the_request_only():
    prompt = ChainTask(0).prompt(3, "A")
    long = with_mode(prompt, "L")
    assert long.messages[0]["content"] == "L" + prompt.messages[0]["content"][1:]
    assert replace(long, messages=prompt.messages) == prompt


def test_modes_have_functions_of_their_own():
    prompt = ChainTask(0).prompt(3, "A")
    for ask, mode in ((short, "S"), (long, "L"), (adaptive, "A")):
        assert ask(prompt) == with_mode(prompt, mode)
        assert ask(with_budget(prompt, 0.25)).messages == with_mode(prompt, mode).messages


def test_a_budget_is_a_digit_in_place_of_the_mode():
    prompt = ChainTask(0).prompt(3, "S")
    asked = with_budget(prompt, 0.75)
    assert asked.messages[0]["content"] == "6" + prompt.messages[0]["content"][1:]
    assert asked.info == {**prompt.info, "budget": 0.75} and (asked.id, asked.answer) == (prompt.id, prompt.answer)
    assert [with_budget(prompt, q).messages[0]["content"][0] for q in (0, 0.125, 0.5, 1.0)] == ["0", "1", "4", "8"]
    assert with_budget(asked, 0.25).messages[0]["content"] == "2" + asked.messages[0]["content"][1:]


def test_prompts_are_written_with_budgets_in_turn(tmp_path):
    assert write_prompts(tmp_path / "p.jsonl", 7, budgets=(0.25, 0.5, 0.75)) == 7
    plain, found = ChainTask(0).prompts(7), read_prompts(tmp_path / "p.jsonl")
    assert [prompt.info["budget"] for prompt in found] == [0.25, 0.5, 0.75, 0.25, 0.5, 0.75, 0.25]
    assert [adaptive(prompt).messages for prompt in found] == [prompt.messages for prompt in plain]


def test_written_prompts_are_read_back(tmp_path):
    assert write_prompts(tmp_path / "p.jsonl", 20, 1, "heldout", "S", UNIFORM) == 20
    assert list(read_prompts(tmp_path / "p.jsonl")) == ChainTask(1, "heldout", UNIFORM).prompts(20, "S")


# rejects


@pytest.mark.parametrize("q_plus", [0.3, 1.125, -0.125, 0.0625])
def test_budgets_that_have_no_symbol(q_plus):
    with pytest.raises(ConfigError, match=f"budget: got {q_plus}; give an eighth"):
        with_budget(ChainTask(0).prompt(0), q_plus)


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="split"):
        ChainTask(0, "test")
    for weights in ((), (1.0,) * (MAX_LEVEL + 1), (0.0,), (1.0, -1.0)):
        with pytest.raises(ConfigError, match="level_weights"):
            ChainTask(0, level_weights=weights)
