"""From an image source to batches of augmented views."""
