"""Weights in from other projects, and out to them."""
