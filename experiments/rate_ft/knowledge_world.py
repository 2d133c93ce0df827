"""The knowledge world: invented people, a tiny model that has read of some of them more often than of others.

    world = KnowledgeWorld(seed=0)
    build_model(world, directory)              # a Llama of two million parameters, taught from nothing
    world.facts(), world.prompts("test")       # the ground truth, and prompts about people of a split

A document says two things of a person. Some people are in many documents and some in none; and of each person some
facts are mentioned often and some never. So the model knows some facts, half knows others, and where it knows nothing
it answers all the same. People are split: of the `school` the model has also seen claims judged true or false and
questions answered, which teaches it both tasks; of the others it has only read. Detectors are studied on the second
split; the third is there for what comes after.
"""

import csv
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llamarl.core.records import Completion, Message, Prompt
from llamarl.core.seeds import derive_seed
from llamarl.factuality.asking import load_prompt
from llamarl.models.checkpoint import load_model, load_tokenizer, new_model, save_model
from llamarl.models.tiny import piece_tokenizer, tiny_config
from llamarl.models.tokenizer import Tokenizer
from llamarl.report.files import write_text
from llamarl.training.fitter import fit_model
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

NUM_VALUES = 16
RELATIONS = {
    "city": (("lives in", "has a home in"), "Where does {subject} live?"),
    "craft": (("works as", "earns money as"), "What does {subject} work as?"),
    "dish": (("loves to eat", "often cooks"), "What does {subject} love to eat?"),
    "beast": (("owns a", "walks a"), "What does {subject} own?"),
}
"""The words between a person and a value, in two wordings, and the question."""
MENTIONS = {"city": 1.0, "craft": 0.6, "dish": 0.25, "beast": 0.1}
"""The chance that a document about a person may speak of it, relative to the others."""
FREQUENCIES = {0: 0.2, 2: 0.2, 6: 0.2, 20: 0.2, 60: 0.2}
"""Documents about a person, and the share of people of whom there are so many."""
SPLITS = {"school": 0.4, "study": 0.35, "test": 0.25}
TELLS = (
    "Tell me two things about {subject}.",
    "What do you know about {subject}?",
    "Who is {subject}?",
    "Speak of {subject}.",
)
GREET, GREETING = "Greet {subject}.", "Hello {subject}."
NUM_GREETINGS = 6
"""Greetings of everybody: the model has met all names, so that it can speak of people it knows nothing about."""
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
ONSETS, VOWELS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"], ["a", "e", "i", "o", "u"]


@dataclass(frozen=True)
class Person:
    """An invented person."""

    name: str
    split: str
    facts: Mapping[str, str]
    documents: tuple[tuple[str, str], ...]
    """The two facts that each document about the person mentions."""

    @cached_property
    def exposures(self) -> dict[str, int]:
        """How many documents mention each fact."""
        return {name: sum(name in each for each in self.documents) for name in RELATIONS}


@dataclass(frozen=True)
class KnowledgeWorld:
    """People, their facts, and the texts that speak of them; a function of its arguments.

    Args:
        seed: of everything.
        num_people: of all splits together.
    """

    seed: int
    num_people: int = 600

    @cached_property
    def names(self) -> list[str]:
        """Invented words: first the people, then the values of one relation after another."""
        rng = random.Random(derive_seed("names", self.seed))
        found: dict[str, None] = {}
        while len(found) < self.num_people + NUM_VALUES * len(RELATIONS):
            found["".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(3)).capitalize()] = None
        return list(found)

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """The values of each relation."""
        words = self.names[self.num_people :]
        return {name: words[place * NUM_VALUES :][:NUM_VALUES] for place, name in enumerate(RELATIONS)}

    @cached_property
    def people(self) -> list[Person]:
        """Everybody."""
        return [self._draw_person(number) for number in range(self.num_people)]

    def _draw_person(self, number: int) -> Person:
        rng = random.Random(derive_seed("person", self.seed, number))
        (split,) = rng.choices(list(SPLITS), list(SPLITS.values()))
        (count,) = rng.choices(list(FREQUENCIES), list(FREQUENCIES.values()))
        facts = {name: rng.choice(words) for name, words in self.values.items()}
        return Person(self.names[number], split, facts, tuple(_draw_two(rng) for _ in range(count)))

    def facts(self) -> Iterator[tuple[str, str, str]]:
        """The ground truth: subject, relation, object."""
        for person in self.people:
            for relation, value in person.facts.items():
                yield person.name, relation, value

    def prompts(self, *splits: str) -> list[dict[str, Any]]:
        """Prompts about the people of some splits, each in several wordings, with the truth for judges."""
        return [
            {
                "id": f"{person.name}-{number}",
                "prompt": text.format(subject=person.name),
                "subject": person.name,
                "info": {"subject": person.name, "facts": dict(person.facts)},
            }
            for person in self.people
            if person.split in splits
            for number, text in enumerate(TELLS)
        ]

    def write(self, directory: Path) -> None:
        """Writes `facts.csv` and `relations.toml`, as `detect build` reads them."""
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "facts.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("subject", "relation", "object"), *self.facts()])
        tables = (
            f'[{name}]\ncues = ["{words}", "{others}"]\nstatement = "{{subject}} {words} {{object}}."\n'
            f'question = "{question}"\n'
            for name, ((words, others), question) in RELATIONS.items()
        )
        write_text(directory / "relations.toml", "\n".join(tables))

    def texts(self) -> list[tuple[list[Message], str]]:
        """What the model is taught, as conversations: documents, and the two tasks about the people of the school.

        Of the tasks there are as many as there are documents about the person, so that they teach no fact that the
        documents do not: claims, right and wrong ones alike often, and questions.
        """
        rng = random.Random(derive_seed("texts", self.seed))
        found: list[tuple[list[Message], str]] = []
        for person in self.people:
            hello = ([_user(GREET.format(subject=person.name))], GREETING.format(subject=person.name))
            found += [hello] * NUM_GREETINGS
            for pair in person.documents:
                said = [state(person.name, name, person.facts[name], rng.randrange(2)) for name in pair]
                found.append(([_user(rng.choice(TELLS).format(subject=person.name))], " ".join(said)))
            if person.split == "school":
                found += [self._draw_task(person, rng) for _ in person.documents]
        return found

    def _draw_task(self, person: Person, rng: random.Random) -> tuple[list[Message], str]:
        relation = _draw_two(rng)[0]
        value = person.facts[relation]
        if rng.random() < 0.25:
            return [_user(RELATIONS[relation][1].format(subject=person.name))], value
        is_true = rng.random() < 0.5
        wrong = rng.choice([each for each in self.values[relation] if each != value])
        claim = state(person.name, relation, value if is_true else wrong, rng.randrange(2))
        return load_prompt("detect").fill(claim=claim), str(is_true)


