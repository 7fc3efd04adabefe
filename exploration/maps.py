"""Lay a collection out in two dimensions; new images are placed on an existing map.

UMAP (McInnes et al., arXiv 1802.03426) or t-SNE (van der Maaten and Hinton, JMLR 2008).
"""

# N rows · M rows that a map already has · E embedding · k neighbors

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather

from ..atomic_output import atomic_output
from ..visualization.embedding_map import project_to_plane
from .collection import Collection, check_rows
from .neighbors import nearest

METHODS = ("umap", "tsne")
# Positions by name and checksum of the images. Unlike the columns x and y, they outlive an update
# of the vectors.
STORED_MAP = "map_positions.feather"
SETTINGS = b"selfvit.map"  # key of method and seed, in the metadata of the file
UMAP_NEIGHBORS = 15  # umap-learn's default; the point itself is one of them
MIN_DISTANCE = 0.1  # umap-learn's default
SHOWN_NEIGHBORS = 10
PLACED_BY = 5  # neighbors that place a new image
TEMPERATURE = 0.07  # of their weights, as in the k-NN of DINO (arXiv 2104.14294, Sec. F)
MIN_LAYOUT = 4  # rows; fewer are points on a line


@dataclass(frozen=True)
class Layout:
    """Positions of the rows of a collection.

    Args:
        positions: Positions, (N, 2), float32.
        neighbors: Nearest other rows, (N, k), the most similar first.
        similarities: Cosine similarities to them, (N, k), float32.
        method: "umap" or "tsne".
        seed: Random seed.
        num_kept: Number of rows whose positions are those of an earlier map.
        num_placed: Number of rows that were placed by their neighbors on an earlier map.
        note: Remark on the result; "" for none.
    """

    positions: np.ndarray
    neighbors: np.ndarray
    similarities: np.ndarray
    method: str
    seed: int
    num_kept: int = 0
    num_placed: int = 0
    note: str = ""


def lay_out(
    collection: Collection, *, method: str = "umap", seed: int = 0, new: bool = False
) -> Layout:
    """Return positions of all rows, and store them as the columns `x` and `y`.

    An image that an earlier map of the same method and seed has, by name and checksum, keeps its
    position. A new image is placed at the mean of its `PLACED_BY` nearest images on that map,
    weighted by exp(similarity / 0.07). The same vectors and seed give the same map.

    Args:
        collection: Vectors.
        method: "umap" or "tsne".
        seed: Random seed.
        new: Whether an earlier map is ignored.

    Raises:
        ImportError: If umap-learn or scikit-learn is not installed.
        ValueError: If there is no vector, a vector is not finite, or there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"the method must be one of {', '.join(METHODS)}, not {method!r}.")
    check_rows(collection, 1, "a map")
    count = len(collection)
    earlier = None if new else load_positions(collection, method, seed)
    wanted = UMAP_NEIGHBORS - 1 if earlier is None and method == "umap" else SHOWN_NEIGHBORS
    neighbors, similarities = nearest(
        collection.directions, collection.directions, wanted, exclude=np.arange(count)
    )
    note, num_placed = "", 0
    if earlier is None:
        positions = _project(collection.directions, neighbors, similarities, method, seed)
    else:
        positions = earlier
        placed = np.flatnonzero(np.isnan(earlier[:, 0]))
        num_placed = len(placed)
        positions[placed] = place(collection.directions, earlier, placed)
        if num_placed > count / 2:
            note = (
                f"{num_placed:,} of {count:,} images were placed on the earlier map; a new map "
                "(--new) would show them better"
            )
    layout = Layout(
        positions,
        neighbors[:, :SHOWN_NEIGHBORS],
        similarities[:, :SHOWN_NEIGHBORS],
        method,
        seed,
        0 if earlier is None else count - num_placed,
        num_placed,
        note,
    )
    if collection.is_local:
        store_positions(collection, positions, method=method, seed=seed)
    return layout


def place(directions: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the positions of new rows: weighted means of those of their nearest mapped rows.

    Args:
        directions: Vectors of length 1, (N, E).
        positions: Positions, (N, 2); NaN for rows without one.
        rows: New rows, (R,).

    Returns:
        Positions, (R, 2), float32.
    """
    mapped = np.flatnonzero(~np.isnan(positions[:, 0]))  # (M,)
    found, similarities = nearest(directions[rows], directions[mapped], PLACED_BY)
    best = similarities.max(axis=1, keepdims=True, initial=-1)
    weights = np.exp((similarities - best) / TEMPERATURE)
    weights /= weights.sum(axis=1, keepdims=True)
    return (positions[mapped[found]] * weights[..., None]).sum(axis=1).astype(np.float32)


