"""Videos as streams of frames."""
