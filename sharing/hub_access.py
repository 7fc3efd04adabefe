"""The Hub's door: who asks, what they may do, and what to do about an error."""

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

BUSY = (408, 429, 500, 502, 503, 504)  # statuses that may be better in a minute
RETRIES = 3
LONGEST_WAIT = 60  # seconds
SIGN_IN = (
    "Run `hf auth login`, or set HF_TOKEN to a token with write access "
    "(https://huggingface.co/settings/tokens)."
)


def check_repo_id(repo_id: str) -> None:
    """Check the name of a repository, before the Hub is asked.

    Raises:
        ValueError: if it is not USER/NAME as the Hub wants it.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"repo id ({repo_id!r}) must be USER/NAME, or ORGANIZATION/NAME.")
    validate_repo_id(repo_id)


def signed_in(api: HfApi) -> str:
    """Return the name of the user whose token is in use.

    Raises:
        PermissionError: if there is no token, or the Hub does not accept it.
    """
    try:
        return api.whoami()["name"]
    except LocalTokenNotFoundError as error:
        raise PermissionError(f"you are not signed in to {api.endpoint}. {SIGN_IN}") from error
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise PermissionError(
            f"{api.endpoint} does not accept the token ({one_line(error)}). {SIGN_IN}"
        ) from error


def prepare_repository(api: HfApi, repo_id: str, user: str, private: bool) -> None:
    """Make a repository, if it is not there yet.

    Args:
        api: signed in.
        repo_id: USER/NAME.
        user: who asks.
        private: whether it has to be private.

    Raises:
        PermissionError: if it is not there, and the user may not make it.
        ValueError: if it has to be private, and is there and public.
    """
    try:
        # None leaves it to the namespace: an organization may make all its repositories private
        api.create_repo(repo_id, private=private or None, exist_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        _, _, name = repo_id.partition("/")
        raise PermissionError(
            f"there is no repository {repo_id} that you can see, and you ({user}) may not make it. "
            f"Publish to {user}/{name}, or use a token with write access to that namespace."
        ) from error
    if private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"{repo_id} is there already, and public. Make it private in its settings on the Hub, "
            "or publish to another name."
        )


def check_may_push(api: HfApi, repo_id: str, user: str) -> None:
    """Check that a user may write to a repository that is there.

    Raises:
        PermissionError: if not.
    """
    try:
        api.auth_check(repo_id, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PermissionError(
            f"you ({user}) may not push to {repo_id}. Use a repository of your own, or a token "
            "with write access to this one."
        ) from error


def retrying(call: Callable[[], ResultT], what: str, retries: int = RETRIES) -> ResultT:
    """Call, and call again after a while if the network or the Hub failed.

    `huggingface_hub` repeats most single requests for half a minute; this is for longer breaks, and
    for the others.

    Args:
        call: what may be done twice.
        what: is done, for the warning.
        retries: how often, at most; waits of 2, 6, 18, 54 and then 60 seconds.
    """
    for attempt in range(retries):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            wait = min(LONGEST_WAIT, 2 * 3**attempt)
            logger.warning(f"{what} failed ({error_message(error)}); again in {wait} s.")
            time.sleep(wait)
    return call()


def is_transient(error: Exception) -> bool:
    """Return whether the same call may succeed later."""
    error = _cause_of(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY
    # RuntimeError: how uploads through Xet fail; JSON: a proxy's page for the Hub's answer
    return isinstance(error, (HTTPError, RuntimeError, json.JSONDecodeError))


def is_forbidden(error: Exception) -> bool:
    """Return whether the Hub knows the user, and says no."""
    error = _cause_of(error)
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 403


def error_message(error: Exception) -> str:
    """Return what an error says, in a line."""
    return one_line(_cause_of(error))


def _cause_of(error: Exception) -> Exception:
    """Return what is behind "Error while uploading ... to the Hub"."""
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
