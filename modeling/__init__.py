"""The encoder and the objectives: torch and transformers only."""
