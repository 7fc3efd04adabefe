"""DataLoaders that turn an image source into batches of augmented views."""
