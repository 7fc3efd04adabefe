"""The run folder and its resumable checkpoints."""
