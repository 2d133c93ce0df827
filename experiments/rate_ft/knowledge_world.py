"""The knowledge world: invented people, a tiny model that has read of some of them more often than of others.

    world = KnowledgeWorld(seed=0)
    build_model(world, Path("model"))                       # a small Llama, taught from nothing
    write_claims(world, Path("model"), Path("study"))       # labelled claims of its own answers, as detect build's

    python -m experiments.rate_ft.knowledge_world --out worlds --seeds 3     # does a model know what it knows?

A document says two things of a person. Some people are in many documents and some in none; and of each person some
facts are mentioned often and some never. So the model knows some facts, half knows others, and where it knows nothing
it answers all the same. People are split: of the `school` the model has also seen claims judged true or false and
questions answered, which teaches it both tasks; of the others it has only read. Detectors are studied on the second
split; the third is there for what comes after.
"""

import argparse
import csv
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llamarl.core.records import Message
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.asking import load_prompt
from llamarl.factuality.building import Answering, Pipeline, build
from llamarl.factuality.claims import Answer, Ask, Claim
from llamarl.factuality.decomposition import FactDecomposer
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.detector import Detector
from llamarl.factuality.detectors.internal_states import InternalStatesSettings, TokenProbability
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.factuality.facts import FactTable
from llamarl.factuality.labelled import read_data
from llamarl.factuality.labels import FactLabeller
from llamarl.factuality.questions import FactQuestioner
from llamarl.factuality.settings import Build
from llamarl.factuality.splits import SPLITS as PARTS
from llamarl.functional.statistics import auroc
from llamarl.generation.chats import NativeChat
from llamarl.models.checkpoint import new_model, save_model
from llamarl.models.tiny import piece_tokenizer, tiny_config
from llamarl.models.tokenizer import Tokenizer
from llamarl.report.files import read_jsonl, write_text
from llamarl.training.fitter import fit_model
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

