"""In-memory repository of the Hub: commits on branches and pull requests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class StoredFile:
    """File of a commit.

    Args:
        content: Content of the file.
        sha256: SHA-256 hash in hexadecimal if the file is in LFS; None for a regular file.
    """

    content: bytes
    sha256: str | None = None

    @property
    def git_sha(self) -> str:
        """Hash of the content in git."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Hash of the content on the Hub."""
        return self.sha256 or self.git_sha


Files = dict[str, StoredFile]  # by path


@dataclass(frozen=True)
class Commit:
    """Commit with its message and all files of the repository after it."""

    sha: str
    message: str
    files: Files


class MissingObjectError(Exception):
    """Commit that refers to an LFS object that was not uploaded."""


@dataclass
class Repository:
    """Branches and pull requests with their commits.

    Args:
        owner: User with write access.
        private: Whether only the owner has read access.
        refs: Commits of each branch and pull request, oldest first.
    """

    owner: str
    private: bool = False
    refs: dict[str, list[Commit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attributes = {".gitattributes": StoredFile(GIT_ATTRIBUTES)}
        self.refs["refs/heads/main"] = [_commit("initial commit", attributes, 0)]

    @property
    def main(self) -> Commit:
        """Newest commit of main."""
        return self.refs["refs/heads/main"][-1]

    @property
    def branches(self) -> list[str]:
        """Names of the branches."""
        return [name.removeprefix("refs/heads/") for name in self.refs if "/heads/" in name]

    @property
    def pull_requests(self) -> list[str]:
        """Names of the pull requests: refs/pr/1, ..."""
        return [name for name in self.refs if name.startswith("refs/pr/")]

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, pull request or hash, or None if it does not exist."""
        for name in (f"refs/heads/{revision}", revision):
            if name in self.refs:
                return self.refs[name][-1]
        commits = (commit for history in self.refs.values() for commit in history)
        return next((commit for commit in commits if commit.sha == revision), None)

    def branch(self, name: str, start: str = "main") -> bool:
        """Create a branch; return False if it exists or its start does not."""
        commit = self.at(start)
        if f"refs/heads/{name}" in self.refs or commit is None:
            return False
        self.refs[f"refs/heads/{name}"] = [commit]
        return True

    def open_pull_request(self) -> str:
        """Open a pull request that starts at main; return its name."""
        name = f"refs/pr/{len(self.pull_requests) + 1}"
        self.refs[name] = [self.main]
        return name

    def apply(self, revision: str, payload: bytes, lfs: Mapping[str, bytes]) -> Commit:
        """Add a commit.

        Args:
            revision: Branch or pull request to commit to.
            payload: Lines of JSON that the client sends.
            lfs: Uploaded LFS objects by SHA-256 hash.

        Raises:
            MissingObjectError: If an LFS object was not uploaded; nothing is committed then.
        """
        name = revision if revision in self.refs else f"refs/heads/{revision}"
        files, message = dict(self.refs[name][-1].files), ""
        for line in payload.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in lfs:
                    raise MissingObjectError(f"{value['path']} was not uploaded")
                files[value["path"]] = StoredFile(lfs[value["oid"]], value["oid"])
            elif key == "deletedFile":
                del files[value["path"]]
        number = sum(len(history) for history in self.refs.values())
        self.refs[name].append(_commit(message, files, number))
        return self.refs[name][-1]


def _commit(message: str, files: Files, number: int) -> Commit:
    digest = hashlib.sha1(f"{number}{message}".encode())
    for path, file in sorted(files.items()):
        digest.update(f"{path}{file.oid}".encode())
    return Commit(digest.hexdigest(), message, files)
