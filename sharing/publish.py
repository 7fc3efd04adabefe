"""A checkpoint to the Hub: checked, then sent as one commit or one pull request."""

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
from .published_files import (
    RUN_FILE,
    PublishedFiles,
    choose_files,
    is_weight_file,
    strip_local_paths,
)

# How a card opens its folder: from_pretrained("my_model"), pipeline(..., model="my_model"),
# --model my_model. What has a slash is a name on the Hub already.
IN_PYTHON = re.compile(r"(from_pretrained\(|\bmodel=)([\"'])[^\"'/]+\2")
IN_SHELL = re.compile(r"--model ('[^'/]+'|[^\s/'\"`]+)(?=[\s`]|$)")
Operation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Publication:
    """What came of it.

    Args:
        repo_id: USER/NAME.
        url: of the commit, or of the pull request.
        commit: its hash.
        is_pull_request: whether it waits for somebody to merge it.
        sent: files of the checkpoint.
        left_out: what stayed in the folder.
    """

    repo_id: str
    url: str
    commit: str
    is_pull_request: bool
    sent: list[str]
    left_out: list[str]


@dataclass(frozen=True)
class Target:
    """Where to, and how.

    Args:
        repo_id: USER/NAME; made if it is not there.
        private: whether it has to be private.
        revision: branch, made if it is not there; None for main.
        create_pr: whether to open a pull request, instead of changing main.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False

    def __post_init__(self) -> None:
        check_repo_id(self.repo_id)
        if self.create_pr and self.revision is not None:
            raise ValueError(
                f"a pull request is opened against main, not {self.revision!r}; give one of "
                "--create-pr and --revision."
            )

    def command(self, folder: Path) -> str:
        """Return the command that publishes a folder there."""
        words = ["selfvit", "publish", str(folder), self.repo_id]
        words += ["--private"] * self.private + ["--create-pr"] * self.create_pr
        words += [] if self.revision is None else ["--revision", self.revision]
        return shlex.join(words)


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
    """Send a checkpoint to the Hub: model, processor, card, training.yaml, figures and pictures.

    It is one commit: whoever loads it meanwhile gets the old one or the new one, whole. Resumable
    states, logs and anything unknown stay at home. Large files that arrived are not sent again when
    it is repeated. The folder is only read.

    Without the right to push to main, a pull request is opened instead.

    Args:
        folder: of the checkpoint.
        repo_id: USER/NAME; made if it is not there.
        private: whether it has to be private.
        revision: branch, made if it is not there; None for main.
        create_pr: whether to open a pull request in any case.
        message: of the commit; "Upload CLASS" by default.
        include: more files to send, as patterns of paths in the folder.
        retries: how often to try again after the network or the Hub failed.

    Returns:
        The commit or pull request.

    Raises:
        FileNotFoundError: if the folder is not a whole checkpoint with a card.
        ValueError: if weights, metadata or an argument are not right; nothing is sent then.
        PermissionError: if the Hub does not accept the token, or the user has no right.
        ConnectionError: if network or Hub went on failing; nothing is committed then.
    """
    folder = Path(folder)
    target = Target(repo_id, private, revision, create_pr)
    if retries < 0:
        raise ValueError(f"retries ({retries}) must be 0 or more.")
    files = choose_files(folder, include)
    message = message or f"Upload {files.architecture}"
    try:
        return publish_files(folder, files, target, message, retries=retries)
    except Exception as error:
        if not is_transient(error):
            raise
        raise ConnectionError(
            f"{folder} was not published to {repo_id}: {error_message(error)}. The folder is as it "
            "was, and so is the repository, unless only its last answer was lost. Large files that "
            f"arrived are not sent again. Repeat: {target.command(folder)}"
        ) from error


def publish_files(
    folder: Path,
    files: PublishedFiles,
    target: Target,
    message: str,
    *,
    retries: int = RETRIES,
) -> Publication:
    """Send files of a folder that was checked; as `publish`, with the network's own errors.

    Args:
        folder: of the checkpoint.
        files: of it, as `choose_files` gives them.
        target: where to.
        message: of the commit.
        retries: how often to try again after the network or the Hub failed.
    """
    api = HfApi()
    user = _open(api, target, retries)
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
    """Make a repository if it is not there, and check that one may push to it.

    Ask before any work is done.

    Raises:
        PermissionError: if the Hub does not accept the token, or the user has no right.
        ValueError: if it has to be private, and is there and public.
        ConnectionError: if network or Hub went on failing.
    """
    api = HfApi()
    try:
        user = _open(api, target, RETRIES)
        check_may_push(api, target.repo_id, user)
    except Exception as error:
        if not is_transient(error):
            raise
        raise ConnectionError(f"{api.endpoint} cannot be asked: {error_message(error)}.") from error


def _open(api: HfApi, target: Target, retries: int) -> str:
    """Make the repository, if it is not there; return the user's name."""
    repo_id = target.repo_id
    user = retrying(lambda: signed_in(api), "signing in", retries)
    retrying(
        lambda: prepare_repository(api, repo_id, user, target.private), f"making {repo_id}", retries
    )
    return user


