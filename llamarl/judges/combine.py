"""One reward and one answer to "does it meet the constraints?" from the verdicts of several judges.

Each judge has a role:

    reward       its score counts in the reward, by its weight
    constraint   its `passed` must not be False; its score counts nowhere
    watch        counts nowhere; its metrics are logged
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from llamarl.core.records import Status, Verdict

Role = Literal["reward", "constraint", "watch"]
ROLES: tuple[Role, ...] = ("reward", "constraint", "watch")


def combine(verdicts: Mapping[str, Verdict], weights: Mapping[str, float]) -> float | None:
    """The weighted mean of the scores, or None where the sample cannot be rewarded.

        reward = sum_j w_j s_j / sum_j w_j        over the judges j that scored

    With one judge it is that judge's score. A judge that abstains leaves numerator and denominator, so the reward's
    scale does not move. None if a judge of positive weight failed, or if all of them abstained. A judge of weight 0
    only watches: whatever it says, the reward is the same.

    Args:
        verdicts: by judge name; one for every judge of positive weight.
        weights: by judge name, each finite and at least 0.
    """
    total, weight_sum = 0.0, 0.0
    for name, weight in weights.items():
        if weight == 0:
            continue
        verdict = verdicts[name]
        if verdict.status is Status.FAILED:
            return None
        if verdict.score is not None:
            total += weight * verdict.score
            weight_sum += weight
    return total / weight_sum if weight_sum else None


def satisfies(verdicts: Iterable[Verdict]) -> bool | None:
    """Says whether a sample meets its constraints, from the constraint judges' verdicts on it in any order.

        False   one of them says that it does not pass
        None    none says so, but one failed, so it cannot be told
        True    otherwise: each passes it or abstains (does not apply), or there is none

    One judge more can turn True into None or False and None into False, never back: it only shrinks the satisfied
    set. A judge's failure is not a violation, since an overloaded server says nothing of the sample.

    Reference: Xu et al., The Perfect Blend: Redefining RLHF with Mixture of Judges, https://arxiv.org/abs/2409.20370
    (its pseudo-code joins the judges by OR; its text, and this function, by AND).
    """
    verdicts = list(verdicts)
    if any(verdict.passed is False for verdict in verdicts):
        return False
    return None if any(verdict.status is Status.FAILED for verdict in verdicts) else True


def mixture(
    verdicts: Mapping[str, Verdict], weights: Mapping[str, float], constraints: Iterable[str] = ()
) -> tuple[float | None, bool | None]:
    """Reward and satisfaction of one sample: `combine` of the reward judges, `satisfies` of the constraints.

    Where no judge rewards, the reward is 1 for a satisfied sample and 0 for a violating one. Where satisfaction cannot
    be told there is no reward: the sample can be neither raised nor lowered.

    Args:
        verdicts: by judge name, of all roles.
        weights: of the reward judges, by name.
        constraints: names of the constraint judges.
    """
    is_satisfied = satisfies(verdicts[name] for name in constraints)
    if is_satisfied is None:
        return None, None
    return combine(verdicts, weights) if weights else float(is_satisfied), is_satisfied
