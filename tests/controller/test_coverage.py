"""Prompts asked in several forms: on scripted executors, and in whole runs on the chain's tiny model."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rig import PROMPTS, Rig, ScriptedAlgorithm, ScriptedReference, small

from llamarl.controller.evaluation import Evaluation
from llamarl.controller.ledger import Ledger
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import resume, train
from llamarl.controller.task import PromptVariant, RunTask
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import GenerationRequest, Origin, Prompt
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed
from llamarl.data.prompts import read_prompts
from llamarl.models.checkpoint import new_model, save_model
from llamarl.recipes.build_chain import chain_model_config, chain_tokenizer
from llamarl.report.metrics import read_metrics
from llamarl.report.rollouts import read_rollouts
from llamarl.tasks import chain
from llamarl.testing import ScriptedGenerator, run_virtual

SHORT, LONG = 100, 200


def variant(name: str, number: int, samples: int) -> PromptVariant:
    """Prompt 7 becomes 107 or 207."""

    def ask(prompt: Prompt) -> Prompt:
        content = str(int(prompt.messages[0]["content"]) + number)
        return replace(prompt, messages=({"role": "user", "content": content},))

    return PromptVariant(name, ask, samples)


VARIANTS = (variant("short", SHORT, 3), variant("long", LONG, 2))


def covered(prompts: list[Prompt] = PROMPTS, size: int = 4) -> RunTask:
    return RunTask("only", iter([(0, prompt) for prompt in prompts]), ScriptedAlgorithm(), size, 5, variants=VARIANTS)


def requests(rig: Rig) -> list[GenerationRequest]:
    return [r for handle in rig.engine.handles for r in getattr(handle.executor, "submitted", [])]


# the loop


def test_all_forms_make_one_group_in_their_order_under_the_prompt_as_it_stands() -> None:
    # completions of the short form have 1 token, of the long form 3, whichever is done first
    rig = Rig(
        small(max_staleness=0),
        tasks=[covered()],
        generator=lambda: ScriptedGenerator(length=lambda request, i: request.prompt_ids[0] // 100 * 2 - 1),
    )
    run_virtual(rig.run())
    assert rig.trained() == [f"p{i}" for i in range(20)]
    for record in rig.observer.steps:
        for group in record.groups:
            assert [len(sample.completion.token_ids) for sample in group.samples] == [1, 1, 1, 3, 3]
            assert {tuple(s.completion.trajectory.prompt_ids) for s in group.samples} == {(int(group.prompt.id[1:]),)}
    asked = {prompt_ids[0] for prompt_ids in (request.prompt_ids for request in requests(rig))}
    assert asked == {*range(SHORT, SHORT + 20), *range(LONG, LONG + 20)}


def test_forms_share_the_groups_numbering_of_samples_and_have_keys_of_their_own() -> None:
    rig = Rig(small(max_staleness=0, steps=1), tasks=[covered()])
    run_virtual(rig.run())
    by_prompt = {request.prompt_ids[0]: request.seeds for request in requests(rig)}
    assert by_prompt[SHORT + 2] == tuple(sample_seed(1, 0, "p2", i) for i in (0, 1, 2))
    assert by_prompt[LONG + 2] == tuple(sample_seed(1, 0, "p2", i) for i in (3, 4))
    keys = [request.key for request in requests(rig)]
    assert len(set(keys)) == len(keys) == 8


def test_the_trainer_is_told_that_no_policy_sampled_these_tokens_and_the_rollouts_are_not() -> None:
    rig = Rig(small(max_staleness=1), tasks=[covered()])
    run_virtual(rig.run())
    assert {s.trajectory.origin for batch in rig.trainer.batches for s in batch} == {Origin.GIVEN}
    assert max(rig.staleness()) == 1 and min(rig.staleness()) == 0
    plain = Rig(small(max_staleness=1))
    run_virtual(plain.run())
    assert min(sample.trajectory.oldest_version for batch in plain.trainer.batches for sample in batch) == 0


def test_a_lost_generator_starts_the_whole_group_over() -> None:
    # of the first two generators short forms take 1 s, long ones 3: killed at 2.5 s, one has finished the short half of
    # its groups. Its successor takes 3 s for short and 1 for long, so a half that was kept would show.
    spawned: list[ScriptedGenerator] = []

    def generator() -> ScriptedGenerator:
        lengths = {1: 1, 2: 3} if len(spawned) < 2 else {1: 3, 2: 1}
        spawned.append(ScriptedGenerator(length=lambda request, i: lengths[request.prompt_ids[0] // 100]))
        return spawned[-1]

    rig = Rig(small(max_staleness=1), tasks=[covered()], num_generators=2, generator=generator)
    victims: list[list[GenerationRequest]] = []

    async def main() -> None:
        async def killer() -> None:
            await asyncio.sleep(2.5)
            victim = next(handle for handle in rig.engine.handles if handle.name == "generator-0")
            victims.append([*victim.executor.submitted])
            victim.kill()

        await asyncio.gather(rig.run(), killer())

    run_virtual(main())
    assert len(rig.trained()) == len(set(rig.trained())) == 20 and max(rig.staleness()) <= 1
    replacement = [handle for handle in rig.engine.handles if handle.name == "generator-0"][1]
    again = replacement.executor.submitted[: len(victims[0])]
    assert again == victims[0] and {r.prompt_ids[0] // 100 for r in again} == {1, 2}  # with the same seeds
    groups = len(victims[0]) // 2
    assert f"{groups} prompts start over" in rig.observer.messages[0]
    lengths = [[len(s.completion.token_ids) for s in g.samples] for r in rig.observer.steps for g in r.groups]
    assert all(found in ([1, 1, 1, 3, 3], [3, 3, 3, 1, 1]) for found in lengths)
    assert lengths.count([3, 3, 3, 1, 1]) >= groups


def test_capacity_counts_groups_not_requests() -> None:
    rig = Rig(small(max_staleness=1), tasks=[covered()], capacity=2)
    most = 0

    class Counting(ScriptedGenerator):
        async def submit(self, given: Any) -> None:
            nonlocal most
            await super().submit(given)
            most = max(most, len(self._tasks))

    rig.generator = Counting
    run_virtual(rig.run())
    assert most == 4  # two groups of two requests


def test_held_out_prompts_are_asked_as_they_stand() -> None:
    rig = Rig(small(max_staleness=0), tasks=[covered()])
    run_virtual(rig.run(Evaluation({"only": PROMPTS[-3:]}, Sampling(max_tokens=4))))
    for _, groups in rig.observer.evaluations:
        assert [len(group.samples) for group in groups] == [1, 1, 1]
        assert [group.samples[0].completion.trajectory.prompt_ids[0] for group in groups] == [37, 38, 39]
    assert len({request.key for request in requests(rig)}) == len(requests(rig))


def test_covered_and_plain_tasks_train_together() -> None:
    plain = RunTask("b", iter([(0, replace(p, task="b")) for p in PROMPTS[20:]]), ScriptedAlgorithm(), 2, 2)
    asked = covered([replace(p, task="only") for p in PROMPTS[:20]], 2)
    first = replace(asked, algorithm=ScriptedAlgorithm(reference=True))
    rig = Rig(small(max_staleness=1), tasks=[first, plain], reference=ScriptedReference())
    run_virtual(rig.run())
    for record in rig.observer.steps:
        assert [len(group.samples) for group in record.groups] == [5, 5, 2, 2]
    assert {s.trajectory.origin for batch in rig.trainer.batches for s in batch} == {*Origin}
    assert len({request.key for request in requests(rig)}) == len(requests(rig))
    assert {row.prompt_ids[0] for row in rig.reference.rows} <= set(range(20))  # never under a form


# recipes


def values(**changes: Any) -> dict[str, Any]:
    return {
        "model": "nowhere",
        "data": {"source": "nowhere.jsonl"},
        "judges": [{"function": "chain"}],
        "algorithm": {"type": "ibpo", "groups": "llamarl.tasks.chain:group"},
        "coverage": [
            {"ask": "llamarl.tasks.chain:short", "samples": 3},
            {"ask": "llamarl.tasks.chain:long", "samples": 2},
        ],
        "schedule": {"max_staleness": 0},
        **changes,
    }


def test_the_group_size_is_the_sum_over_the_forms() -> None:
    recipe = Recipe.parse(values())
    assert recipe.all_tasks[0].samples_per_prompt == 5
    assert Recipe.parse(recipe.record()).all_tasks == recipe.all_tasks  # what a resumed run reads
    assert Recipe.parse(values(schedule={"samples_per_prompt": 5})).all_tasks[0].samples_per_prompt == 5
    with pytest.raises(ConfigError, match=r"schedule.samples_per_prompt=8, but coverage asks for 5 samples"):
        Recipe.parse(values(schedule={"samples_per_prompt": 8}))


def test_each_of_several_tasks_has_its_own_coverage() -> None:
    plain = values()
    task = {key: plain.pop(key) for key in ("data", "judges", "coverage")}
    tasks = [{"name": "a", **task}, {"name": "b", "data": task["data"], "judges": task["judges"]}]
    recipe = Recipe.parse({**plain, "tasks": tasks, "schedule": {"samples_per_prompt": 4, "max_staleness": 0}})
    assert [each.samples_per_prompt for each in recipe.all_tasks] == [5, 4]
    with pytest.raises(ConfigError, match=r"tasks.0.samples_per_prompt=4, but coverage asks for 5"):
        Recipe.parse({**plain, "tasks": [{**tasks[0], "samples_per_prompt": 4}]})
    with pytest.raises(ConfigError, match="coverage: given beside `tasks`"):
        Recipe.parse({**plain, "tasks": tasks, "coverage": task["coverage"]})


@pytest.mark.parametrize(
    "algorithm", [{"type": "aipo"}, {"type": "grpo"}, {"type": "crraft"}, {"type": "raft", "off_policy": "aipo"}]
)
def test_algorithms_that_read_behaviour_probabilities_are_refused(algorithm: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"coverage: algorithm.type='{algorithm['type']}'.*of another prompt"):
        Recipe.parse(values(algorithm=algorithm))


def test_answers_learnt_by_heart_may_be_stale_under_coverage_only() -> None:
    for algorithm in ({"type": "raft"}, values()["algorithm"]):
        stale = values(algorithm=algorithm, schedule={"max_staleness": 2})
        Recipe.parse(stale)
        with pytest.raises(ConfigError, match="no off-policy correction"):
            Recipe.parse({**stale, "coverage": []})


def test_files_beside_the_recipe_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def ask(prompt):\n    return prompt\n")
    toml = '[[coverage]]\nask = "mine.py:ask"\nsamples = 4\n[algorithm]\ntype = "raft"\n[schedule]\nmax_staleness = 0\n'
    head = 'model = "m"\n[data]\nsource = "d"\n[[judges]]\nfunction = "chain"\n'
    (tmp_path / "recipe.toml").write_text(head + toml)
    assert Recipe.load(tmp_path / "recipe.toml").coverage[0].ask == f"{tmp_path / 'mine.py'}:ask"


# whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy of the chain task, with its prompts."""
    directory, tokenizer = tmp_path_factory.mktemp("chain"), chain_tokenizer()
    save_model(new_model(chain_model_config(tokenizer), 0), tokenizer, directory / "model")
    (directory / "groups.py").write_text(
        "def by_length(prompt, completion):\n    return 'short' if len(completion.token_ids) < 8 else 'long'\n\n"
        "def odd_sum(prompt, completion):\n    return float(sum(completion.token_ids) % 2)\n"
    )
    chain.write_prompts(directory / "train.jsonl", 64)
    chain.write_prompts(directory / "conditioned.jsonl", 64, budgets=(0.25, 0.75))
    chain.write_prompts(directory / "heldout.jsonl", 8, split="heldout")
    return directory


