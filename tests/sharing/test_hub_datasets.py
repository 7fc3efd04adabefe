"""Datasets on the Hub: revisions, streaming over the network, training and resuming."""

import multiprocessing
import shutil
import signal
from typing import Any

import pytest
import torch

from ..data.shards import write_parquet_shards, write_tar_shards
from ..hub_requests import USER, Fault
from ..image_files import noise
from ..training.processes import AtLogLine, kill_self, start_training
from ..training.tiny_runs import arguments, log_of, weights_of

NAME = f"{USER}/photos"


def upload(folder, repo_id):
    """Upload a folder as a dataset or as a new commit of it; return the hash of the commit."""
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, repo_type="dataset", exist_ok=True)
    return HfApi().upload_folder(folder_path=folder, repo_id=repo_id, repo_type="dataset").oid


def ids(data, streaming):
    """Return the ids of all images, or of a stream, the ids of each shard."""
    from selfvit.data.sources import open_images

    source = open_images(data, streaming=streaming)
    if not streaming:
        return [source[position].id for position in range(len(source))]
    return [[record.id for record in source.read_shard(n)] for n in range(source.num_shards)]


def ids_after(change, data):
    """Open a stream, change the dataset, and return the ids that the stream reads."""
    from selfvit.data.sources import open_images

    source = open_images(data, streaming=True)
    upload(*change)
    return [record.id for n in range(source.num_shards) for record in source.read_shard(n)]


@pytest.fixture
def photos(hub, client, tmp_path):
    """Upload a dataset of 5 tars with 3 images each; return its local folder and commit."""
    folder = tmp_path / "photos"
    write_tar_shards(folder / "train", [3] * 5)
    return folder, client(upload, folder, NAME)


@pytest.mark.parametrize("suffix", ["", "@main", "@{commit}"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_is_opened_at_a_revision(suffix, streaming, photos, client):
    folder, commit = photos
    more = write_tar_shards(folder / "train", [3] * 6).parent
    client(upload, more, NAME)
    shards = 5 if "commit" in suffix else 6
    found = client(ids, NAME + suffix.format(commit=commit), streaming)
    expected = [[str(3 * shard + row) for row in range(3)] for shard in range(shards)]
    assert found == (expected if streaming else sum(expected, []))


def test_a_stream_keeps_the_commit_at_which_it_was_opened(photos, client):
    folder, _ = photos
    shutil.rmtree(folder / "train")
    write_tar_shards(folder / "train", [1] * 9)
    assert len(client(ids_after, (folder, NAME), NAME)) == 15


@pytest.mark.parametrize("streaming", [True, False])
def test_a_missing_revision_or_dataset_is_an_error(streaming, photos, client):
    for name in (f"{NAME}@v2", f"{USER}/paintings"):
        with pytest.raises(
            FileNotFoundError, match=rf"'{name}' is not a local folder or file.*Hub"
        ):
            client(ids, name, streaming)


def test_parquet_files_without_rows_are_streamed(hub, client, tmp_path):
    write_parquet_shards(tmp_path / "data", [4, 0, 3])
    client(upload, tmp_path, NAME)
    assert client(ids, NAME, True) == [["0", "1", "2", "3"], [], ["4", "5", "6"]]


def test_a_stream_recovers_from_a_broken_connection(photos, hub, client):
    hub.faults.append(Fault("GET", r"shard-00[13]\.tar", times=2))
    assert sum(client(ids, NAME, True), []) == [str(number) for number in range(15)]
    assert hub.faults[0].times == 0


def train_until_killed(command, printed_to):
    """Train in a fork of the client, which kills itself after 6 steps; return code and output."""
    context: Any = multiprocessing.get_context("fork")
    hook = AtLogLine(6, kill_self)
    training = start_training(command, printed_to, hook, context=context)
    return training.exit_code(), training.printed


def test_a_killed_run_resumes_at_its_commit_with_the_same_result(photos, client, tmp_path):
    def command(output, *options, data=NAME):
        steps = ("--streaming", "--max-steps", 9, "--batch-size", 4, "--save-steps", 2)
        loader = ("--shuffle-buffer", 5, "--num-workers", 2, "--no-save-code", "--cpu")
        return arguments("dino", data, tmp_path / output, *steps, *loader, *options)

    folder, commit = photos
    code, printed = client.run("train", *command("unbroken"))
    assert code == 0, printed
    code, printed = client(train_until_killed, command("killed"), tmp_path / "printed.txt")
    assert code == -signal.SIGKILL, printed
    assert "5 shards for 1 processes x 2 workers" in printed

    shutil.rmtree(folder / "train")
    client(upload, write_tar_shards(folder / "train", [2] * 5).parent, NAME)
    code, printed = client.run("train", *command("killed", "--resume"))
    assert code == 2 and f"it was {NAME}@{commit} (train), streamed" in printed
    at_commit = command("killed", "--resume", data=f"{NAME}@{commit}")
    code, printed = client.run("train", *at_commit)
    assert code == 0, printed
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "unbroken")
    ours, theirs = weights_of(tmp_path / "killed"), weights_of(tmp_path / "unbroken")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert f"{NAME}@{commit}" in (tmp_path / "killed" / "README.md").read_text()


def embed_over_the_hub(checkpoint, images, data, output):
    """Embed images on the Hub into a dataset on the Hub, and compare with local ones."""
    from huggingface_hub import HfApi

    from selfvit.data.sources import open_images
    from selfvit.embedding.embedder import Embedder
    from selfvit.embedding.vectors.reader import read_vectors
    from selfvit.embedding.vectors.writer import write_embeddings

    HfApi().create_repo(output.split("/", 3)[3], repo_type="dataset")
    embedder = Embedder.from_pretrained(checkpoint, device="cpu", batch_size=4)
    options = {"part_images": 4, "progress": False}
    for source, place in [(images, f"{images}_vectors"), (data, output)]:
        write_embeddings(embedder, open_images(source), place, **options)
    local, remote = read_vectors(f"{images}_vectors"), read_vectors(output)
    again = write_embeddings(embedder, open_images(data), output, resume=True, **options)
    return local.equals(remote), len(remote), again.num_before


def test_images_and_vectors_by_url(hub, client, tiny_checkpoint, tmp_path):
    pytest.importorskip("upath")
    folder = tmp_path / "photos"
    for number in range(10):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(16, 16, seed=number).save(path)
    client(upload, folder, NAME)
    url = f"hf://datasets/{NAME}"
    found = client(
        embed_over_the_hub, tiny_checkpoint, folder, url, f"hf://datasets/{USER}/vectors"
    )
    assert found == (True, 10, 10)
