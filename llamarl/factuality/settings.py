"""Settings of the commands on hallucinations. Nothing here imports more than pydantic, so that their help is quick."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from llamarl.core.config import Config, Metavar, Words
from llamarl.models.template_args import ChatTemplateArgs
from llamarl.serving.settings import Serving


class Evaluation(Config):
    """Scores of detectors, and how they are judged."""

    scores: Annotated[tuple[str, ...], Metavar("FILE")] = Field(min_length=1)
    """Rows of {id, label, score, split, prompt?, method?}: JSONL, CSV, Parquet or a glob; label is true for a factual
    claim, split is validation or test."""
    columns: Annotated[Words, Metavar("COLUMN,...")] = ("score",)
    """Columns that hold scores, each of them a method."""
    out: Annotated[Path | None, Metavar("DIR")] = None
    """Directory for results.json, detection.png and report.html."""
    hybrid_min_bacc: float = Field(default=0.7, ge=0.5, lt=1.0)
    """Balanced accuracy on validation that two thresholds must exceed."""
    hybrid_constraint: Literal["decided", "all"] = "decided"
    """Claims whose balanced accuracy that is: the decided ones, or all with the unknown ones as wrong, which limits
    their number."""
    bins: int = Field(default=10, ge=1, le=100)
    """Bins of the calibration."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resampling behind the intervals."""


class Train(Config):
    """Labelled claims, the model, and the detector that they make."""

    data: Annotated[Path, Metavar("DATA")]
    """Directory of a detect build, with train.jsonl, validation.jsonl and test.jsonl."""
    model: str
    """The model whose claims these are: a checkpoint directory, GGUF file or Hub id."""
    method: str = "rate_ft"
    """Way to detect; --list-settings with it prints its own settings."""
    out: Annotated[Path, Metavar("DIR")]
    """Directory of the detector: new, empty, or one of a training that was killed."""
    device: str = "auto"
    """Device of the model, such as cuda."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of forward and backward passes; weights stay in fp32."""
    batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one forward pass that scores claims."""


class Models(Config):
    """Models that answer and help."""

    model: str
    """The model under study: a checkpoint directory, GGUF file or Hub id, or the server's name for it."""
    endpoint: Annotated[str | None, Metavar("URL")] = None
    """Address of an OpenAI-compatible server that answers instead of a checkpoint."""
    api_key_env: Annotated[str | None, Metavar("VARIABLE")] = None
    """The environment variable that holds the server's key."""
    system: str | None = None
    """A system message before each prompt."""


class HelperModel(Config):
    """The helper model."""

    helper: Annotated[str | None, Metavar("MODEL")] = None
    """The model of the stages that ask one, named as the model under study is."""
    helper_endpoint: Annotated[str | None, Metavar("URL")] = None
    """The server, where it is no checkpoint."""
    helper_api_key_env: Annotated[str | None, Metavar("VARIABLE")] = None
    """The environment variable that holds that server's key."""

    @model_validator(mode="after")
    def _check_helper(self) -> Self:
        if self.helper_endpoint is not None and self.helper is None:
            raise ValueError("--helper-endpoint: needs --helper NAME, the model's name there")
        return self


class Calls(Config):
    """Calls of models and servers."""

    max_tokens: int = Field(default=512, ge=1)
    """Token limit of an answer, and of the helper's replies."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the checkpoints' chat templates, such as '{"enable_thinking": false}'."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format of checkpoints."""
    device: str = "auto"
    """Device of checkpoints, such as cuda."""
    max_in_flight: int = Field(default=16, ge=1)
    """Items worked on at a time."""
    timeout: Annotated[float, Metavar("SECONDS")] = Field(default=120.0, gt=0.0)
    """Seconds that one try of a request may take."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries after a failure that may pass."""


class Sources(Config):
    """Sources of evidence."""

    facts: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """Table of subject, relation, object: CSV, TSV, Parquet, JSONL, or a query in a .sql file."""
    relations: Annotated[Path | None, Metavar("FILE")] = None
    """TOML file that says how relations are worded."""
    corpus: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """Text or JSONL files to search by BM25 (extra detect); globs."""
    search: Annotated[Path | None, Metavar("FILE")] = None
    """TOML file that describes a web-search service."""
    num_queries: int = Field(default=0, ge=0, le=20)
    """Searches that the helper words for a claim; 0: the claim is the query."""
    num_passages: int = Field(default=3, ge=1)
    """Passages of each search."""

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if self.corpus and self.search:
            raise ValueError("--corpus and --search: give one source of evidence")
        if self.relations and not self.facts:
            raise ValueError("--relations: says how the relations of a table are worded; give --facts FILE")
        return self


class Stages(Config):
    """Stages."""

    claims: Literal["sentences", "facts", "model"] = "sentences"
    """Parts of an answer: every sentence, what the table of facts can check, or the helper's list."""
    relevance: Literal["all", "model"] = "all"
    """Claims that count: all, or those that the helper finds relevant to the prompt."""
    labels: Literal["facts", "model"] | None = None
    """The ruler: the table of facts by rules, or the helper by passages (default: facts with --facts, else model)."""
    questions: Literal["facts", "model", "none"] | None = None
    """The author of the auxiliary questions (default: as --labels)."""