@dataclass(frozen=True)
class _Upload:
    """What goes where."""

    api: HfApi
    folder: Path
    files: PublishedFiles
    target: Target
    message: str
    retries: int

    def operations(self) -> list[Operation]:
        """Return what to add; and to delete: weights of an earlier upload that hide the new ones.

        transformers opens model.safetensors first, so it would prefer an old one to new shards.
        """
        there = self.api.list_repo_files(self.target.repo_id, revision=self.target.revision)
        stale = [path for path in there if is_weight_file(path) and path not in self.files.sent]
        return [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(path, self.content(path)) for path in self.files.sent),
        ]

    def content(self, path: str) -> Path | bytes:
        """Return a file; the card with the repository's name where it opens the folder by its own.

        `from_pretrained("my_model")` is of no use to who reads it on the Hub. The run is sent
        without the folders that its data lay in: they tell of a machine and its user.
        """
        if path == RUN_FILE:
            return strip_local_paths((self.folder / path).read_text(encoding="utf-8")).encode()
        if path != CARD:
            return self.folder / path
        text = (self.folder / path).read_text(encoding="utf-8")
        text = IN_PYTHON.sub(rf"\1\2{self.target.repo_id}\2", text)
        return IN_SHELL.sub(f"--model {self.target.repo_id}", text).encode()


def _send(upload: _Upload, user: str) -> CommitInfo:
    """Push; or propose, if that was asked for or there is no right to push to main."""
    ways = [_propose] if upload.target.create_pr else [_push, _propose]
    if upload.target.revision is not None:
        ways = [_push]
    for way in ways:
        try:
            return way(upload)
        except Exception as error:
            if not is_forbidden(error):
                raise
            refused = error
    raise PermissionError(
        f"you ({user}) may not publish to {upload.target.repo_id}: {error_message(refused)} Use a "
        "token with write access, or a repository of your own."
    ) from refused


def _push(upload: _Upload) -> CommitInfo:
    repo_id, revision = upload.target.repo_id, upload.target.revision

    def push() -> CommitInfo:
        if revision is not None and not revision.startswith("refs/pr/"):
            upload.api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Not upload_folder: with hf_xet installed it makes several commits of one folder.
        # Operations are made anew for each attempt: they remember what the Hub held at first.
        return upload.api.create_commit(
            repo_id, upload.operations(), commit_message=upload.message, revision=revision
        )

    return retrying(push, f"the upload to {repo_id}", upload.retries)


def _propose(upload: _Upload) -> CommitInfo:
    repo_id, operations = upload.target.repo_id, upload.operations()
    additions = [entry for entry in operations if isinstance(entry, CommitOperationAdd)]
    retrying(
        lambda: upload.api.preupload_lfs_files(repo_id, additions, create_pr=True),
        f"the upload to {repo_id}",
        upload.retries,
    )
    # once: where only the answer is lost, a second one would open a second pull request
    return upload.api.create_commit(
        repo_id, operations, commit_message=upload.message, create_pr=True
    )


__all__ = ["Publication", "Target", "check_target", "publish", "publish_files"]