def load_positions(collection: Collection, method: str, seed: int) -> np.ndarray | None:
    """Return the positions that an earlier map has; None if there is no such map.

    Args:
        collection: Vectors.
        method: Method of the map.
        seed: Random seed of the map.

    Returns:
        Positions, (N, 2), float32; NaN for images that the map does not have.

    Raises:
        ValueError: If the file is damaged.
    """
    stored = _read_stored(collection)
    if stored is None or stored[0] != {"method": method, "seed": seed}:
        return None
    table = stored[1]
    points = np.stack([table[axis].to_numpy() for axis in ("x", "y")], axis=1)
    keys = _numbered(table["id"].to_pylist(), table["checksum"].to_pylist())
    known = dict(zip(keys, points, strict=True))
    positions = np.full((len(collection), 2), np.nan, dtype=np.float32)
    for row, key in enumerate(_numbered(collection.ids, collection.checksums)):
        if key in known:
            positions[row] = known[key]
    return None if np.isnan(positions).all() else positions


def _numbered(
    ids: Sequence[str], checksums: Sequence[str | None]
) -> list[tuple[str, str | None, int]]:
    """Return a key of each row: name, checksum and how many rows before it have the same ones.

    Frames of a video have one name and no checksum.
    """
    seen = Counter[tuple[str, str | None]]()
    keys = []
    for key in zip(ids, checksums, strict=True):
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys


def last_settings(collection: Collection) -> dict[str, Any]:
    """Return method and seed of the last map, as arguments of `lay_out`; {} if there is none.

    Args:
        collection: Vectors.

    Raises:
        ValueError: If the file is damaged.
    """
    stored = _read_stored(collection)
    return {} if stored is None else stored[0]


def _read_stored(collection: Collection) -> tuple[dict[str, Any], pa.Table] | None:
    """Return settings and table of the last map; None if there is none."""
    path = collection.folder / STORED_MAP
    if not (collection.is_local and path.is_file()):
        return None
    try:
        table = pyarrow.feather.read_table(str(path))
        settings = json.loads((table.schema.metadata or {})[SETTINGS])
        return settings, table.select(["id", "checksum", "x", "y"])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}; delete it.") from error


def store_positions(
    collection: Collection, positions: np.ndarray, *, method: str, seed: int
) -> None:
    """Store the positions of all rows, for later maps and as the columns `x` and `y`.

    Args:
        collection: Vectors, on this machine.
        positions: Positions, (N, 2).
        method: Method of the map.
        seed: Random seed of the map.

    Raises:
        OSError: If they cannot be written.
    """
    x, y = positions.T
    table = pa.table(
        {"id": collection.ids, "checksum": pa.array(collection.checksums, pa.string())}
        | {"x": np.ascontiguousarray(x), "y": np.ascontiguousarray(y)}
    )
    settings = json.dumps({"method": method, "seed": seed})
    table = table.replace_schema_metadata({SETTINGS: settings.encode()})
    path = collection.folder / STORED_MAP
    with atomic_output(path) as unfinished:
        pyarrow.feather.write_feather(table, str(unfinished), compression="uncompressed")
    collection.write_columns("map", {"x": table["x"], "y": table["y"]})


def _project(
    directions: np.ndarray,
    neighbors: np.ndarray,
    similarities: np.ndarray,
    method: str,
    seed: int,
) -> np.ndarray:
    """Return a new layout, (N, 2), float32."""
    count = len(directions)
    if count < MIN_LAYOUT:
        return np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    if method == "tsne":
        if directions.shape[1] < 2:
            directions = np.pad(directions, [(0, 0), (0, 1)])
        if (directions == directions[0]).all():  # their PCA, where t-SNE starts, does not exist
            return np.zeros((count, 2), dtype=np.float32)
        return np.asarray(project_to_plane(directions, seed=seed), dtype=np.float32)
    return _umap(directions, neighbors, similarities, seed)


def _umap(
    directions: np.ndarray, neighbors: np.ndarray, similarities: np.ndarray, seed: int
) -> np.ndarray:
    try:
        import umap
    except ImportError as error:
        raise ImportError(
            'a map needs umap-learn; install it with pip install "selfvit[explore]".'
        ) from error
    import warnings

    count = len(directions)
    itself = np.arange(count)[:, None]
    rows = np.concatenate([itself, neighbors], axis=1)  # (N, k)
    distances = np.concatenate([np.zeros((count, 1)), 1 - similarities], axis=1).clip(0)
    model = umap.UMAP(
        n_neighbors=rows.shape[1],
        min_dist=MIN_DISTANCE,
        metric="cosine",
        random_state=seed,
        n_jobs=1,  # with several threads, the result depends on their order
        init="spectral" if count > UMAP_NEIGHBORS else "random",
        precomputed_knn=(rows, distances.astype(np.float32)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the index for new points, which `place` replaces
        return np.asarray(model.fit_transform(directions), dtype=np.float32)


__all__ = [
    "METHODS",
    "STORED_MAP",
    "Layout",
    "last_settings",
    "lay_out",
    "load_positions",
    "place",
    "store_positions",
]
