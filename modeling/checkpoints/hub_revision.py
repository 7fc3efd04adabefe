"""Checkpoints on the Hub at a branch, tag or commit: USER/NAME@REVISION."""

from __future__ import annotations

import os
import re

from huggingface_hub import snapshot_download
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

AT_REVISION = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)@(?P<revision>[^@\s]+)")
# Files that a model and its image processor are read from, and the card, which names the license.
DOWNLOADED = ("*.json", "*.safetensors", REPOCARD_NAME)


def split_revision(checkpoint: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return ("USER/NAME", "REVISION") of USER/NAME@REVISION, or the unchanged name and None."""
    name = str(checkpoint)
    match = AT_REVISION.fullmatch(name)
    if match is None or os.path.exists(name):
        return name, None
    return match["repo_id"], match["revision"]


def resolve_checkpoint(checkpoint: str | os.PathLike[str]) -> str:
    """Return a folder or Hub id that `from_pretrained` opens, and download a named revision.

    transformers takes the revision as a separate argument of each call. An option of a command or a
    line of training.yaml is one value, so it contains the revision.

    Args:
        checkpoint: Folder, Hub id, or USER/NAME@REVISION.

    Returns:
        For USER/NAME@REVISION, the folder in the cache with the downloaded files. With
        HF_HUB_OFFLINE set, it must already be in the cache. Other names are returned unchanged.

    Raises:
        FileNotFoundError: If the repository or the revision does not exist.
    """
    repo_id, revision = split_revision(checkpoint)
    if revision is None:
        return repo_id
    try:
        return snapshot_download(repo_id, revision=revision, allow_patterns=list(DOWNLOADED))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} has no branch, tag or commit {revision!r}; look up its revisions on the "
            "Hub."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no repository {repo_id} on the Hub that you can access. If it is private, "
            "run `hf auth login` or set HF_TOKEN."
        ) from error


__all__ = ["resolve_checkpoint", "split_revision"]
