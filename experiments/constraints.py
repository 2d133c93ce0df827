"""The format task's constraints, one judge each: what the mixture of judges of `cgpo_hacking` is made of."""

from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.tasks.format import constraints_of


def _part(name: str, prompt: Prompt, completion: Completion) -> Verdict:
    constraints = constraints_of(prompt)
    if constraints is None:
        return Verdict.failed(f"prompt {prompt.id!r} is not of the format task")
    is_met = constraints.parts(completion.text)[name]
    return Verdict.scored(float(is_met), passed=is_met)


def count(prompt: Prompt, completion: Completion) -> Verdict:
    """So many words as were asked for."""
    return _part("count", prompt, completion)


def case(prompt: Prompt, completion: Completion) -> Verdict:
    """Upper or lower case, as asked."""
    return _part("case", prompt, completion)


def end(prompt: Prompt, completion: Completion) -> Verdict:
    """Ends as asked."""
    return _part("end", prompt, completion)


def vocabulary(prompt: Prompt, completion: Completion) -> Verdict:
    """Only words that the task knows."""
    return _part("vocabulary", prompt, completion)


def all_constraints(prompt: Prompt, completion: Completion) -> Verdict:
    """All four at once, to watch arms that are not held to them."""
    verdicts = [judge(prompt, completion) for judge in (count, case, end, vocabulary)]
    is_met = all(verdict.passed for verdict in verdicts)
    return Verdict.scored(float(is_met), passed=is_met)
