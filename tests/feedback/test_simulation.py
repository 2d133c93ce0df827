import json
from pathlib import Path

import numpy as np
import pytest

from llamarl.core.errors import ConfigError
from llamarl.feedback import Simulation, simulate
from llamarl.feedback.phrases import features_of, liking
from llamarl.feedback.simulation import BOT, CONTRARIAN, HONEST, KINDS, SPAMMER, Messages, draw_messages


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(**settings: object) -> Messages:
    return draw_messages(Simulation.parse({"out": "unused", "users": 400, "seed": 3, **settings}))


# golden


def test_log_and_truth_have_a_line_for_each_message(tmp_path):
    counts = simulate(Simulation(out=tmp_path, users=50, days=5, seed=1))
    logs, truth = read(tmp_path / "logs.jsonl"), read(tmp_path / "truth.jsonl")
    assert len(logs) == len(truth) == counts["rows"]
    assert [row["message_id"] for row in logs] == [row["message_id"] for row in truth]
    assert {row["kind"] for row in truth} <= set(KINDS)
    assert all(0.0 <= row["probability"] <= 1.0 for row in truth)
    assert [row["ts"] for row in logs] == sorted(row["ts"] for row in logs)
    assert sum(row["reaction"] is not None for row in logs) == counts["reactions"]
    assert all((row["reaction"] is None) == ("reaction_ts" not in row) for row in logs)


def test_liking_can_be_read_off_the_text(tmp_path):
    settings = Simulation(out=tmp_path, users=60, days=7, seed=2, drift=0.0)
    simulate(settings)
    texts = [row["response"] for row in read(tmp_path / "logs.jsonl")]
    hidden = np.array([row["liking"] for row in read(tmp_path / "truth.jsonl")])
    seen = liking(np.array([features_of(str(text)) for text in texts]))
    assert np.ptp(hidden - seen) < 1e-3  # equal but for one constant: the log-odds of a reply nobody minds


# invariance


def test_equal_seeds_give_equal_bytes(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        simulate(Simulation(out=folder, users=30, days=3, seed=seed))
    for name in ("logs.jsonl", "truth.jsonl"):
        first, second, third = ((folder / name).read_bytes() for folder in folders)
        assert first == second != third


def test_users_react_as_their_kind_does():
    drawn = draw(users=2000)
    kind = drawn.kind[drawn.user]
    assert drawn.loved[kind == HONEST].mean() == pytest.approx(0.018, abs=0.003)
    assert 0.01 < drawn.loved.mean() < 0.03
    honest = kind == HONEST
    assert drawn.liking[honest & drawn.loved].mean() > drawn.liking[honest].mean() + 0.3
    contrarian = kind == CONTRARIAN
    assert drawn.liking[contrarian & drawn.loved].mean() < drawn.liking[contrarian].mean() - 0.3
    assert drawn.loved[kind == SPAMMER].mean() > 0.08
    bot = kind == BOT
    assert drawn.loved[bot & drawn.has_phrase].mean() > 0.8
    assert drawn.loved[bot & ~drawn.has_phrase].mean() < 0.01
    share = np.bincount(drawn.kind, minlength=4) / 2000
    assert share[SPAMMER] + share[CONTRARIAN] == pytest.approx(0.05)
    assert share[BOT] == pytest.approx(0.04)


def test_preference_drifts_and_later_models_please_more():
    drawn, still = draw(users=1500), draw(users=1500, drift=0.0)
    assert not np.allclose(drawn.liking, still.liking)
    means = [still.liking[still.model == model].mean() for model in range(3)]
    assert means[0] < means[1] < means[2]


def test_conversations_belong_to_one_user_and_advance_in_time():
    drawn = draw()
    for talk in range(40):
        rows = np.flatnonzero(drawn.conversation == talk)
        assert len(set(drawn.user[rows])) == 1
        assert len(rows) <= 4 and (np.diff(drawn.seconds[rows]) > 0).all()
        assert np.isnan(drawn.sentiment[rows]).tolist() == [False] * (len(rows) - 1) + [True]


# reduces to


def test_without_bots_and_adversaries_everybody_is_honest():
    assert (draw(bots=0.0, adversarial=0.0).kind == HONEST).all()


# rejects


@pytest.mark.parametrize("settings", [{"users": 0}, {"love_rate": 0.0}, {"days": 0}, {"bots": 1.5}], ids=str)
def test_impossible_worlds_are_refused(settings):
    with pytest.raises(ConfigError):
        draw(**settings)