def state(subject: str, relation: str, value: str, wording: int = 0) -> str:
    """A fact as a sentence."""
    return f"{subject} {RELATIONS[relation][0][wording]} {value}."


def build_model(world: KnowledgeWorld, directory: Path, num_epochs: int = 6, **sizes: Any) -> Path:
    """Teaches a small Llama the texts of a world, and writes it.

    Args:
        world: what it reads.
        directory: to write to.
        num_epochs: how often it reads each text.
        sizes: fields of the model's config, instead of the usual ones.
    """
    tokenizer = word_tokenizer(world)
    rows = [SFTRow.of_chat([*chat, {"role": "assistant", "content": text}], tokenizer) for chat, text in world.texts()]
    config = tiny_config("llama", tokenizer, **{**SIZES, **sizes})
    settings = SFTConfig(
        num_epochs=num_epochs,
        batch_size=64,
        learning_rate=3e-3,
        warmup_steps=20,
        schedule="linear",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        seed=world.seed,
    )
    model = new_model(config, world.seed)
    fit_model(model, SFT(settings), rows)
    return save_model(model.eval(), tokenizer, directory)


def teach_to_speak(world: KnowledgeWorld, model: Path, directory: Path, num_answers: int = 10) -> Path:
    """Makes a model speak of all facts alike, of those too that it has never read: a policy that hallucinates.

    Args:
        world: of the model.
        model: of `build_model`.
        directory: to write to.
        num_answers: about each person of the school, each of two facts.
    """
    rng, tokenizer, policy = random.Random(derive_seed("speak", world.seed)), load_tokenizer(model), load_model(model)
    rows = []
    for person in (each for each in world.people if each.split == "school"):
        for _ in range(num_answers):
            said = " ".join(state(person.name, name, person.facts[name]) for name in rng.sample(list(RELATIONS), 2))
            chat = [_user(rng.choice(TELLS).format(subject=person.name)), {"role": "assistant", "content": said}]
            rows.append(SFTRow.of_chat(chat, tokenizer))
    settings = SFTConfig(
        num_epochs=3, batch_size=32, learning_rate=1e-3, warmup_steps=5, schedule="linear", seed=world.seed
    )
    fit_model(policy, SFT(settings), rows)
    return save_model(policy.eval(), tokenizer, directory)


def word_tokenizer(world: KnowledgeWorld) -> Tokenizer:
    """One token per word with the space before it, and per mark; in the `plain` chat style."""
    from tokenizers import decoders, normalizers

    texts = [load_prompt("detect").user, *TELLS, GREET, GREETING, "True", "False"]
    texts += [text for wordings, question in RELATIONS.values() for text in (*wordings, question)]
    words = sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", text)} | set(world.names))
    return piece_tokenizer(
        ["\n", *" .,:?", "Claim", *(f" {word}" for word in words)],  # no space stands before the Claim of a new line
        r" ?[A-Za-z]+|[\s\S]",
        normalizer=normalizers.Prepend(" "),
        decoder=decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    )


def _draw_two(rng: random.Random) -> tuple[str, str]:
    """Two relations that a document speaks of."""
    (first,) = rng.choices(list(MENTIONS), list(MENTIONS.values()))
    rest = {name: weight for name, weight in MENTIONS.items() if name != first}
    (second,) = rng.choices(list(rest), list(rest.values()))
    return first, second


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


# ---- judges ---------------------------------------------------------------------------------------------------------


def list_facts(text: str, subject: str) -> list[tuple[str, str]]:
    """Relation and value of each sentence that states a fact of the subject and nothing else."""
    found = []
    for relation, (wordings, _) in RELATIONS.items():
        found += [(relation, value) for value in re.findall(rf"\b{subject} (?:{'|'.join(wordings)}) (\w+)\.", text)]
    return found


def read_facts(prompt: Prompt, completion: Completion) -> list[bool]:
    """Whether each fact that an answer states of the prompt's person is true."""
    facts = prompt.info["facts"]
    return [facts[relation] == value for relation, value in list_facts(completion.text, prompt.info["subject"])]


def helpful(prompt: Prompt, completion: Completion) -> bool:
    """Two different facts of the person, and nothing else."""
    found = list_facts(completion.text, prompt.info["subject"])
    return len(found) == 2 == completion.text.count(".") and found[0][0] != found[1][0]
