"""From what was read to a model whose every tensor is accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from ..configuration.configuration_selfvit import SelfViTConfig
from ..errors import shorten
from ..modeling.checkpoints.loading import DTYPES
from ..modeling.registry import MODEL_CLASSES
from .formats import dino, lightly, mae, msn, timm, torchvision, transformers
from .infer_config import read_geometry
from .key_mapping import rename, target_names
from .read_weights import SourceFile
from .weight_format import Draft, Options, Source

# In the order of preference where several explain as many names.
SOURCES: tuple[Source, ...] = (
    dino.BACKBONE,
    timm.SOURCE,
    torchvision.SOURCE,
    transformers.SOURCE,
    transformers.MAE,
    mae.SOURCE,
    dino.CHECKPOINT,
    msn.SOURCE,
    *lightly.SOURCES,
)


# What the encoder cannot express, by names that give it away.
REASONS = {
    "norm_pre.": "a norm before the first block",
    ".q_norm.": "normalized queries and keys",
    ".k_norm.": "normalized queries and keys",
    ".w12.": "a gated MLP (SwiGLU)",
    ".weights_in.": "a gated MLP (SwiGLU)",
    ".fc1_g.": "a gated MLP (SwiGLU)",
    ".mlp.norm.": "a norm inside the MLP",
    ".attn.norm.": "a norm inside the attention",
    "attn_pool.": "attention pooling",
    "dist_token": "a distillation token",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    "rope": "rotary positions",
    "q_bias": "biases of query and value alone",
    "conv_proj.": "a convolutional stem",
    "patch_embed.backbone.": "a convolutional stem",
    "patch_embed.stem.": "a convolutional stem",
}


def detect(file: SourceFile) -> Source:
    """Return the kind of source that explains the most tensors by their names.

    Raises:
        ValueError: if none explains half of them.
    """
    if file.config.get("model_type") == "selfvit":
        raise ValueError(f"{file.description!r} is a selfvit checkpoint already.")
    explained = {
        source.name: sum(bool(target_names(name, source.names)) for name in file.tensors)
        for source in SOURCES
    }
    best = max(SOURCES, key=lambda source: explained[source.name])
    if 2 * explained[best.name] <= len(file.tensors):
        raise ValueError(
            f"{file.description!r} is of no known kind: its {len(file.tensors)} tensors are called "
            f"{shorten(list(file.tensors), 6)}.{_reasons(file.tensors)} Known are the "
            "encoders and checkpoints of facebookresearch's dino, mae and msn, timm, torchvision, "
            "Lightly and transformers (ViT, ViTMAE, ViTMSN, Dinov2)."
        )
    return best


def draft_model(file: SourceFile, options: Options) -> Draft:
    """Account for every tensor of a source and of the model that it becomes.

    Raises:
        ValueError: if the kind is not known, or tensors are not known, missing, or of another
            shape or precision; the message names them.
    """
    source = detect(file)
    extras = {name: why for name in file.tensors if (why := source.reason_to_leave_out(name))}
    wanted = {name: tensor for name, tensor in file.tensors.items() if name not in extras}
    weights, origins, unknown = rename(wanted, source.names)
    draft = Draft(
        file=file,
        source=source,
        options=options,
        weights=weights,
        origins=origins,
        kind=source.name,
        architecture=source.architecture,
        pooling=source.pooling,
        preprocessing=source.preprocessing,
        license_note=source.license_note,
        license_id=source.license_id,
        left_out={
            **{name: "state of the training, not of a network" for name in file.training_state},
            **extras,
        },
    )
    if source.difference:
        draft.differences.append(source.difference)
    named = [file.original_names[name] for name in unknown]
    try:
        _check_numbers(draft)
        read_geometry(draft)
        if source.adapt is not None:
            source.adapt(draft)
    except ValueError as error:
        if not named:
            raise ValueError(f"{draft.kind}: {error}") from error
        raise ValueError(f"{draft.kind}: {error} Not known: {shorten(named, 8)}.") from error
    problems = [f"not known: {shorten(named, 8)}{_reasons(named)}"] if named else []
    _choose_pooling(draft)
    problems += _fit(draft)
    if problems:
        raise ValueError(
            f"{file.description!r} was taken for {draft.kind}, but its tensors do not fit: "
            + "; ".join(problems)
            + ". Nothing was written."
        )
    return draft


def _check_numbers(draft: Draft) -> None:
    """Check that all weights are floating-point numbers of one precision."""
    dtypes: dict[torch.dtype, list[str]] = {}
    for name, tensor in draft.weights.items():
        # a center is float32 beside weights of any precision
        if not (name.startswith("loss.") and tensor.dtype == torch.float32):
            dtypes.setdefault(tensor.dtype, []).append(draft.origins[name])
    usual = max(dtypes, key=lambda dtype: len(dtypes[dtype]))
    for dtype, names in dtypes.items():
        which = shorten(sorted(set(names)))
        if not dtype.is_floating_point:
            raise ValueError(f"weights must be floating-point numbers, but {dtype}: {which}.")
        if draft.options.dtype is None and dtype != usual:
            raise ValueError(
                f"most weights are {usual}, but {dtype}: {which}. If that is as it should be, "
                "give --dtype to cast all of them."
            )
        if draft.options.dtype is None and dtype not in DTYPES.values():
            raise ValueError(
                f"weights in {dtype} are not kept as they are: {which}; give --dtype float32."
            )


def _choose_pooling(draft: Draft) -> None:
    wanted = draft.options.pooling
    if wanted is None or wanted == draft.pooling:
        origin = "the source's" if wanted is None else "option"
        draft.set("pooling", draft.pooling, origin)
        return
    draft.set("pooling", wanted, "option")
    if draft.architecture == "SelfViTForImageClassification":
        draft.architecture = "SelfViTModel"
        draft.leave_out(r"classifier\.", f"the head reads {draft.pooling}, not {wanted}")


def _config(draft: Draft) -> SelfViTConfig:
    fields = dict(draft.fields)
    if draft.architecture == "SelfViTForImageClassification":
        num_labels = _num_labels(draft)
        if len(fields.get("id2label", ())) == num_labels:
            fields["label2id"] = {label: index for index, label in fields["id2label"].items()}
        else:
            fields.pop("id2label", None)
            fields["num_labels"] = num_labels
    else:
        fields.pop("id2label", None)
    return SelfViTConfig(**fields)


def _num_labels(draft: Draft) -> int:
    sizes = {
        f"{draft.called(name)} {tuple(draft.weights[name].shape)}": len(draft.weights[name])
        for name in ("classifier.weight", "classifier.bias")
        if name in draft.weights
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{draft.kind}: {' and '.join(sizes)} are not of as many classes.")
    return max(sizes.values())


def _fit(draft: Draft) -> list[str]:
    """Return what is missing or of another shape, in the source's names; note what is new."""
    missing = [draft.called(name) for name in draft.source.needed if name not in draft.origins]
    if draft.architecture == "SelfViTModel":
        draft.weights = {name.removeprefix("vit."): t for name, t in draft.weights.items()}
        draft.origins = {name.removeprefix("vit."): n for name, n in draft.origins.items()}
    with torch.device("meta"):
        wanted = MODEL_CLASSES[draft.architecture](_config(draft)).state_dict()
    prefix = "vit." if draft.architecture == "SelfViTModel" else ""
    for name in wanted.keys() - draft.weights.keys():
        why = next(
            (why for pattern, why in draft.source.new.items() if re.search(pattern, name)), None
        )
        if why is None:
            missing.append(draft.called(prefix + name))
        else:
            draft.new[name] = why
    left = sorted(draft.origins[name] for name in draft.weights.keys() - wanted.keys())
    shapes = {}
    for name in sorted(wanted.keys() & draft.weights.keys()):
        ours, origin = draft.weights[name], draft.origins[name]
        if ours.shape != wanted[name].shape:
            stored = tuple(draft.file.tensors[origin].shape)
            shapes[origin] = (
                f"{origin} {stored}, from which {name} would be {tuple(ours.shape)} "
                f"instead of {tuple(wanted[name].shape)}"
            )
    found = {
        "missing": sorted(set(missing)),
        "of no use": left,
        "of another shape": list(shapes.values()),
    }
    return [f"{kind}: {shorten(names, 8)}" for kind, names in found.items() if names]


def build_model(draft: Draft) -> tuple[PreTrainedModel, SelfViTConfig]:
    """Return the model with the weights of the draft, and its configuration."""
    config = _config(draft)
    model = MODEL_CLASSES[draft.architecture](config)
    dtype = DTYPES.get(draft.options.dtype or "")
    if dtype is None:
        dtype = next(t.dtype for name, t in draft.weights.items() if not name.startswith("loss."))
    state = {**model.state_dict(), **draft.weights}
    state = {
        # clones: parts of one tensor may not share memory in a file
        name: tensor.to(torch.float32 if name.startswith("loss.") else dtype, copy=True)
        for name, tensor in state.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval(), config


def _reasons(names: Iterable[str]) -> str:
    found = {why for name in names for part, why in REASONS.items() if part in f"{name}."}
    return f" (the encoder has none of: {', '.join(sorted(found))})" if found else ""


__all__ = ["SOURCES", "build_model", "detect", "draft_model"]
