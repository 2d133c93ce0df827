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
    ppo            PPO clip per token             generalised, from a critic    its tokens
    raft           likelihood of the best         1                             prompts
    online_dpo     preference of best to worst    a pair                        prompts

Those of CGPO keep to constraints and near the reference:

    crpg           none (on-policy only)          constrained - batch mean      samples
    codpo          preference, and likelihood     a pair                        prompts
    crraft         likelihood of the best kept    calibrated reward             prompts

Under an inference budget:

    ibpo           likelihood of what a program   1                             prompts
                   picks under the budget

Importing this package does not import torch.
"""

from typing import Annotated

from pydantic import Field

from llamarl.algorithms.aipo import AIPOConfig
from llamarl.algorithms.base import PolicyGradientConfig
from llamarl.algorithms.cispo import CISPOConfig
from llamarl.algorithms.codpo import CODPOConfig
from llamarl.algorithms.crpg import CRPGConfig
from llamarl.algorithms.crraft import CRRAFTConfig
from llamarl.algorithms.custom import CustomConfig
from llamarl.algorithms.dapo import DAPOConfig
from llamarl.algorithms.dr_grpo import DrGRPOConfig
from llamarl.algorithms.grpo import GRPOConfig
from llamarl.algorithms.gspo import GSPOConfig
from llamarl.algorithms.ibpo import IBPOConfig
from llamarl.algorithms.online_dpo import OnlineDPOConfig
from llamarl.algorithms.ppo import PPOConfig
from llamarl.algorithms.raft import RAFTConfig
from llamarl.algorithms.reinforce_pp import ReinforcePPConfig
from llamarl.algorithms.rloo import RLOOConfig

AlgorithmConfig = Annotated[
    AIPOConfig
    | CISPOConfig
    | CODPOConfig
    | CRPGConfig
    | CRRAFTConfig
    | CustomConfig
    | DAPOConfig
    | DrGRPOConfig
    | GRPOConfig
    | IBPOConfig
    | GSPOConfig
    | OnlineDPOConfig
    | PPOConfig
    | RAFTConfig
    | ReinforcePPConfig
    | RLOOConfig,
    Field(discriminator="type"),
]
"""Any algorithm's settings, told apart by `type`; `custom` names one of your own."""


__all__ = [
    "AIPOConfig",
    "AlgorithmConfig",
    "CISPOConfig",
    "CODPOConfig",
    "CRPGConfig",
    "CRRAFTConfig",
    "CustomConfig",
    "DAPOConfig",
    "DrGRPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "IBPOConfig",
    "OnlineDPOConfig",
    "PPOConfig",
    "PolicyGradientConfig",
    "RAFTConfig",
    "RLOOConfig",
    "ReinforcePPConfig",
]
