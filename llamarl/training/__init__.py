"""The training side: packed forward pass, policy trainer, supervised fine-tuning, and their executor."""
