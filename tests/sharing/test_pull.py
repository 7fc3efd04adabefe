"""Checkpoints by Hub id: revisions, subfolders, and offline use."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForPreTraining

from selfvit.embedding.vectors.reader import read_vectors

from ..hub_requests import USER
from ..objectives import TINY_TEACHER
from ..training.tiny_runs import ENCODER, LOOP, OBJECTIVES
from .conftest import write_checkpoint
from .hub_client import HubClient, upload_to_subfolder, vectors

NAME = f"{USER}/model"


@pytest.fixture
def two_revisions(hub, client, checkpoints, tmp_path):
    """Publish MAE on main and a copy with another final norm on v1; return folders by revision."""
    model = AutoModelForPreTraining.from_pretrained(checkpoints["mae"])
    model.vit.layernorm.weight.data *= 2
    other = write_checkpoint(tmp_path / "other", model)
    assert client.run("publish", checkpoints["mae"], NAME)[0] == 0
    code, printed = client.run("publish", other, NAME, "--revision", "v1")
    assert code == 0, printed
    assert sorted(hub.repositories[NAME].branches) == ["main", "v1"]
    return {"main": checkpoints["mae"], "v1": other}


def assert_same(pulled, local):
    for way, expected in pulled.items():
        np.testing.assert_array_equal(expected, local[way], err_msg=way)


def test_the_auto_classes_load_a_revision_and_a_commit(hub, client, two_revisions, images):
    commit = hub.repositories[NAME].at("v1").sha
    for revision, folder in (*two_revisions.items(), (commit, two_revisions["v1"])):
        pulled = client(vectors_at, NAME, images, {"revision": revision})
        assert_same(pulled, client(vectors, str(folder), images))


def vectors_at(name, images, where):
    return vectors(name, images, **where)


def test_the_auto_classes_load_a_subfolder(hub, client, checkpoints, images):
    client(upload_to_subfolder, str(checkpoints["pmsn"]), f"{USER}/several", "small/pmsn")
    pulled = client(vectors_at, f"{USER}/several", images, {"subfolder": "small/pmsn"})
    assert_same(pulled, client(vectors, str(checkpoints["pmsn"]), images))


def embedded(client, model, data, output, *options):
    where = (model, "--data", data, "--output", output, "--num-workers", 0)
    code, printed = client.run("embed", *where, "--device", "cpu", *options)
    assert code == 0, printed
    return np.array(read_vectors(output)["embedding"].to_pylist())


def test_embed_accepts_a_hub_id_with_revision(client, two_revisions, image_folder, tmp_path):
    found = {
        model: embedded(client, model, image_folder, tmp_path / str(index))
        for index, model in enumerate((NAME, f"{NAME}@v1", *two_revisions.values()))
    }
    np.testing.assert_array_equal(found[NAME], found[two_revisions["main"]])
    np.testing.assert_array_equal(found[f"{NAME}@v1"], found[two_revisions["v1"]])
    assert not np.array_equal(found[NAME], found[f"{NAME}@v1"])
    assert json.loads((tmp_path / "1" / "metadata.json").read_text())["model"] == f"{NAME}@v1"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (f"{NAME}@v7", f"{NAME} has no branch, tag or commit 'v7'"),
        (f"{USER}/nothing@v1", f"there is no repository {USER}/nothing"),
    ],
)
def test_a_missing_revision_or_repository_is_reported(
    model, message, client, two_revisions, image_folder, tmp_path
):
    where = ("--data", image_folder, "--output", tmp_path / "out", "--num-workers", 0)
    code, printed = client.run("embed", model, *where)
    assert code == 2 and message in printed


def test_evaluate_visualize_and_export_accept_a_revision(
    client, two_revisions, image_folder, tmp_path
):
    model = f"{NAME}@v1"
    code, printed = client.run(
        *("evaluate", model, "--train", image_folder, "--device", "cpu", "--num-workers", 0)
    )
    assert code == 0, printed
    for kind in ("attention", "reconstruct"):
        picture = tmp_path / f"{kind}.png"
        code, printed = client.run(
            *("visualize", kind, model, "--data", image_folder, "--output", picture)
        )
        assert code == 0 and picture.is_file(), printed
    exported = tmp_path / "exported"
    code, printed = client.run(
        *("export", model, "--output", exported, "--to", "timm", "--pooling", "mean")
    )
    assert code == 0, printed
    facts = json.loads((exported / "selfvit_export.json").read_text())
    assert facts["checkpoint"] == f"{NAME}@v1"


def test_training_starts_from_a_revision(client, two_revisions, image_folder, tmp_path):
    started: dict[object, float] = {}
    for model in (f"{NAME}@v1", two_revisions["v1"], NAME):
        out = tmp_path / f"run{len(started)}"
        code, printed = client.run(
            *("train", "mae_finetune", "--init-from", model, "--data", image_folder),
            *("--output", out, "--max-steps", 1, "--batch-size", 4, *LOOP, "--cpu"),
        )
        assert code == 0, printed
        started[model] = json.loads((out / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert started[f"{NAME}@v1"] == started[two_revisions["v1"]] != started[NAME]


def test_a_resumed_run_keeps_the_commit_of_its_teacher(
    hub, client, two_revisions, image_folder, tmp_path
):
    first, out = hub.repositories[NAME].at("main").sha, tmp_path / "run"
    command = [NAME if word == TINY_TEACHER else word for word in OBJECTIVES["distill"]]
    command = ["train", *command, *ENCODER, *LOOP, "--data", image_folder, "--output", out]
    command += ["--max-steps", "2", "--save-steps", "1", "--batch-size", "4", "--cpu"]
    code, printed = client.run(*command)
    assert code == 0, printed
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    assert client.run("publish", two_revisions["v1"], NAME)[0] == 0
    assert hub.repositories[NAME].at("main").sha != first
    code, printed = client.run(*command, "--resume")
    assert code == 0 and f"revision {first[:12]}" in printed, printed
    stored = json.loads((out / "config.json").read_text())["distill_config"]
    assert (stored["teacher"], stored["teacher_revision"]) == (NAME, first)


def test_the_cache_is_used_offline(hub, client, two_revisions, image_folder, tmp_path):
    models = (NAME, f"{NAME}@v1")
    online = [embedded(client, model, image_folder, tmp_path / model[-2:]) for model in models]
    hub.requests.clear()
    home = Path(client.environment["HF_HOME"])
    with HubClient(hub, home, HF_HUB_OFFLINE="1") as offline:
        for model, expected in zip(models, online, strict=True):
            output = tmp_path / f"offline-{model[-2:]}"
            np.testing.assert_array_equal(embedded(offline, model, image_folder, output), expected)
    assert not hub.requests
