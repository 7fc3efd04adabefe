"""Match the tensors of a source with a selfvit model: every tensor is used or reported."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from ..configuration.configuration_selfvit import SelfViTConfig
from ..errors import one_line, shorten
from ..modeling.checkpoints.loading import DTYPES
from ..modeling.registry import MODEL_CLASSES
from .formats import dino, dinov2, dinov3, lightly, mae, msn, timm, torchvision, transformers
from .gated_mlp import adapt_to_gated_mlp
from .infer_config import infer_config
from .infer_grid import REGISTERS
from .key_mapping import find_target_names, rename_tensors
from .read_weights import SourceFile
from .weight_format import Draft, Options, WeightFormat

# Of the formats that match the most names, the one that knows the most other names is chosen, and
# the first one of several.
FORMATS: tuple[WeightFormat, ...] = (
    dino.BACKBONE,
    timm.FORMAT,
    dinov2.BACKBONE,
    torchvision.FORMAT,
    transformers.FORMAT,
    transformers.MAE,
    mae.FORMAT,
    dino.CHECKPOINT,
    msn.FORMAT,
    *lightly.FORMATS,
    dinov2.TEACHER,
    *dinov3.FORMATS,
)


# Features that the encoder does not have, by a part of a tensor name that reveals them.
UNSUPPORTED_FEATURES = {
    "norm_pre.": "a norm before the first block",
    ".q_norm.": "normalized queries and keys",
    ".k_norm.": "normalized queries and keys",
    ".mlp.norm.": "a norm inside the MLP",
    ".attn.norm.": "a norm inside the attention",
    "attn_pool.": "attention pooling",
    "dist_token": "a distillation token",
    "head_dist.": "a distillation token",
    ".gamma_1.": "the blocks of BEiT or EVA",
    ".attns.": "parallel blocks",
    ".in_norm.": "parallel blocks",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    "rope": "rotary positions",
    "q_bias": "biases for queries and values only",
    "conv_proj.": "a convolutional stem",
    "patch_embed.backbone.": "a convolutional stem",
    "patch_embed.stem.": "a convolutional stem",
}


def detect_format(file: SourceFile) -> WeightFormat:
    """Return the weight format that matches the most tensor names of a source.

    Raises:
        ValueError: If no format matches more than half of the names.
    """
    if file.config.get("model_type") == "selfvit":
        raise ValueError(
            f"{file.description!r} is a selfvit checkpoint already and needs no conversion."
        )
    num_matches = {
        format.name: _count_names(format, file.tensors)
        for format in FORMATS
        if format.applies is None or format.applies(file.tensors)
    }
    candidates = [format for format in FORMATS if format.name in num_matches]
    best = max(candidates, key=lambda format: num_matches[format.name])
    num_known, num_extras = num_matches[best.name]
    if not num_known or 2 * (num_known + num_extras) <= len(file.tensors):
        raise ValueError(
            f"{file.description!r} must have a known weight format. Known are the encoders and "
            "checkpoints of facebookresearch's dino, dinov2, dinov3, mae and msn, timm, "
            "torchvision, Lightly and transformers (ViT, ViTMAE, ViTMSN, Dinov2, DINOv3ViT). The "
            "names of its "
            f"{len(file.tensors)} tensors match none of them: {shorten(file.tensors, 6)}"
            f"{_list_unsupported(file.tensors)}. If the file holds more than one network, or the "
            "network inside of other parts, save the state dict of the encoder alone."
        )
    return best


def _count_names(format: WeightFormat, names: Iterable[str]) -> tuple[int, int]:
    """Return the number of names that a format converts, and of those that it leaves out."""
    converted = left_out = 0
    for name in names:
        if format.reason_to_leave_out(name):
            left_out += 1
        elif find_target_names(name, format.key_mapping):
            converted += 1
    return converted, left_out


def match_weights(file: SourceFile, options: Options) -> Draft:
    """Assign every tensor of a source to a tensor of the model, or report why not.

    Raises:
        ValueError: If the format is unknown, or tensors are unknown, missing, or have an unexpected
            shape or precision. The message lists them.
    """
    format = detect_format(file)
    try:
        draft, unknown = _start_draft(file, format, options)
    except ValueError as error:
        raise ValueError(f"{file.description!r}, {format.name}: {error}") from error
    listed = f"{shorten(unknown)}{_list_unsupported(unknown)}"
    try:
        if _list_unsupported(unknown):
            raise ValueError("the encoder cannot express this model")
        _check_values(draft)
        _check_dtypes(draft)
        infer_config(draft)
        if draft.format.adapt is not None:
            draft.format.adapt(draft)
    except (TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
        # the tensors are checked before they are used; the fields of config.json are not
        raise ValueError(
            f"{CONFIG_NAME} of {file.description!r} has a value of the wrong type "
            f"({one_line(error)}). Copy or download it again, or give the path of the weight file "
            "instead of the folder."
        ) from error
    except ValueError as error:
        suffix = f" Unknown tensors: {listed}." if unknown else ""
        raise ValueError(
            f"{file.description!r}, {draft.kind}: {str(error).removesuffix('.')}.{suffix}"
        ) from error
    _choose_pooling(draft)
    problems = [f"unknown: {listed}"] if unknown else []
    problems += _find_mismatches(draft)
    if problems:
        raise ValueError(
            f"{file.description!r} was detected as {draft.kind}, but its tensors do not match: "
            + "; ".join(problems)
            + ". Nothing was written."
        )
    return draft


def _start_draft(
    file: SourceFile, format: WeightFormat, options: Options
) -> tuple[Draft, list[str]]:
    """Return a draft with the renamed tensors, and the names in the file of unknown tensors."""
    extras = {name: why for name in file.tensors if (why := format.reason_to_leave_out(name))}
    wanted = {name: tensor for name, tensor in file.tensors.items() if name not in extras}
    format = replace(format, key_mapping=adapt_to_gated_mlp(wanted, format.key_mapping))
    weights, source_names, unknown = rename_tensors(wanted, format.key_mapping)
    for target in [name for name in weights if name.endswith(REGISTERS)]:
        if weights[target].shape[1:2] == (0,):  # transformers' DINOv3 without registers
            del weights[target]
            extras[source_names.pop(target)] = "an empty tensor, as there are no registers"
    training_state = dict.fromkeys(file.training_state, "training state, not part of a network")
    draft = Draft(
        file=file,
        format=format,
        options=options,
        weights=weights,
        source_names=source_names,
        kind=format.name,
        architecture=format.architecture,
        pooling=format.pooling,
        preprocessing=format.preprocessing,
        license_note=format.license_note,
        license_id=format.license_id,
        left_out={**training_state, **extras},
        differences=[format.difference] if format.difference else [],
    )
    return draft, [file.original_names[name] for name in unknown]


def _check_values(draft: Draft) -> None:
    """Check that all weights are plain tensors with finite values."""
    reasons: dict[str, list[str]] = {}
    for target, tensor in draft.weights.items():
        reason = _why_unusable(tensor)
        if reason:
            reasons.setdefault(reason, []).append(draft.source_names[target])
    for reason, names in reasons.items():
        raise ValueError(f"{shorten(sorted(set(names)), 4)}: {reason}.")


def _why_unusable(tensor: Tensor) -> str:
    """Return why no model can use a tensor, with the fix, or ""."""
    full = "convert the file with the weights in full precision"
    if not tensor.numel():
        return "weights must not be empty; download or save the file again"
    if tensor.is_quantized or (tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1):
        return f"weights must not be quantized, got {tensor.dtype}; {full}"
    if tensor.layout != torch.strided:
        return f"weights must be dense, got {tensor.layout}; save them with Tensor.to_dense()"
    if tensor.is_meta:
        return "the file has shapes without values; save the weights of a loaded model"
    if tensor.dtype.is_floating_point and not tensor.isfinite().all():
        return (
            "weights must be finite, but these have NaN or infinite values, so that every "
            "embedding would be NaN; use an earlier checkpoint of the run"
        )
    return ""


def _check_dtypes(draft: Draft) -> None:
    """Check that all weights are floating-point numbers of the same precision."""
    dtypes: dict[torch.dtype, list[str]] = {}
    for name, tensor in draft.weights.items():
        # The center of the loss is float32 for weights of any precision.
        if not (name.startswith("loss.") and tensor.dtype == torch.float32):
            dtypes.setdefault(tensor.dtype, []).append(draft.source_names[name])
    majority = max(dtypes, key=lambda dtype: len(dtypes[dtype]))
    for dtype, names in dtypes.items():
        listed = shorten(sorted(set(names)))
        if not dtype.is_floating_point:
            raise ValueError(f"weights must be floating-point numbers, got {dtype}: {listed}.")
        if draft.options.dtype is None and dtype != majority:
            raise ValueError(
                f"all weights must have the same precision; most are {majority}, but these are "
                f"{dtype}: {listed}. If this is intended, give --dtype to cast all of them."
            )
        if draft.options.dtype is None and dtype not in DTYPES.values():
            raise ValueError(
                f"weights must be {', '.join(DTYPES)}, got {dtype}: {listed}. Give "
                "--dtype float32 to cast them."
            )


def _choose_pooling(draft: Draft) -> None:
    wanted = draft.options.pooling
    if wanted is None or wanted == draft.pooling:
        origin = draft.pooling_origin if wanted is None else "option"
        draft.set_field("pooling", draft.pooling, origin)
        return
    draft.set_field("pooling", wanted, "option")
    if draft.architecture == "SelfViTForImageClassification":
        draft.architecture = "SelfViTModel"
        reason = f"the classifier was trained on pooling {draft.pooling}, not {wanted}"
        draft.leave_out(r"classifier\.", reason)


def _build_config(draft: Draft) -> SelfViTConfig:
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
        fields.pop("problem_type", None)
    try:
        return SelfViTConfig(**fields)
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(
            f"the model of {draft.file.description!r} is not possible in selfvit: {one_line(error)}"
        ) from error


def _num_labels(draft: Draft) -> int:
    sizes = {
        f"{draft.source_name(name)} {tuple(draft.weights[name].shape)}": len(draft.weights[name])
        for name in ("classifier.weight", "classifier.bias")
        if name in draft.weights
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{draft.kind}: {' and '.join(sizes)} must have the same number of classes."
        )
    return max(sizes.values())


def _find_mismatches(draft: Draft) -> list[str]:
    """Return missing, unused and misshapen tensors by source name, and record the new ones."""
    missing = [
        draft.source_name(name) for name in draft.format.required if name not in draft.source_names
    ]
    prefix = "vit." if draft.architecture == "SelfViTModel" else ""
    draft.weights = {name.removeprefix(prefix): t for name, t in draft.weights.items()}
    draft.source_names = {name.removeprefix(prefix): n for name, n in draft.source_names.items()}
    with torch.device("meta"):
        wanted = MODEL_CLASSES[draft.architecture](_build_config(draft)).state_dict()
    for name in wanted.keys() - draft.weights.keys():
        reasons = (why for pattern, why in draft.format.new.items() if re.search(pattern, name))
        reason = next(reasons, None)
        if reason is None:
            missing.append(draft.source_name(prefix + name))
        else:
            draft.new[name] = reason
    unused = {draft.source_names[name] for name in draft.weights.keys() - wanted.keys()}
    problems = {
        "missing": [_explain_missing(name) for name in sorted(set(missing))],
        "unused": sorted(unused),
        "unexpected shape": _describe_shapes(draft, wanted),
    }
    return [f"{problem}: {shorten(names)}" for problem, names in problems.items() if names]


def _explain_missing(name: str) -> str:
    """Return the name of a missing tensor, with the feature that models without it have."""
    if re.search(r"(cls_token|class_token)$", name):
        return f"{name} (the encoder always has a class token)"
    if re.search(r"norm[^.]*\.bias$", name):
        return f"{name} (the encoder has LayerNorm with a bias, not RMSNorm)"
    return name


def _describe_shapes(draft: Draft, wanted: dict[str, Tensor]) -> list[str]:
    """Return a description of each source tensor whose shape does not fit the model."""
    described = {}
    for name in sorted(wanted.keys() & draft.weights.keys()):
        shape, expected = tuple(draft.weights[name].shape), tuple(wanted[name].shape)
        if shape != expected:
            source = draft.source_names[name]
            stored = tuple(draft.file.tensors[source].shape)
            described[source] = (
                f"{source} {stored}, which gives {name} the shape {shape} instead of {expected}"
            )
    return list(described.values())


def build_model(draft: Draft) -> tuple[PreTrainedModel, SelfViTConfig]:
    """Return a model with the weights of the draft, and its configuration."""
    config = _build_config(draft)
    model = MODEL_CLASSES[draft.architecture](config)
    dtype = DTYPES.get(draft.options.dtype or "")
    if dtype is None:
        dtype = next(t.dtype for name, t in draft.weights.items() if not name.startswith("loss."))
    state = {**model.state_dict(), **draft.weights}
    state = {
        # Copies, because safetensors does not store tensors that share memory.
        name: tensor.to(torch.float32 if name.startswith("loss.") else dtype, copy=True)
        for name, tensor in state.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval(), config


def _list_unsupported(names: Iterable[str]) -> str:
    found = {
        feature
        for name in names
        for part, feature in UNSUPPORTED_FEATURES.items()
        if part in f"{name}."
    }
    return f" (not supported by the encoder: {', '.join(sorted(found))})" if found else ""


__all__ = ["FORMATS", "build_model", "detect_format", "match_weights"]
