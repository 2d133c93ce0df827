"""RL algorithms, one short file each.

    name           objective                      advantage                     step is divided by
    aipo           truncated weight, detached     reward - group mean           its tokens
    cispo          truncated weight, detached     standardised in the group     its tokens
    grpo           PPO clip per token             standardised in the group     samples, each by its length
    dr_grpo        PPO clip per token             reward - group mean           samples x token limit
    dapo           PPO clip, wider above          standardised in the group     its tokens
    gspo           PPO clip per sequence          standardised in the group     samples, each by its length
    reinforce_pp   PPO clip per token             standardised in the batch     its tokens
    rloo           none (on-policy only)          reward - mean of the others   samples

Importing this package does not import torch.
"""

from typing import Annotated

from pydantic import Field

from llamarl.algorithms.aipo import AIPO, AIPOConfig
from llamarl.algorithms.base import PolicyGradient, PolicyGradientConfig
from llamarl.algorithms.cispo import CISPO, CISPOConfig
from llamarl.algorithms.custom import CustomConfig
from llamarl.algorithms.dapo import DAPO, DAPOConfig
from llamarl.algorithms.dr_grpo import DrGRPO, DrGRPOConfig
from llamarl.algorithms.grpo import GRPO, GRPOConfig
from llamarl.algorithms.gspo import GSPO, GSPOConfig
from llamarl.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from llamarl.algorithms.rloo import RLOO, RLOOConfig
from llamarl.core.protocols import Algorithm

AlgorithmConfig = Annotated[
    AIPOConfig
    | CISPOConfig
    | CustomConfig
    | DAPOConfig
    | DrGRPOConfig
    | GRPOConfig
    | GSPOConfig
    | ReinforcePPConfig
    | RLOOConfig,
    Field(discriminator="type"),
]
"""Any algorithm's settings, told apart by `type`; `custom` names one of your own."""


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that `config` describes."""
    return config.build()


__all__ = [
    "AIPO",
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "AIPOConfig",
    "AlgorithmConfig",
    "CISPOConfig",
    "CustomConfig",
    "DAPOConfig",
    "DrGRPO",
    "DrGRPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "PolicyGradient",
    "PolicyGradientConfig",
    "RLOOConfig",
    "ReinforcePP",
    "ReinforcePPConfig",
    "build_algorithm",
]
