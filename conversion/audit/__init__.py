"""Checks for silent faults in a checkpoint."""
