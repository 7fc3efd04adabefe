"""Checks, trials and the dry run, before anything is written."""
