"""Client of the local Hub in a separate process.

`huggingface_hub` reads its environment variables at import, and the test process has no network.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

from ..hub_requests import TOKEN
from ..local_hub import LocalHub

# Above this line, import only the standard library and the servers. Tasks import the rest.


class HubClient:
    """Process that uses `hub` as the Hub: `with HubClient(hub, home) as client:`."""

    def __init__(self, hub: LocalHub, home: Path, **environment: str):
        environment = {**hub.environment(home, token=None), "OMP_NUM_THREADS": "1", **environment}
        self.environment = environment
        self.pool = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_enter, initargs=(environment,)
        )

    def __enter__(self) -> HubClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown()

    def __call__(self, task: Callable[..., Any], *args: Any, token: str | None = TOKEN) -> Any:
        """Run a task in the process; return its result or raise its exception."""
        return self.pool.submit(_as_user, token, task, *args).result(timeout=300)

    def run(
        self, *arguments: object, token: str | None = TOKEN, waits: bool = True
    ) -> tuple[int, str]:
        """Run a `selfvit` command in the process; return its exit code and output.

        With `waits=False`, pauses between retries last at most 10 milliseconds.
        """
        return self(command, [str(argument) for argument in arguments], waits, token=token)


def _enter(environment: dict[str, str]) -> None:
    os.environ.pop("HF_TOKEN", None)
    os.environ.update(environment)


def _as_user(token: str | None, task: Callable[..., Any], *args: Any) -> Any:
    if token is None:
        os.environ.pop("HF_TOKEN", None)
    else:
        os.environ["HF_TOKEN"] = token
    return task(*args)


def command(arguments: list[str], waits: bool = True) -> tuple[int, str]:
    """Run a `selfvit` command; return its exit code and output."""
    from accelerate.state import AcceleratorState, GradientState
    from typer.testing import CliRunner

    from selfvit.cli import app

    sleep = time.sleep

    def sleep_briefly(seconds: float) -> None:
        sleep(min(seconds, 0.01))

    with nullcontext() if waits else mock.patch("time.sleep", sleep_briefly):
        result = CliRunner().invoke(app, arguments)
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def vectors(checkpoint: str, images: list[str], **where: Any) -> dict[str, Any]:
    """Return (N, E) vectors of a checkpoint by the name of the API that loads the encoder."""
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

    import selfvit  # noqa: F401 - registers the models
    from selfvit.data.decoding import decode_image

    processor = AutoImageProcessor.from_pretrained(checkpoint, **where)
    pixels = processor([decode_image(path) for path in images], return_tensors="pt")
    encoder = AutoModel.from_pretrained(checkpoint, **where).eval()
    found = {}
    with torch.no_grad():
        found["AutoModel"] = encoder(**pixels).pooler_output.numpy()
        if encoder.config.architectures[0] != "SelfViTForImageClassification":
            whole = AutoModelForPreTraining.from_pretrained(checkpoint, **where).eval()
            found["AutoModelForPreTraining"] = whole.vit(**pixels).pooler_output.numpy()
    if not where:
        extract = pipeline("image-feature-extraction", model=checkpoint)
        found["pipeline"] = [extract(path, pool=True)[0] for path in images]
    return found


def heads(checkpoint: str, images: list[str]) -> dict[str, Any]:
    """Return the logits of a classifier, and the feature maps of its backbone for a Hub id."""
    import torch
    from transformers import AutoBackbone, AutoImageProcessor, AutoModelForImageClassification

    import selfvit  # noqa: F401 - registers the models
    from selfvit.data.decoding import decode_image

    processor = AutoImageProcessor.from_pretrained(checkpoint)
    pixels = processor([decode_image(path) for path in images], return_tensors="pt")
    with torch.no_grad():
        classifier = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
        found = {"logits": classifier(**pixels).logits.numpy()}
        if not Path(checkpoint).is_dir():  # AutoBackbone loads a Hub id, not a folder
            backbone = AutoBackbone.from_pretrained(checkpoint).eval()
            found["features"] = backbone(**pixels).feature_maps[-1].numpy()
    return found


def save_and_push(folder: str, place: str, repo_id: str) -> None:
    """Push a model with `save_pretrained(push_to_hub=True)`."""
    from transformers import AutoModelForPreTraining

    import selfvit  # noqa: F401 - registers the models

    model = AutoModelForPreTraining.from_pretrained(folder)
    model.save_pretrained(place, push_to_hub=True, repo_id=repo_id)


def push_to_hub(folder: str, repo_id: str) -> None:
    """Push model and processor with the `push_to_hub` methods of transformers."""
    from transformers import AutoImageProcessor, AutoModelForPreTraining

    import selfvit  # noqa: F401 - registers the models

    AutoModelForPreTraining.from_pretrained(folder).push_to_hub(repo_id)
    AutoImageProcessor.from_pretrained(folder).push_to_hub(repo_id)


def upload_to_subfolder(folder: str, repo_id: str, subfolder: str) -> None:
    """Upload a folder as a subfolder of a repository."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, exist_ok=True)
    HfApi().upload_folder(folder_path=folder, repo_id=repo_id, path_in_repo=subfolder)


def publish(folder: str, repo_id: str, options: dict[str, Any]) -> Any:
    """Publish with the Python function."""
    from selfvit.sharing.publish import publish as publish_folder

    return publish_folder(folder, repo_id, **options)


def download_space(repo_id: str, folder: str) -> None:
    """Download a Space."""
    from huggingface_hub import snapshot_download

    snapshot_download(repo_id, repo_type="space", local_dir=folder)
