"""`selfvit publish` and back, against a Hub on this machine."""

import hashlib

import numpy as np
import pytest
from transformers import AutoModelForPreTraining

from selfvit.modeling.checkpoints.remote_code import code_files

from ..hub_requests import OTHER_TOKEN, OTHER_USER, USER, Fault
from .conftest import write_checkpoint
from .hub_client import heads, publish, push_to_hub, save_and_push, vectors

NAME = f"{USER}/model"
SENT = {
    "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "training.yaml",
}  # fmt: skip


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_same(pulled, local):
    assert pulled.keys() >= local.keys()
    for way, expected in local.items():
        np.testing.assert_array_equal(pulled[way], expected, err_msg=way)


class TestThereAndBack:
    @pytest.mark.parametrize("name", ["dino", "mae", "pmsn", "classifier"])
    def test_vectors_by_id_are_those_of_the_local_folder(
        self, name, hub, client, checkpoints, images
    ):
        folder, repo_id = checkpoints[name], f"{USER}/{name}"
        code, printed = client.run("publish", folder, repo_id)
        assert code == 0, printed
        commit = hub.repositories[repo_id].main
        assert f"published: {hub.url}/{repo_id}/commit/{commit.sha}" in printed
        assert_same(client(vectors, repo_id, images), client(vectors, str(folder), images))
        if name == "classifier":
            assert_same(client(heads, repo_id, images), client(heads, str(folder), images))

    def test_everything_goes_in_one_commit(self, hub, client, checkpoint):
        code, printed = client.run("publish", checkpoint, NAME, "--message", "The first")
        assert code == 0, printed
        history = hub.repositories[NAME].refs["refs/heads/main"]
        assert [commit.message for commit in history] == ["initial commit", "The first"]
        stored = history[-1].files
        code = {path.name for path in code_files(checkpoint)}
        assert code == {"configuration_selfvit.py", "modeling_selfvit.py"}
        assert set(stored) == SENT | code | {".gitattributes"}
        for path in SENT | code:
            assert stored[path].content == (checkpoint / path).read_bytes()

    def test_a_model_in_shards_comes_back_and_hides_no_earlier_one(
        self, hub, client, checkpoint, images, tmp_path
    ):
        assert client.run("publish", checkpoint, NAME)[0] == 0
        model = AutoModelForPreTraining.from_pretrained(checkpoint)
        model.vit.layernorm.weight.data += 1
        sharded = write_checkpoint(tmp_path / "sharded", model, max_shard_size="60KB")
        shards = {path.name for path in sharded.glob("model-*.safetensors")}
        assert len(shards) > 2
        code, printed = client.run("publish", sharded, NAME)
        assert code == 0, printed
        stored = set(hub.repositories[NAME].main.files)
        assert shards | {"model.safetensors.index.json"} <= stored
        # it used to stay, and transformers would have opened it and not the shards
        assert "model.safetensors" not in stored
        assert_same(client(vectors, NAME, images), client(vectors, str(sharded), images))

    def test_push_to_hub_of_model_and_processor_is_complete(self, hub, client, checkpoint, images):
        client(push_to_hub, str(checkpoint), NAME)
        code = {path.name for path in code_files(checkpoint)}
        assert set(hub.repositories[NAME].main.files) >= (SENT - {"training.yaml"}) | code
        assert_same(client(vectors, NAME, images), client(vectors, str(checkpoint), images))

    def test_saving_with_push_to_hub_sends_the_code_too(self, hub, client, checkpoint, tmp_path):
        for _ in range(2):  # transformers sends what is newer than the call, and the code is not
            client(save_and_push, str(checkpoint), str(tmp_path / "saved"), NAME)
            sent = hub.repositories[NAME].main.files
            code = code_files(tmp_path / "saved")
            assert code
            for path in [*code, tmp_path / "saved" / "model.safetensors"]:
                assert sent[path.name].content == path.read_bytes()
            hub.repositories.pop(NAME)

    def test_publishing_again_without_a_change_adds_nothing(self, hub, client, checkpoint):
        first = client(publish, str(checkpoint), NAME, {})
        again = client(publish, str(checkpoint), NAME, {})
        assert again.commit == first.commit
        assert len(hub.repositories[NAME].refs["refs/heads/main"]) == 2
        assert len(hub.sent("PUT", "/lfs/")) == 1


