"""Collections of few images, embedded once."""

from __future__ import annotations

import pytest

from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.writer import write_embeddings

from .. import image_files


def embed(checkpoint, images, output):
    """Write vectors as `selfvit embed` does, with the places of checkpoint and images."""
    embedder = Embedder.from_pretrained(checkpoint, device="cpu")
    metadata = {
        "model": str(checkpoint),
        "network": "teacher",
        "images": {"data": [str(images)], "split": None},
    }
    write_embeddings(embedder, open_images(images), output, metadata=metadata, progress=False)
    return output


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
