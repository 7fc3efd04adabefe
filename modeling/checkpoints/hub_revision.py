"""USER/NAME@REVISION: a checkpoint on the Hub as it was at a branch, a tag or a commit."""

from __future__ import annotations

import os
import re

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

AT_REVISION = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)@(?P<revision>[^@\s]+)")
# What a model and its image processor are read from, and the card, which says the license.
OPENED = ("*.json", "*.safetensors", "README.md")


def split_revision(checkpoint: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return ("USER/NAME", "REVISION") of USER/NAME@REVISION; anything else whole, and None."""
    name = str(checkpoint)
    match = AT_REVISION.fullmatch(name)
    if match is None or os.path.exists(name):
        return name, None
    return match["repo_id"], match["revision"]


def resolve_checkpoint(checkpoint: str | os.PathLike[str]) -> str:
    """Return what `from_pretrained` opens: a folder as it is, a Hub id as it is, or a download.

    transformers takes a revision beside the name, in each of its calls. Where a checkpoint is one
    value (an option of a command, a line of training.yaml) the revision is part of it.

    Args:
        checkpoint: folder, Hub id, or USER/NAME@REVISION.

    Returns:
        for USER/NAME@REVISION the folder in the cache that it was downloaded to, or with
        HF_HUB_OFFLINE found in; anything else unchanged.

    Raises:
        FileNotFoundError: if there is no such repository or revision.
    """
    repo_id, revision = split_revision(checkpoint)
    if revision is None:
        return repo_id
    try:
        return snapshot_download(repo_id, revision=revision, allow_patterns=list(OPENED))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} has no branch, tag or commit {revision!r}; see its files on the Hub."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no repository {repo_id} on the Hub that you can see. If it is private, run "
            "`hf auth login` or set HF_TOKEN."
        ) from error


__all__ = ["resolve_checkpoint", "split_revision"]
