"""License and base model of a checkpoint, which carry over to every checkpoint made from it.

Both are stored in the metadata of the model card (README.md), where the Hub reads them. A converted
checkpoint also has them in conversion.json. Training copies them to the new checkpoint.
"""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from transformers.utils import cached_file

from ..data.sources import HUB_ID
from ..modeling.checkpoints.hub_revision import split_revision
from ..modeling.checkpoints.resolve import resolve_checkpoint

CARD, CONVERSION = REPOCARD_NAME, "conversion.json"
EXPORT_FILE = "selfvit_export.json"  # in every export

# Licenses that allow other terms for derived works. At most they require to keep the notice.
PERMISSIVE = {
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "etalab-2.0", "isc", "mit",
    "ms-pl", "ncsa", "odc-by", "openmdw-1.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
# Licenses known to the Hub (huggingface.co/docs/hub/repositories-licenses, as of November 2026).
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
OTHER = "other"  # a license that is identified by its name
TERMS = {"nc": "no commercial use", "nd": "no derived works", "sa": "the same license"}


@dataclass(frozen=True)
class Provenance:
    """License and base model of weights.

    Args:
        license: Hub identifier of the license, for example "cc-by-nc-4.0", or None if unknown.
        license_name: Name of the license if `license` is "other".
        license_link: Link to the text of the license if `license` is "other".
        base_model: Hub id of the model that the weights were made from, or None.
        origin: Source of the license in words, for example "the card of mae_vitb", or "".
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    origin: str = ""


def hub_id(name: str | os.PathLike[str]) -> str | None:
    """Return the repository id without @REVISION, or None if the name is a local path.

    Args:
        name: Local path, USER/NAME or USER/NAME@REVISION.
    """
    repo_id, _ = split_revision(name)
    is_local = Path(name).expanduser().exists()
    return None if is_local or HUB_ID.fullmatch(repo_id) is None else repo_id


def display_name(name: str | os.PathLike[str]) -> str:
    """Return a name that may be published: a Hub id, or the last part of a local path.

    Args:
        name: Local path, USER/NAME or USER/NAME@REVISION.
    """
    return hub_id(name) or Path(os.path.abspath(Path(name).expanduser())).name


def read_provenance(checkpoint: str | os.PathLike[str]) -> Provenance:
    """Read license and base model from the card of a checkpoint.

    Args:
        checkpoint: Folder, Hub id or USER/NAME@REVISION, also of other weights, as in
            `resolve_checkpoint`. A Hub checkpoint is its own base model.

    Raises:
        ValueError: If the metadata of the card cannot be read, since a license could be lost.
    """
    return provenance_of(resolve_checkpoint(checkpoint), checkpoint)


def provenance_of(opened: str | os.PathLike[str], name: str | os.PathLike[str]) -> Provenance:
    """Read license and base model from the card of a folder of weights or of a Hub repository.

    Args:
        opened: Folder, or Hub id.
        name: Name that the user gave: the same, USER/NAME@REVISION, or the source of a conversion.

    Raises:
        ValueError: As in `read_provenance`.
    """
    card = _card_of(str(opened))
    license, where = _one_license(card.license), f"the card of {display_name(name)}"
    license_name, license_link = card.license_name, card.license_link
    conversion = Path(opened) / CONVERSION
    if license is None and conversion.is_file():
        stored = json.loads(conversion.read_text(encoding="utf-8"))
        license, where = stored.get("license"), f"{CONVERSION} of {display_name(name)}"
        license_name, license_link = stored.get("license_name"), stored.get("license_link")
    return Provenance(
        license=license,
        license_name=license_name,
        license_link=license_link,
        base_model=hub_id(name) or _one_name(card.base_model),
        origin=where if license else "",
    )


def read_exported_provenance(file: Path) -> Provenance:
    """Read license and base model from the file that an export records them in.

    Args:
        file: `EXPORT_FILE` of a folder.

    Raises:
        ValueError: If it is not valid JSON, since a license could be lost.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} must be valid JSON, since it states the license of the weights ({error}); "
            "correct the file, or remove it."
        ) from error
    license = stored.get("license")
    return Provenance(
        license=license,
        license_name=stored.get("license_name"),
        license_link=stored.get("license_link"),
        base_model=stored.get("base_model"),
        origin=f"{file.name} of {display_name(file.parent)}" if license else "",
    )


