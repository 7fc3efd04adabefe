"""Export of checkpoints to other libraries, each compared with selfvit."""
