"""Open file systems by URL, and turn the errors of their clients into one line.

Credentials and endpoints come from the environment of the client. They are part of no URL, and no
message contains them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from ...errors import one_line

URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<host>[^/]*)")
COLLAPSED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")  # Path("s3://bucket") drops a slash
HTTP_ADDRESS = re.compile(r"[\"']?https?://\S+")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # extra of selfvit, by protocol
# Packages whose errors are failures of the connection or of the service.
CLIENTS = frozenset(
    ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "httpx")
    + ("huggingface_hub", "requests", "s3fs", "urllib3")
)
NO_BUCKET = "NoSuchBucket"


class StorageError(ConnectionError):
    """Failure of object storage that is the fault of no single object; the message is one line."""


def is_url(name: Any) -> bool:
    """Return whether a name is a URL; a local path is none.

    Raises:
        ValueError: If it is a URL that became a path, or has a form that is not read.
    """
    text = str(name)
    if isinstance(name, os.PathLike) and COLLAPSED.match(text) and not os.path.lexists(text):
        url = text.replace(":/", "://", 1)
        raise ValueError(f"a URL must be a text, but {text!r} is a path; write {url!r} as a text.")
    match = URL.match(text)
    if match is None:
        return False
    if match["protocol"].lower() in ("file", "local"):
        raise ValueError(f"a local file or folder must be given by its path, not as {text!r}.")
    if not text[match.end("host") - len(match["host"]) :].strip("/"):
        raise ValueError(f"a URL must name a bucket or a folder, but {text!r} names none; add one.")
    if ":" in match["host"].rpartition("@")[0]:
        raise ValueError(
            f"a {match['protocol']}:// URL must not contain credentials, which would be written to "
            "metadata and logs; set them in the environment of the client."
        )
    if "::" in text or (match["protocol"].startswith("http") and "?" in text):
        raise ValueError(
            f"a {match['protocol']}:// URL must name an object or a folder, without '::' and "
            "without a query; give such a URL."
        )
    return True


def check_package(url: str) -> None:
    """Check that the package for a URL is installed.

    Raises:
        ImportError: If it is not.
        ValueError: If there is no such protocol.
    """
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        if extra := EXTRAS.get(protocol):
            raise missing_package(url, extra) from error
        raise ImportError(f"{protocol}:// needs another package: {one_line(error)}") from error
    except ValueError as error:
        raise ValueError(
            f"{protocol}:// must be a protocol of fsspec, for example s3://, gs:// or hf://; "
            "correct it."
        ) from error


def missing_package(url: str, extra: str | None = None) -> ImportError:
    """Return the error that names the packages to install for a URL.

    Args:
        url: URL.
        extra: Extra of selfvit; by default, that of the protocol.
    """
    protocol = url.partition("://")[0].lower()
    extra = extra or EXTRAS.get(protocol)
    package = "universal-pathlib" if extra is None else f"selfvit[{extra}]"
    return ImportError(f'{protocol}:// needs packages that are missing: pip install "{package}"')


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL for this process, and the path in it.

    Clients of object storage have threads and locks, which do not survive a fork.

    Args:
        url: URL of an object or a folder.

    Raises:
        ImportError: If a package is missing.
        ValueError: If there is no such protocol.
    """
    opened = _open(url.partition("://")[0].lower(), os.getpid())
    return opened, opened._strip_protocol(url)


@lru_cache(maxsize=8)
def _open(protocol: str, process: int) -> Any:
    import fsspec

    check_package(f"{protocol}://")
    return fsspec.filesystem(protocol, skip_instance_cache=True)


@contextmanager
def storage_errors(url: str, action: str = "read") -> Iterator[None]:
    """Replace errors of a client by one line; a missing object stays a FileNotFoundError.

    Args:
        url: URL in the message.
        action: Participle for what failed, for example "read" or "written".

    Raises:
        StorageError: If the connection, the credentials or the service failed.
    """
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError)
        if is_missing and NO_BUCKET not in _code_of(error):
            raise
        if not isinstance(error, OSError) and not _is_of_client(error):
            raise
        reason = HTTP_ADDRESS.sub("the endpoint", one_line(error)).rstrip(".")
        fix = "create it first" if is_missing else "check the credentials and the connection"
        raise StorageError(f"{url!r} cannot be {action}: {reason}; {fix}.") from error


def _code_of(error: BaseException) -> str:
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else ""


def _is_of_client(error: BaseException) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(modules & CLIENTS) or isinstance(error, TimeoutError)


__all__ = [
    "StorageError",
    "check_package",
    "file_system",
    "is_url",
    "missing_package",
    "storage_errors",
]
