"""Hugging Face checkpoints in and out, the shared decoder mathematics, chat templates, tiny checkpoints."""
