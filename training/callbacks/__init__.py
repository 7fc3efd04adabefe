"""Callbacks of the training loop: monitoring, evaluation, checkpoints, the Hub."""