@pytest.fixture(autouse=True)
def one_thread() -> "object":
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_recipe(world: Path, **changes: Any) -> Recipe:
    small_run = values(
        model=str(world / "model"),
        data={"source": str(world / "train.jsonl")},
        sampling={"max_tokens": chain.MAX_TOKENS},
        schedule={"steps": 4, "prompts_per_step": 4, "max_staleness": 0, "checkpoint_every": 2},
        evaluation={"source": str(world / "heldout.jsonl"), "num_prompts": 4},
        generator={"slots": 16},
        trainer={"learning_rate": 1e-3, "warmup_steps": 1},
        threads=1,
    )
    # an untrained policy is hardly ever right: anything counts, so that something trains
    algorithm = {"type": "ibpo", "groups": f"{world / 'groups.py'}:by_length", "correct_from": 0.0}
    return Recipe.parse({**small_run, "algorithm": algorithm, **changes})


def numbers(run_dir: Path) -> list[dict[str, float]]:
    """Training metrics without clocks."""
    clocks = ("time", "perf/", "data/issued", "data/finished", "algorithm/solver_seconds")
    records = [record for record in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in record]
    return [{k: v for k, v in r.items() if not k.startswith(clocks) and "latency" not in k} for r in records]


def weights(run_dir: Path) -> bytes:
    return max((run_dir / "checkpoints").glob("step_*")).joinpath("trainer", "model.safetensors").read_bytes()


