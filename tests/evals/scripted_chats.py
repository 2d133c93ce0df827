"""A model by script, conversations of any size, and what a child process runs."""

import asyncio
import hashlib
import json

from llamarl.evals.conversations import Conversation, Turn
from llamarl.models.endpoint import ChatReply


def conversation(key, num_turns=3):
    return Conversation(key, "en", tuple(Turn(f"{key} asks {n}", ()) for n in range(1, num_turns + 1)))


def conversations(count, num_turns=3):
    return [conversation(f"c{i}", num_turns) for i in range(count)]


def echo(messages, seed=0):
    """An answer that depends on every message and the seed."""
    return "answer " + hashlib.sha256(json.dumps([messages, seed]).encode()).hexdigest()[:12]


class ScriptedChat:
    """Answers `answer(messages, seed)`: a text, a `ChatReply`, or an error to raise; after `seconds(messages)`."""

    def __init__(self, answer=echo, seconds=lambda messages: 1.0, settings=None):
        self._answer, self._seconds, self._settings = answer, seconds, settings or {"kind": "scripted"}
        self.asked = []
        self.in_flight = 0
        self.in_flight_at_start = []
        self.num_closed = 0

    async def reply(self, messages, seed):
        self.asked.append((messages, seed))
        self.in_flight += 1
        self.in_flight_at_start.append(self.in_flight)
        try:
            await asyncio.sleep(self._seconds(messages))
        finally:
            self.in_flight -= 1
        answer = self._answer(messages, seed)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ChatReply) else ChatReply(answer, "stop", 3, 2)

    def record(self):
        return self._settings

    async def close(self):
        self.num_closed += 1


def build_talker(directory):
    """A random checkpoint with weights so large that greedy answers aren't one repeated token."""
    import torch

    from llamarl.models import checkpoint
    from llamarl.models.tiny import char_tokenizer, tiny_config

    tokenizer = char_tokenizer("llama3")
    module = checkpoint.new_model(tiny_config("llama", tokenizer, max_position_embeddings=2048), seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return checkpoint.save_model(module, tokenizer, directory)
