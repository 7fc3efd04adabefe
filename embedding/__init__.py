"""Embedding: turn images into vectors."""
