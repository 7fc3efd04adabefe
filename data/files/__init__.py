"""Files of images: list folders, read archives, lists and tables."""
