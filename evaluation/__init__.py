"""Evaluation of embeddings: k-NN, linear probe and metrics that need no labels."""