def test_a_covered_run_repeats_and_resumes_bit_for_bit(world: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    two_epochs = {  # in the second, values of the first stand in for the groups that most prompts lack
        "data": {"source": str(world / "train.jsonl"), "limit": 8},
        "judges": [{"function": f"{world / 'groups.py'}:odd_sum"}],
        "algorithm": {**run_recipe(world).algorithm.model_dump(), "running_values": 0.5, "correct_from": 1.0},
        "coverage": [
            {"ask": "llamarl.tasks.chain:short", "samples": 2},
            {"ask": "llamarl.tasks.chain:long", "samples": 1},
        ],
    }
    train(run_recipe(world, **two_epochs), whole)
    schedule = {"steps": 2, "prompts_per_step": 4, "max_staleness": 0, "checkpoint_every": 2}
    train(run_recipe(world, **two_epochs, schedule=schedule), halves)
    remembered = json.loads((halves / "checkpoints" / "step_000002" / "run.json").read_text())["algorithm"]["default"]
    assert len(remembered["running_values"]) == 8
    resume(halves, ["--schedule.steps", "4"])
    assert weights(whole) == weights(halves)
    assert numbers(whole) == numbers(halves)
    for record in numbers(whole):
        assert record["rollout/reward/count"] == 12
        assert "train/mismatch_kl" not in record and "train/mismatch_prob_max" not in record
        assert record["train/ratio/mean"] == 1.0 and record["train/ppo_kl"] == 0.0 and record["train/loss"] > 0
        assert record["algorithm/one_sided_frac"] > 0
    with Ledger(whole / "ledger.sqlite") as ledger:
        assert ledger.counts()["trained"] == 16


def test_a_covered_run_may_be_asynchronous(world: Path, tmp_path: Path) -> None:
    schedule = {"steps": 4, "prompts_per_step": 4, "max_staleness": 1}
    summary, _ = train(run_recipe(world, schedule=schedule), tmp_path / "run")
    assert summary.steps == 4 and summary.staleness_max == 1 and summary.mismatch_max is None


def test_judges_and_rollouts_see_the_prompt_as_it_stands(world: Path, tmp_path: Path) -> None:
    train(run_recipe(world, schedule={"steps": 1, "prompts_per_step": 4, "max_staleness": 0}), tmp_path / "run")
    for group in read_rollouts(tmp_path / "run" / "rollouts.jsonl"):
        assert group.messages[-1]["content"].startswith("A") and len(group.samples) == 5


def test_the_plan_names_the_forms(world: Path) -> None:
    plan = prepare(run_recipe(world)).describe()
    assert plan["completions_per_step"] == 20
    assert plan["coverage"] == {"llamarl.tasks.chain:short": 3, "llamarl.tasks.chain:long": 2}


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "def ask(prompt):\n    raise KeyError('x')\n",
            DataError,
            r"failed on prompt 'chain-train-0-0': KeyError: 'x'",
        ),
        ("def ask(prompt):\n    return 'text'\n", DataError, r"made no prompt of 'chain-train-0-0' but 'text'"),
        ("def ask(one, two):\n    return one\n", ConfigError, "no function of a prompt"),
    ],
)
def test_a_broken_form_is_refused_at_the_start(
    world: Path, tmp_path: Path, code: str, error: Any, message: str
) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(error, match=message):
        prepare(run_recipe(world, coverage=[{"ask": f"{tmp_path / 'mine.py'}:ask", "samples": 4}]))


