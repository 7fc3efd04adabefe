"""Configuration of distillation from a frozen teacher."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

from huggingface_hub.dataclasses import strict

from .field_ranges import check_least, check_positive
from .objective_config import ObjectiveConfig


@strict
class DistillConfig(ObjectiveConfig):
    """Teacher, queue and loss of distillation.

    The student learns the similarities of the teacher: those between an image and the images of a
    queue (SEED, arXiv 2101.04731), and those between the patches of an image. The weights of the
    teacher are not saved with the student; revision, license and width are read from the teacher
    when a run starts.

    Args:
        teacher: Frozen teacher: folder or Hub id (USER/NAME or USER/NAME@REVISION) of a vision
            model that transformers' AutoModel opens.
        teacher_revision: Commit of the teacher on the Hub, or SHA-256 of the weights in a folder.
        teacher_license: License of the teacher according to its card; None if unknown.
        teacher_hidden_size: Width of the teacher's vectors.
        queue_size: Number of teacher vectors that an image is compared with (M): those of its own
            batch and of earlier ones.
        temperature: Temperature of the softmax over similarities; unitless.
        local_weight: Weight of the loss on the similarities of patches; 0 for none.
        mixup: Whether each image of a batch is blended with another one (arXiv 1710.09412).
    """

    model_type = "selfvit_distill"
    base_config_key = "distill_config"
    weight_fields = ("local_weight",)  # the local loss has a projection

    teacher: str = ""
    teacher_revision: str | None = None
    teacher_license: str | None = None
    teacher_hidden_size: int = 768
    queue_size: int = 8192  # LightlyTrain's distillation, for 50,000 images and more
    temperature: float | int = 0.07  # LightlyTrain's distillation
    local_weight: float | int = 1.0  # LightlyTrain's distillation
    mixup: bool = True  # arXiv 2106.05237

    def validate_architecture(self) -> None:
        """Check the range of each field."""
        check_least(self, {"teacher_hidden_size": 1, "queue_size": 1, "local_weight": 0})
        check_positive(self, ("temperature",), "the usual value is 0.07")


__all__ = ["DistillConfig"]
