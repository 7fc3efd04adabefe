"""Images read from object storage, and vectors written to it, with a real S3 server on loopback."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("upath")
server = pytest.importorskip("moto.server")

import fsspec  # noqa: E402
import requests  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from selfvit.cli import app  # noqa: E402
from selfvit.data.image_source import ImageSource  # noqa: E402
from selfvit.data.remote.file_system import StorageError, storage_errors  # noqa: E402
from selfvit.data.sources import open_images  # noqa: E402
from selfvit.embedding.embedder import Embedder  # noqa: E402
from selfvit.embedding.vectors.folder import VectorFolder  # noqa: E402
from selfvit.embedding.vectors.manifest import Manifest, read_footer  # noqa: E402
from selfvit.embedding.vectors.reader import read_vectors  # noqa: E402
from selfvit.embedding.vectors.storage import resolve, storage_of  # noqa: E402
from selfvit.embedding.vectors.update import update_embeddings  # noqa: E402
from selfvit.embedding.vectors.writer import write_embeddings  # noqa: E402
from selfvit.exploration.collection import Collection  # noqa: E402
from selfvit.exploration.index import build_index  # noqa: E402

from .. import image_files  # noqa: E402
from ..data.shards import write_parquet_shards, write_tar_shards  # noqa: E402
from ..forks import start_fork  # noqa: E402

NUM_IMAGES = 64
BATCH = 8
PART_IMAGES = 16
SECRET = "not-to-be-written"


def start_server(port: int = 0):
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    started.start()
    return started


@pytest.fixture(scope="module")
def s3():
    """File system of a server, whose address and credentials are in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        started = start_server()
        host, port = started.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        system.mkdir("bucket")
        yield system
        started.stop()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images in two class folders, and all kinds of other files."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(NUM_IMAGES):
        path = folder / ("a", "b/deeper")[index % 2] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image_files.noise(16, 16, seed=index).save(path)
    (folder / "a" / "0000.png").rename(folder / "a" / "without_extension")
    (folder / "a" / "0101_empty.png").touch()
    (folder / "a" / "empty").touch()
    (folder / "b" / "0300_text.png").write_text("no image")
    (folder / "b" / "photo.heic").write_bytes(b"no decoder is needed to see that")
    (folder / "notes.txt").write_text("no image")
    (folder / "data.rar").write_bytes(b"an archive")
    for name in (".hidden/1.png", "@eaDir/1.png", "a/@eaDir/2.png", "a/.3.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        image_files.noise(16, 16, seed=1).save(folder / name)
    return folder


def upload(s3, folder: Path, url: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            s3.pipe_file(f"{url.removeprefix('s3://')}/{name}", file.read_bytes())
    s3.touch(f"{url.removeprefix('s3://')}/")  # as a console creates a folder
    return url


@pytest.fixture(scope="module")
def bucket(s3, images):
    return upload(s3, images, "s3://bucket/images")


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint):
    return Embedder.from_pretrained(tiny_checkpoint, device="cpu", batch_size=BATCH)


@contextmanager
def checked_credentials():
    """Let the server refuse credentials that it does not know."""
    address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    requests.post(address, data="0")
    try:
        yield
    finally:
        requests.post(address, data="inf")


def write(embedder, data, output, **options):
    options = {"part_images": PART_IMAGES, "progress": False, **options}
    source = data if isinstance(data, ImageSource) else open_images(data)
    return write_embeddings(embedder, source, output, **options)


@pytest.fixture(scope="module")
def whole(embedder, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "vectors"
    write(embedder, images, output)
    return output


@pytest.fixture
def url(s3, request):
    name = re.sub(r"\W+", "-", request.node.name)
    # Another run of the tests on this machine may hold the lock of the same URL.
    return f"s3://bucket/vectors/{os.getpid()}/{name}"


def names_in(s3, url: str) -> list[str]:
    found = s3.ls(url, detail=False) if s3.exists(url) else []
    return sorted(name.rpartition("/")[2] for name in found)


def check_whole_parts(s3, url: str) -> int:
    """Check that each object is a complete part, of other positions; return their number."""
    spans = []
    for name in names_in(s3, url):
        if name.startswith("part-"):
            with s3.open(f"{url}/{name}") as file:
                num_rows = pq.read_table(file, page_checksum_verification=True).num_rows
            footer = read_footer(resolve(url) / name)
            assert num_rows + len(footer["skipped"]) == footer["stop"] - footer["start"]
            spans.append((footer["start"], footer["stop"]))
    spans.sort()
    assert all(stop <= start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))
    return sum(stop - start for start, stop in spans)


def assert_equal(s3, url: str, whole: Path) -> None:
    assert read_vectors(url).equals(read_vectors(whole))
    assert s3.cat_file(f"{url}/skipped.csv") == (whole / "skipped.csv").read_bytes()
    metadata = json.loads(s3.cat_file(f"{url}/metadata.json"))
    assert metadata["complete"] and metadata["num_embedded"] == NUM_IMAGES
    assert not [name for name in names_in(s3, url) if name.startswith(".")]


class TestImages:
    def test_the_inventory_is_that_of_the_local_folder(self, bucket, images):
        local, remote = open_images(images), open_images(bucket)
        assert remote.paths == local.paths and len(remote) == NUM_IMAGES + 2
        assert remote.inventory == local.inventory
        assert remote.label_names == local.label_names == ["a", "b"]
        np.testing.assert_array_equal(remote.labels(), local.labels())
        assert remote.fingerprint == local.fingerprint
        assert remote[3].image == Path(local[3].image).read_bytes()

    def test_splits_and_metadata_are_those_of_the_local_folder(self, s3, tmp_path):
        for folder in ("train", "test"):
            (tmp_path / folder).mkdir()
            for index in range(4):
                image_files.noise(8, 8, seed=index).save(tmp_path / folder / f"{index}.png")
        rows = "".join(f"train/{index}.png,{index % 2}\n" for index in range(3))
        (tmp_path / "metadata.csv").write_text(f"file_name,label\n{rows}train/9.png,1\n")
        url = upload(s3, tmp_path, "s3://bucket/splits")
        splits: tuple[str | None, ...] = (None, "test", "all")
        for split in splits:
            local, remote = open_images(tmp_path, split=split), open_images(url, split=split)
            assert remote.paths == local.paths
            assert remote.inventory == local.inventory
            assert remote.label_rule == local.label_rule
            np.testing.assert_equal(remote.labels(), local.labels())
        with pytest.raises(ValueError, match="s3://bucket/splits/metadata.csv.*no column 'x'"):
            open_images(url, label_column="x")

    def test_a_table_of_metadata_is_copied_to_no_other_place(self, s3, images, tmp_path):
        # The key photos//tmp/x/metadata.csv wrote /tmp/x/metadata.csv on this machine.
        s3.pipe_file("bucket/odd/a.png", (images / "a/0002.png").read_bytes())
        for folder in (str(tmp_path), f"../..{tmp_path}", f"b/../../..{tmp_path}"):
            s3.pipe_file(f"bucket/odd/{folder}/metadata.csv", b"file_name,label\na.png,1\n")
        source = open_images("s3://bucket/odd")
        assert source.paths == ["a.png"] and source.label_names is None
        assert not list(tmp_path.iterdir())

    def test_one_object_and_objects_in_memory(self, bucket, images):
        one = open_images(f"{bucket}/a/0002.png")
        assert (one[0].id, one[0].image) == ("0002.png", (images / "a/0002.png").read_bytes())
        memory = fsspec.filesystem("memory")
        memory.pipe_file("/photos/cat/1.png", one[0].image)
        assert open_images("memory://photos").paths == ["cat/1.png"]

    def test_any_name_of_an_object_can_be_read(self, s3, images):
        content = (images / "a/0002.png").read_bytes()
        names = ["a b#c.png", "d?e.png", "f%20g.png", "h[1]*.png", "i//j.png", "k/ü.png", "l@m.png"]
        for name in names:
            s3.pipe_file(f"bucket/names [x]#1/{name}", content)
        source = open_images("s3://bucket/names [x]#1")
        assert source.paths == sorted(names)
        assert all(source[place].image == content for place in range(len(source)))

    def test_videos_are_named_and_not_read(self, images):
        # --video-fps was ignored: the images beside the videos were embedded.
        content = (images / "a/0002.png").read_bytes()
        memory = fsspec.filesystem("memory")
        memory.pipe({"/clips/a.mp4": b"", "/clips/b.png": content, "/films/c.mp4": b""})
        for url in ("memory://clips", "memory://films/c.mp4"):
            with pytest.raises(ValueError, match="not read from object storage.*copy them to a"):
                open_images(url, video_fps=1)
        note = r"1 video file is not read \(a.mp4\); copy it to a disk to embed the frames"
        assert re.fullmatch(note, open_images("memory://clips").inventory.notes[-1])
        with pytest.raises(ValueError, match="no images in .* copy it to a disk to embed"):
            open_images("memory://films")
        with pytest.raises(ValueError, match="not read from object storage; copy it to a disk"):
            open_images("memory://films/c.mp4")

    def test_an_object_that_was_deleted_is_skipped(self, s3, embedder, images, tmp_path):
        image_files.noise(8, 8, seed=0).save(tmp_path / "0.png")
        image_files.noise(8, 8, seed=1).save(tmp_path / "1.png")
        source = open_images(upload(s3, tmp_path, "s3://bucket/deleted"))
        s3.rm_file("bucket/deleted/1.png")
        embedded = embedder.embed(source)
        assert embedded.ids == ["0.png"]
        assert [image.reason for image in embedded.skipped] == [
            "the object was deleted after the listing"
        ]

    @pytest.mark.parametrize(
        "data, error, message",
        [
            ("s3://bucket/nothing", FileNotFoundError, "no object or folder 's3://bucket/nothing'"),
            ("s3://no-such-bucket/x", StorageError, "bucket does not exist; create it first"),
            (
                "s3://bucket/shards",
                ValueError,
                "1 .tar, 1 .parquet files; give a folder of",
            ),
            ("s3://bucket/shards/a.tar", ValueError, "only as a stream; use --streaming"),
            ("gs://bucket/images", ImportError, r'pip install "selfvit\[gs\]"'),
            ("nope://bucket/images", ValueError, "nope:// must be a protocol of fsspec"),
            ("s3://user:word@bucket/images", ValueError, "must not contain credentials"),
            ("s3://", ValueError, "must name a bucket"),
            ("file:///images", ValueError, "must be given by its path"),
            (Path("s3://bucket/images"), ValueError, "write 's3://bucket/images' as a text"),
            (["s3://bucket/images/a", "s3://bucket/images/b"], ValueError, "must be one URL"),
        ],
    )
    def test_an_error_is_one_line(self, data, error, message, s3):
        s3.pipe_file("bucket/shards/a.tar", b"")
        s3.pipe_file("bucket/shards/b.parquet", b"")
        with pytest.raises(error, match=message) as caught:
            open_images(data)
        assert "\n" not in str(caught.value)

    def test_wrong_credentials_stop_the_run(self, s3, bucket, embedder, url):
        source = open_images(bucket)
        with checked_credentials():
            with pytest.raises(StorageError, match="cannot be read.*check the cred") as caught:
                embedder.embed(source)
            with pytest.raises(StorageError, match="cannot be read.*check the cred"):
                Embedder(embedder.model, embedder.processor, num_workers=2).embed(source)
            with pytest.raises(StorageError, match="cannot be read.*check the cred"):
                write(embedder, source, url)
            with pytest.raises(StorageError, match="cannot be read.*check the cred"):
                read_vectors(url)
        assert SECRET not in str(caught.value) and "127.0.0.1" not in str(caught.value)

    def test_no_address_and_no_missing_object_is_in_a_message(self):
        with pytest.raises(StorageError) as caught, storage_errors("s3://bucket/x"):
            raise OSError('Could not connect to "http://127.0.0.1:1/bucket/x"')
        assert "127.0.0.1" not in str(caught.value)
        with pytest.raises(ZeroDivisionError), storage_errors("s3://bucket/x"):
            raise ZeroDivisionError


class TestVectors:
    def test_s3_to_s3_equals_local_to_local(self, s3, bucket, embedder, whole, url):
        report = write(embedder, bucket, url)
        assert report.num_embedded == NUM_IMAGES and len(report.skipped) == 2
        assert_equal(s3, url, whole)
        for part, local in zip(
            Manifest.load(resolve(url)).in_order(), Manifest.load(whole).in_order(), strict=True
        ):
            assert (part.file, part.start, part.stop) == (local.file, local.start, local.stop)
            assert part.num_bytes == s3.info(f"{url}/{part.file}")["size"]
        assert not storage_of(resolve(url)).locks.exists()

    def test_the_command_with_workers(self, s3, bucket, tiny_checkpoint, whole, url):
        words = ["embed", tiny_checkpoint, "--data", bucket, "-o", url, "--batch-size", BATCH]
        words += ["--device", "cpu", "--num-workers", 2]
        run = CliRunner().invoke(app, [str(word) for word in words])
        assert run.exit_code == 0, run.output
        assert f"{NUM_IMAGES} images embedded" in run.output and url in run.output
        assert_equal(s3, url, whole)
        for name in names_in(s3, url):
            content = s3.cat_file(f"{url}/{name}")
            assert SECRET.encode() not in content and b"127.0.0.1" not in content
        run = CliRunner().invoke(app, [str(w) for w in [*words, "--devices", 2, "--resume"]])
        assert run.exit_code == 2
        assert len(run.stderr.splitlines()) == 1 and "must write to a local folder" in run.stderr

    def test_kills_lose_and_double_nothing(self, s3, bucket, embedder, whole, url):
        rng, kills = random.Random(0), 0
        deadline = time.monotonic() + 10
        while kills < 6 and time.monotonic() < deadline:
            process = start_fork(write, embedder, bucket, url, resume=True)
            process.join(rng.uniform(0.2, 1.2))
            if process.exitcode is None:
                process.kill()
                kills += 1
            process.join()
            if check_whole_parts(s3, url) == NUM_IMAGES + 2:
                s3.rm(url, recursive=True)
        assert kills > 1
        write(embedder, bucket, url, resume=True)
        assert_equal(s3, url, whole)

    def test_only_footers_are_read_to_find_parts(self, s3, bucket, embedder, url, monkeypatch):
        import s3fs.core

        write(embedder, bucket, url)
        manifest = Manifest.load(resolve(url))
        read = []
        fetch = s3fs.core._fetch_range

        def counting(fs, bucket, key, version_id, start, end, **options):
            read.append(end - start)
            return fetch(fs, bucket, key, version_id, start, end, **options)

        monkeypatch.setattr(s3fs.core, "_fetch_range", counting)
        assert manifest.with_found_parts(resolve(url)) == manifest
        assert not read
        for part in manifest.parts:
            read_footer(resolve(url) / part.file)
        assert len(read) <= 2 * len(manifest.parts)

    def test_a_part_without_its_entry_is_found(self, s3, bucket, embedder, whole, url):
        write(embedder, bucket, url)
        manifest = Manifest.load(resolve(url))
        manifest.parts.pop()
        manifest.save(resolve(url))
        before = s3.ls(url, detail=True)
        write(embedder, bucket, url, resume=True)
        times = {entry["name"]: entry["LastModified"] for entry in s3.ls(url, detail=True)}
        for entry in before:
            if "part-" in entry["name"]:
                assert times[entry["name"]] == entry["LastModified"]
        assert_equal(s3, url, whole)

    def test_update_and_overwrite(self, s3, images, embedder, url, tmp_path):
        data = upload(s3, images, "s3://bucket/updated")
        write(embedder, data, url)
        s3.rm_file("bucket/updated/a/0002.png")
        image_files.noise(16, 16, seed=999).save(tmp_path / "new.png")
        for name in ("a/new.png", "a/0004.png"):
            s3.pipe_file(f"bucket/updated/{name}", (tmp_path / "new.png").read_bytes())
        report = update_embeddings(embedder, open_images(data), url, progress=False)
        assert (report.num_new, report.num_changed, report.num_removed) == (1, 1, 1)
        updated = {row["path"]: row for row in read_vectors(url).to_pylist()}
        with pytest.raises(FileExistsError, match="is not empty"):
            write(embedder, data, url)
        write(embedder, data, url, overwrite=True)
        fresh = {row["path"]: row for row in read_vectors(url).to_pylist()}
        assert updated.keys() == fresh.keys()
        for name, row in fresh.items():
            assert row["checksum"] == updated[name]["checksum"]
            np.testing.assert_allclose(row["embedding"], updated[name]["embedding"], atol=1e-5)

    def test_foreign_objects_are_not_replaced(self, s3, bucket, embedder, url):
        s3.pipe_file(f"{url}/diary.txt", b"mine")
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FileExistsError, match=r"choose a new folder"):
                write(embedder, bucket, url, **options)
        with pytest.raises(FileExistsError, match="is a file or a link"):
            write(embedder, bucket, f"{url}/diary.txt", overwrite=True)
        assert s3.cat_file(f"{url}/diary.txt") == b"mine"

    def test_an_index_needs_a_local_folder(self, embedder, images):
        """The message was about several processes, which are not used."""
        write(embedder, images, "memory://vectors/index")
        with pytest.raises(ValueError, match=r"built beside local vectors.*copy the folder"):
            build_index(Collection("memory://vectors/index"))

    @pytest.mark.parametrize(
        "words", [("cluster", "--num-clusters", 3), ("label", "--labels", "few.csv")]
    )
    def test_columns_of_remote_vectors_are_written_to_a_table_only(
        self, words, embedder, images, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        vectors = "memory://vectors/columns"
        write(embedder, images, vectors, overwrite=True)
        names = read_vectors(vectors)["path"].to_pylist()
        rows = [f"{name},{row % 2}" for row, name in enumerate(names[:8])]
        Path("few.csv").write_text("\n".join(["path,label", *rows]))
        command, *options = map(str, words)
        refused = CliRunner().invoke(app, [command, vectors, *options])
        assert refused.exit_code == 2 and "write a table only: --output" in refused.output
        written = CliRunner().invoke(app, [command, vectors, *options, "--output", "table.csv"])
        assert written.exit_code == 0, written.output
        assert "column" not in written.output and "table: table.csv" in written.output
        assert len(Path("table.csv").read_text().splitlines()) == len(names) + 1

    @pytest.mark.parametrize("url", ["s3://bucket//v", "s3://bucket/p//v"])
    def test_a_url_with_an_empty_segment_is_refused(self, s3, bucket, embedder, url):
        # s3fs lists nothing below it, so that a second run replaced the manifest of the first.
        fixed = url.replace("//v", "/v")
        with pytest.raises(ValueError, match=f"must not have an empty segment.*use '{fixed}'"):
            write(embedder, bucket, url)
        assert not s3.exists(f"{url}/manifest.json")
        assert resolve(f"{fixed}/") == resolve(fixed)

    def test_a_missing_bucket_is_one_line(self, embedder, bucket):
        with pytest.raises(StorageError, match="bucket does not exist; create it first"):
            write(embedder, bucket, "s3://no-such-bucket/v")

    def test_another_run_is_recognized(self, s3, bucket, embedder, whole, url):
        """Without a common lock, as on two machines."""
        mine = VectorFolder(resolve(url), Manifest({}, {}), {"created_by": "selfvit embed"})
        write(embedder, bucket, url)
        with pytest.raises(FileExistsError, match="another run has begun"):
            mine.begin()
        part = resolve(url) / "part-00000.parquet"
        storage = storage_of(resolve(url))
        unfinished = storage.new_file()
        unfinished.write_bytes(b"another part")
        with pytest.raises(FileExistsError, match="another process is writing"):
            storage.add(unfinished, part.name)
        unfinished.write_bytes(s3.cat_file(f"{url}/{part.name}"))
        storage.add(unfinished, part.name)  # the answer to its own upload was lost
        assert_equal(s3, url, whole)

    def test_two_machines_that_resume_one_run_are_noticed(self, bucket, embedder, url, monkeypatch):
        def stop(self, left_out):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(VectorFolder, "finish", stop)
            write(embedder, bucket, url)
        manifest = Manifest.load(resolve(url))
        assert manifest is not None
        other = VectorFolder(resolve(url), manifest, {})
        source = open_images(bucket)
        with other.writing():
            part = other.new_part(source, 0)
            for batch in embedder.stream(source, ranges=[range(8)]):
                part.write(batch)
            with pytest.raises(FileExistsError, match="another process is writing"):
                other.add(part)
        other.manifest = replace(manifest, parts=manifest.parts[1:])
        with pytest.raises(FileExistsError, match="changed the manifest"):
            other.finish([])

    def test_another_process_of_this_machine_is_locked_out(self, bucket, embedder, url):
        folder = VectorFolder(resolve(url), Manifest({}, {}), {})
        with folder.writing(), pytest.raises(FileExistsError, match="another process is writing"):
            write(embedder, bucket, url)


class TestLostConnection:
    def test_a_run_goes_on_after_the_server_was_stopped(
        self, images, embedder, whole, monkeypatch, s3
    ):
        first = start_server()
        host, port = first.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        _forget_clients()
        system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
        system.mkdir("other")
        url = "s3://other/vectors"
        added: list[object] = []
        add = VectorFolder.add

        def add_and_stop(self, part):
            if len(added) == 3:
                first.stop()
            add(self, part)
            added.append(part)

        monkeypatch.setattr(VectorFolder, "add", add_and_stop)
        with pytest.raises(
            StorageError, match="cannot be (read|written).*check the cred"
        ) as caught:
            write(embedder, images, url)
        assert "127.0.0.1" not in str(caught.value) and "\n" not in str(caught.value)
        monkeypatch.setattr(VectorFolder, "add", add)
        second = start_server(port)  # moto keeps the objects of this process
        try:
            assert check_whole_parts(system, url) == 3 * PART_IMAGES
            write(embedder, images, url, resume=True)
            assert_equal(system, url, whole)
        finally:
            second.stop()
            _forget_clients()


def _forget_clients() -> None:
    from selfvit.data.remote import file_system

    file_system._open.cache_clear()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
class TestShards:
    @pytest.fixture
    def shards(self, s3, kind, tmp_path):
        write_shards = write_tar_shards if kind == "tar" else write_parquet_shards
        folder = write_shards(tmp_path / kind, [20, 1, 13])
        return folder, upload(s3, folder, f"s3://bucket/{kind}-{tmp_path.name}")

    @pytest.fixture(autouse=True)
    def copies(self, tmp_path, monkeypatch):
        """Folder of the copies of shards, of this test only; a killed process leaves its own."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path

    def test_they_are_streamed_as_local_ones(self, shards, copies, embedder, tmp_path):
        folder, url = shards
        local, remote = (open_images(data, streaming=True) for data in (folder, url))
        assert remote.fingerprint == local.fingerprint and remote.num_shards == 3
        for name, source in {"local": local, "remote": remote}.items():
            write_embeddings(embedder, source, tmp_path / name, part_images=12, progress=False)
        assert read_vectors(tmp_path / "remote").equals(read_vectors(tmp_path / "local"))
        assert not list(copies.glob("selfvit-shard-*"))

    def test_a_killed_run_goes_on(self, shards, embedder, tmp_path):
        _, url = shards

        def run(output):
            source = open_images(url, streaming=True)
            options = {"part_images": 8, "progress": False, "resume": True}
            write_embeddings(embedder, source, output, **options)

        run(tmp_path / "whole")
        rng = random.Random(0)
        for _ in range(4):
            process = start_fork(run, tmp_path / "v")
            process.join(rng.uniform(0.2, 0.8))
            process.kill()
            process.join()
        run(tmp_path / "v")
        assert read_vectors(tmp_path / "v").equals(read_vectors(tmp_path / "whole"))

    def test_bad_shards_are_named(self, shards, kind, s3, embedder, tmp_path):
        _, url = shards
        with pytest.raises(ValueError, match="only as a stream; use --streaming"):
            open_images(url)
        names = s3.ls(url.removeprefix("s3://"))
        (place,) = [name for name in names if name.endswith(f"002.{kind}")]
        s3.pipe_file(place, s3.cat_file(place)[:4000])
        with pytest.raises(ValueError, match=r"s3://bucket/.*002\.\w+"):
            source = open_images(url, streaming=True)
            write_embeddings(embedder, source, tmp_path / "v", progress=False)
        open_images(f"s3://{place.replace('002', '000')}", streaming=True)
        s3.rm_file(place)
        assert open_images(url, streaming=True).num_shards == 2
