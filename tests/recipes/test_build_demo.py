import torch

from llamarl.models.checkpoint import load_tokenizer
from llamarl.recipes.build_demo import build_demo
from llamarl.tasks.demo import DEMO_CHECKPOINT


def test_a_short_build_is_repeatable_bit_for_bit_and_learns(tmp_path):
    losses = []
    first = build_demo(tmp_path / "first", steps=3, progress=lambda step, loss: losses.append(loss))
    threads = torch.get_num_threads()
    second = build_demo(tmp_path / "second", steps=3)
    other = build_demo(tmp_path / "other", steps=3, seed=1)
    weights = [(d / "model.safetensors").read_bytes() for d in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.2
    assert torch.get_num_threads() == threads


def test_the_shipped_checkpoint_has_the_files_of_a_build(tmp_path):
    built = build_demo(tmp_path / "demo", steps=1)
    assert {f.name for f in built.iterdir()} == {f.name for f in DEMO_CHECKPOINT.iterdir()}
    assert load_tokenizer(built).fingerprint == load_tokenizer(DEMO_CHECKPOINT).fingerprint
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (built / name).read_bytes() == (DEMO_CHECKPOINT / name).read_bytes()
