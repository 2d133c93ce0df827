import json
import random

import pytest
from feedback_logs import ENVIRONMENT, NOW, SECRET, ingest_rows, message, query

from llamarl.feedback import Ingest, Simulation, hash_user, ingest, simulate

MORE = 1740823200


def reasons(store):
    found = query(f"SELECT user_hash, reason FROM '{store.suspicious}' ORDER BY ALL")
    names = {hash_user(name, SECRET.encode()): name for name in ("crowd", "quick", "lover", "bot 0", "bot 1", "bot 2")}
    return {(names.get(user, user), reason) for user, reason in found}


def people(count=120, each=20, loves=1):
    """A crowd who love a twentieth of what they see, each after half a minute."""
    return [
        message(
            1000 * who + index,
            user=f"person-{who}",
            ts=MORE + 3600 * index,
            prompt=f"question {who} {index}",
            response=f"word{(who * 7 + index) % 50} and thing{(who * 3 + index) % 40} number{index}",
            **({"reaction": "❤️", "reaction_ts": MORE + 3600 * index + 30} if (index - who) % 20 < loves else {}),
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


@pytest.mark.parametrize("loves", [2, 3, 19])
def test_people_who_love_little_or_nearly_all_are_not_suspicious(tmp_path, loves):
    assert reasons(ingest_rows(tmp_path, people(40, loves=loves))) == set()


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


@pytest.mark.parametrize("phrase", ["Namaste", "🥰🥰", "爱你", "Bye! Sending Love!"])
def test_a_phrase_may_be_a_word_an_emoji_or_of_a_script_without_spaces(tmp_path, phrase):
    rows = people()
    for number in range(3):
        rows += by(f"bot {number}", 60, lambda index: index % 12 == 0, text="word{0} thing{0}")
        for row in rows[-60:]:
            row["response"] += f" {phrase}" if "reaction" in row else ""
    assert reasons(ingest_rows(tmp_path, rows)) == {(f"bot {number}", "loves_phrase") for number in range(3)}


def test_a_bot_of_two_loves_is_known_by_the_phrase_of_others(tmp_path):
    rows = people(400)
    for number in range(5):
        rows += by(
            f"bot {number}", 60, lambda index, every=20 if number == 2 else 12: index % every == 1, text="w{0} t{0}"
        )
        for row in rows[-60:]:
            row["response"] += " Sending love!" if "reaction" in row else ""
    found = reasons(ingest_rows(tmp_path, rows))
    assert ("bot 2", "loves_phrase") in found and len(found) == 5


def test_people_of_a_rare_language_are_not_taken_for_bots(tmp_path):
    rows = people()
    for number in range(3):  # all that they see and love begins alike, and nobody else's does
        rows += by(f"bot {number}", 60, lambda index: index % 12 == 0, text="kedves barátom {0} alma{0}")
    assert reasons(ingest_rows(tmp_path, rows)) == set()


def test_users_who_love_far_more_than_others_do(tmp_path):
    rng = random.Random(0)
    rows = people(400)
    for who in range(8):
        rows += by(f"spammer {who}", 80, lambda index: rng.random() < 0.4, text="word{0} thing{0}")
    rows += by("crowd", 80, lambda index: index % 16 == 0, text="word{0} thing{0}")
    found = query(f"SELECT reason, count(*) FROM '{ingest_rows(tmp_path, rows).suspicious}' GROUP BY reason")
    assert found == [("loves_much", 8)]


def at_any_time(rows, seed=0):
    """The same rows at times like people's."""
    rng = random.Random(seed)
    for row in rows:
        shift = rng.uniform(0, 3000)
        row["ts"] += shift
        if "reaction_ts" in row:
            row["reaction_ts"] += shift + rng.uniform(0, 600)
    return rows


def test_messages_like_a_clocks(tmp_path):
    rows = at_any_time(people()) + by("crowd", 40, lambda index: index == 7, text="word{0} thing{0}")
    store = ingest_rows(tmp_path, rows)
    assert reasons(store) == {("crowd", "regular")}
    assert query(f"SELECT detail FROM '{store.suspicious}'") == [("share of messages after 3600 s",)]


def test_loves_like_a_clocks(tmp_path):
    clock = by("crowd", 80, lambda index: index % 13 == 0, delay=45, text="word{0} thing{0}")
    for place, row in enumerate(clock):
        for name in ("ts", "reaction_ts"):
            if name in row:
                row[name] += 37 * place * place % 3000
    store = ingest_rows(tmp_path, at_any_time(people(loves=2)) + clock)
    assert reasons(store) == {("crowd", "regular")}


def test_times_that_cannot_be_peoples_for_most_users_accuse_nobody(tmp_path):
    rows = people()
    for row in rows:
        if "reaction_ts" in row:
            row["reaction_ts"] = row["ts"]
    store = ingest_rows(tmp_path, rows + by("quick", 60, lambda index: index % 20 == 0, delay=1))
    assert reasons(store) == set()
    assert "most users who love do so within 2 s: these times don't tell who is quick" in store.record["notes"]
    assert "the times of most users' messages are alike: they don't tell who is regular" in store.record["notes"]


def test_a_clock_that_is_behind_makes_nobody_quick(tmp_path):
    store = ingest_rows(tmp_path, people() + by("quick", 60, lambda index: index % 20 == 0, delay=-20))
    assert ("quick", "quick") not in reasons(store)


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
