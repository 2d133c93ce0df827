"""Which users does `llamarl feedback ingest` find out, and whom does it wrong? Simulated users, whose kind is known.

    python -m experiments.feedback_cleaning                # seeds 10 to 14: ten minutes on one core
    python -m experiments.feedback_cleaning --seeds 0,1,2 --users 500     # a short try; writes no result

2,000 users and 28 days in each world, 5 % of them bots where nothing else is said. `bots`: the share found of all bots;
`bots, 3 loves`: of those who loved at least three replies;
`bots with fewer`: the share who didn't. `people`: the share of honest users
who are suspected. `spammers` love at random 8 to 25 % of what they see, `contrarians` what others dislike. `spammers at
2 %`: what the same ranking of users by their share of loves would find if the truth told it the bar at which 2 % of the
honest are suspected.

The rules were chosen on seeds 0 to 2. Writes `results/feedback_cleaning.json`.
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import HERE, Interval
from llamarl.feedback import Ingest, Simulation, Store, hash_user, ingest, simulate
from llamarl.feedback.chance import beta_binomial_tail, fit_beta_binomial
from llamarl.feedback.settings import SuspectSettings
from llamarl.feedback.simulation import KINDS
from llamarl.feedback.store import connect
from llamarl.report.environment import environment_record
from llamarl.report.files import write_json

WORLDS: dict[str, dict[str, Any]] = {
    "no bots": {"bots": 0.0, "adversarial": 0.0},
    "bots 1 %": {"bots": 0.01},
    "bots 5 %": {"bots": 0.05},
    "bots 10 %": {"bots": 0.1},
    "one word": {"bots": 0.05, "phrase": "Namaste"},
    "emoji": {"bots": 0.05, "phrase": "🥰🥰🥰"},
    "a sentence": {"bots": 0.05, "phrase": "I am so happy, good luck with your work, my dear friend."},
    "no spaces": {"bots": 0.05, "phrase": "再见，送上我的爱"},
    "usual phrase": {"bots": 0.05, "phrase_rate": 0.05},
    "few messages": {"bots": 0.05, "messages_per_day": 0.5},
}
SEEDS = (10, 11, 12, 13, 14)
KEY = "the key of this experiment"


def measure(world: dict[str, Any], seed: int, users: int) -> dict[str, float]:
    """The shares found in one simulated log."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(Simulation.parse({"out": folder, "users": users, "seed": seed, **world}))
        logs = (str(folder / "logs.jsonl"),)
        settings = Ingest(logs=logs, out=folder / "store", key_env="KEY", keep_suspicious=True, threads=1)
        store = ingest(settings, environment={"KEY": KEY})
        kinds = {row["user"]: row["kind"] for row in map(json.loads, (folder / "truth.jsonl").open(encoding="utf-8"))}
        of_hash = {hash_user(user, KEY.encode()): KINDS.index(kind) for user, kind in kinds.items()}
        return _shares(*_users_of(store, of_hash))


def _users_of(store: Store, kinds: dict[str, int]) -> tuple[np.ndarray, ...]:
    """Kind, messages, loves of each user, and whether the user was found."""
    with connect(threads=1, memory="1GB", folder=store.path) as connection:
        rows = connection.execute(f"""
            SELECT user_hash, count(*), sum(CASE WHEN loved THEN 1 ELSE 0 END), bool_or(is_suspicious)
            FROM read_parquet('{store.messages}') GROUP BY user_hash ORDER BY user_hash""").fetchall()
    users, shown, loves, found = zip(*rows, strict=True)
    return np.array([kinds[user] for user in users]), np.array(shown), np.array(loves, dtype=np.int64), np.array(found)


def _shares(kind: np.ndarray, shown: np.ndarray, loves: np.ndarray, found: np.ndarray) -> dict[str, float]:
    honest, spammer, contrarian, bot = (kind == index for index in range(len(KINDS)))
    numbers = {"people": float(found[honest].mean())}
    if bot.any():
        numbers = {
            "bots": float(found[bot].mean()),
            "bots, 3 loves": float(found[bot & (loves >= 3)].mean()),
            "bots with fewer": float((loves[bot] < 3).mean()),
            **numbers,
        }
    if spammer.any():
        usual = ~(bot & found)
        law = fit_beta_binomial(loves[usual], shown[usual], np.ones(usual.sum()))
        tail = np.array([beta_binomial_tail(int(a), int(b), *law) for a, b in zip(loves, shown, strict=True)])
        bar = np.quantile(tail[honest], 0.02)
        numbers |= {
            "spammers": float(found[spammer].mean()),
            "spammers at 2 %": float((tail[spammer] < bar).mean()),
            "contrarians": float(found[contrarian].mean()),
        }
    return numbers


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.feedback_cleaning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="separated by commas")
    parser.add_argument("--users", type=int, default=2000)
    options = parser.parse_args()
    seeds = tuple(int(seed) for seed in options.seeds.split(","))
    began = time.monotonic()
    runs: list[dict[str, Any]] = []
    arms: dict[str, Any] = {}
    for name, world in WORLDS.items():
        numbers = [measure(world, seed, options.users) for seed in seeds]
        runs += [{"arm": name, "seed": seed, **each} for seed, each in zip(seeds, numbers, strict=True)]
        means = {key: Interval.of([each[key] for each in numbers]) for key in numbers[0]}
        arms[name] = {k: {"mean": v.mean, "half_width": v.half_width, "seeds": v.count} for k, v in means.items()}
        print(
            f"{time.monotonic() - began:5.0f} s  {name:14} " + "  ".join(f"{k} {v}" for k, v in means.items()),
            flush=True,
        )
    if seeds != SEEDS or options.users != parser.get_default("users"):
        print("a short try: no result written")
        return
    record = {
        "experiment": "feedback_cleaning",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": parser.prog,
        "seconds": round(time.monotonic() - began, 1),
        "environment": environment_record(HERE),
        "settings": {"rules": SuspectSettings().model_dump(), "users": options.users, "worlds": WORLDS},
        "arms": arms,
        "runs": runs,
    }
    write_json(HERE / "results" / "feedback_cleaning.json", record)


if __name__ == "__main__":
    main()
