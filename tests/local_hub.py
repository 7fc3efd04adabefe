"""Local Hugging Face Hub on 127.0.0.1: repositories, LFS uploads, commits, downloads, and faults.

It implements the requests that `huggingface_hub` sends; the real Hub may behave differently. Every
client runs in its own process with `LocalHub.environment`, because the library reads its
environment only when it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs

from .hub_repository import Commit, MissingObjectError, Repository
from .hub_requests import TOKEN, HubRequestHandler, HubServer, Request, Route

REGULAR = (".json", ".md", ".py", ".txt", ".gitattributes", ".yaml", ".yml", ".png")


class Handler(HubRequestHandler):
    """Endpoints of the Hub."""

    # --- accounts and repositories

    def whoami(self) -> None:
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        self.send_json({"type": "user", "name": self.user, "orgs": [], "auth": auth})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        if "license: nonsense" in content:
            error = {"message": '"license" must be one of [apache-2.0, ...]'}
            self.send_json({"errors": [error], "warnings": []}, 400)
        else:
            self.send_json({"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user
        repo_id = f"{owner}/{asked['name']}"
        kind = asked.get("type", "model")
        if kind == "space" and not asked.get("sdk"):
            self.error(400, "BadRequest", "a Space needs an sdk")
            return
        repo = repo_id if kind == "model" else f"{kind}s/{repo_id}"
        if owner != self.user:
            message = f"You don't have the rights to create a model under the namespace {owner!r}."
            self.error(403, "Forbidden", message)
            return
        address = {"url": f"{self.server.url}/{repo}", "id": repo_id, "name": repo_id}
        if repo in self.server.repositories:
            self.send_json({"error": "You already created this repo", **address}, 409)
            return
        private = asked.get("visibility") == "private"
        self.server.repositories[repo] = Repository(owner, private)
        self.send_json(address)

    def may_write(self, repo: str) -> None:
        self.send_json({})

    def info(self, repo: str, revision: str = "main") -> None:
        commit = self.commit_at(repo, revision)
        if commit is not None:
            repo_id = "/".join(repo.split("/")[-2:])
            self.send_json(
                {
                    "id": repo_id,
                    "modelId": repo_id,
                    "sha": commit.sha,
                    "private": self.repository(repo).private,
                    "tags": [],
                    "siblings": [{"rfilename": path} for path in sorted(commit.files)],
                }
            )

    def create_branch(self, repo: str, branch: str) -> None:
        start = json.loads(self.body).get("startingPoint", "main")
        if self.repository(repo).branch(branch, start):
            self.send_json({})
        else:
            self.error(409, "Conflict", "Reference already exists")

    # --- uploads

    def preupload(self, repo: str, revision: str) -> None:
        commit = self.commit_at(repo, revision)
        if commit is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            stored = commit.files.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "regular" if file["path"].endswith(REGULAR) else "lfs",
                    "shouldIgnore": False,
                    "oid": None if stored is None else stored.oid,
                }
            )
        self.send_json({"files": answers})

    def lfs_batch(self, repo: str) -> None:
        asked = json.loads(self.body)
        if "ref" in asked and self.user != self.repository(repo).owner:  # a pull request has no ref
            self.error(403, "Forbidden", "Authorization error.")
            return
        objects = []
        for entry in asked["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{entry['oid']}"}
            verify = {"href": f"{self.server.url}/lfs-verify/{entry['oid']}"}
            missing = entry["oid"] not in self.server.lfs
            actions = {"actions": {"upload": upload, "verify": verify}} if missing else {}
            objects.append({**entry, **actions})
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.error(400, "BadDigest", "the content does not have this sha256")
            return
        self.server.lfs[oid] = self.body
        self.send(200, b"")

    def lfs_verify(self, oid: str) -> None:
        self.send_json({}, 200 if oid in self.server.lfs else 404)

    def commit(self, repo: str, revision: str) -> None:
        repository = self.repository(repo)
        if self.commit_at(repo, revision) is None:
            return
        proposes = "create_pr" in self.query
        ref = repository.open_pull_request() if proposes else revision
        try:
            commit = repository.apply(ref, self.body, self.server.lfs)
        except MissingObjectError as error:
            self.error(400, "MissingLfs", str(error))
            return
        address = f"{self.server.url}/{repo}"
        number = ref.rpartition("/")[2]
        answer = {"success": True, "commitOid": commit.sha, "hookOutput": ""}
        answer["commitUrl"] = f"{address}/commit/{commit.sha}"
        if proposes:
            answer |= {"pullRequestUrl": f"{address}/discussions/{number}"}
        self.send_json(answer)

    # --- downloads

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        commit = self.commit_at(repo, revision)
        if commit is None:
            return
        everything = _entries(commit)
        within = f"{folder}/" if folder else ""
        entries = [entry for path, entry in everything.items() if path.startswith(within)]
        if "recursive" not in self.query or self.query["recursive"] == ["False"]:
            depth = within.count("/")
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        if not entries:
            self.error(404, "EntryNotFound", f"{folder} does not exist")
            return
        self.send_json(entries)

    def paths_info(self, repo: str, revision: str) -> None:
        commit = self.commit_at(repo, revision)
        if commit is not None:
            asked = parse_qs(self.body.decode())["paths"]
            everything = _entries(commit)
            self.send_json([everything[path] for path in asked if path in everything])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.commit_at(repo, revision)
        if commit is None:
            return
        file = commit.files.get(path)
        headers = [("X-Repo-Commit", commit.sha)]
        if file is None:
            headers.append(("X-Error-Code", "EntryNotFound"))
            self.send_json({"error": "Entry not found"}, 404, headers)
            return
        headers += [("ETag", f'"{file.oid}"'), ("Accept-Ranges", "bytes")]
        if file.sha256:
            headers.append(("X-Linked-ETag", f'"{file.sha256}"'))
            headers.append(("X-Linked-Size", str(len(file.content))))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            size = len(file.content)
            start, end = int(asked[1]), min(int(asked[2] or size - 1), size - 1)
            headers.append(("Content-Range", f"bytes {start}-{end}/{size}"))
            self.send(206, file.content[start : end + 1], headers)
        else:
            self.send(200, file.content, headers)


def _entries(commit: Commit) -> dict[str, dict[str, Any]]:
    """Return the metadata that the Hub sends for each file and folder, by path."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        for folder in list(PurePosixPath(path).parents)[:-1]:
            oid = hashlib.sha1(str(folder).encode()).hexdigest()
            entries[str(folder)] = {"type": "directory", "path": str(folder), "size": 0, "oid": oid}
        size = len(file.content)
        entries[path] = {"type": "file", "path": path, "size": size, "oid": file.git_sha}
        if file.sha256:
            entries[path]["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": 134}
    return entries


