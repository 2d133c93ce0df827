"""Scores of texts under a model's current weights, with gradients: log-probs of answers, logits of conversations."""
