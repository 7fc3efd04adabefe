"""One table a source: its names of tensors, what it holds besides, its preprocessing."""
