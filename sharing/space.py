"""Publish a collection in the browser as a Space of the Hub."""

from __future__ import annotations

import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..data.sources import Data
from ..exploration.collection import Collection
from .hub_access import RETRIES, error_message, is_transient
from .publish import Publication, Target, publish_files
from .published_files import PublishedFiles
from .space_folder import MAX_IMAGES, SpaceFolder, write_space


@dataclass(frozen=True)
class PublishedSpace:
    """Result of `publish_space`.

    Args:
        publication: Commit or pull request.
        folder: Content of the Space.
        url: URL of the Space.
    """

    publication: Publication
    folder: SpaceFolder
    url: str


def publish_space(
    checkpoint: str | os.PathLike[str],
    vectors: str | os.PathLike[str] | Collection,
    repo_id: str,
    *,
    data: Data | None = None,
    max_images: int = MAX_IMAGES,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    retries: int = RETRIES,
) -> PublishedSpace:
    """Publish the app of `selfvit explore` with a small collection and its checkpoint as a Space.

    `write_space` writes the same folder without sending it. All files go into one commit; vectors,
    checkpoint and code of an earlier upload are replaced.

    Args:
        checkpoint: Checkpoint folder with a card, as for `publish`.
        vectors: Folder of vectors of this checkpoint, or the collection that was opened.
        repo_id: Name of the Space, USER/NAME; created if it does not exist.
        data: Place of the images; None for the one that the folder of vectors names.
        max_images: Maximum number of images, see `write_space`.
        private: Whether the Space must be private.
        revision: Branch, created if it does not exist; None for main.
        create_pr: Whether to open a pull request in any case.
        message: Message of the commit; "Upload N images" by default.
        retries: Maximum number of retries after a failure of the network or the Hub.

    Returns:
        The commit or pull request, and the content.

    Raises:
        FileNotFoundError: As in `write_space`.
        ValueError: As in `write_space`, or if an argument is invalid. Nothing is sent.
        PermissionError: If the Hub rejects the token, or the user lacks permission.
        ConnectionError: If the network or the Hub keeps failing. Nothing is committed.
    """
    target = Target(repo_id, private, revision, create_pr, repo_type="space")
    if retries < 0:
        raise ValueError(f"retries ({retries}) must be at least 0.")
    with tempfile.TemporaryDirectory(prefix="selfvit-space-") as place:
        folder = Path(place, "space")
        title = repo_id.partition("/")[2]
        written = write_space(
            checkpoint, vectors, folder, title=title, data=data, max_images=max_images
        )
        message = message or f"Upload {written.num_images:,} images"
        files = PublishedFiles("a Space", written.files, [])
        try:
            publication = publish_files(folder, files, target, message, retries=retries)
        except Exception as error:
            if not is_transient(error):
                raise
            command = _command(checkpoint, vectors, target, max_images)
            raise ConnectionError(
                f"the Space was not published to {repo_id}: {error_message(error)}. The "
                "repository is unchanged, unless only the last response was lost. To repeat, run: "
                f"{command}"
            ) from error
    return PublishedSpace(publication, written, _url(publication))


def _command(
    checkpoint: str | os.PathLike[str],
    vectors: str | os.PathLike[str] | Collection,
    target: Target,
    max_images: int,
) -> str:
    """Return the command line that publishes the same Space."""
    folder = vectors.folder if isinstance(vectors, Collection) else vectors
    words = ["selfvit", "publish", str(checkpoint), "--space", target.repo_id]
    words += ["--vectors", str(folder)]
    words += [] if max_images == MAX_IMAGES else ["--space-images", str(max_images)]
    return shlex.join([*words, *target.options()])


def _url(publication: Publication) -> str:
    """Return the URL of the repository, from that of a commit or pull request."""
    for part in ("/commit/", "/discussions/"):
        publication_url, found, _ = publication.url.partition(part)
        if found:
            return publication_url
    return publication.url


__all__ = ["PublishedSpace", "publish_space"]
