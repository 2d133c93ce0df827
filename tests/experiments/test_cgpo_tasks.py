import asyncio
from types import SimpleNamespace

import pytest

from experiments.cgpo_tasks.__main__ import PANELS, WEIGHTS, fronts, recipe
from experiments.cgpo_tasks.judges import Style
from experiments.cgpo_tasks.judges import chat as within_limits
from experiments.cgpo_tasks.pareto import hypervolume, is_dominated, lead
from experiments.cgpo_tasks.world import (
    MAX_WORDS,
    TASKS,
    Chat,
    Sum,
    demonstration,
    is_heldout,
    num_warm,
    pairs,
    prompts,
    word_tokenizer,
)
from llamarl.core.judge import Judge
from llamarl.core.records import Prompt, Verdict, text_completion

CHAT = Prompt("c", ({"role": "user", "content": "chat about moon and rain"},), info={"first": "moon", "second": "rain"})


def completion(text):
    return text_completion(text)


# the world


def test_a_request_says_what_is_asked_and_a_sum_knows_its_value():
    assert (Sum(34, 7).request, Sum(34, 7).value) == ("34 + 7", 41)
    assert (Sum(34, -7).request, Sum(34, -7).value) == ("34 - 7", 27)
    assert Chat("moon", "rain").request == "chat about moon and rain"


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("moon rain dear.", set()),
        ("dear moon.", {"topic"}),
        ("moon rain!", {"end"}),
        ("moon rain dear dear.", {"fresh"}),
        ("moon rain cat dog bird king star tree book.", {"length"}),
    ],
)
def test_a_reply_breaks_the_limits_it_breaks(text, broken):
    parts = Chat("moon", "rain").parts(text)
    assert {name for name, is_kept in parts.items() if not is_kept} == broken
    assert within_limits(CHAT, completion(text)) == (not broken)


@pytest.mark.parametrize("task", TASKS)
def test_tokens_give_every_text_back_and_no_request_is_in_both_splits(task):
    tokenizer = word_tokenizer()
    for split in ("train", "heldout"):
        for index in range(30):
            prompt, text = demonstration(task, 0, index, split)
            request = prompt.messages[0]["content"]
            assert [tokenizer.decode(tokenizer.encode(each)) for each in (request, text)] == [request, text]
            assert tokenizer.encode("<unk>")[0] not in tokenizer.encode(f"{request} {text}")
            assert task == "format" or is_heldout(request) == (split == "heldout")


def test_a_word_is_one_token_wherever_it_stands():
    tokenizer = word_tokenizer()
    assert tokenizer.encode("moon rain moon")[0] == tokenizer.encode("moon rain moon")[2]
    assert len(tokenizer.encode("moon rain.")) == 3


def test_demonstrations_are_functions_of_their_arguments_and_imperfect():
    shown = [demonstration("sums", 1, index) for index in range(200)]
    assert shown[:5] == [demonstration("sums", 1, index) for index in range(5)]
    right = sum(text == prompt.answer for prompt, text in shown) / len(shown)
    assert 0.3 < right < 0.6  # 0.9 x 0.5


def test_raters_choose_the_warmer_answer_more_often_than_not():
    chosen = [num_warm(row["chosen"]) - num_warm(row["rejected"]) for row in pairs(0)[:600]]
    warmer, colder = sum(gap > 0 for gap in chosen), sum(gap < 0 for gap in chosen)
    assert colder > 0
    assert warmer > 1.5 * colder


def test_every_prompt_has_a_baseline_response():
    for task in TASKS:
        assert all(row["info"]["baseline"] for row in prompts(task, 0, "train", 8))
    assert MAX_WORDS == 8


# style


def test_style_is_the_probability_of_being_preferred_and_0_outside_the_limits():
    class Fixed(Judge):
        async def judge(self, prompt, completions):
            return [Verdict.scored(0.0), Verdict.scored(1.0986122886681098), Verdict.failed("too long")]

    texts = [completion("moon rain."), completion("moon."), completion("moon rain.")]
    free, limited = Style("nowhere"), Style("nowhere", is_limited=True)
    assert (free.name, limited.name) == ("style", "limited_style")
    free._model = limited._model = Fixed()
    # margins 0 and log 3: sigmoid gives 1/2 and 3/4
    assert [v.score for v in asyncio.run(free.judge(CHAT, texts))] == [0.5, pytest.approx(0.75), None]
    assert [v.score for v in asyncio.run(limited.judge(CHAT, texts))] == [0.5, 0.0, None]


# the front


def test_a_point_is_dominated_by_one_as_good_in_all_and_better_in_one():
    assert is_dominated((0.5, 0.5), [(0.5, 0.6)])
    assert not is_dominated((0.5, 0.5), [(0.5, 0.5), (0.4, 0.9), (0.9, 0.4)])


def test_lead_is_the_smallest_of_the_largest_advantages():
    # against (0.4, 0.9): max(0.3, -0.2) = 0.3; against (0.8, 0.5): max(-0.1, 0.2) = 0.2
    assert lead((0.7, 0.7), [(0.4, 0.9), (0.8, 0.5)]) == pytest.approx(0.2)
    # inside: against (0.8, 0.9): max(-0.1, -0.2) = -0.1
    assert lead((0.7, 0.7), [(0.8, 0.9)]) == pytest.approx(-0.1)


def test_hypervolume_is_the_area_of_the_union():
    # 0.8 x 0.2 + 0.4 x (0.6 - 0.2) = 0.32; the inner point adds nothing
    assert hypervolume([(0.4, 0.6), (0.8, 0.2), (0.3, 0.1)]) == pytest.approx(0.32)


def test_each_seed_is_compared_with_its_own_rivals():
    def run(arm, seed, checked, style):
        return SimpleNamespace(arm=arm, seed=seed, numbers={"checked": checked} | dict.fromkeys(PANELS, style))

    runs = [
        run("ppo 0.1", 0, 0.6, 0.4),
        run("crpg", 0, 0.5, 0.3),
        run("ppo 0.1", 1, 0.6, 0.4),
        run("crpg", 1, 0.7, 0.5),
    ]
    found = fronts(runs)
    assert [(each["seed"], each["is_dominated"]) for each in found] == [(0, True), (0, True), (1, False), (1, False)]
    assert found[-1]["lead"] == pytest.approx(0.1)


# the arms


def test_ppo_blends_the_same_two_rewards_in_every_task(tmp_path):
    assert len(WEIGHTS) >= 5
    for task in recipe(tmp_path, "ppo 0.25", 0).all_tasks:
        paying = [judge for judge in task.judges if judge.role == "reward"]
        assert [judge.weight for judge in paying] == [0.75, 0.25]
        assert task.algorithm.type == "ppo"


def test_cgpo_pays_style_in_chats_only_and_holds_every_task_to_its_constraints(tmp_path):
    tasks = {task.name: task for task in recipe(tmp_path, "crpg", 0).all_tasks}
    roles = {name: sorted(judge.role for judge in task.judges) for name, task in tasks.items()}
    assert roles["format"] == roles["sums"] == ["constraint"]
    assert roles["chat"] == ["constraint"] * 4 + ["reward"] + ["watch"] * 2
    assert [tasks[name].algorithm.reward for name in TASKS] == ["constant", "constant", "as_is"]


def test_all_arms_train_on_as_much(tmp_path):
    def size(arm):
        found = recipe(tmp_path, arm, 0)
        return (
            found.schedule,
            found.sampling,
            [(t.data, t.prompts_per_step, t.samples_per_prompt) for t in found.all_tasks],
        )

    assert size("ppo 0.9") == size("crpg")
