"""Run folder, and the checkpoints that a run resumes from."""
