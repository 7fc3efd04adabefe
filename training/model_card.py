"""The card of a trained checkpoint: its README.md, rendered from `model_card.md`."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..data.dataset_source import StreamingImageSource
from ..data.image_source import ImageSource
from ..modeling.modeling_selfvit import SelfViTPreTrainedModel
from .run import Run

CITATIONS = {
    "SelfViTForDINO": """@inproceedings{caron2021emerging,
  title = {Emerging Properties in Self-Supervised Vision Transformers},
  author = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J\\'egou, Herv\\'e and
            Mairal, Julien and Bojanowski, Piotr and Joulin, Armand},
  booktitle = {ICCV},
  year = {2021},
  note = {arXiv 2104.14294}
}""",
    "SelfViTForMAE": """@inproceedings{he2022masked,
  title = {Masked Autoencoders Are Scalable Vision Learners},
  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll\\'ar, Piotr and
            Girshick, Ross},
  booktitle = {CVPR},
  year = {2022},
  note = {arXiv 2111.06377}
}""",
    "SelfViTForPMSN": """@inproceedings{assran2022masked,
  title = {Masked Siamese Networks for Label-Efficient Learning},
  author = {Assran, Mahmoud and Caron, Mathilde and Misra, Ishan and Bojanowski, Piotr and
            Bordes, Florian and Vincent, Pascal and Joulin, Armand and Rabbat, Michael and
            Ballas, Nicolas},
  booktitle = {ECCV},
  year = {2022},
  note = {arXiv 2204.07141}
}

@inproceedings{assran2023hidden,
  title = {The Hidden Uniform Cluster Prior in Self-Supervised Learning},
  author = {Assran, Mahmoud and Balestriero, Randall and Duval, Quentin and Bordes, Florian and
            Misra, Ishan and Bojanowski, Piotr and Vincent, Pascal and Rabbat, Michael and
            Ballas, Nicolas},
  booktitle = {ICLR},
  year = {2023},
  note = {arXiv 2210.07277}
}""",
}


def render_model_card(
    run: Run,
    model: SelfViTPreTrainedModel,
    source: ImageSource | StreamingImageSource,
    *,
    num_steps: int,
    metrics: dict[str, float],
) -> str:
    """Return the text of the card.

    Args:
        run: what was trained and how.
        model: the result.
        source: the images it was trained on.
        num_steps: optimizer steps it took.
        metrics: of the last evaluation; may be empty.
    """
    is_classifier = run.architecture == "SelfViTForImageClassification"
    pipeline_tag = "image-classification" if is_classifier else "image-feature-extraction"
    objective = run.architecture.removeprefix("SelfViTFor")
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["selfvit", "vision", "self-supervised-learning", objective.lower()],
    )
    name = Path(os.path.abspath(run.training.output)).name
    height, width = run.model.image_height_width
    call = 'extract("image.jpg")' if is_classifier else 'extract("image.jpg", pool=True)'
    card = ModelCard.from_template(
        card_data,
        template_str=files("selfvit").joinpath("model_card.md").read_text(encoding="utf-8"),
        title=name,
        summary=(
            "An image classifier on a self-supervised vision transformer."
            if is_classifier
            else f"A vision transformer trained with {objective}, for image embeddings."
        ),
        recipe=run.recipe,
        architecture=run.architecture,
        pipeline_tag=pipeline_tag,
        pipeline_call=call,
        model_id=name,
        is_classifier=is_classifier,
        has_teacher=model.trained_encoder is not model.vit,
        model=run.model,
        num_parameters=sum(parameter.numel() for parameter in model.vit.parameters()),
        image_size=f"{height} x {width}",
        image_mean=run.training.image_mean,
        image_std=run.training.image_std,
        data=source.description,
        training=run.training,
        num_steps=num_steps,
        metrics=metrics,
        citation=CITATIONS.get(run.architecture),
    )
    return card.content


__all__ = ["render_model_card"]
