"""Images in: decoding of real-world files, and sources of images (folders, Parquet, the Hub)."""