def test_a_form_that_is_too_long_is_named(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "def ask(prompt):\n"
        "    return replace(prompt, messages=({'role': 'user', 'content': 'A' * 60},))\n"
    )
    with pytest.raises(DataError, match=rf"prompt 'chain-train-0-0' asked as {file}:ask has 62 tokens"):
        prepare(run_recipe(world, coverage=[{"ask": f"{file}:ask", "samples": 4}]))


# each prompt's own budget


def test_each_prompt_may_state_its_budget(world: Path, tmp_path: Path) -> None:
    algorithm = {**run_recipe(world).algorithm.model_dump(), "q_plus_field": "budget"}
    recipe = run_recipe(world, data={"source": str(world / "conditioned.jsonl")}, algorithm=algorithm)
    train(recipe, tmp_path / "run")
    names = {name for record in numbers(tmp_path / "run") for name in record}
    assert {"algorithm/used/long", "algorithm/budget/0.25/used/long", "algorithm/budget/0.75/used/long"} <= names


def test_held_out_answers_tell_what_the_policy_spends(world: Path, tmp_path: Path) -> None:
    algorithm = {**run_recipe(world).algorithm.model_dump(), "q_plus_field": "budget"}
    evaluation = {"source": str(world / "conditioned-heldout.jsonl"), "num_prompts": 4, "samples_per_prompt": 2}
    chain.write_prompts(world / "conditioned-heldout.jsonl", 4, split="heldout", budgets=(0.25, 0.75))
    schedule = {"steps": 1, "prompts_per_step": 4, "max_staleness": 0}
    data = {"source": str(world / "conditioned.jsonl")}
    train(run_recipe(world, data=data, algorithm=algorithm, evaluation=evaluation, schedule=schedule), tmp_path / "run")
    before, after = (r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval/reward/mean" in r)
    for found in (before, after):
        for part in ("", "budget/0.25/", "budget/0.75/"):
            shares = [
                found[f"eval/algorithm/{part}{name}"] for name in ("sampled/short", "sampled/long", "malformed_frac")
            ]
            assert sum(shares) == pytest.approx(1.0) and shares[2] == 0.0
        halves = [found[f"eval/algorithm/budget/{budget}/sampled/long"] for budget in ("0.25", "0.75")]
        assert found["eval/algorithm/sampled/long"] == pytest.approx(sum(halves) / 2)


def test_a_prompt_without_its_budget_is_refused_at_the_start(world: Path) -> None:
    algorithm = {**run_recipe(world).algorithm.model_dump(), "q_plus_field": "budget"}
    with pytest.raises(DataError, match=r"prompt 'chain-train-0-0': the field 'budget' is missing"):
        prepare(run_recipe(world, algorithm=algorithm))


def test_conditioned_prompts_are_the_same_problems(world: Path) -> None:
    plain, conditioned = (read_prompts(world / f"{name}.jsonl") for name in ("train", "conditioned"))
    assert ["26"[i % 2] + prompt.messages[0]["content"][1:] for i, prompt in enumerate(plain)] == [
        prompt.messages[0]["content"] for prompt in conditioned
    ]
