"""Index of a large collection: FAISS inverted lists of float16 vectors, mapped from the disk."""

# N rows · E embedding · L lists

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_output import atomic_output
from ..embedding.vectors import folder
from .collection import Collection, check_rows, directions_of
from .neighbors import nearest

if TYPE_CHECKING:
    import faiss

INDEX, DESCRIPTION = folder.INDEX
EXACT_UP_TO = 1_000_000  # rows; above, `search` needs an index
NEEDED_RECALL = 0.99
NUM_QUERIES = 500  # rows that the recall is measured on
NEIGHBORS = 10
ROWS_PER_LIST_TO_TRAIN = 50
ROWS_AT_ONCE = 100_000
TIE = 1e-5  # difference up to which two similarities count as equal, in float32


@dataclass(frozen=True)
class IndexDescription:
    """Origin of an index, and its measured recall.

    Args:
        vectors: Fingerprint of the vectors, see `Collection.fingerprint`.
        num_rows: Number of vectors.
        num_lists: Number of inverted lists.
        num_probes: Number of lists that a query looks into.
        recall: Share of the 10 exact nearest neighbors that are found, on `num_queries` rows.
        num_queries: Number of rows that the recall was measured on.
    """

    vectors: str
    num_rows: int
    num_lists: int
    num_probes: int
    recall: float
    num_queries: int


def build_index(collection: Collection, seed: int = 0) -> IndexDescription:
    """Build an index beside the vectors, and choose how many lists a query looks into.

    The number is the smallest power of two whose recall@10 against exact search reaches
    `NEEDED_RECALL` on rows drawn at random; a query row does not count as its own neighbor. A row
    that is as similar as the last exact neighbor is a hit, so that any 10 of more copies are right.

    Args:
        collection: Vectors.
        seed: Random seed of the rows that the lists are trained on and that are measured.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If there are fewer than 2 vectors, or they are in object storage.
    """
    faiss = require_faiss()
    check_rows(collection, 2, "an index")
    if not collection.is_local:
        raise ValueError(
            f"the index is built beside local vectors, but {str(collection.folder)!r} is in object "
            "storage; copy the folder to this machine."
        )
    vectors = collection.vectors
    num_rows, size = vectors.shape
    rng = np.random.default_rng(seed)
    num_lists = min(max(1, round(4 * math.sqrt(num_rows))), max(1, num_rows // 40))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(size),
        size,
        num_lists,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.by_residual = False
    index.cp.seed, index.cp.spherical = seed + 1, True
    num_training = min(num_rows, ROWS_PER_LIST_TO_TRAIN * num_lists)
    training = np.sort(rng.choice(num_rows, num_training, replace=False))
    index.train(directions_of(vectors[training]))
    for start in range(0, num_rows, ROWS_AT_ONCE):
        index.add(directions_of(vectors[start : start + ROWS_AT_ONCE]))
    queries = np.sort(rng.choice(num_rows, min(NUM_QUERIES, num_rows), replace=False))
    recall = _choose_probes(index, vectors, queries)
    description = IndexDescription(
        collection.fingerprint, num_rows, num_lists, index.nprobe, recall, len(queries)
    )
    with atomic_output(collection.folder / INDEX) as unfinished:
        faiss.write_index(index, str(unfinished))
    with atomic_output(collection.folder / DESCRIPTION) as unfinished:
        unfinished.write_text(json.dumps(asdict(description), indent=2) + "\n")
    return description


def _choose_probes(index: Any, vectors: np.ndarray, queries: np.ndarray) -> float:
    """Set `index.nprobe` to the first power of two with the needed recall, and return it."""
    directions = directions_of(vectors[queries])
    k = min(NEIGHBORS, len(vectors) - 1)
    lowest = _exact_similarities(directions, vectors, queries, k)[:, -1]
    recall = 0.0
    num_probes = 1
    while True:
        index.nprobe = min(num_probes, index.nlist)
        _, found = index.search(directions, k + 1)
        num_hits = 0
        for direction, rows, query, limit in zip(directions, found, queries, lowest, strict=True):
            others = rows[(rows != query) & (rows >= 0)][:k]
            num_hits += int((directions_of(vectors[others]) @ direction >= limit - TIE).sum())
        recall = num_hits / (k * len(queries))
        if recall >= NEEDED_RECALL or num_probes >= index.nlist:
            return recall
        num_probes *= 2


def _exact_similarities(
    directions: np.ndarray, vectors: np.ndarray, queries: np.ndarray, k: int
) -> np.ndarray:
    """Return the similarities of the exact neighbors of rows, (Q, k), the largest first."""
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = directions_of(vectors[start : start + ROWS_AT_ONCE])
        found, similarities = nearest(directions, block, k + 1)
        similarities = np.where(found + start == queries[:, None], -np.inf, similarities)
        together = np.concatenate([best, similarities], axis=1)
        best = -np.sort(-together, axis=1)[:, :k]
    return best


def load_index(collection: Collection) -> tuple[faiss.Index, IndexDescription] | None:
    """Map the index of a collection into memory; None if it has none.

    Args:
        collection: Vectors.

    Raises:
        ImportError: If FAISS is not installed.
        ValueError: If the index is of other vectors.
    """
    place = collection.folder
    if not (place / DESCRIPTION).is_file() or not (place / INDEX).is_file():
        return None
    faiss = require_faiss()
    description = IndexDescription(**json.loads((place / DESCRIPTION).read_text()))
    if description.vectors != collection.fingerprint:
        raise ValueError(
            f"the index in {str(place)!r} is of other vectors; build it again with selfvit index."
        )
    index = faiss.read_index(str(place / INDEX), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    index.nprobe = description.num_probes
    return index, description


def require_faiss() -> Any:
    """Return the FAISS module.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError('an index needs FAISS: pip install "selfvit[explore]".') from error
    return faiss


__all__ = [
    "DESCRIPTION",
    "EXACT_UP_TO",
    "INDEX",
    "IndexDescription",
    "build_index",
    "load_index",
    "require_faiss",
]
