"""Publish a checkpoint on the Hub, as one commit or one pull request."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from .hub_access import (
    RETRIES,
    check_may_push,
    check_repo_id,
    error_message,
    is_forbidden,
    is_transient,
    prepare_repository,
    retrying,
    signed_in,
)
from .provenance import CARD
from .published_files import PublishedFiles, choose_files, is_weight_file, published_content

# Places where a card names its own folder: from_pretrained("my_model"), pipeline(model="my_model"),
# `selfvit embed my_model`, and --model my_model in older cards. A name with a slash is a Hub id.
IN_PYTHON = re.compile(r"(from_pretrained\(|\bmodel=)([\"'])[^\"'/]+\2")
IN_SHELL = re.compile(
    r"(--model |\bselfvit (?:embed|evaluate) )('[^'/]+'|[^\s/'\"`-][^\s/'\"`]*)(?=[\s`]|$)"
)
Operation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Publication:
    """Result of `publish`.

    Args:
        repo_id: Name of the repository, USER/NAME.
        url: URL of the commit or pull request.
        commit: Hash of the commit.
        is_pull_request: Whether a pull request was opened instead of a commit on the branch.
        sent: Published files.
        left_out: Files and folders that were not published.
    """

    repo_id: str
    url: str
    commit: str
    is_pull_request: bool
    sent: list[str]
    left_out: list[str]


@dataclass(frozen=True)
class Target:
    """Destination on the Hub.

    Args:
        repo_id: Name of the repository, USER/NAME; created if it does not exist.
        private: Whether the repository must be private.
        revision: Branch, created if it does not exist; None for main.
        create_pr: Whether to open a pull request instead of committing to main.
        repo_type: Kind of the repository: "space", or None for a model.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    repo_type: str | None = None

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)
        if self.create_pr and self.revision is not None:
            raise ValueError(
                f"--create-pr opens a pull request against main, not {self.revision!r}; use either "
                "--create-pr or --revision."
            )

    def command(self, folder: Path) -> str:
        """Return the command line that publishes a folder to this destination.

        Args:
            folder: Checkpoint folder.
        """
        return shlex.join(["selfvit", "publish", str(folder), self.repo_id, *self.options()])

    def options(self) -> list[str]:
        """Return the options of the command line besides the name of the repository."""
        words = ["--private"] * self.private + ["--create-pr"] * self.create_pr
        return words + ([] if self.revision is None else ["--revision", self.revision])


def publish(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    include: Sequence[str] = (),
    retries: int = RETRIES,
) -> Publication:
    """Publish a checkpoint on the Hub: model, processor, card, training.yaml, metrics and pictures.

    All files go into one commit, so a concurrent download gets the old or the new checkpoint
    completely. Optimizer states, logs and unknown files are not published. If the upload is
    repeated after a failure, large files that were already uploaded are not sent again. The folder
    is only read.

    If the user may not push to main, a pull request is opened instead.

    Args:
        folder: Checkpoint folder.
        repo_id: Name of the repository, USER/NAME; created if it does not exist.
        private: Whether the repository must be private.
        revision: Branch, created if it does not exist; None for main.
        create_pr: Whether to open a pull request in any case.
        message: Message of the commit; "Upload CLASS" by default.
        include: Patterns of further files to publish, relative to the folder.
        retries: Maximum number of retries after a failure of the network or the Hub.

    Returns:
        The commit or pull request.

    Raises:
        FileNotFoundError: If the folder is not a complete checkpoint with a card.
        ValueError: If weights, metadata or an argument are invalid. Nothing is sent.
        PermissionError: If the Hub rejects the token, or the user lacks permission.
        ConnectionError: If the network or the Hub keeps failing. Nothing is committed.
    """
    folder = Path(folder)
    target = Target(repo_id, private, revision, create_pr)
    if retries < 0:
        raise ValueError(f"retries ({retries}) must be at least 0.")
    files = choose_files(folder, include)
    message = message or f"Upload {files.architecture}"
    try:
        return publish_files(folder, files, target, message, retries=retries)
    except Exception as error:
        if not is_transient(error):
            raise
        raise ConnectionError(
            f"{folder} was not published to {repo_id}: {error_message(error)}. The folder is "
            "unchanged, and so is the repository, unless only the last response was lost. Large "
            "files that were uploaded are not sent again. To repeat, run: "
            f"{target.command(folder)}"
        ) from error


def publish_files(
    folder: Path,
    files: PublishedFiles,
    target: Target,
    message: str,
    *,
    retries: int = RETRIES,
) -> Publication:
    """Publish checked files of a folder. Unlike `publish`, network errors are raised unchanged.

    Args:
        folder: Checkpoint folder.
        files: Files to publish, from `choose_files`.
        target: Destination on the Hub.
        message: Message of the commit.
        retries: Maximum number of retries after a failure of the network or the Hub.

    Returns:
        The commit or pull request.
    """
    api = HfApi()
    user = _open_repository(api, target, retries)
    info = _send(_Upload(api, folder, files, target, message, retries), user)
    return Publication(
        repo_id=target.repo_id,
        url=info.pr_url or info.commit_url,
        commit=info.oid,
        is_pull_request=info.pr_url is not None,
        sent=files.sent,
        left_out=files.left_out,
    )


