"""Saving, loading and validation of checkpoint folders."""
