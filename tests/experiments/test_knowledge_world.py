"""The knowledge world, from its people to a detector of its model's hallucinations."""

from pathlib import Path

from experiments.rate_ft.knowledge_world import (
    WELL_READ,
    KnowledgeWorld,
    build_model,
    list_statements,
    measure_gate,
    state,
    word_tokenizer,
    write_claims,
)
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
            said = state(person.name, relation, value)
            assert person.exposures[relation] == sum(said in text for text in documents)


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


def test_the_table_reads_every_relation(tmp_path: Path) -> None:
    world = KnowledgeWorld(0, 30)
    world.write(tmp_path)
    table = FactTable.read([str(tmp_path / "facts.csv")], tmp_path / "relations.toml")
    person = world.people[0]
    for relation, right in person.facts.items():
        wrong = next(value for value in world.values[relation] if value != right)
        readings = [each for value in (right, wrong) for each in table.read_claim(state(person.name, relation, value))]
        assert [(each.subject, each.relation, each.is_right) for each in readings] == [
            (person.name, relation, True),
            (person.name, relation, False),
        ]


def test_statements_are_right_and_wrong_about_people_of_one_split() -> None:
    world = KnowledgeWorld(0, 60)
    claims, labels = list_statements(world, "study")
    known = {
        state(person.name, relation, value): person.exposures[relation]
        for person in world.people
        if person.split == "study"
        for relation, value in person.facts.items()
    }
    assert labels and labels[::2] == [True] * (len(labels) // 2) and labels[1::2] == [False] * (len(labels) // 2)
    assert all((each.text in known) == label for each, label in zip(claims, labels, strict=True))
    assert min(known[each.text] for each in claims[::2]) >= WELL_READ
    assert len(claims) == 2 * sum(count >= WELL_READ for count in known.values())


def test_from_people_to_a_detector_that_is_judged(tmp_path: Path) -> None:
    world = KnowledgeWorld(0, 60)
    build_model(world, tmp_path / "model", 4, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    summary = write_claims(world, tmp_path / "model", tmp_path)
    assert summary["labels"]["supported"] and summary["labels"]["contradicted"] and not summary["kept_aside"]
    data = read_data(tmp_path / "claims")
    people = {split: {each.claim.answer.ask.subject for each in getattr(data, split)} for split in ("train", "test")}
    assert data.train and not people["train"] & people["test"]
    assert all(each.question for each in data.train)
    gate = measure_gate(world, tmp_path)
    assert gate["claims"] == len(data.train) + len(data.validation) + len(data.test)
    assert all(0.0 <= gate[name] <= 1.0 for name in ("prompt_tf", "token_probability", "exposures", "taught", "read"))
    claims, model, out = tmp_path / "claims", str(tmp_path / "model"), tmp_path / "detector"
    brief = {"num_epochs": 1, "learning_rate": 2e-3, "warmup_steps": 1}
    train(Train(data=claims, model=model, method="rate_ft", out=out), brief)
    results = evaluate(Evaluation(scores=(str(out / "scores.jsonl"),)))
    assert results["test"]["claims"] == len(data.test) and 0.0 <= results["auc"] <= 1.0
