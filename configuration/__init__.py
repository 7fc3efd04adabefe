"""Every number that describes a model."""
