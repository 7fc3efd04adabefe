"""Request handling of the test Hub: authentication, permissions, injected faults and the log."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from .hub_repository import Commit, Repository

USER, TOKEN = "local-user", "hf_local"
OTHER_USER, OTHER_TOKEN = "other-user", "hf_other"
PAGES_USER, PAGES_TOKEN = "USER", "hf_pages"  # used in the documentation
USERS = {TOKEN: USER, OTHER_TOKEN: OTHER_USER, PAGES_TOKEN: PAGES_USER}


@dataclass(frozen=True)
class Request:
    """Entry of the request log.

    Args:
        method: HTTP method.
        path: Path of the URL.
        num_bytes: Number of bytes of the body that were received.
        status: HTTP status of the response; 0 if the connection was closed without one.
    """

    method: str
    path: str
    num_bytes: int
    status: int


@dataclass
class Fault:
    """Fault that is injected into matching requests.

    Args:
        method: HTTP method of the requests.
        path: Regular expression that matches the path of the requests.
        times: Number of requests that fail.
        status: HTTP status of the response; 0 closes the connection in the middle of the body.
        after_doing: Whether to execute the request before the connection is closed, so that only
            the response is lost.
        delay: Seconds to delay the response; the request then succeeds.
    """

    method: str
    path: str
    times: int = 1
    status: int = 0
    after_doing: bool = False
    delay: float = 0

    @property
    def cuts_request(self) -> bool:
        """Whether the connection is closed in the middle of the body."""
        return not (self.status or self.after_doing or self.delay)


class ConnectionCut(Exception):
    """Close the connection without reading the rest of the request and without a response."""


@dataclass(frozen=True)
class Route:
    """Endpoint; `needs` is the required permission: "read", "sign in" or "write"."""

    methods: str
    path: str
    answer: Callable[..., None]
    needs: str | None = None


class HubServer(ThreadingHTTPServer):
    """Server with its repositories, request log and injected faults."""

    daemon_threads = True

    def __init__(self, handler: type[HubRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}  # by sha256
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request, if any, and count it as used."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a client disconnects."""


class HubRequestHandler(BaseHTTPRequestHandler):
    """Handler of the requests of one client."""

    protocol_version = "HTTP/1.1"
    routes: ClassVar[list[Route]]
    server: HubServer
    body: bytes
    status: int
    lose_answer: bool

    def log_message(self, *args: object) -> None:
        """Print nothing; the server has its own log."""

    def handle_one(self) -> None:
        """Read a request, respond to it or inject a fault, and log it."""
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.body, self.status, self.lose_answer = b"", 0, False
        fault = self.server.next_fault(self.command, address.path)
        size = int(self.headers.get("Content-Length") or 0)
        try:
            if fault is not None and fault.cuts_request:
                self.body = self.rfile.read(size // 2)
                raise ConnectionCut
            self.body = self.rfile.read(size)
            if fault is not None and fault.status:
                self.error(fault.status, "ServerError", "injected server error")
                return
            if fault is not None:
                time.sleep(fault.delay)
                self.lose_answer = fault.after_doing
            self.answer_to(address.path)
        except ConnectionCut:
            self.status = 0
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        finally:
            entry = Request(self.command, unquote(address.path), len(self.body), self.status)
            self.server.requests.append(entry)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def answer_to(self, path: str) -> None:
        """Find the route of a request, check permissions, and call the endpoint."""
        for route in self.routes:
            match = re.fullmatch(route.path, path)
            if match and self.command in route.methods:
                found = {name: value for name, value in match.groupdict().items() if value}
                values = {name: unquote(value) for name, value in found.items()}
                if route.needs is not None and not self.may(route.needs, values.get("repo")):
                    return
                route.answer(self, **values)
                return
        self.error(404, "EntryNotFound", f"no such endpoint: {self.command} {path}")

    # --- permissions

    @property
    def user(self) -> str | None:
        """User of the request; None without a token or with an unknown one."""
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may(self, need: str, repo_id: str | None) -> bool:
        """Return whether the user has a permission; if not, send an error."""
        token_is_wrong = "Authorization" in self.headers and self.user is None
        if token_is_wrong or (need != "read" and self.user is None):
            self.error(401, "InvalidToken", "Invalid credentials in Authorization header")
            return False
        if repo_id is None:
            return True
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and self.user != repository.owner):
            status = 401 if self.user is None else 404
            self.error(status, "RepoNotFound", "Repository not found")
            return False
        proposes = "create_pr" in self.query
        if need == "write" and self.user != repository.owner and not proposes:
            self.error(
                403,
                "Forbidden",
                "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request",
            )
            return False
        return True

    def repository(self, repo: str) -> Repository:
        """Return a repository; `may` has already checked the permission."""
        return self.server.repositories[repo]

    def commit_at(self, repo: str, revision: str) -> Commit | None:
        """Return a commit; if it does not exist, send an error and return None."""
        commit = self.repository(repo).at(revision)
        if commit is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- responses

    def send(self, status: int, content: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Send a response."""
        if self.status == 0 and self.lose_answer:
            raise ConnectionCut
        self.status = status
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(
        self, value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send a JSON response."""
        content_type = ("Content-Type", "application/json")
        self.send(status, json.dumps(value).encode(), [content_type, *headers])

    def error(self, status: int, code: str, message: str) -> None:
        """Send an error in the format of the Hub."""
        headers = [("X-Error-Code", code), ("X-Error-Message", message)]
        self.send_json({"error": message}, status, headers)
