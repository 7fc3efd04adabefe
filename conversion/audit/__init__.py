"""Audit of checkpoints for silent faults."""
