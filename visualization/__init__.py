"""Pictures of what an encoder sees: attention maps and maps of its embeddings."""
