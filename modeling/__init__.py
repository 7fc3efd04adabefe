"""The encoder and the objectives, which need torch and transformers only."""

# Before any module of this folder: importing transformers registers the classes of these modules.
import transformers  # noqa: F401
