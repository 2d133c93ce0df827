"""Evaluations of a model: conversations, replies, verdicts, rates. Importable without torch.

    conversations = read_conversations("multiIF_20241018.csv")
    results = evaluate("multi-if", conversations, read_responses("responses.jsonl"), "out/")
    results["modes"]["official"]["macro"]["turns"]["3"]["overall"]["value"]

The path of an evaluation, a module each:

    conversations -> runner (chats, thinking, replies) -> verdicts -> scores, groups -> results -> tables, comparison
"""

from llamarl.evals.comparison import compare
from llamarl.evals.conversations import Conversation, Conversations, Turn, read_conversations
from llamarl.evals.evaluation import evaluate
from llamarl.evals.groups import Bootstrap
from llamarl.evals.replies import Replies, Reply, read_responses
from llamarl.evals.verdicts import GraderSettings, TurnVerdict, grade_replies

__all__ = [
    "Bootstrap",
    "Conversation",
    "Conversations",
    "GraderSettings",
    "Replies",
    "Reply",
    "Turn",
    "TurnVerdict",
    "compare",
    "evaluate",
    "grade_replies",
    "read_conversations",
    "read_responses",
]
