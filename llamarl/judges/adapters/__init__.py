"""Judges from functions: ours, and those written for TRL, verl and verifiers."""
