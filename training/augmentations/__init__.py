"""Augmentations on uint8 images, for the workers of the DataLoader."""
