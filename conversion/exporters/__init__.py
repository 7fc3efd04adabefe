"""Export checkpoints to other libraries and compare the results with selfvit."""
