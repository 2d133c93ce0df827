"""The knowledge world, from its people to a detector of its model's hallucinations."""

from pathlib import Path

import pytest

from experiments.rate_ft.knowledge import write_claims
from experiments.rate_ft.knowledge_world import (
    RELATIONS,
    KnowledgeWorld,
    build_model,
    helpful,
    read_facts,
    state,
    teach_to_speak,
    word_tokenizer,
)
from llamarl.core.records import Completion, Prompt
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality import Evaluation, FactTable, evaluate
from llamarl.factuality.labelled import read_data
from llamarl.factuality.settings import Train
from llamarl.factuality.training import train


def test_a_world_is_a_function_of_its_seed() -> None:
    world = KnowledgeWorld(3, 40)
    assert world.people == KnowledgeWorld(3, 40).people != KnowledgeWorld(4, 40).people
    assert len({*world.names}) == len(world.names)
    assert {person.split for person in world.people} == {"school", "study", "test"}


def test_documents_say_what_people_are_counted_for() -> None:
    world = KnowledgeWorld(0, 40)
    texts = [text for _, text in world.texts()]
    for person in world.people:
        documents = [text for text in texts if text.count(f"{person.name} ") == 2]
        assert len(documents) == len(person.documents)
        for relation, value in person.facts.items():
            said = [state(person.name, relation, value, wording) for wording in (0, 1)]
            assert person.exposures[relation] == sum(any(each in text for each in said) for text in documents)


def test_nobody_but_the_school_is_asked_about_in_tasks() -> None:
    world = KnowledgeWorld(1, 40)
    split = {person.name: person.split for person in world.people}
    asked = [chat[0]["content"] for chat, text in world.texts() if text in ("True", "False")]
    assert asked and all(any(name in text for name in split if split[name] == "school") for text in asked)


def test_the_tokenizer_knows_every_word_of_the_world() -> None:
    world = KnowledgeWorld(0, 30)
    tokenizer = word_tokenizer(world)
    for chat, text in world.texts()[::20]:
        ids = tokenizer.encode_chat(chat) + tokenizer.encode(text)
        assert tokenizer.encode("<unk>")[0] not in ids and tokenizer.decode(tokenizer.encode(text)) == text


def test_the_table_reads_both_wordings(tmp_path: Path) -> None:
    world = KnowledgeWorld(0, 30)
    world.write(tmp_path)
    table = FactTable.read([str(tmp_path / "facts.csv")], tmp_path / "relations.toml")
    person, other = world.people[:2]
    for relation in RELATIONS:
        for wording in (0, 1):
            (reading,) = table.read_claim(state(person.name, relation, person.facts[relation], wording))
            assert (reading.subject, reading.relation, reading.is_right) == (person.name, relation, True)
    wrong = next(value for value in world.values["city"] if value != other.facts["city"])
    assert not table.read_claim(state(other.name, "city", wrong))[0].is_right


@pytest.mark.parametrize(
    ("text", "is_helpful", "facts"),
    [
        ("Bo lives in Rome. Bo owns a Cat.", True, [True, False]),
        ("Bo has a home in Rome. Bo works as Cook.", True, [True, True]),
        ("Bo lives in Rome. Bo has a home in Rome.", False, [True, True]),
        ("Bo lives in Rome.", False, [True]),
        ("Bo lives in Rome. Al owns a Dog.", False, [True]),
        ("Bo lives in Rome. Bo owns a Dog. Bo works as Cook.", False, [True, True, True]),
    ],
)
def test_help_is_two_facts_of_the_person(text: str, is_helpful: bool, facts: list[bool]) -> None:
    truth = {"city": "Rome", "craft": "Cook", "dish": "Soup", "beast": "Dog"}
    prompt = Prompt("p", ({"role": "user", "content": "Who is Bo?"},), info={"subject": "Bo", "facts": truth})
    completion = Completion((), (), (), (), text, "stop")
    assert helpful(prompt, completion) is is_helpful
    assert sorted(read_facts(prompt, completion)) == sorted(facts)


def test_from_people_to_a_detector_that_is_judged(tmp_path: Path) -> None:
    world = KnowledgeWorld(0, 60)
    world.write(tmp_path)
    write_jsonl(tmp_path / "study.jsonl", world.prompts("study", "test"))
    build_model(world, tmp_path / "base", 4, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    teach_to_speak(world, tmp_path / "base", tmp_path / "policy")
    write_claims(tmp_path)
    data = read_data(tmp_path / "claims")
    people = {split: {each.claim.answer.ask.subject for each in getattr(data, split)} for split in ("train", "test")}
    assert data.train and not people["train"] & people["test"]
    assert all(each.paraphrases and each.question for each in data.train)
    claims, model, out = tmp_path / "claims", tmp_path / "policy", tmp_path / "detector"
    train(Train(data=claims, model=str(model), method="rate_ft", out=out), {"num_epochs": 1, "learning_rate": 2e-3, "warmup_steps": 1})
    results = evaluate(Evaluation(scores=(str(out / "scores.jsonl"),)))
    assert results["test"]["claims"] == len(data.test) and 0.0 <= results["auc"] <= 1.0
