"""An evaluation in a process of its own, for tests that kill it: prints the number of finished turns after each.

python child_evaluation.py endpoint BASE_URL OUT
python child_evaluation.py native MODEL OUT
"""

import signal
import sys

from scripted_chats import conversations

from llamarl.core.sampling import Sampling
from llamarl.evals.runner import run_conversations
from llamarl.generation.chats import EndpointChat, NativeChat
from llamarl.models.endpoint import ChatEndpoint, EndpointConfig
from llamarl.report.progress import NoProgress

TALKS = conversations(12)
SAMPLING = Sampling(max_tokens=24, temperature=0.0)


class PrintedProgress(NoProgress):
    def __init__(self, stop_at):
        self._stop_at = stop_at

    def update(self, done, failed):
        print(done, flush=True)
        if done == self._stop_at:
            signal.pause()


def evaluate(kind, place, out, max_in_flight=4, progress=None):
    """The replies."""
    if kind == "native":
        chat = NativeChat(place, SAMPLING, slots=max_in_flight)
    else:
        chat = EndpointChat(ChatEndpoint(EndpointConfig(base_url=place, model="m")), SAMPLING)
    return run_conversations(TALKS, chat, out, max_in_flight=max_in_flight, progress=progress)


if __name__ == "__main__":
    kind, place, out, num = sys.argv[1:]
    if kind == "native":
        import torch

        torch.set_num_threads(1)
    evaluate(kind, place, out, progress=PrintedProgress(int(num) if kind == "native" else None))
