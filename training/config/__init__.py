"""The configuration of a run, from the command line or training.yaml."""
