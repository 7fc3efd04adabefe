"""Commands that read a folder of vectors."""
