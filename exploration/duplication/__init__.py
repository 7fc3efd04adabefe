"""Parts of the search for duplicates."""
