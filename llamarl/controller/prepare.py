"""Reads and checks everything that can be wrong with a run before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamarl.controller.recipe import Recipe
from llamarl.core.errors import DataError
from llamarl.core.records import Prompt
from llamarl.core.seeds import derive_seed
from llamarl.data import read_prompts
from llamarl.judges.resolve import load_judge
from llamarl.models.checkpoint import load_config, load_tokenizer
from llamarl.models.template_check import check_template
from llamarl.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything read and checked before the first process starts."""

    recipe: Recipe
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    skipped_rows: Sequence[Any]
    tokenizer: Tokenizer
    max_positions: int
    template_limits: Sequence[str]
    """What the chat template cannot do, in words."""

    def describe(self) -> dict[str, Any]:
        """What would run, for `--dry-run`."""
        schedule = self.recipe.schedule
        per_epoch = len(self.prompts) / schedule.prompts_per_step
        return {
            "prompts": len(self.prompts),
            "held_out": len(self.held_out),
            "skipped_rows": len(self.skipped_rows),
            "steps": schedule.steps,
            "epochs": round(schedule.steps / per_epoch, 3),
            "completions_per_step": schedule.prompts_per_step * schedule.samples_per_prompt,
            "max_staleness": schedule.max_staleness,
            "engine": self.recipe.engine,
            "template_limits": list(self.template_limits),
            "executors": ["trainer", "judge", *generator_names(self.recipe)],
        }


def generator_names(recipe: Recipe) -> list[str]:
    """Executor names of the generators."""
    return [f"generator-{i}" for i in range(recipe.num_generators)]


def prepare(recipe: Recipe) -> Prepared:
    """Reads data and tokenizer and checks that they fit the model and each other.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong, where, and what to do.
    """
    config = load_config(recipe.model)
    tokenizer = load_tokenizer(recipe.model)
    limits = [f"{name}: {text}" for name, text in check_template(tokenizer, config).limits.items()]
    data = recipe.data
    rows = read_prompts(
        data.source,
        format=data.format,
        mapping=data.mapping,
        split=data.split,
        limit=data.limit,
        on_bad_row=data.on_bad_row,
    )
    prompts = [_with_system(prompt, data.system) for prompt in rows]
    prompts, held_out = _hold_out(recipe, prompts)
    prepared = Prepared(recipe, prompts, held_out, rows.skipped, tokenizer, config.max_position_embeddings, limits)
    _check_lengths(prepared)
    _check_judges(prepared)
    return prepared


def _hold_out(recipe: Recipe, prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts. Held-out rows are chosen by a hash of their id: the same in every run."""
    evaluation = recipe.evaluation
    if not evaluation.num_prompts:
        return prompts, []
    if evaluation.source is not None:
        rows = read_prompts(evaluation.source, mapping=recipe.data.mapping, limit=evaluation.num_prompts)
        held_out = [_with_system(prompt, recipe.data.system) for prompt in rows]
        trained = {_text(prompt) for prompt in prompts}
        if leaked := [prompt.id for prompt in held_out if _text(prompt) in trained]:
            raise DataError(
                f"evaluation.source={evaluation.source}: {len(leaked)} of its prompts are also training prompts, "
                f"first {leaked[0]!r}; remove them from one side"
            )
        return prompts, held_out
    order = sorted(range(len(prompts)), key=lambda i: derive_seed("held out", prompts[i].id))
    chosen = set(order[: min(evaluation.num_prompts, len(prompts) // 5)])
    return [p for i, p in enumerate(prompts) if i not in chosen], [prompts[i] for i in sorted(chosen)]


def _text(prompt: Prompt) -> str:
    return "\x1f".join(f"{m['role']}:{m['content']}" for m in prompt.messages)


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt.messages[0]["role"] == "system":
        return prompt
    return replace(prompt, messages=({"role": "system", "content": system}, *prompt.messages))


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt, ending where its completion begins."""
    return tokenizer.encode_chat(prompt.messages, prompt.tools)


def _check_lengths(prepared: Prepared) -> None:
    """No prompt may be so long that its completion cannot fit the model's positions."""
    room = prepared.max_positions - prepared.recipe.sampling.max_tokens
    for prompt in [*prepared.prompts, *prepared.held_out]:
        if (length := len(encode_prompt(prepared.tokenizer, prompt))) > room:
            raise DataError(
                f"prompt {prompt.id!r} has {length} tokens; with sampling.max_tokens="
                f"{prepared.recipe.sampling.max_tokens} the model's {prepared.max_positions} positions leave {room}; "
                "shorten the prompt, lower sampling.max_tokens, or drop the row"
            )


def _check_judges(prepared: Prepared) -> None:
    """Loads every judge once and lets those that can look at each prompt before the run."""
    for config in prepared.recipe.judges:
        check = getattr(load_judge(config.function, config.name), "check", None)
        if check is not None:
            for prompt in (*prepared.prompts, *prepared.held_out):
                check(prompt)
