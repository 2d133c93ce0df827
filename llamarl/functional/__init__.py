"""Pure math on tensors: log-probs, KL, advantages, ratios, losses, constrained weights, statistics, checksums."""
