"""Objectives of supervised training, one short file each: its settings and its `Objective`.

    name       learns                                from
    sft        completions                           conversations, or prompt and completion
    dpo        to prefer one answer to another       preference pairs
    reward     a score that prefers the chosen one   preference pairs
               a probability of a label              labelled completions
    love       a probability of a rare reaction      labelled completions, a few of them loved

`training.fit.fit` trains any of them. Importing this package does not import torch.
"""

from llamarl.training.objectives.dpo import DPO, DPOConfig
from llamarl.training.objectives.love import Love, LoveConfig
from llamarl.training.objectives.reward import LabelObjective, PairObjective, RewardConfig, reward_objective
from llamarl.training.objectives.sft import SFT, SFTConfig

__all__ = [
    "DPO",
    "SFT",
    "DPOConfig",
    "LabelObjective",
    "Love",
    "LoveConfig",
    "PairObjective",
    "RewardConfig",
    "SFTConfig",
    "reward_objective",
]
