"""Visualization: attention maps, PCA of patches, reconstructions, embedding maps."""
