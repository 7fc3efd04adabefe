"""Access to the Hub: authentication, permissions, retries and error messages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..errors import one_line

logger = logging.get_logger(__name__)

ResultT = TypeVar("ResultT")

TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
RETRIES = 3
LONGEST_WAIT = 60  # seconds
SIGN_IN = (
    "Run `hf auth login`, or set HF_TOKEN to a token with write access "
    "(https://huggingface.co/settings/tokens)."
)


def check_repo_id(repo_id: str) -> None:
    """Check the name of a repository without a request to the Hub.

    Args:
        repo_id: Name of the repository, USER/NAME.

    Raises:
        ValueError: If the name is not a valid USER/NAME.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"repository ({repo_id!r}) must be USER/NAME or ORGANIZATION/NAME.")
    validate_repo_id(repo_id)


def signed_in(api: HfApi) -> str:
    """Return the name of the user that the token belongs to.

    Args:
        api: Client of the Hub.

    Raises:
        PermissionError: If there is no token, or the Hub rejects it.
    """
    try:
        return api.whoami()["name"]
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"you are not signed in to {api.endpoint}. {SIGN_IN}") from error
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise PermissionError(
            f"{api.endpoint} rejects the token ({one_line(error)}). {SIGN_IN}"
        ) from error


def prepare_repository(
    api: HfApi, repo_id: str, user: str, private: bool, repo_type: str | None = None
) -> None:
    """Create a repository if it does not exist.

    Args:
        api: Client of the Hub, signed in.
        repo_id: Name of the repository, USER/NAME.
        user: Name of the signed-in user.
        private: Whether the repository must be private.
        repo_type: Kind of the repository: "space", or None for a model.

    Raises:
        PermissionError: If the repository does not exist and the user may not create it.
        ValueError: If the repository must be private, but exists and is public.
    """
    try:
        # None uses the default of the namespace: an organization may create private repositories
        api.create_repo(
            repo_id,
            private=private or None,
            exist_ok=True,
            repo_type=repo_type,
            space_sdk="gradio" if repo_type == "space" else None,
        )
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        _, _, name = repo_id.partition("/")
        raise PermissionError(
            f"repository {repo_id} does not exist or is not visible to you ({user}), and you may "
            f"not create it. Publish to {user}/{name}, or use a token with write access to that "
            "namespace."
        ) from error
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{repo_id} must be private, but exists and is public. Make it private in its settings "
            "on the Hub, or publish to another name."
        )


def check_may_push(api: HfApi, repo_id: str, user: str, repo_type: str | None = None) -> None:
    """Check that a user may write to an existing repository.

    Args:
        api: Client of the Hub, signed in.
        repo_id: Name of the repository, USER/NAME.
        user: Name of the signed-in user.
        repo_type: Kind of the repository: "space", or None for a model.

    Raises:
        PermissionError: If the user has no write access.
    """
    try:
        api.auth_check(repo_id, write=True, repo_type=repo_type)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PermissionError(
            f"you ({user}) may not push to {repo_id}. Use a repository of your own, or a token "
            "with write access to this repository."
        ) from error


def retrying(call: Callable[[], ResultT], action: str, retries: int = RETRIES) -> ResultT:
    """Call a function, and retry after a transient failure of the network or the Hub.

    `huggingface_hub` retries most single requests for half a minute. This function covers longer
    outages and the other requests.

    Args:
        call: Function that may be called several times.
        action: Description of the call for the warning, for example "the upload".
        retries: Maximum number of retries, after waits of 2, 6, 18, 54 and then 60 seconds.

    Returns:
        The result of `call`.
    """
    for attempt in range(retries):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            wait = min(LONGEST_WAIT, 2 * 3**attempt)
            logger.warning(f"{action} failed ({error_message(error)}); retrying in {wait} s.")
            time.sleep(wait)
    return call()


def is_transient(error: Exception) -> bool:
    """Return whether the same call may succeed later (network failures, busy server)."""
    error = _cause_of(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT_STATUSES
    # RuntimeError: a failed upload through Xet; JSONDecodeError: a proxy answered for the Hub
    return isinstance(error, (HTTPError, RuntimeError, json.JSONDecodeError))


def is_forbidden(error: Exception) -> bool:
    """Return whether the Hub rejected a request because the user lacks permission."""
    error = _cause_of(error)
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 403


def error_message(error: Exception) -> str:
    """Return the message of an error in one line; for a failed upload, that of its cause."""
    return one_line(_cause_of(error))


def _cause_of(error: Exception) -> Exception:
    """Return the cause of "Error while uploading ... to the Hub", or any other error itself."""
    cause = error.__cause__
    return cause if type(error) is RuntimeError and isinstance(cause, Exception) else error


__all__ = [
    "RETRIES",
    "check_may_push",
    "check_repo_id",
    "is_forbidden",
    "is_transient",
    "prepare_repository",
    "error_message",
    "retrying",
    "signed_in",
]
