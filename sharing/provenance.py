"""What a checkpoint was made from: its base model and its license, which travel with the weights.

Both stand in the metadata of a checkpoint's card (README.md), as the Hub reads them; a converted
folder has them in conversion.json, too. A checkpoint that is trained further hands them on.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import cached_file

from ..data.sources import HUB_ID
from ..modeling.checkpoints.hub_revision import resolve_checkpoint, split_revision

CARD, CONVERSION = "README.md", "conversion.json"

# Terms that a work made from another may drop: they ask for the notice to be kept, at most.
PERMISSIVE = {
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "etalab-2.0", "isc", "mit",
    "ms-pl", "ncsa", "odc-by", "openmdw-1.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
# What the Hub knows (huggingface.co/docs/hub/repositories-licenses, as of November 2026).
LICENSES = PERMISSIVE | {
    "agpl-3.0", "apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "cc", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "deepfloyd-if-license", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2",
    "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "h-research", "intel-research", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mpl-2.0", "odbl", "ofl-1.1",
    "openrail", "openrail++", "osl-3.0", "other", "unknown",
}  # fmt: skip
TERMS = {"nc": "no commercial use", "nd": "no derived works", "sa": "the same license"}


@dataclass(frozen=True)
class Provenance:
    """What is known of the origin of weights.

    Args:
        license: as the Hub writes it ("cc-by-nc-4.0"), or None where it is not known.
        license_name: of a license that is `other`.
        license_link: to its text.
        base_model: Hub id of what the weights were made from, or None.
        origin: what says so, in words: "the card of mae_vitb"; "" where nothing does.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    origin: str = ""


def hub_id(name: str | os.PathLike[str]) -> str | None:
    """Return a name without @REVISION if it is that of a repository; None for a path here."""
    repo_id, _ = split_revision(name)
    is_here = Path(name).expanduser().exists()
    return None if is_here or HUB_ID.fullmatch(repo_id) is None else repo_id


def display_name(name: str | os.PathLike[str]) -> str:
    """Return a Hub id as it is, and of a path its last part: the folders above are private."""
    return hub_id(name) or Path(os.path.abspath(Path(name).expanduser())).name


def read_provenance(checkpoint: str | os.PathLike[str]) -> Provenance:
    """Read what the card of a checkpoint, or of a folder of weights, says of its origin.

    Args:
        checkpoint: folder, Hub id or USER/NAME@REVISION. One of the Hub is a base model itself.

    Raises:
        ValueError: if the card's metadata cannot be read: a license could be lost by that.
    """
    opened = resolve_checkpoint(checkpoint)
    card = _card_of(opened)
    license, where = _one_license(card.license), f"the card of {display_name(checkpoint)}"
    conversion = Path(opened) / CONVERSION
    if license is None and conversion.is_file():
        license = json.loads(conversion.read_text(encoding="utf-8")).get("license")
        where = f"{CONVERSION} of {display_name(checkpoint)}"
    return Provenance(
        license=license,
        license_name=card.license_name,
        license_link=card.license_link,
        base_model=hub_id(checkpoint) or _one_name(card.base_model),
        origin=where if license else "",
    )


def derived_provenance(
    started_from: str | os.PathLike[str] | None, license: str | None = None
) -> Provenance:
    """Return the provenance of a checkpoint that is made from another, or from nothing.

    Args:
        started_from: folder or Hub id, or None.
        license: that its owner asks for, as the Hub writes it; that of `started_from` if None.

    Raises:
        ValueError: if the Hub knows no such license, or that of `started_from` forbids it.
    """
    if license is not None and license not in LICENSES:
        close = difflib.get_close_matches(license.lower(), LICENSES, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "'other' stands for any other one."
        raise ValueError(f"license ({license!r}) is none that the Hub knows; {hint}")
    source = Provenance() if started_from is None else read_provenance(started_from)
    if license is None or license == source.license:
        return source
    if source.license is not None and not _may_become(source.license, license):
        terms = [text for part, text in TERMS.items() if part in source.license.split("-")]
        which = f" ({', '.join(terms)})" if terms else ""
        raise ValueError(
            f"license ({license!r}) cannot be given to weights that start from "
            f"{display_name(started_from or '')}: by {source.origin} they are under "
            f"{source.license}, and its terms{which} travel with every checkpoint made from them. "
            f"Leave license out to hand on {source.license}, or start from other weights. (If that "
            f"card is wrong about its weights, correct it first.)"
        )
    return Provenance(license, base_model=source.base_model, origin="the owner of the checkpoint")


def _may_become(source: str, license: str) -> bool:
    """Whether works made from what is under one license may be under another.

    A license that is not permissive is kept. Creative Commons may become another of Creative
    Commons that has all its terms, unless it asks for the very same.
    """
    if source in PERMISSIVE:
        return True
    terms = TERMS.keys() & source.split("-")
    both_cc = source.startswith("cc-by-") and license.startswith("cc-by-")
    return both_cc and terms <= set(license.split("-")) and not terms & {"sa", "nd"}


def _card_of(checkpoint: str | os.PathLike[str]) -> ModelCardData:
    path = cached_file(
        checkpoint,
        CARD,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return ModelCardData()
    try:
        return ModelCard.load(Path(path), ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"the metadata of {path} cannot be read ({type(error).__name__}), so nobody could know "
            "the license of these weights; correct the file, or take it away."
        ) from error


def _one_license(stored: Any) -> str | None:
    """Return the license of a card's metadata; of several the one that asks for more."""
    names = [str(name).lower() for name in (stored if isinstance(stored, list) else [stored])]
    known = [name for name in names if name not in ("none", "unknown")]
    return min(known, key=lambda name: name in PERMISSIVE, default=None)


def _one_name(stored: Any) -> str | None:
    names = stored if isinstance(stored, list) else [stored]
    return next((name for name in names if name and HUB_ID.fullmatch(str(name))), None)


__all__ = ["CARD", "Provenance", "derived_provenance", "hub_id", "read_provenance", "display_name"]