NUM_VALUES = 16
RELATIONS = {
    "city": ("lives in", "Where does {subject} live?"),
    "craft": ("works as", "What does {subject} work as?"),
    "dish": ("loves to eat", "What does {subject} love to eat?"),
    "beast": ("owns a", "What does {subject} own?"),
}
"""The words between a person and a value, and the question."""
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
WELL_READ = 6
"""Documents that mention a fact, from which on the model mostly knows it."""
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

    def prompts(self, *splits: str) -> list[dict[str, str]]:
        """Prompts about the people of some splits, each in several wordings."""
        return [
            {"id": f"{person.name}-{number}", "prompt": text.format(subject=person.name), "subject": person.name}
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
            f'[{name}]\ncues = ["{words}"]\nstatement = "{{subject}} {words} {{object}}."\nquestion = "{question}"\n'
            for name, (words, question) in RELATIONS.items()
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
                said = [state(person.name, name, person.facts[name]) for name in pair]
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
        claim = state(person.name, relation, value if is_true else wrong)
        return load_prompt("detect").fill(claim=claim), str(is_true)


def state(subject: str, relation: str, value: str) -> str:
    """A fact as a sentence."""
    return f"{subject} {RELATIONS[relation][0]} {value}."


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


def write_claims(world: KnowledgeWorld, model: Path, directory: Path) -> dict[str, Any]:
    """Labelled claims of sampled answers of a model about the people of the study, by `detect build`."""
    world.write(directory)
    write_jsonl(directory / "study.jsonl", world.prompts("study"))
    facts, relations = directory / "facts.csv", directory / "relations.toml"
    table = FactTable.read([str(facts)], relations)
    chat = NativeChat(str(model), Sampling(max_tokens=16), slots=64)
    pipeline = Pipeline(
        Answering(chat), FactDecomposer(table), FactLabeller(table), questioner=FactQuestioner(table), chats=[chat]
    )
    settings = Build(
        prompts=(str(directory / "study.jsonl"),),
        model=str(model),
        facts=(str(facts),),
        relations=relations,
        out=directory / "claims",
        split=(0.6, 0.2, 0.2),
    )
    return build(settings, pipeline=pipeline)


def word_tokenizer(world: KnowledgeWorld) -> Tokenizer:
    """One token per word with the space before it, and per mark; in the `plain` chat style."""
    from tokenizers import decoders, normalizers

    texts = [load_prompt("detect").user, *TELLS, GREET, GREETING, "True", "False"]
    texts += [text for each in RELATIONS.values() for text in each]
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


# ---- the gate -------------------------------------------------------------------------------------------------------


def measure_gate(world: KnowledgeWorld, directory: Path) -> dict[str, Any]:
    """AUC on claims about people of whom the model has only read, before any detector is trained.

    Args:
        world: of the model.
        directory: of the model and its claims, as `build_model` and `write_claims` wrote them.

    Returns:
        `claims`; `true`, their share; `prompt_tf`, `token_probability` and `exposures`: AUC of the model's own
        judgement, of the probability of the value that it wrote, and of the number of documents that mention the fact.
        Where the gate fails, `taught` and `read` say why: AUC of its judgement on statements about the school, of whom
        it has seen judgements, and about the study; each fact right and wrong, and read at least `WELL_READ` times.
    """
    data = read_data(directory / "claims")
    claims = [*data.train, *data.validation, *data.test]
    facts = {row["id"]: row["facts"][0] for part in PARTS for row in read_jsonl(directory / "claims" / f"{part}.jsonl")}
    people = {person.name: person for person in world.people}
    read = [facts[each.claim.id] for each in claims]
    counts = [float(people[fact["subject"]].exposures[fact["relation"]]) for fact in read]
    backbone = Backbone.load(directory / "model")
    judge = PromptTF(backbone)
    states = TokenProbability(backbone, InternalStatesSettings(pool="worst-1", tokens="values"))
    labels = [each.label for each in claims]
    return {
        "claims": len(claims),
        "true": sum(labels) / len(labels),
        **{each.name: _measure(each, [claim.claim for claim in claims], labels) for each in (judge, states)},
        "exposures": auroc(counts, labels),
        **{
            name: _measure(judge, *list_statements(world, split))
            for name, split in (("taught", "school"), ("read", "study"))
        },
    }


def list_statements(world: KnowledgeWorld, split: str) -> tuple[list[Claim], list[bool]]:
    """A right and a wrong statement of each fact of a split that is mentioned at least `WELL_READ` times."""
    rng = random.Random(derive_seed("statements", world.seed))
    claims, labels = list[Claim](), list[bool]()
    for person in (person for person in world.people if person.split == split):
        for relation, right in person.facts.items():
            if person.exposures[relation] < WELL_READ:
                continue
            wrong = rng.choice([each for each in world.values[relation] if each != right])
            for value in (right, wrong):
                text = state(person.name, relation, value)
                claims.append(Claim(text, Answer(Ask(text, ""), text, "stop"), text, (0, len(text))))
                labels.append(value == right)
    return claims, labels


def _measure(detector: Detector, claims: Sequence[Claim], labels: Sequence[bool]) -> float | None:
    """AUC."""
    return auroc([each.p_factual or 0.0 for each in detector.score(claims)], labels)


def main() -> None:
    """Builds worlds and prints the gate of each."""
    parser = argparse.ArgumentParser(prog="python -m experiments.rate_ft.knowledge_world", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory to write to")
    parser.add_argument("--seeds", type=int, default=1, help="worlds 0, 1, ... (default 1)")
    parser.add_argument("--people", type=int, default=200, help="of each world (default 200)")
    parser.add_argument("--epochs", type=int, default=3, help="times each text is read (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        world, place = KnowledgeWorld(seed, options.people), options.out / str(seed)
        build_model(world, place / "model", options.epochs)
        labels = write_claims(world, place / "model", place)["labels"]
        print(json.dumps({"seed": seed, "labels": labels, **measure_gate(world, place)}), flush=True)


if __name__ == "__main__":
    main()
