"""Every number that describes a model."""

# Before any module of this folder: importing transformers registers the classes of these modules.
import transformers  # noqa: F401
