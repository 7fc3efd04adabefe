"""Configurations of the encoder and of the objectives."""
