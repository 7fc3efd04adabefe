"""`selfvit publish` and loading of published checkpoints, with a local Hub."""

import hashlib

import numpy as np
import pytest
from transformers import AutoModelForPreTraining

from selfvit.modeling.checkpoints.remote_code import code_files

from ..hub_requests import OTHER_TOKEN, OTHER_USER, TOKEN, USER, USERS, Fault
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


class TestRoundTrip:
    @pytest.mark.parametrize("name", ["dino", "mae", "pmsn", "classifier"])
    def test_a_published_checkpoint_gives_the_vectors_of_the_local_folder(
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

    def test_all_files_are_in_one_commit(self, hub, client, checkpoint):
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

    def test_the_published_card_names_the_repository_instead_of_the_folder(
        self, hub, client, checkpoint
    ):
        code = 'model = AutoModel.from_pretrained("my_model")\npipeline("x", model="my_model")\n'
        commands = "selfvit embed my_model --data A\nselfvit evaluate 'my model' --train A\n"
        older = "selfvit embed --model my_model --data A\n"
        kept = 'model="someone/else"\nselfvit embed someone/else --data A\n'
        with (checkpoint / "README.md").open("a") as card:
            card.write(code + commands + older + kept)
        assert client.run("publish", checkpoint, NAME)[0] == 0
        text = hub.repositories[NAME].main.files["README.md"].content.decode()
        published = code.replace("my_model", NAME)
        published += f"selfvit embed {NAME} --data A\nselfvit evaluate {NAME} --train A\n"
        assert text.endswith(published + f"selfvit embed --model {NAME} --data A\n" + kept)

    @pytest.mark.parametrize("user", ["01-ai", "3dlab"])
    def test_the_card_is_right_for_a_user_whose_name_begins_with_a_digit(
        self, user, hub, client, checkpoint, monkeypatch
    ):
        """`01-ai/x` was replaced by control characters, and `3dlab/x` ended in a traceback."""
        monkeypatch.setitem(USERS, TOKEN, user)
        with (checkpoint / "README.md").open("a") as card:
            card.write('pipeline("x", model="my_model")\nselfvit embed my_model --data A\n')
        code, printed = client.run("publish", checkpoint, f"{user}/x")
        assert code == 0, printed
        text = hub.repositories[f"{user}/x"].main.files["README.md"].content.decode()
        assert text.endswith(f'model="{user}/x")\nselfvit embed {user}/x --data A\n')

    def test_published_shards_replace_an_earlier_single_file(
        self, hub, client, checkpoint, images, tmp_path
    ):
        assert client.run("publish", checkpoint, NAME)[0] == 0
        model = AutoModelForPreTraining.from_pretrained(checkpoint)
        model.vit.layernorm.weight.data += 1
        sharded = write_checkpoint(tmp_path / "sharded", model, max_shard_size="60KB")
        shards = {path.name for path in sharded.glob("model-*.safetensors")}
        assert len(shards) > 2
        files = hub.repositories[NAME].main.files
        others = {"model_ema.safetensors", "models/vit_l/model.safetensors"}  # were deleted, too
        files.update(dict.fromkeys(others, files["model.safetensors"]))
        code, printed = client.run("publish", sharded, NAME)
        assert code == 0, printed
        stored = set(hub.repositories[NAME].main.files)
        assert others <= stored
        assert shards | {"model.safetensors.index.json"} <= stored
        # it used to remain, and transformers would have loaded it instead of the shards
        assert "model.safetensors" not in stored
        assert_same(client(vectors, NAME, images), client(vectors, str(sharded), images))

    def test_push_to_hub_of_model_and_processor_is_complete(self, hub, client, checkpoint, images):
        client(push_to_hub, str(checkpoint), NAME)
        code = {path.name for path in code_files(checkpoint)}
        assert set(hub.repositories[NAME].main.files) >= (SENT - {"training.yaml"}) | code
        assert_same(client(vectors, NAME, images), client(vectors, str(checkpoint), images))

    def test_save_pretrained_with_push_to_hub_uploads_the_code(
        self, hub, client, checkpoint, tmp_path
    ):
        for _ in range(2):  # transformers uploads only files newer than the call
            client(save_and_push, str(checkpoint), str(tmp_path / "saved"), NAME)
            sent = hub.repositories[NAME].main.files
            code = code_files(tmp_path / "saved")
            assert code
            for path in [*code, tmp_path / "saved" / "model.safetensors"]:
                assert sent[path.name].content == path.read_bytes()
            hub.repositories.pop(NAME)

    def test_publishing_again_without_changes_adds_no_commit(self, hub, client, checkpoint):
        first = client(publish, str(checkpoint), NAME, {})
        again = client(publish, str(checkpoint), NAME, {})
        assert again.commit == first.commit
        assert len(hub.repositories[NAME].refs["refs/heads/main"]) == 2
        assert len(hub.sent("PUT", "/lfs/")) == 1


class TestPermissions:
    def test_only_the_owner_can_open_a_private_repository(self, hub, client, checkpoint, images):
        code, printed = client.run("publish", checkpoint, f"{USER}/secret", "--private")
        assert code == 0, printed
        assert hub.repositories[f"{USER}/secret"].private
        for token in (OTHER_TOKEN, None):  # before the download of the owner fills the cache
            with pytest.raises(OSError, match="not a valid model identifier"):
                client(vectors, f"{USER}/secret", images, token=token)
        assert_same(
            client(vectors, f"{USER}/secret", images), client(vectors, str(checkpoint), images)
        )

    def test_private_is_rejected_for_an_existing_public_repository(self, hub, client, checkpoint):
        assert client.run("publish", checkpoint, NAME)[0] == 0
        code, printed = client.run("publish", checkpoint, NAME, "--private")
        assert code == 2 and "exists and is public" in printed

    @pytest.mark.parametrize(
        ("token", "message"),
        [("hf_wrong", "rejects the token"), (None, "you are not signed in")],
    )
    def test_a_wrong_token_is_reported_before_anything_is_sent(
        self, token, message, hub, client, checkpoint
    ):
        code, printed = client.run("publish", checkpoint, NAME, token=token)
        assert code == 2
        assert message in printed and "hf auth login" in printed and "HF_TOKEN" in printed
        assert not hub.repositories and not hub.lfs

    def test_without_write_access_a_pull_request_is_opened(self, hub, client, checkpoint):
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

    def test_create_pr_opens_a_pull_request(self, hub, client, checkpoint):
        code, printed = client.run("publish", checkpoint, NAME, "--create-pr")
        assert code == 0 and "pull request: " in printed, printed
        assert "instead" not in printed
        repository = hub.repositories[NAME]
        assert set(repository.main.files) == {".gitattributes"}
        assert set(repository.at("refs/pr/1").files) >= SENT

    def test_the_error_for_another_namespace_suggests_the_own_one(self, hub, client, checkpoint):
        code, printed = client.run("publish", checkpoint, f"{OTHER_USER}/model")
        assert code == 2
        assert f"Publish to {USER}/model" in printed

    def test_a_branch_of_another_repository_gets_no_pull_request_against_main(
        self, hub, client, checkpoint
    ):
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
            (
                NAME,
                ("--create-pr", "--revision", "v2"),
                "opens a pull request against main, not 'v2'",
            ),
            (NAME, ("--retries", "-1"), "retries (-1) must be at least 0"),
        ],
    )
    def test_invalid_arguments_are_reported_without_a_request_to_the_hub(
        self, repo_id, options, message, hub, client, checkpoint
    ):
        code, printed = client.run("publish", checkpoint, repo_id, *options)
        assert code == 2 and message in printed
        assert not hub.requests