class TestWhoMayWhat:
    def test_a_private_repository_opens_for_its_owner_alone(self, hub, client, checkpoint, images):
        code, printed = client.run("publish", checkpoint, f"{USER}/secret", "--private")
        assert code == 0, printed
        assert hub.repositories[f"{USER}/secret"].private
        for token in (OTHER_TOKEN, None):  # before the owner's download fills the cache
            with pytest.raises(OSError, match="not a valid model identifier"):
                client(vectors, f"{USER}/secret", images, token=token)
        assert_same(
            client(vectors, f"{USER}/secret", images), client(vectors, str(checkpoint), images)
        )

    def test_private_never_means_a_repository_that_is_public(self, hub, client, checkpoint):
        assert client.run("publish", checkpoint, NAME)[0] == 0
        code, printed = client.run("publish", checkpoint, NAME, "--private")
        assert code == 2 and "is there already, and public" in printed

    @pytest.mark.parametrize(
        ("token", "message"),
        [("hf_wrong", "does not accept the token"), (None, "you are not signed in")],
    )
    def test_a_wrong_token_is_told_before_anything_is_sent(
        self, token, message, hub, client, checkpoint
    ):
        code, printed = client.run("publish", checkpoint, NAME, token=token)
        assert code == 2
        assert message in printed and "hf auth login" in printed and "HF_TOKEN" in printed
        assert not hub.repositories and not hub.lfs

    def test_without_the_right_to_push_a_pull_request_is_opened(self, hub, client, checkpoint):
        assert client.run("publish", checkpoint, NAME)[0] == 0
        (checkpoint / "README.md").write_text(
            (checkpoint / "README.md").read_text() + "\nCorrected.\n"
        )
        code, printed = client.run("publish", checkpoint, NAME, token=OTHER_TOKEN)
        assert code == 0, printed
        assert "you may not push" in printed and f"{hub.url}/{NAME}/discussions/1" in printed
        repository = hub.repositories[NAME]
        assert len(repository.refs["refs/heads/main"]) == 2
        proposed = repository.at("refs/pr/1").files["README.md"].content
        assert proposed.endswith(b"Corrected.\n")

    def test_a_pull_request_can_be_asked_for(self, hub, client, checkpoint):
        code, printed = client.run("publish", checkpoint, NAME, "--create-pr")
        assert code == 0 and "pull request: " in printed, printed
        assert "instead" not in printed
        repository = hub.repositories[NAME]
        assert set(repository.main.files) == {".gitattributes"}
        assert set(repository.at("refs/pr/1").files) >= SENT

    def test_a_namespace_of_others_is_refused_with_ones_own(self, hub, client, checkpoint):
        code, printed = client.run("publish", checkpoint, f"{OTHER_USER}/model")
        assert code == 2
        assert f"Publish to {USER}/model" in printed

    def test_a_branch_of_others_gets_no_pull_request_against_main(self, hub, client, checkpoint):
        assert client.run("publish", checkpoint, NAME)[0] == 0
        options = ("--revision", "v2")
        code, printed = client.run("publish", checkpoint, NAME, *options, token=OTHER_TOKEN)
        assert code == 2 and f"you ({OTHER_USER}) may not publish to {NAME}" in printed
        assert not hub.repositories[NAME].pull_requests

    @pytest.mark.parametrize(
        ("repo_id", "options", "message"),
        [
            ("model", (), "must be USER/NAME"),
            (f"{USER}/a--b", (), "Cannot have -- or .. in repo_id"),
            (NAME, ("--create-pr", "--revision", "v2"), "opened against main, not 'v2'"),
            (NAME, ("--retries", "-1"), "retries (-1) must be 0 or more"),
        ],
    )
    def test_what_cannot_be_right_is_told_without_the_hub(
        self, repo_id, options, message, hub, client, checkpoint
    ):
        code, printed = client.run("publish", checkpoint, repo_id, *options)
        assert code == 2 and message in printed
        assert not hub.requests


class TestABadNetwork:
    """Three large files; the connection breaks in the middle of one."""

    @pytest.fixture
    def sharded(self, checkpoint, tmp_path):
        model = AutoModelForPreTraining.from_pretrained(checkpoint)
        return write_checkpoint(tmp_path / "sharded", model, max_shard_size="120KB")

    def test_a_connection_cut_once_in_an_upload_is_retried(self, hub, client, sharded):
        hub.faults.append(Fault("PUT", "/lfs/"))
        code, printed = client.run("publish", sharded, NAME)
        assert code == 0, printed
        uploads = hub.sent("PUT", "/lfs/")
        assert sorted({request.status for request in uploads}) == [0, 200]
        assert set(contents(sharded)) <= set(hub.repositories[NAME].main.files)

    @pytest.mark.parametrize(
        "fault",
        [Fault("POST", "/commit/", status=503), Fault("POST", "/commit/", after_doing=True)],
        ids=["a busy Hub", "a lost answer"],
    )
    def test_a_commit_that_fails_is_tried_again_and_made_once(self, fault, hub, client, checkpoint):
        hub.faults.append(fault)
        code, printed = client.run("publish", checkpoint, NAME)
        assert code == 0, printed
        assert len(hub.repositories[NAME].refs["refs/heads/main"]) == 2
        assert len(hub.sent("PUT", "/lfs/")) == 1

    def test_a_connection_that_stays_broken_commits_nothing_and_can_be_repeated(
        self, hub, client, sharded
    ):
        before = contents(sharded)
        shards = [name for name in before if name.startswith("model-")]
        broken = before[shards[0]]
        assert len(shards) > 2
        hub.faults.append(Fault("PUT", f"/lfs/{broken}", times=1000))
        # the client itself repeats a request five times, in 23 seconds
        code, printed = client.run("publish", sharded, NAME, "--retries", 0, "--revision", "v2")
        assert code == 2
        assert f"Repeat: selfvit publish {sharded} {NAME} --revision v2" in " ".join(
            printed.split()
        )
        repository = hub.repositories[NAME]
        assert len(repository.refs["refs/heads/v2"]) == len(repository.refs["refs/heads/main"]) == 1
        assert contents(sharded) == before
        assert {before[name] for name in shards[1:]} <= set(hub.lfs)

        hub.faults.clear()
        hub.requests.clear()
        code, printed = client.run("publish", sharded, NAME, "--revision", "v2")
        assert code == 0, printed
        assert [request.path for request in hub.sent("PUT", "/lfs/")] == [f"/lfs/{broken}"]
        assert set(repository.at("v2").files) >= set(before)
        assert contents(sharded) == before

    def test_a_pull_request_is_not_opened_twice_when_its_answer_is_lost(
        self, hub, client, checkpoint
    ):
        hub.faults.append(Fault("POST", "/commit/", after_doing=True))
        code, printed = client.run("publish", checkpoint, NAME, "--create-pr")
        assert code == 2 and "unless only its last answer was lost" in printed
        assert hub.repositories[NAME].pull_requests == ["refs/pr/1"]
