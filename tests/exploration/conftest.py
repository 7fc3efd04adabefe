"""Collections of few images, embedded once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.manifest import FOOTER, Manifest, describe_part
from selfvit.embedding.vectors.writer import write_embeddings

from .. import image_files, numba_cache  # noqa: F401 - numba_cache before umap


def embed(checkpoint, images, output, video_fps=None, **options):
    """Write vectors as `selfvit embed` does, with the places of checkpoint and images."""
    embedder = Embedder.from_pretrained(checkpoint, device="cpu", **options)
    metadata = {
        "model": str(checkpoint),
        "network": "teacher",
        "images": {"data": [str(images)], "split": None},
    }
    source = open_images(images, video_fps=video_fps)
    write_embeddings(embedder, source, output, metadata=metadata, progress=False)
    return output


def write_vectors(folder, vectors, names, num_parts=1, **data):
    """Write vectors that no model has computed into a new folder, in one or several parts."""
    folder.mkdir()
    vectors = np.asarray(vectors, dtype=np.float32)
    checkpoint = {"vector_dtype": "float32", "embedding_size": vectors.shape[1]}
    origin = {"id_column": "path", "is_labeled": False, "num_positions": len(names)}
    manifest = Manifest(checkpoint, {**origin, "fingerprint": "", "description": "", **data})
    for number, rows in enumerate(np.array_split(np.arange(len(names)), num_parts)):
        values = pa.FixedSizeListArray.from_arrays(vectors[rows].ravel(), vectors.shape[1])
        columns = {"path": [names[row] for row in rows], "embedding": values}
        empty = {name: pa.nulls(len(rows)) for name in manifest.schema.names}
        table = pa.table(empty | columns).cast(manifest.schema)
        start, stop = int(rows[0]), int(rows[-1]) + 1
        footer = {"run": manifest.run, "start": start, "stop": stop, "skipped": []}
        path = folder / f"part-{number:05}.parquet"
        pq.write_table(table.replace_schema_metadata({FOOTER: json.dumps(footer)}), path)
        manifest.parts.append(describe_part(path, footer))
    manifest.save(folder)
    return folder


@pytest.fixture(scope="session")
def collection_images(tmp_path_factory):
    """40 images in two class folders."""
    folder = tmp_path_factory.mktemp("collection")
    for index in range(40):
        path = folder / ("a", "b")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        image_files.noise(24, 24, seed=index).save(path)
    return folder


@pytest.fixture(scope="session")
def collection_vectors(tiny_checkpoint, collection_images, tmp_path_factory):
    return embed(tiny_checkpoint, collection_images, tmp_path_factory.mktemp("vectors") / "v")


GROUPS = {"blue": (12, (40, 60, 220)), "green": (8, (40, 200, 60)), "red": (20, (220, 40, 40))}


@pytest.fixture(scope="session")
def grouped_images(tmp_path_factory):
    """40 images of three colors, in a folder each, and one of noise: gray.png."""
    folder = tmp_path_factory.mktemp("groups")
    generator = np.random.default_rng(0)
    for name, (count, color) in GROUPS.items():
        (folder / name).mkdir()
        for index in range(count):
            pixels = np.array(color) + generator.integers(-25, 26, (24, 24, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{index:02d}.png")
    image_files.noise(24, 24, seed=5).save(folder / "gray.png")
    return folder


@pytest.fixture(scope="session")
def embedded_groups(tiny_checkpoint, grouped_images, tmp_path_factory):
    return embed(tiny_checkpoint, grouped_images, tmp_path_factory.mktemp("grouped") / "v")


@pytest.fixture
def grouped(embedded_groups, tmp_path):
    """Folder of vectors of `grouped_images`, which a test may change."""
    return shutil.copytree(embedded_groups, tmp_path / "v")


@pytest.fixture(scope="session")
def embedded_copies(tiny_checkpoint, tmp_path_factory):
    """Folders of vectors of the same image, by the number of images."""
    folders = {}
    for count in (1, 2, 12):
        images = tmp_path_factory.mktemp("copies")
        for index in range(count):
            image_files.noise(24, 24, seed=0).save(images / f"{index:02d}.png")
        folders[count] = embed(tiny_checkpoint, images, tmp_path_factory.mktemp("copied") / "v")
    return folders


@pytest.fixture
def empty_vectors(embedded_copies, tmp_path):
    """Folder of vectors without a row."""
    folder = tmp_path / "empty"
    folder.mkdir()
    (part,) = embedded_copies[1].glob("part-*.parquet")
    pq.write_table(pq.read_table(part).slice(0, 0), folder / "embeddings.parquet")
    return folder


def selfvit(*words):
    """Run a command, and return its exit code and output."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output
