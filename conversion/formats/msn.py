"""facebookresearch/msn: full checkpoints with `encoder`, `target_encoder` and `prototypes`."""

from __future__ import annotations

from ..key_mapping import KeyMapping, add_prefixes
from ..weight_format import Draft, WeightFormat
from .timm import ENCODER

LICENSE_ID = "cc-by-nc-4.0"
LICENSE_NOTE = (
    "MSN's published weights are CC BY-NC 4.0; if the source is one of them, so is the result"
)

HEAD: KeyMapping = {
    "fc.fc#.*": "head.fc#.*",
    "fc.bn#.*": "head.norm#.*",
    "fc.bn#.running_mean": "head.norm#.running_mean",
    "fc.bn#.running_var": "head.norm#.running_var",
}


def read_objective(draft: Draft) -> None:
    """Infer the size of the head, and fold the biases before its batch norms.

    The head of `SelfViTForPMSN` has no bias before its batch norms. The bias is subtracted from the
    running mean, so that the head gives the same output in evaluation. In training, batch norm
    cancels such a bias.
    """
    weights = draft.weights
    if not any("norm1" in name or "norm2" in name for name in weights if "head." in name):
        _keep_target_encoder(draft)
        return
    required = ["prototypes"] + [
        f"{network}head.{norm}.running_mean"
        for network in ("", "student.")
        for norm in ("norm1", "norm2")
    ]
    draft.check_weights(required)
    if weights["prototypes"].dim() != 2:
        shape = tuple(weights["prototypes"].shape)
        raise ValueError(f"prototypes must have the shape (number, width), got {shape}.")
    for network in ("", "student."):
        for index in (1, 2):
            bias, mean = f"{network}head.fc{index}.bias", f"{network}head.norm{index}.running_mean"
            if bias in weights:
                weights[mean] = weights[mean] - weights.pop(bias)
    num_prototypes, width = weights["prototypes"].shape
    objective = {
        "prior": "uniform",  # MSN is PMSN with a uniform prior
        "num_prototypes": num_prototypes,
        "head_hidden_size": len(weights["head.norm1.running_mean"]),
        "head_output_size": width,
    }
    draft.set_field("pmsn_config", objective, "weights; loss settings by convention")


def _keep_target_encoder(draft: Draft) -> None:
    draft.architecture = "SelfViTModel"
    draft.kind = "facebookresearch/msn, target encoder"
    draft.leave_out(
        r"(student\.|head\.|prototypes$)",
        "part of the objective; SelfViTForPMSN needs a head with batch norm, and prototypes",
    )


FORMAT = WeightFormat(
    name="facebookresearch/msn checkpoint (encoder, target encoder, heads, prototypes)",
    key_mapping={
        **add_prefixes(ENCODER, "target_encoder.", "vit."),
        **add_prefixes(HEAD, "target_encoder.", ""),
        **add_prefixes(ENCODER, "encoder.", "student.vit."),
        **add_prefixes(HEAD, "encoder.", "student."),
        "prototypes": "prototypes",
    },
    architecture="SelfViTForPMSN",
    extras={r"\.num_batches_tracked$": "a batch norm counter, which selfvit does not have"},
    adapt=read_objective,
    license_note=LICENSE_NOTE,
    license_id=LICENSE_ID,
)
