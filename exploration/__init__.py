"""Search, duplicates, clusters and maps of a folder of vectors."""
