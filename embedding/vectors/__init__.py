"""Folders of vectors: parts, their manifest, and the ways to write and read them."""
