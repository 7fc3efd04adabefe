"""Processes, signals, sharding and low-level errors."""
