import pickle
import subprocess
import sys

import pytest
from judged_groups import group_of
from pydantic import TypeAdapter

import llamarl.algorithms
from llamarl.algorithms import AIPOConfig, AlgorithmConfig, CustomConfig, DAPOConfig, GRPOConfig
from llamarl.core.config import Config
from llamarl.core.errors import ConfigError

CONFIGS = [getattr(llamarl.algorithms, name) for name in llamarl.algorithms.__all__ if name.endswith("Config")]
SHIPPED = [c for c in CONFIGS if isinstance(c, type) and "type" in c.model_fields and c is not CustomConfig]


class Recipe(Config):
    algorithm: AlgorithmConfig = AIPOConfig()


# golden: published settings, and what they make the algorithm declare


@pytest.mark.parametrize(
    ("name", "reduction", "kl_coef", "corrects_staleness", "varied_rewards"),
    [
        ("aipo", "token_mean", 0.0, True, False),
        ("cispo", "token_mean", 0.0, True, False),
        ("dapo", "token_mean", 0.0, True, True),
        ("dr_grpo", "fixed_length", 0.0, True, False),
        ("grpo", "sequence_mean", 0.04, True, False),
        ("gspo", "sequence_mean", 0.0, True, False),
        ("reinforce_pp", "token_mean", 0.01, True, False),
        ("rloo", "sample_sum", 0.03, False, False),
        ("raft", "prompt_sum", 0.0, False, False),
    ],
)
def test_defaults(name, reduction, kl_coef, corrects_staleness, varied_rewards):
    config = TypeAdapter(AlgorithmConfig).validate_python({"type": name})
    assert config.type == name
    assert (config.reduction, config.kl_coef, config.entropy_coef) == (reduction, kl_coef, 0.0)
    assert config.needs.corrects_staleness is corrects_staleness
    assert config.needs.varied_rewards is varied_rewards
    assert config.needs.reference is config.needs.zero_advantages is (kl_coef > 0)
    assert config.needs.entropy_gradient is False


@pytest.mark.parametrize("name", sorted({c.model_fields["type"].default for c in SHIPPED} - {"ibpo"}))
def test_lone_samples_teach_what_the_algorithm_declares(name):
    config = TypeAdapter(AlgorithmConfig).validate_python({"type": name})
    credit = config.credit()
    groups = [group_of((reward, True), index=i) for i, reward in enumerate((0.0, 1.0, 3.0))]
    advantages = {sample.group: sample.advantages for sample in credit.assign(groups).samples}
    depends_on_reward = len(set(advantages.values())) > 1 or 0 < len(advantages) < 3
    assert depends_on_reward == (config.needs.comparison != "group")
    if config.needs.comparison == "batch":
        assert not any(sample.advantages for sample in credit.assign(groups[1:2]).samples)


def test_the_paper_s_numbers():
    assert AIPOConfig().rho == 4.0 and AIPOConfig().center == "mean"
    assert (GRPOConfig().clip, GRPOConfig().kl_estimator) == (0.2, "k3")
    assert (DAPOConfig().clip_low, DAPOConfig().clip_high, DAPOConfig().overlong_limit) == (0.2, 0.28, None)


@pytest.mark.parametrize(
    ("name", "reference", "values", "groups_together", "zero_advantages", "corrects_staleness"),
    [
        ("crpg", True, False, False, False, False),
        ("crraft", True, False, False, False, False),
        ("codpo", True, False, True, False, False),
        ("online_dpo", True, False, True, False, False),
        ("ppo", True, True, False, True, True),
    ],
)
def test_what_the_others_declare(name, reference, values, groups_together, zero_advantages, corrects_staleness):
    needs = TypeAdapter(AlgorithmConfig).validate_python({"type": name}).needs
    assert (needs.reference, needs.values) == (reference, values)
    assert needs.groups_together is groups_together
    assert needs.zero_advantages is zero_advantages
    assert needs.corrects_staleness is corrects_staleness
    assert needs.varied_rewards is False and needs.entropy_gradient is False


def test_coefficients_decide_what_is_needed():
    needs = AIPOConfig(entropy_coef=0.01).needs
    assert (needs.reference, needs.entropy_gradient, needs.zero_advantages) == (False, True, True)
    assert DAPOConfig(dynamic_sampling=False).needs.varied_rewards is False


def test_every_shipped_config_is_in_the_union_and_documented():
    assert len(SHIPPED) >= 14
    for config in SHIPPED:
        assert Recipe.parse({"algorithm": {"type": config.model_fields["type"].default}}).algorithm == config()
        undocumented = [n for n, field in config.model_fields.items() if n != "type" and not field.description]
        assert undocumented == []


# invariance


@pytest.mark.parametrize("config", SHIPPED)
def test_round_trip_through_json(config):
    assert Recipe.model_validate_json(Recipe(algorithm=config()).model_dump_json()).algorithm == config()


def test_importing_does_not_import_torch():
    code = "import sys, llamarl.algorithms as a; a.AIPOConfig().credit().assign([]); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_a_trainer_s_process_loads_no_judge_and_nothing_of_the_controller(tmp_path):
    """Every shipped algorithm, unpickled in a fresh process as an engine would, down to its loss."""
    (tmp_path / "settings").write_bytes(pickle.dumps([config() for config in SHIPPED]))
    code = (
        "import pickle, sys, llamarl.training.executor\n"
        "for settings in pickle.load(open(sys.argv[1], 'rb')):\n"
        "    settings.loss(), settings.needs\n"
        "foreign = ('judges', 'controller', 'tasks', 'evals', 'generation')\n"
        "print([name for name in sys.modules for room in foreign if name.startswith('llamarl.' + room)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "settings")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


# rejects


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "apio"}, "apio"),
        ({"type": "aipo", "rh": 2.0}, "Did you mean 'rho'"),
        ({"type": "aipo", "rho": 0.5}, "rho"),
        ({"type": "aipo", "kl_estimator": "k1"}, "kl_estimator"),
        ({"type": "grpo", "clip": 0}, "clip"),
        ({"type": "grpo", "kl_coef": -1}, "kl_coef"),
        ({"type": "aipo", "reduction": "mean"}, "reduction"),
        ({"type": "crpg", "kl_max": 0}, "kl_max"),
        ({"type": "crpg", "reward": "raw"}, "calibrated"),
        ({"type": "codpo", "off_policy": "aipo"}, "as_is"),
        ({"type": "codpo", "beta": 0}, "beta"),
        ({"type": "crraft", "clamp_kl_factor": True}, "clamp_kl_factor"),
        ({"type": "ppo", "lam": 1.5}, "lam"),
        ({"type": "dapo", "overlong_limit": 100}, "overlong_buffer = 4096 exceeds overlong_limit = 100"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.parse({"algorithm": values})
