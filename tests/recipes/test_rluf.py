"""Love, helpfulness and safety in one run: what the weights do, and that no reward outbids a judge that fails."""

import asyncio
import tomllib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rluf_product import write_rluf

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core.errors import ConfigError
from llamarl.core.records import text_completion
from llamarl.data.prompts import read_prompts
from llamarl.feedback import Store
from llamarl.feedback.wishes import weigh_objectives
from llamarl.judges.config import build_panel
from llamarl.judges.reward_model import RewardModel
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.models.decoder import named_tensors
from llamarl.recipes import recipe_path
from llamarl.recipes.build_rluf import build_rluf, product_tokenizer, prompt_rows
from llamarl.training.checkpoints import read
from llamarl.training.objectives import LoveConfig

BRIEF = {
    "sampling": {"max_tokens": 12},
    "schedule": {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "max_staleness": 0},
    "evaluation": {"num_prompts": 0},
    "threads": 1,
}


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return write_rluf(tmp_path_factory.mktemp("product") / "rluf")


@pytest.fixture(autouse=True)
def _beside_the_product(product, monkeypatch):
    monkeypatch.chdir(product.parent)


def load_values(name):
    return tomllib.loads(recipe_path(name).read_text())


def run(tasks, folder):
    """The policy's weights after two steps on some tasks of the recipe.

    Replies are decoded one by one: which ones are decoded together changes the last bits of their log-probs.
    """
    values = {**load_values("rluf"), **BRIEF, "tasks": tasks, "generator": {"slots": 1}}
    train(Recipe.parse(values), folder)
    weights = dict(named_tensors(load_model(values["model"])))
    checkpoint = CheckpointStore(folder / "checkpoints").load_latest()
    return read(checkpoint.path / "trainer", weights).weights


# weights


def test_what_love_leaves_is_shared_alike():
    assert weigh_objectives(0.1) == pytest.approx({"love": 0.1, "helpfulness": 0.45, "safety": 0.45})
    assert weigh_objectives(0.0) == {"love": 0.0, "helpfulness": 0.5, "safety": 0.5}
    with pytest.raises(ConfigError, match=r"love=1.0: a weight of at least 0 and below 1"):
        weigh_objectives(1.0)


@given(st.floats(0.0, 0.99))
def test_weights_sum_to_one(love):
    assert sum(weigh_objectives(love).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["rluf", "rluf_scalar"])
def test_the_recipes_have_the_moderate_weights(name):
    values = load_values(name)
    paying = values.get("tasks") or [judge for judge in values["judges"] if "role" not in judge]
    assert [each["weight"] for each in paying] == pytest.approx(list(weigh_objectives(0.1).values()))


def test_without_weight_of_love_the_update_is_that_of_two_objectives_bit_for_bit(tmp_path):
    love, *others = load_values("rluf")["tasks"]
    weights = weigh_objectives(0.0)
    two = [{**task, "weight": weights[task["name"]]} for task in others]
    start = dict(named_tensors(load_model("rluf/model")))
    without = run(two, tmp_path / "two")
    silent = run([{**love, "weight": 0.0}, *two], tmp_path / "three")
    assert all(torch.equal(without[name], silent[name]) for name in start)
    assert any(not torch.equal(without[name], start[name]) for name in start)
    heard = run([{**love, "weight": 0.1}, *two], tmp_path / "heard")
    assert any(not torch.equal(without[name], heard[name]) for name in start)


# judges


GOOD, RUDE, LEAVING = "I am happy to help with {}.", "That is a silly thing, {}.", "Here is {}. Bye! Sending love!"


def judged(judges, replies):
    """Judged samples of the first prompt of love."""
    prompt = read_prompts("rluf/love.jsonl")[0]
    completions = [text_completion(text.format(prompt.info["topic"])) for text in replies]
    panel = build_panel(Recipe.parse({**load_values("rluf_scalar"), "judges": judges}).judges)
    samples = asyncio.run(panel.judge_group(prompt, completions))
    return [replace(sample, reference_logprobs=()) for sample in samples]


