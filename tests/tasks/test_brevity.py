import pytest
import torch

from llamarl.core.records import Completion, Trajectory
from llamarl.models.checkpoint import new_model
from llamarl.models.tiny import char_tokenizer, tiny_config
from llamarl.tasks.brevity import Brevity, prompts


def completion(num_tokens):
    return Completion(Trajectory.given((), (0,) * num_tokens), "")


@pytest.mark.parametrize(("num_tokens", "reward"), [(1, 1.0), (4, 0.8), (16, 0.0), (99, 0.0)])
def test_reward_falls_with_length(num_tokens, reward):
    # 4 of 16 tokens: 1 - 3/15
    assert Brevity(16)(prompts(1)[0], completion(num_tokens)) == pytest.approx(reward)


def test_prompts_have_ids_of_their_own():
    assert [p.messages[0]["content"] for p in prompts(2)] == ["say 0", "say 1"]
    assert len({p.id for p in prompts(50)}) == 50


def test_a_random_policy_learns_it_in_twenty_steps():
    tokenizer = char_tokenizer("plain", "says 0123456789")
    model = new_model(tiny_config("llama", tokenizer), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ids = torch.tensor([tokenizer.encode_chat(p.messages) for p in prompts(8)] * 8)
    torch.manual_seed(0)
    means = []
    for _ in range(20):
        tokens, lengths = sample(model, ids, tokenizer.eos_ids[0])
        rewards = torch.tensor([Brevity()(prompts(1)[0], completion(int(n))) for n in lengths])
        means.append(rewards.mean().item())
        logits = model(input_ids=torch.cat([ids, tokens], 1)).logits[:, ids.shape[1] - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        mask = torch.arange(16) < lengths[:, None]
        optimizer.zero_grad()
        (-(rewards - rewards.mean())[:, None] * logprobs * mask).sum(1).mean().backward()
        optimizer.step()
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.3, means


@torch.no_grad()
def sample(model, ids, eos):
    tokens = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        max_new_tokens=16,
        min_new_tokens=16,
        eos_token_id=None,
    )[:, ids.shape[1] :]
    ended = tokens == eos
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, torch.tensor(16))
    return tokens, lengths