class Build(Models, HelperModel, Calls, Stages, Sources):
    """Prompts, and what becomes of them."""

    prompts: Annotated[tuple[str, ...], Metavar("PROMPTS")] = Field(min_length=1)
    """Files of {prompt}, LongFact or FActScore rows: JSONL, CSV, Parquet or a glob; or .txt files of names."""
    out: Annotated[Path, Metavar("DIR")]
    """Directory of the build; the same command goes on with one that was killed."""
    name_prompt: Annotated[str, Metavar("TEXT")] = "Tell me a bio of {name}."
    """The prompt for a name of a .txt file."""
    split: tuple[float, ...] = (0.7, 0.2, 0.1)
    """Shares of the prompts for train, validation and test."""
    undetermined_as_hallucinated: bool = False
    """Take claims that the evidence does not decide for hallucinated, as some checkers do."""
    evaluation_only: bool = False
    """Write no training file."""
    train_on_canary: bool = False
    """Train on prompts whose owner asks that nobody does; the summary says so."""
    skip_failed: bool = False
    """Leave out items whose back end failed, counted; else the build ends there and can go on."""
    seed: int = Field(default=0, ge=0)
    """Seed of the splits."""

    @property
    def resolved_labels(self) -> Literal["facts", "model"]:
        """The ruler of claims."""
        return self.labels or ("facts" if self.facts and not (self.corpus or self.search) else "model")

    @model_validator(mode="after")
    def _check_evidence(self) -> Self:
        if not (self.facts or self.corpus or self.search):
            raise ValueError("no evidence: give --facts FILE, --corpus FILE or --search FILE")
        for name in ("claims", "labels", "questions"):
            if getattr(self, name) == "facts" and not self.facts:
                raise ValueError(f"--{name} facts: needs a table; give --facts FILE")
        return self

    @field_validator("split")
    @classmethod
    def _check_split(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(shares) != 3 or min(shares) < 0.0 or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError("must be three shares that sum to 1, such as 0.7,0.2,0.1")
        return shares


class Detecting(Config):
    """The detector."""

    detector: Annotated[str, Metavar("DIR")]
    """The directory of a detector, as detect train writes it."""
    model: Annotated[str | None, Metavar("MODEL")] = None
    """The detector's model, where it is no longer where it was: a checkpoint directory, GGUF file or Hub id."""
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """Claims above it count as factual (default: the detector's own, or 0.5 where it has none)."""


class Scoring(Detecting, HelperModel, Calls, Sources):
    """Texts whose claims are scored, or labelled claims."""

    text: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """Text files with an answer each, or globs; - is the standard input."""
    claims_file: Annotated[tuple[str, ...], Metavar("FILE")] = ()
    """Labelled claims as detect build writes them, instead of texts: JSONL, CSV, Parquet or a glob."""
    prompt: str = ""
    """The question that the texts answer."""
    subject: str | None = None
    """The person or thing that the texts are about; a pronoun at the head of a sentence is replaced by it."""
    claims: Literal["sentences", "facts", "model"] = "sentences"
    """Parts of a text: every sentence, what the table of facts can check, or the helper's list."""
    out: Annotated[Path | None, Metavar("FILE")] = None
    """File to write: with --text a page with the claims coloured, with --claims-file the scores, for detect eval."""

    @model_validator(mode="after")
    def _check_scoring(self) -> Self:
        if bool(self.text) == bool(self.claims_file):
            raise ValueError("give --text FILE or --claims-file FILE, one of them")
        if self.claims_file and self.out is None:
            raise ValueError("--claims-file: needs --out FILE for the scores")
        if self.claims_file and (self.facts or self.corpus or self.search):
            raise ValueError("--facts, --corpus, --search: evidence is for --text; labelled claims have their labels")
        if self.facts and (self.corpus or self.search):
            raise ValueError("--facts: give one source of evidence")
        if self.claims == "facts" and not self.facts:
            raise ValueError("--claims facts: needs a table; give --facts FILE")
        if self.claims == "model" and self.helper is None:
            raise ValueError("--claims model: needs a model that lists the claims; give --helper MODEL")
        if self.num_queries and self.helper is None:
            raise ValueError("--num-queries: needs a model that words them; give --helper MODEL")
        if self.precision == "int8":
            raise ValueError("--precision int8: detectors compute in fp32 or bf16")
        return self


class DetectServing(Detecting, Serving):
    """A service that scores the claims of texts."""

    device: str = "auto"
    """Device of the model, such as cuda."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward pass."""
    batch_claims: int = Field(default=64, ge=1)
    """Most claims of one batch, of whatever requests."""
    max_claims: int = Field(default=512, ge=1)
    """Most claims of one text; longer ones are refused with 413."""
    max_waiting: int = Field(default=4096, ge=1)
    """Most claims that wait; requests beyond are refused with 429."""
    cache_claims: int = Field(default=100_000, ge=0)
    """Claims whose scores are remembered, those that were asked for last, under 384 bytes each; 0: none."""

    @model_validator(mode="after")
    def _check_queue(self) -> Self:
        if self.max_waiting < self.max_claims:
            raise ValueError("--max-waiting: must be at least --max-claims, or a text of many claims is always refused")
        return self
