"""The sub-commands of `selfvit`, one module each; what they need is imported when they run."""
