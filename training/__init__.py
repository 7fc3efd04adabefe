"""Training with Accelerate: recipes, augmentations, the loop, checkpoints."""