def check_target(target: Target) -> None:
    """Create the repository if it does not exist, and check that the user may push to it.

    Call this before a long run that publishes at its end.

    Args:
        target: Destination on the Hub.

    Raises:
        PermissionError: If the Hub rejects the token, or the user lacks permission.
        ValueError: If the repository must be private, but exists and is public.
        ConnectionError: If the network or the Hub keeps failing.
    """
    api = HfApi()
    try:
        user = _open_repository(api, target, RETRIES)
        check_may_push(api, target.repo_id, user, target.repo_type)
    except Exception as error:
        if not is_transient(error):
            raise
        raise ConnectionError(
            f"{api.endpoint} cannot be reached: {error_message(error)}; try again later."
        ) from error


def _open_repository(api: HfApi, target: Target, retries: int) -> str:
    """Create the repository if it does not exist, and return the name of the user."""
    repo_id = target.repo_id
    user = retrying(lambda: signed_in(api), "signing in", retries)
    retrying(
        lambda: prepare_repository(api, repo_id, user, target.private, target.repo_type),
        f"creating {repo_id}",
        retries,
    )
    return user


@dataclass(frozen=True)
class _Upload:
    """Files to publish and their destination."""

    api: HfApi
    folder: Path
    files: PublishedFiles
    target: Target
    message: str
    retries: int

    def operations(self) -> list[Operation]:
        """Return the files to add, and outdated files of an earlier upload to delete.

        transformers prefers model.safetensors, so an old one would hide new shards. Of a Space, the
        folders that are sent are replaced as a whole.
        """
        target = self.target
        uploaded = self.api.list_repo_files(
            target.repo_id, revision=target.revision, repo_type=target.repo_type
        )
        stale = [path for path in uploaded if self._is_own(path) and path not in self.files.sent]
        return [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(path, self.content(path)) for path in self.files.sent),
        ]

    def _is_own(self, path: str) -> bool:
        """Return whether an upload would have written a file of the repository."""
        if self.target.repo_type != "space":
            return is_weight_file(path)
        folders = {name.partition("/")[0] for name in self.files.sent if "/" in name}
        return path.partition("/")[0] in folders

    def content(self, path: str) -> Path | bytes:
        """Return a file to upload, or the adapted text of card, training.yaml and config.json.

        The card names the repository instead of the local folder, so that its code works for a
        reader on the Hub. Local paths in training.yaml and config.json are private, so they are
        shortened.
        """
        if self.target.repo_type == "space":  # whose writer has adapted them
            return self.folder / path
        if path != CARD:
            return published_content(self.folder / path)
        text = (self.folder / path).read_text(encoding="utf-8")
        repo_id = self.target.repo_id
        # functions, as a digit at the start of the name would become part of a group reference
        text = IN_PYTHON.sub(lambda found: f"{found[1]}{found[2]}{repo_id}{found[2]}", text)
        return IN_SHELL.sub(lambda found: f"{found[1]}{repo_id}", text).encode()


def _send(upload: _Upload, user: str) -> CommitInfo:
    """Commit to the branch; open a pull request on request or without write access to main."""
    methods = [_open_pull_request] if upload.target.create_pr else [_commit, _open_pull_request]
    if upload.target.revision is not None:
        methods = [_commit]
    for method in methods:
        try:
            return method(upload)
        except Exception as error:
            if not is_forbidden(error):
                raise
            refused = error
    raise PermissionError(
        f"you ({user}) may not publish to {upload.target.repo_id}: {error_message(refused)} Use a "
        "token with write access, or a repository of your own."
    ) from refused


def _commit(upload: _Upload) -> CommitInfo:
    repo_id, revision = upload.target.repo_id, upload.target.revision

    def commit() -> CommitInfo:
        if revision is not None and not revision.startswith("refs/pr/"):
            upload.api.create_branch(
                repo_id, branch=revision, exist_ok=True, repo_type=upload.target.repo_type
            )
        # upload_folder would make several commits if hf_xet is installed.
        # Each attempt builds new operations, because they cache the state of the repository.
        return upload.api.create_commit(
            repo_id,
            upload.operations(),
            commit_message=upload.message,
            revision=revision,
            repo_type=upload.target.repo_type,
        )

    return retrying(commit, f"the upload to {repo_id}", upload.retries)


def _open_pull_request(upload: _Upload) -> CommitInfo:
    repo_id, operations = upload.target.repo_id, upload.operations()
    additions = [entry for entry in operations if isinstance(entry, CommitOperationAdd)]
    retrying(
        lambda: upload.api.preupload_lfs_files(
            repo_id, additions, create_pr=True, repo_type=upload.target.repo_type
        ),
        f"the upload to {repo_id}",
        upload.retries,
    )
    # not retried: if only the response was lost, a retry would open a second pull request
    return upload.api.create_commit(
        repo_id,
        operations,
        commit_message=upload.message,
        create_pr=True,
        repo_type=upload.target.repo_type,
    )


__all__ = ["Publication", "Target", "check_target", "publish", "publish_files"]