class TestBadNetwork:
    """Upload of three large files; the connection breaks during one of them."""

    @pytest.fixture
    def sharded(self, checkpoint, tmp_path):
        model = AutoModelForPreTraining.from_pretrained(checkpoint)
        return write_checkpoint(tmp_path / "sharded", model, max_shard_size="120KB")

    def test_an_upload_is_retried_after_a_broken_connection(self, hub, client, sharded):
        hub.faults.append(Fault("PUT", "/lfs/"))
        code, printed = client.run("publish", sharded, NAME)
        assert code == 0, printed
        uploads = hub.sent("PUT", "/lfs/")
        assert sorted({request.status for request in uploads}) == [0, 200]
        assert set(contents(sharded)) <= set(hub.repositories[NAME].main.files)

    @pytest.mark.parametrize(
        "fault",
        [Fault("POST", "/commit/", status=503), Fault("POST", "/commit/", after_doing=True)],
        ids=["busy server", "lost response"],
    )
    def test_a_failed_commit_is_retried_and_made_once(self, fault, hub, client, checkpoint):
        hub.faults.append(fault)
        code, printed = client.run("publish", checkpoint, NAME)
        assert code == 0, printed
        assert len(hub.repositories[NAME].refs["refs/heads/main"]) == 2
        assert len(hub.sent("PUT", "/lfs/")) == 1

    def test_a_permanently_broken_connection_commits_nothing_and_the_command_can_be_repeated(
        self, hub, client, sharded
    ):
        before = contents(sharded)
        shards = [name for name in before if name.startswith("model-")]
        broken = before[shards[0]]
        assert len(shards) > 2
        hub.faults.append(Fault("PUT", f"/lfs/{broken}", times=1000))
        # the client itself retries a request five times, usually within 23 seconds
        words = ("publish", sharded, NAME, "--retries", 0, "--revision", "v2")
        code, printed = client.run(*words, waits=False)
        assert code == 2
        assert f"To repeat, run: selfvit publish {sharded} {NAME} --revision v2" in " ".join(
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

    def test_a_pull_request_is_not_opened_twice_if_its_response_is_lost(
        self, hub, client, checkpoint
    ):
        hub.faults.append(Fault("POST", "/commit/", after_doing=True))
        code, printed = client.run("publish", checkpoint, NAME, "--create-pr")
        assert code == 2 and "unless only the last response was lost" in printed
        assert hub.repositories[NAME].pull_requests == ["refs/pr/1"]
