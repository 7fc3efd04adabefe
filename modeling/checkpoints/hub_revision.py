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


def download_revision(repo_id: str, revision: str) -> str:
    """Download the files of a checkpoint at a revision, and return their folder in the cache.

    With HF_HUB_OFFLINE set, they must already be in the cache.

    Raises:
        FileNotFoundError: If the repository or the revision does not exist.
    """
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


__all__ = ["download_revision", "split_revision"]