@pytest.mark.parametrize("task", [0, 1, 2])
def test_no_objective_pays_for_a_reply_that_a_judge_fails(task):
    values = load_values("rluf")["tasks"][task]
    good, rude, leaving = judged(values["judges"], [GOOD, RUDE, LEAVING])
    algorithm = Recipe.parse({**load_values("rluf"), **BRIEF}).all_tasks[task].algorithm
    assert algorithm.shaped_reward(good) > 0.0
    assert algorithm.shaped_reward(rude) == algorithm.shaped_reward(leaving) == 0.0
    assert rude.reward is not None and not rude.is_satisfied and not leaving.is_satisfied


def test_the_scalar_reward_is_the_weighted_sum_and_nothing_where_a_judge_fails():
    values = load_values("rluf_scalar")
    good, rude, leaving = judged(values["judges"], [GOOD, RUDE, LEAVING])
    names = ("reward_model", "helpful", "kind")
    scores = [good.verdicts[name].score for name in names]
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert good.reward == pytest.approx(sum(w * s for w, s in zip((0.1, 0.45, 0.45), scores, strict=True)))
    algorithm = Recipe.parse({**values, **BRIEF, "data": values["data"]}).algorithm
    assert algorithm.shaped_reward(good) == good.reward
    assert algorithm.shaped_reward(rude) == algorithm.shaped_reward(leaving) == 0.0


def test_a_reward_model_of_weight_nothing_only_watches():
    values = load_values("rluf_scalar")["judges"]
    silent = judged([{**values[0], "weight": 0.0}, *values[1:]], [GOOD, RUDE])
    without = judged(values[1:], [GOOD, RUDE])
    assert [sample.reward for sample in silent] == [sample.reward for sample in without]


def test_the_probability_is_the_sigmoid_of_the_margin_and_half_at_the_baseline():
    prompt = read_prompts("rluf/love.jsonl")[0]
    replies = [text_completion(text) for text in (GOOD, str(prompt.info["baseline"]))]
    margins, chances = (
        asyncio.run(RewardModel("rluf/love/model", calibrated=True, as_probability=each).judge(prompt, replies))
        for each in (False, True)
    )
    assert [v.score for v in chances] == pytest.approx([1 / (1 + pow(2.718281828459045, -v.score)) for v in margins])
    assert chances[1].score == 0.5


def test_a_probability_is_not_calibrated_a_second_time():
    values = load_values("rluf_scalar")
    recipe = Recipe.parse({**values, **BRIEF, "algorithm": {"type": "crpg", "reward": "calibrated"}})
    with pytest.raises(ConfigError, match="judge 'reward_model' pays raw rewards, not margins"):
        train(recipe, "refused")


# the build


def test_prompts_are_different_and_those_held_out_never_train():
    train_rows, held_out = ([*prompt_rows(1, "love", 200, is_heldout=side)] for side in (False, True))
    prompts = [row["prompt"] for row in (*train_rows, *held_out)]
    assert len(set(prompts)) == 400
    assert all(row["info"]["topic"] in row["prompt"] and row["info"]["baseline"] for row in train_rows)
    assert [*prompt_rows(1, "love", 200)] == train_rows != [*prompt_rows(2, "love", 200)]


def test_the_tokenizer_knows_every_word_of_the_product():
    tokenizer = product_tokenizer()
    for row in prompt_rows(0, "safety", 100):
        for text in (row["prompt"], row["info"]["baseline"]):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_short_build_is_complete(tmp_path):
    built = build_rluf(tmp_path / "rluf", users=80, sft_steps=2, love=LoveConfig(num_steps=2, held_out=0.3))
    assert Store.open(built / "store").record["kept"] > 1000
    assert (built / "love" / "report.json").exists() and load_tokenizer(built / "model").vocab_size > 300
    assert len(read_prompts(built / "love.jsonl")) == 1024 and len(read_prompts(built / "heldout-safety.jsonl")) == 128
