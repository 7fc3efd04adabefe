"""Measurements of selfvit, and of its peers beside it."""
