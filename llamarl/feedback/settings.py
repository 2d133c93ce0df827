"""Settings of the commands on reactions. Nothing here imports more than pydantic, so that their help is quick."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llamarl.core.config import Config, Metavar


class Simulation(Config):
    """Simulated users, and the log that they leave."""

    out: Annotated[Path, Metavar("DIR")]
    """Directory that logs.jsonl and truth.jsonl are written to."""
    users: int = Field(default=1000, ge=1)
    """Users, of all kinds."""
    days: int = Field(default=28, ge=1, le=3650)
    """Days that the log covers."""
    seed: int = Field(default=0, ge=0)
    """Equal seeds give equal files."""
    messages_per_day: float = Field(default=2.0, gt=0.0, le=1000.0)
    """Mean number of replies that an honest user sees in a day."""
    love_rate: float = Field(default=0.018, gt=0.0, lt=0.5)
    """Share of replies that honest users love."""
    adversarial: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of users who are spammers or contrarians, half of each."""
    bots: float = Field(default=0.04, ge=0.0, le=1.0)
    """Share of users who are bots."""
    phrase: str = Field(default="Bye! Sending love!", min_length=1)
    """The phrase that bots love."""
    phrase_rate: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of replies to other users that hold the phrase."""
    drift: float = Field(default=1.0, ge=0.0)
    """The speed at which the preference changes from week to week; 0 for a preference that stays."""


class SuspectSettings(Config):
    """Limits beyond which a user is suspicious."""

    burst: int = Field(default=20, ge=1)
    """Messages in one minute that a person may see."""
    quick_seconds: float = Field(default=2.0, ge=0.0)
    """Median seconds from message to love that no person beats."""
    wrong_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of those found by their loves who may be people after all, on average (false discovery rate)."""


class Ingest(SuspectSettings):
    """Logs, and how they become a store."""

    logs: tuple[str, ...] = Field(min_length=1)
    """Files or globs: .jsonl, .csv, .tsv or .parquet; text may be compressed as .gz."""
    out: Annotated[Path, Metavar("DIR")]
    """Directory of the store; one that is there is replaced when the new one is complete."""
    columns: Annotated[dict[str, str], Metavar("FIELD=COLUMN")] = Field(default_factory=dict)
    """The column of a field in the logs, such as user=uid; a dot goes into an object: response=message.text."""
    keep: Annotated[tuple[str, ...], Metavar("COLUMN")] = ()
    """A further column of numbers to keep, such as a signal to compare."""
    reactions: Annotated[dict[str, str], Metavar("SPELLING=NAME")] = Field(default_factory=dict)
    """The meaning of a reaction, such as sparkles=love."""
    key_env: Annotated[str | None, Metavar("VARIABLE")] = None
    """The environment variable that holds the key of the hashes; without it a key is drawn and thrown away, so that
    nobody can tell whose messages these are, nor match them with another store's."""
    time_zone: str = "UTC"
    """The zone of times that name none."""
    max_messages_per_user: int = Field(default=1000, ge=1)
    """A fixed random choice of so many messages is kept of a user who has more."""
    keep_suspicious: bool = False
    """Keep the messages of suspicious users; they are marked and listed still."""
    context_messages: int = Field(default=32, ge=1)
    """Messages of the conversation that are kept before each reply, the last ones."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """The engine that looks across rows: DuckDB in this process, larger than memory, or Spark for larger logs."""
    threads: int | None = Field(default=None, ge=1)
    """Cores to use, all by default."""
    memory: str = Field(default="256MB", pattern=r"^\d+(\.\d+)?\s*[KMGT]i?B$")
    """Memory of DuckDB for the queries over all messages; what is more goes to the disk."""


class Description(Config):
    """A store to describe."""

    store: Path
    """Directory of a store, the --out of an ingest."""
    out: Annotated[Path | None, Metavar("DIR")] = None
    """Directory for description.json, description.png and report.html."""
    threads: int | None = Field(default=None, ge=1)
    """Cores to use, all by default."""
    memory: str = Field(default="1GB", pattern=r"^\d+(\.\d+)?\s*[KMGT]i?B$")
    """Memory for the queries; what is more goes to the disk."""


class Fit(Config):
    """A store, the model that learns from it, and where the result goes."""

    store: Path
    """Directory of a store, the --out of an ingest."""
    model: str
    """Causal language model to start from (a directory, GGUF file or Hub id) with a chat template, or a P[Love]."""
    out: Annotated[Path, Metavar("DIR")]
    """Directory of the training: new, empty, or one that was killed."""


class Evaluate(Config):
    """Policies to compare by what they answer to the same prompts."""

    policies: Annotated[dict[str, str], Metavar("NAME=FILE")] = Field(min_length=1)
    """The responses of each policy: what `llamarl generate --json` prints, or rows of {prompt, completion}."""
    reward_model: Annotated[str, Metavar("DIR")]
    """The --out of a `llamarl feedback fit`."""
    online: Annotated[Path | None, Metavar("FILE")] = None
    """JSON lines or CSV of {policy, rate}: the love rates that the policies had online, to see whether scores foretell
    them."""
    out: Annotated[Path | None, Metavar("DIR")] = None
    """Directory for evaluation.json, evaluation.png and report.html."""
    seed: int = Field(default=0, ge=0)
    """The seed of the bootstrap."""
    device: str = "auto"
    """Device of the model, such as cuda."""
