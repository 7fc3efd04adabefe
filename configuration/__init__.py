"""Configurations of the encoder and of the objectives."""

# Before any module of this folder: importing transformers registers the classes of these modules.
import transformers  # noqa: F401
