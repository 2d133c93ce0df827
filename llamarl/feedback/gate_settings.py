"""Settings of the monitors on files and of the release gate. Nothing here imports more than pydantic and phrases."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llamarl.core.config import Metavar, Words
from llamarl.judges.rules.lexicon import LANGUAGES
from llamarl.monitors.settings import DEFAULT_SIGNALS, OF_PHRASES, MonitorConfig, Support


class Monitoring(Support):
    """Responses, the control's, and what is counted in both."""

    control: Annotated[str, Metavar("FILE")]
    """The control's responses to the same prompts."""
    signals: Annotated[Words, Metavar("SIGNAL")] = DEFAULT_SIGNALS
    """Monitors, by what they count: farewell, love, ending, length, question, emoji, turns."""
    phrases: Annotated[tuple[str, ...], Metavar("PHRASE")] = ()
    """A phrase of your own to count as well."""
    languages: Annotated[Words, Metavar("CODE")] = LANGUAGES
    """Languages whose farewells and words of love count."""
    warn: float = Field(default=1.5, gt=1.0)
    """Times the control's from which a monitor warns."""
    stop: float = Field(default=2.0, gt=1.0)
    """Times the control's from which the command ends with exit status 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.monitors
        return self

    @property
    def monitors(self) -> tuple[MonitorConfig, ...]:
        """The monitors that these settings ask for."""
        signals = [name for name in self.signals if name != "phrases"]
        signals += ["phrases"] if self.phrases else []
        return tuple(
            MonitorConfig.parse(
                {
                    "signal": signal,
                    "languages": self.languages if signal in OF_PHRASES else LANGUAGES,
                    "phrases": self.phrases if signal == "phrases" else (),
                    "warn": self.warn,
                    "stop": self.stop,
                }
            )
            for signal in signals
        )


class Gate(Monitoring):
    """A candidate policy, the control, and when the candidate is blocked."""

    candidate: Annotated[str, Metavar("FILE")]
    """The candidate's responses: what `llamarl generate --json` prints, or rows of {prompt, completion}."""
    reward_model: Annotated[str, Metavar("DIR")]
    """The --out of a `llamarl feedback fit`."""
    margin: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fall of the predicted love rate that is tolerated, relative to the control's: 0.02 is 2%."""
    undecided: Literal["pass", "block"] = "pass"
    """The fate of a candidate whose interval says neither that the rate falls by more than the margin nor that it
    does not."""
    report: Annotated[Path | None, Metavar("FILE.html")] = None
    """Write the report of one page here."""
    seed: int = Field(default=0, ge=0)
    """The seed of the bootstrap."""
    device: str = "auto"
    """Device of the model, such as cuda."""
