"""Sharing: model cards, and checkpoints on the Hub."""
