"""Pixels of image files that Pillow would change, or that are read faster without it."""
