import json

import pytest
from feedback_logs import ENVIRONMENT, NOW, SECRET, ingest_rows, message, query
from scipy import stats

from llamarl.feedback import Ingest, Simulation, hash_user, ingest, simulate
from llamarl.feedback.suspects import beta_binomial_tail

MORE = 1740823200


def reasons(store):
    found = query(f"SELECT user_hash, reason FROM '{store.suspicious}' ORDER BY ALL")
    names = {hash_user(name, SECRET.encode()): name for name in ("crowd", "quick", "lover", "bot 0", "bot 1", "bot 2")}
    return {(names.get(user, user), reason) for user, reason in found}


def people(count=120, each=20):
    """A crowd who love a twentieth of what they see, each after half a minute."""
    return [
        message(
            1000 * who + index,
            user=f"person-{who}",
            ts=MORE + 3600 * index,
            prompt=f"question {who} {index}",
            response=f"word{(who * 7 + index) % 50} and thing{(who * 3 + index) % 40} number{index}",
            **({"reaction": "❤️", "reaction_ts": MORE + 3600 * index + 30} if index == who % 20 else {}),
        )
        for who in range(count)
        for index in range(each)
    ]


def by(user, count, loves, *, delay=30, gap=3600, text="reply {}"):
    return [
        message(
            message_id=f"{user} {index}",
            user=user,
            ts=MORE + gap * index,
            prompt=f"{user} {index}",
            response=text.format(index),
            **({"reaction": "❤️", "reaction_ts": MORE + gap * index + delay} if loves(index) else {}),
        )
        for index in range(count)
    ]


def test_ordinary_people_are_not_suspicious(tmp_path):
    store = ingest_rows(tmp_path, people())
    assert store.record["suspicious_users"] == 0
    assert store.record["kept"] == 2400


def test_more_messages_in_a_minute_than_a_person_reads(tmp_path):
    rows = people() + by("crowd", 40, lambda index: False, gap=1)
    store = ingest_rows(tmp_path, rows)
    assert reasons(store) == {("crowd", "burst")}
    assert store.record["dropped"] == {"suspicious_user": 40}


def test_loves_before_a_person_has_read(tmp_path):
    store = ingest_rows(tmp_path, people() + by("quick", 60, lambda index: index % 20 == 0, delay=1))
    assert reasons(store) == {("quick", "quick")}


def test_loves_of_nearly_everything(tmp_path):
    store = ingest_rows(tmp_path, people() + by("lover", 60, lambda index: index % 10 > 0, text="word{0} thing{0}"))
    assert reasons(store) == {("lover", "loves_much")}


def test_loves_of_one_phrase(tmp_path):
    rows = people()
    for number in range(3):
        user = f"bot {number}"
        rows += by(user, 60, lambda index: index % 12 == 0, text="word{0} thing{0}")
        for row in rows[-60:]:
            row["response"] += " Sending love!" if "reaction" in row else ""
    store = ingest_rows(tmp_path, rows)
    assert reasons(store) == {(f"bot {number}", "loves_phrase") for number in range(3)}
    detail = query(f"SELECT detail FROM '{store.suspicious}'")[0][0]
    assert detail == "5 of 5 loves on 'sending love'"


def test_suspicious_users_can_be_kept_and_are_marked(tmp_path):
    rows = people() + by("crowd", 40, lambda index: False, gap=1)
    store = ingest_rows(tmp_path, rows, keep_suspicious=True)
    assert (store.record["suspicious_users"], store.record["dropped"]) == (1, {})
    assert query(f"SELECT count(*) FROM '{store.messages}' WHERE is_suspicious") == [(40,)]


@pytest.mark.parametrize(("count", "trials"), [(0, 5), (3, 10), (10, 10), (40, 900)])
def test_the_tail_is_that_of_scipy(count, trials):
    expected = stats.betabinom.sf(count - 1, trials, 0.6, 25.0)
    assert beta_binomial_tail(count, trials, 0.6, 25.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", [10, 11])
def test_bots_of_the_simulator_are_found_and_people_left_alone(tmp_path, seed):
    simulate(Simulation(out=tmp_path, users=800, days=28, seed=seed, bots=0.05))
    settings = Ingest(logs=(str(tmp_path / "logs.jsonl"),), out=tmp_path / "store", threads=1, key_env="FEEDBACK_KEY")
    store = ingest(settings, environment=ENVIRONMENT, now=NOW)
    kinds = {row["user"]: row["kind"] for row in map(json.loads, (tmp_path / "truth.jsonl").read_text().splitlines())}
    found = {user for (user,) in query(f"SELECT user_hash FROM '{store.suspicious}'")}
    shares = {
        kind: [hash_user(user, SECRET.encode()) in found for user in kinds if kinds[user] == kind]
        for kind in ("bot", "honest")
    }
    assert sum(shares["bot"]) / len(shares["bot"]) >= 0.9
    assert sum(shares["honest"]) / len(shares["honest"]) <= 0.02
