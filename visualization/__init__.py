"""Pictures: attention, PCA of patches, reconstructions, maps of embeddings."""
