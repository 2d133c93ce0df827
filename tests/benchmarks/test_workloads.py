from pathlib import Path

import pytest
import torch

from benchmarks.workloads import end_probability, format_reward, letter_share, llama, random_checkpoint
from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.native import NativeGenerator
from llamarl.models.checkpoint import load_model, load_tokenizer


def test_end_probability_gives_the_wanted_mean() -> None:
    # lengths 1 with p, 2 with the rest: 1 * 0.25 + 2 * 0.75 = 1.75
    assert end_probability(1.75, 2) == pytest.approx(0.25, abs=1e-6)


def test_random_checkpoint_ends_as_often_as_it_should(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    directory = str(random_checkpoint(tmp_path / "model", llama(32, 64, 2, 2), end_probability(20.0, 64)))
    tokenizer = load_tokenizer(directory)
    generator = NativeGenerator(load_model(directory), eos_ids=tokenizer.eos_ids, decode=tokenizer.decode, slots=512)
    request = GenerationRequest(0, tokenizer.encode("a prompt"), tuple(range(512)), Sampling(max_tokens=64))
    (completions,) = generator.generate([request])
    mean = sum(len(completion.token_ids) for completion in completions) / 512
    assert mean == pytest.approx(20.0, abs=3.0)  # standard error about 0.75


def test_rewards() -> None:
    info = {"num_words": 2, "keyword": "moon", "is_upper": False, "has_bang": False}
    assert format_reward("moon cat.", info) == 1.0
    assert format_reward("moon cat", info) == 0.0
    assert letter_share("ab1!", info) == 0.5
    assert letter_share("", info) == 0.0