# Datasets have the name datasets/OWNER/NAME everywhere, as in their URLs, and Spaces spaces/....
REPO = r"(?P<repo>(?:datasets/|spaces/)?[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+)"
API = rf"/api/(?:models/)?{REPO}"
Handler.routes = [
    Route("GET", "/api/whoami-v2", Handler.whoami, "sign in"),
    Route("POST", "/api/validate-yaml", Handler.validate_yaml),
    Route("POST", "/api/repos/create", Handler.create, "sign in"),
    Route("GET", rf"{API}/auth-check/write", Handler.may_write, "write"),
    Route("GET", API, Handler.info, "read"),
    Route("GET", rf"{API}/revision/{REVISION}", Handler.info, "read"),
    Route("POST", rf"{API}/branch/(?P<branch>[^/]+)", Handler.create_branch, "write"),
    Route("POST", rf"{API}/preupload/{REVISION}", Handler.preupload, "write"),
    Route("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch, "read"),
    Route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    Route("POST", r"/lfs-verify/(?P<oid>[0-9a-f]{64})", Handler.lfs_verify),
    Route("POST", rf"{API}/commit/{REVISION}", Handler.commit, "write"),
    Route("GET", rf"{API}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree, "read"),
    Route("POST", rf"{API}/paths-info/{REVISION}", Handler.paths_info, "read"),
    Route("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve, "read"),
]


class LocalHub(HubServer):
    """Hub that serves requests on `hub.url` within `with LocalHub() as hub:`."""

    def __init__(self) -> None:
        super().__init__(Handler)

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Return the environment variables of a client with its caches in `home`."""
        values = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # the client would use it if hf_xet is installed
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return values if token is None else {**values, "HF_TOKEN": token}

    def add(self, repo: str, folder: Path) -> None:
        """Add a repository of another user with the files of a folder."""
        repository = self.repositories[repo] = Repository(repo.partition("/")[0])
        lines = [json.dumps({"key": "header", "value": {"summary": "Add files"}})]
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = base64.b64encode(file.read_bytes()).decode()
            path = file.relative_to(folder).as_posix()
            lines.append(json.dumps({"key": "file", "value": {"path": path, "content": content}}))
        repository.apply("main", "\n".join(lines).encode(), {})

    def sent(self, method: str, path: str) -> list[Request]:
        """Return the requests with a method and a path that matches a pattern, in their order."""
        return [
            request
            for request in self.requests
            if request.method == method and re.search(path, request.path)
        ]

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()
