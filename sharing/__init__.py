"""Model cards, and publishing of checkpoints on the Hub."""
