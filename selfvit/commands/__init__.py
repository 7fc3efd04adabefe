"""Subcommands of `selfvit`, one module each; they import their dependencies when they run."""
