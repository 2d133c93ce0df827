"""A model by script, and prompts and facts that the tests of builds share."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.models.endpoint import ChatReply

FACTS = """subject,relation,object
Lyon,country,France
Lyon,population,522250
Nice,country,France
Guatemala City,country,Guatemala
Mexico City,country,Mexico
Munich,country,Germany
Munich,population,1500000
Germany,alias,Deutschland
Madrid,country,Spain
"""
RELATIONS = """
[country]
cues = ["located in", "city in"]
statement = "The city of {subject} is located in {object}."
question = "In which country is the city of {subject}?"
[population]
cues = ["population of", "inhabitants"]
statement = "The city of {subject} has a population of {object}."
question = "How many people live in {subject}?"
tolerance = 0.1
"""


class ScriptedModel:
    """Answers `answer(text)`, where the text is the last message: a text, a `ChatReply`, or an error to raise."""

    def __init__(self, answer: Callable[[str], Any], name: str = "scripted") -> None:
        self._answer, self._name = answer, name
        self.asked: list[str] = []
        self.num_closed = 0

    async def reply(self, messages: Sequence[Mapping[str, Any]], seed: int) -> ChatReply:
        self.asked.append(messages[-1]["content"])
        answer = self._answer(self.asked[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ChatReply) else ChatReply(answer, "stop", 3, 2)

    def record(self) -> Mapping[str, Any]:
        return {"kind": "scripted", "model": self._name, "base_url": "http://127.0.0.1:1/v1"}

    async def close(self) -> None:
        self.num_closed += 1


def write_world(directory: Path, cities: int = 40) -> tuple[str, str, str]:
    """Prompts about invented cities, half of which `answer_about` places in the wrong country; facts; relations."""
    names = [f"Xan{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(cities)]
    rows = [{"prompt": f"Tell me about the city of {name}.", "subject": name} for name in names]
    facts = [f"{name},country,{'Spain' if number % 2 else 'France'}" for number, name in enumerate(names)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "facts.csv").write_text("\n".join(["subject,relation,object", *facts]) + "\n")
    (directory / "relations.toml").write_text(RELATIONS.split("[population]")[0])
    return tuple(str(directory / name) for name in ("prompts.jsonl", "facts.csv", "relations.toml"))  # type: ignore


def answer_about(text: str) -> str:
    """Every city is in France, says this model."""
    name = text.rpartition("the city of ")[2].rstrip(".")
    return f"{name} is a lovely city in France. It has many museums that visitors love."
