"""Collections: rows, images, and columns that are added."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfvit import read_vectors
from selfvit.data.dataset_source import DatasetSource
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.update import update_embeddings
from selfvit.embedding.vectors.writer import write_embeddings
from selfvit.exploration.collection import Collection, directions_of
from selfvit.exploration.labeling import label
from selfvit.exploration.search import search

from .. import image_files
from .conftest import write_vectors


@pytest.fixture
def folder(collection_vectors, tmp_path):
    return shutil.copytree(collection_vectors, tmp_path / "v")


def test_rows_are_those_of_the_table(folder):
    collection, table = Collection(folder), read_vectors(folder)
    assert collection.ids == table["path"].to_pylist() and len(collection) == 40
    assert collection.labels == table["label"].to_pylist()
    assert np.array_equal(collection.vectors, np.stack(table["embedding"].to_numpy()))
    np.testing.assert_allclose(np.linalg.norm(collection.directions, axis=1), 1, atol=1e-6)
    assert not directions_of(np.zeros((2, 3))).any()


def test_images_are_found_by_their_names_and_after_a_move(folder, collection_images, tmp_path):
    collection = Collection(folder)
    images = collection.images()
    expected = open_images(collection_images)
    for row in (0, 17, 39):
        assert images.record(row).id == collection.ids[row] == expected[row].id
        assert images.picture(row).size == (24, 24)
    moved = shutil.copytree(collection_images, tmp_path / "moved")
    (moved / "a" / "00.png").unlink()
    images = collection.images(moved)
    assert str(moved) in images.record(1).image
    with pytest.raises(FileNotFoundError, match="no image 'a/00.png'"):
        images.record(0)
    assert images.thumbnail(0, 16).size == (16, 16)


def test_a_vector_that_is_not_finite_is_an_error(folder):
    collection = Collection(folder)
    vectors = collection.vectors
    vectors[3, 0] = np.nan
    import selfvit.exploration.collection as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "vectors_of", lambda column: vectors)
        with pytest.raises(ValueError, match=r"that of 'a/06.png' .* is not; embed the images"):
            _ = Collection(folder).vectors


def test_added_columns_are_read_until_the_vectors_change(
    folder, collection_images, tiny_checkpoint, tmp_path
):
    collection = Collection(folder)
    collection.write_columns("cluster", {"cluster": np.arange(40)})
    assert Collection(folder).columns == {"cluster": list(range(40))}
    assert read_vectors(folder).column_names[-1] == "cluster"
    assert read_vectors(folder, ["cluster", "path"])["cluster"].to_pylist() == list(range(40))
    with pytest.raises(ValueError, match="has no column 'clusters'; its columns are path, label"):
        read_vectors(folder, ["clusters"])
    data = shutil.copytree(collection_images, tmp_path / "data")
    image_files.noise(24, 24, seed=99).save(data / "a" / "new.png")
    embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu")
    update_embeddings(embedder, open_images(data), folder, progress=False)
    assert len(Collection(folder)) == 41 and Collection(folder).columns == {}
    with pytest.raises(ValueError, match="have changed since they were opened.* open the folder"):
        _ = collection.vectors  # of other names than those that were read
    write_embeddings(embedder, open_images(data), folder, overwrite=True, progress=False)
    assert not (folder / "cluster.feather").exists()


def test_a_folder_that_names_no_images_and_no_checkpoint(folder):
    metadata = json.loads((folder / "metadata.json").read_text())
    for name in ("images", "model"):
        del metadata[name]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    collection = Collection(folder)
    with pytest.raises(ValueError, match="give their place with --data"):
        collection.images()
    with pytest.raises(ValueError, match="choose it with --checkpoint"):
        collection.embedder()


def test_images_of_a_parquet_stream_are_found_and_others_without_ids_are_named(
    tiny_checkpoint, tmp_path
):
    (data := tmp_path / "data").mkdir()
    pictures = [image_files.noise(24, 24, seed=seed) for seed in range(5)]
    for number, part in enumerate((pictures[:2], pictures[2:])):
        content = [io.BytesIO() for _ in part]
        for file, picture in zip(content, part, strict=True):
            picture.save(file, "PNG")
        table = pa.table({"image": [file.getvalue() for file in content]})
        pq.write_table(table, data / f"{number}.parquet")
    stream = open_images(data, streaming=True)
    place = {"images": {"data": [str(data)]}}
    embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu")
    write_embeddings(embedder, stream, tmp_path / "v", metadata=place, progress=False)
    images = Collection(tmp_path / "v").images()
    for row, picture in enumerate(pictures):
        assert images.picture(row).tobytes() == picture.tobytes()
    write_vectors(tmp_path / "old", np.eye(2), ["shard 0 row 0", "shard 0 row 1"])
    images = Collection(tmp_path / "old").images(data / "0.parquet")
    with pytest.raises(FileNotFoundError, match="must have ids to be found again.*without --stre"):
        images.record(1)


def test_rows_of_one_name_are_not_mixed_up(tiny_checkpoint, tmp_path, monkeypatch):
    """The picture was that of the last row, and a label or a query meant the first one."""
    content = [image_files.noise(24, 24, seed=seed).tobytes() for seed in range(3)]
    files = []
    for seed in range(3):
        buffer = io.BytesIO()
        image_files.noise(24, 24, seed=seed).save(buffer, "PNG")
        files.append(buffer.getvalue())
    table = pa.table({"image": pa.array([{"bytes": f} for f in files]), "id": ["a", "a", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    embedder = Embedder.from_pretrained(tiny_checkpoint, device="cpu")
    images = open_images(tmp_path / "t.parquet")
    place = {"images": {"data": str(tmp_path / "t.parquet")}}
    write_embeddings(embedder, images, tmp_path / "v", metadata=place, progress=False)
    collection = Collection(tmp_path / "v")
    assert collection.ids == ["a", "a", "b"]
    # one by one, the names of a large table take minutes
    monkeypatch.setattr(DatasetSource, "name_of", None)
    shown = [collection.images().picture(row).tobytes() for row in range(3)]
    assert shown == content
    with pytest.raises(ValueError, match="'a' must be one image, but 2 rows of"):
        search(collection, like=["a"])
    with pytest.raises(ValueError, match="'a' must be one image, but 2 rows of"):
        label(collection, {"a": "x", "b": "y"})
