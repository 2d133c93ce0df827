"""Synthetic tasks with a known optimum, and the small checkpoint that starts them."""
