"""The encoder and the objectives, which need torch and transformers only."""
