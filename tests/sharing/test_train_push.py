"""`selfvit train --push-to-hub`: uploads in the background that never stop or slow the run."""

import json

import pytest
import torch
from safetensors.torch import load, load_file

from selfvit.training.config.run_config import RunConfig

from ..hub_requests import OTHER_TOKEN, OTHER_USER, TOKEN, USER, Fault
from ..training.tiny_runs import arguments
from .hub_client import vectors

NAME = f"{USER}/run"


@pytest.fixture
def train(client, image_folder, tmp_path):
    """Return a function that trains DINO for 6 steps and returns exit code and output."""

    def command(*options, output="run", token=TOKEN):
        steps = ("--max-steps", 6, "--batch-size", 4, "--save-steps", 2, "--save-total-limit", 1)
        line = arguments("dino", image_folder, tmp_path / output, *steps, "--cpu", *options)
        return client.run("train", *line, token=token)

    return command


def messages(hub, branch="main"):
    return [commit.message for commit in hub.repositories[NAME].refs[f"refs/heads/{branch}"]]


def test_checkpoints_are_pushed_during_the_run_and_the_result_at_the_end(
    hub, client, train, images, tmp_path
):
    code, printed = train("--push-to-hub", NAME, "--push-steps", 2, "--hub-private-repo")
    assert code == 0, printed
    repository = hub.repositories[NAME]
    assert repository.private
    first, *others = repository.refs["refs/heads/main"][1:]
    assert first.message == "Step 2 of 6" and others[-1].message == "Upload SelfViTForDINO"
    # each commit is a complete checkpoint of the step in its message
    assert {"config.json", "preprocessor_config.json", "README.md"} <= set(first.files)
    assert "training.yaml" in first.files and "trainer_state.json" not in first.files
    early, late = (
        load(commit.files["model.safetensors"].content) for commit in (first, others[-1])
    )
    assert early.keys() == late.keys() and not torch.equal(
        early["vit.layernorm.weight"], late["vit.layernorm.weight"]
    )
    pulled, local = (client(vectors, name, images) for name in (NAME, str(tmp_path / "run")))
    for way, expected in local.items():
        assert (pulled[way] == expected).all() if way != "pipeline" else pulled[way] == expected
    assert f'model="{NAME}"' in others[-1].files["README.md"].content.decode()
    # training.yaml can be loaded and has no local paths
    for commit in (first, others[-1]):
        text = commit.files["training.yaml"].content.decode()
        assert RunConfig.from_yaml(text).start.output == "run"
        assert str(tmp_path.parent) not in text
    assert not (tmp_path / "run" / ".unfinished-push").exists()


def test_pushed_checkpoints_include_adapters_if_the_base_is_on_the_hub(hub, train):
    base = f"{USER}/base"
    assert train("--push-to-hub", base)[0] == 0
    options = ("--init-from", base, "--lora-rank", 2, "--push-to-hub", NAME, "--push-steps", 2)
    code, printed = train(*options, output="adapted")
    assert code == 0 and "was not pushed" not in printed, printed
    first, *others = hub.repositories[NAME].refs["refs/heads/main"][1:]
    assert first.message == "Step 2 of 6" and others[-1].message == "Upload SelfViTForDINO"
    for commit in (first, others[-1]):
        adapter = commit.files["adapter/adapter_config.json"].content.decode()
        assert json.loads(adapter)["base_model_name_or_path"] == base


def test_pushing_does_not_change_the_training(hub, train, tmp_path):
    assert train("--push-to-hub", NAME, "--push-steps", 2, output="pushed")[0] == 0
    assert train(output="alone")[0] == 0
    pushed, alone = (
        load_file(tmp_path / name / "model.safetensors") for name in ("pushed", "alone")
    )
    assert pushed.keys() == alone.keys()
    assert all(torch.equal(pushed[name], alone[name]) for name in alone)
    written = [(tmp_path / name / "training.yaml").read_text() for name in ("pushed", "alone")]
    assert written[0].replace("pushed", "alone") == written[1]  # so a rerun pushes nothing


def test_a_run_without_the_required_improvement_is_not_published(hub, train, tmp_path):
    assert train(output="start")[0] == 0
    still = ("--base-learning-rate", 0, "--min-learning-rate", 0)
    report = ("--require-improvement", "--report-images", 200)
    wanted = ("--init-from", tmp_path / "start", *report)
    for again in ((), ("--resume",)):
        code, printed = train("--push-to-hub", NAME, *still, *wanted, *again)
        assert code == 2 and "not published" in " ".join(printed.split()), printed
    assert (tmp_path / "run" / "config.json").exists()
    assert NAME not in hub.repositories or "Upload SelfViTForDINO" not in messages(hub)


def test_a_failed_push_does_not_stop_the_run_and_the_next_one_is_complete(hub, train, tmp_path):
    hub.faults.append(Fault("POST", "/preupload/", status=400))
    code, printed = train("--push-to-hub", NAME, "--push-steps", 2)
    assert code == 0, printed
    assert "warning: step 2 was not pushed" in printed
    assert "Step 2 of 6" not in messages(hub) and messages(hub)[-1] == "Upload SelfViTForDINO"


def test_after_a_failed_last_push_the_run_is_complete_and_prints_the_command(
    hub, client, train, tmp_path
):
    hub.faults.append(Fault("POST", "/preupload/", times=100, status=400))
    code, printed = train("--push-to-hub", NAME, "--hub-revision", "v1")
    out = tmp_path / "run"
    assert code == 1
    assert f"trained: {out}" in printed
    assert f"Repeat: selfvit publish {out} {NAME} --revision v1" in printed
    assert len(json.loads((out / "config.json").read_text())) > 5
    hub.faults.clear()
    assert client.run("publish", out, NAME, "--revision", "v1")[0] == 0
    assert messages(hub, "v1")[-1] == "Upload SelfViTForDINO"


def test_steps_do_not_wait_for_an_upload_and_only_one_upload_runs_at_a_time(hub, train):
    hub.faults.append(Fault("PUT", "/lfs/", delay=6))
    code, printed = train("--push-to-hub", NAME, "--push-steps", 2)
    assert code == 0, printed
    assert "step 4 is not pushed: an earlier push is still uploading" in printed
    assert messages(hub)[1:] == ["Step 2 of 6", "Upload SelfViTForDINO"]


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (("--push-to-hub", NAME), "hf_wrong", "rejects the token"),
        (("--push-to-hub", f"{OTHER_USER}/run"), TOKEN, f"you ({USER}) may not push"),
        (("--push-to-hub", "run"), TOKEN, "must be USER/NAME"),
        (("--push-to-hub", NAME, "--push-steps", 3), TOKEN, "must be a multiple of save_steps (2)"),
        (("--push-steps", 2), TOKEN, "needs --push-to-hub"),
    ],
)
def test_errors_of_the_final_push_are_reported_before_the_start(
    options, token, message, hub, client, train, checkpoint, tmp_path
):
    client.run("publish", checkpoint, f"{OTHER_USER}/run", token=OTHER_TOKEN)
    code, printed = train(*options, token=token)
    assert code == 2 and message in printed, printed
    assert not (tmp_path / "run").exists()
