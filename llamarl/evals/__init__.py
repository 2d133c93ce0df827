"""Evaluations of a model: conversations, replies, verdicts, scores. Importable without torch."""
