"""facebookresearch/msn: whole checkpoints with `encoder`, `target_encoder` and `prototypes`."""

from __future__ import annotations

from ..key_mapping import Names, prefixed
from ..weight_format import Draft, Source
from .timm import ENCODER

LICENSE_NOTE = "MSN's published weights are CC BY-NC 4.0; if these are, the result is too"
LICENSE_ID = "cc-by-nc-4.0"

HEAD: Names = {
    "fc.fc#.*": "head.fc#.*",
    "fc.bn#.*": "head.norm#.*",
    "fc.bn#.running_mean": "head.norm#.running_mean",
    "fc.bn#.running_var": "head.norm#.running_var",
}


def read_objective(draft: Draft) -> None:
    """Read the head's geometry, and fold the biases that a batch norm takes away again.

    The head of `SelfViTForPMSN` has no bias before its batch norms: the running mean takes it up,
    so that the head computes the same in evaluation, and in training it made no difference.
    """
    weights = draft.weights
    if not any("norm1" in name or "norm2" in name for name in weights if "head." in name):
        _keep_target_encoder(draft)
        return
    wanted = ("head.norm1.running_mean", "head.norm2.running_mean")
    needed = [f"{network}{name}" for network in ("", "student.") for name in wanted]
    missing = [draft.called(name) for name in [*needed, "prototypes"] if name not in weights]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}.")
    if weights["prototypes"].dim() != 2:
        shape = tuple(weights["prototypes"].shape)
        raise ValueError(f"prototypes should be (number, width), got {shape}.")
    for network in ("", "student."):
        for index in (1, 2):
            bias, mean = f"{network}head.fc{index}.bias", f"{network}head.norm{index}.running_mean"
            if bias in weights:
                weights[mean] = weights[mean] - weights.pop(bias)
    num_prototypes, width = weights["prototypes"].shape
    draft.set(
        "pmsn_config",
        {
            "prior": "uniform",  # MSN is PMSN with a uniform prior
            "num_prototypes": num_prototypes,
            "head_hidden_size": len(weights["head.norm1.running_mean"]),
            "head_output_size": width,
        },
        "weights; its loss by convention",
    )


def _keep_target_encoder(draft: Draft) -> None:
    draft.architecture = "SelfViTModel"
    draft.kind = "facebookresearch/msn, target encoder"
    draft.leave_out(
        r"(student\.|head\.|prototypes$)",
        "of the objective, which SelfViTForPMSN takes with batch norm and prototypes only",
    )


SOURCE = Source(
    name="facebookresearch/msn checkpoint (encoder, target encoder, heads, prototypes)",
    names={
        **prefixed(ENCODER, "target_encoder.", "vit."),
        **prefixed(HEAD, "target_encoder.", ""),
        **prefixed(ENCODER, "encoder.", "student.vit."),
        **prefixed(HEAD, "encoder.", "student."),
        "prototypes": "prototypes",
    },
    architecture="SelfViTForPMSN",
    extras={r"\.num_batches_tracked$": "a counter of the batch norm, which selfvit's has not"},
    adapt=read_objective,
    license_note=LICENSE_NOTE,
    license_id=LICENSE_ID,
)
