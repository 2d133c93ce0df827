"""Judges in worker processes that are killed when they overrun."""