def derived_provenance(
    started_from: str | os.PathLike[str] | None,
    license: str | None = None,
    teacher: str | None = None,
) -> Provenance:
    """Return the provenance of a new checkpoint.

    Args:
        started_from: Folder or Hub id of the initial weights, or None for random weights.
        license: Hub identifier of the license to use, or None for the license of `started_from` and
            `teacher`.
        teacher: Folder or Hub id of the teacher of a distillation, or None.

    Raises:
        ValueError: If the Hub does not know the license, or if the license of `started_from` or
            `teacher` forbids it.
    """
    if license is not None and license not in LICENSES:
        close = difflib.get_close_matches(license.lower(), LICENSES, n=3)
        hint = (
            f"did you mean {', '.join(close)}?" if close else "use 'other' for any other license."
        )
        raise ValueError(f"license ({license!r}) must be an identifier that the Hub knows; {hint}")
    sources = {}
    if started_from is not None:
        sources[f"the initial weights {display_name(started_from)}"] = read_provenance(started_from)
    if teacher is not None:  # as it is: nothing is converted
        opened, _ = split_revision(teacher)
        sources[f"the teacher {display_name(teacher)}"] = provenance_of(opened, teacher)
    for kind, source in sources.items():
        if license is not None:
            _check_license(license, kind, source)
    inherited = Provenance()
    for kind, source in sources.items():
        inherited = _stricter(inherited, source, kind)
    if license is None or license == inherited.license:
        return inherited
    return Provenance(
        license, base_model=inherited.base_model, origin="the owner of the checkpoint"
    )


def _check_license(license: str, kind: str, source: Provenance) -> None:
    """Check that a license satisfies the one of the weights that a checkpoint is made from."""
    if source.license in (None, license) or _may_become(str(source.license), license):
        return
    terms = [text for part, text in TERMS.items() if part in str(source.license).split("-")]
    listed = f" ({', '.join(terms)})" if terms else ""
    raise ValueError(
        f"license ({license!r}) does not satisfy the license of {kind}: {source.origin} states "
        f"{source.license}, and its terms{listed} apply to every checkpoint made from them. Omit "
        f"--license to keep {source.license}, or start from other weights. If that statement is "
        "wrong, correct it first."
    )


def _stricter(first: Provenance, second: Provenance, kind: str) -> Provenance:
    """Return the provenance of weights made from two others, whose license satisfies both.

    Raises:
        ValueError: If neither of the two licenses satisfies the other.
    """
    base_model = first.base_model or second.base_model
    licenses = first.license, second.license
    if second.license is None or _is_same_license(first, second):
        return replace(first, base_model=base_model)
    if first.license is None or _may_become(*licenses):  # type: ignore[arg-type]
        return replace(second, base_model=base_model)
    if _may_become(second.license, first.license):
        return replace(first, base_model=base_model)
    stated, other_stated = (
        ", ".join(filter(None, (*_terms(source), source.origin))) for source in (first, second)
    )
    raise ValueError(
        f"the license of the initial weights ({stated}) and that of {kind} ({other_stated}) "
        "contradict each other; choose others. If a statement is wrong, correct it first."
    )


def _is_same_license(first: Provenance, second: Provenance) -> bool:
    """Return whether two licenses are the same; "other" can be any, and has a name and a link."""
    if first.license == OTHER:
        return _terms(first) == _terms(second)
    return first.license == second.license


def _terms(source: Provenance) -> tuple[str | None, str | None, str | None]:
    return source.license, source.license_name, source.license_link


def _may_become(source: str, license: str) -> bool:
    """Return whether a work derived from one under license `source` may have license `license`.

    Permissive licenses allow any other. A Creative Commons license may become another one that
    includes all its terms, except for share-alike and no-derivatives. Others must be kept.
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
            f"the metadata of {path} must be readable, since it states the license of the weights "
            f"({type(error).__name__}); correct the file, or remove it."
        ) from error


def _one_license(stored: Any) -> str | None:
    """Return the license in the metadata of a card; of several, the most restrictive one."""
    names = [str(name).lower() for name in (stored if isinstance(stored, list) else [stored])]
    known = [name for name in names if name not in ("none", "unknown")]
    return min(known, key=lambda name: name in PERMISSIVE, default=None)


def _one_name(stored: Any) -> str | None:
    names = stored if isinstance(stored, list) else [stored]
    return next((name for name in names if name and HUB_ID.fullmatch(str(name))), None)


__all__ = [
    "CARD",
    "CONVERSION",
    "EXPORT_FILE",
    "LICENSES",
    "OTHER",
    "Provenance",
    "derived_provenance",
    "display_name",
    "hub_id",
    "provenance_of",
    "read_exported_provenance",
    "read_provenance",
]
