"""Find the images of a collection that are most similar to others."""

# Q query images · E embedding · h, w rows and columns of patches · D hidden size

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.decoding import decode_image
from ..visualization.figures import heatmap
from .collection import Collection, CollectionImages, check_rows, directions_of
from .index import EXACT_UP_TO, NEIGHBORS, IndexDescription, load_index
from .neighbors import nearest
from .sheets import MAX_ROWS, SheetRow, Tile, draw_sheet

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder

HEAT_SHARE = 0.6  # of the heat map in an overlay; the rest is the image in gray

QueryImage = str | os.PathLike[str] | Image.Image


@dataclass(frozen=True)
class Match:
    """Row that was found.

    Args:
        path: Name of the image: its path or id.
        similarity: Cosine similarity to the query.
        row: Row of the vectors.
        seconds: Time of the frame in its video; None for an image.
    """

    path: str
    similarity: float
    row: int
    seconds: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """Result of `search`.

    Args:
        query: Names of the query images.
        results: Rows, the most similar first.
        note: Remark on how they were found; "" for none.
    """

    query: list[str]
    results: list[Match]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return query, results and note as values that JSON can represent."""
        query: str | list[str] = self.query[0] if len(self.query) == 1 else self.query
        results = [  # without `seconds` for images
            {name: value for name, value in asdict(match).items() if value is not None}
            for match in self.results
        ]
        return {"query": query, "results": results, "note": self.note}


def search(
    vectors: str | os.PathLike[str] | Collection,
    images: QueryImage | Sequence[QueryImage] = (),
    *,
    like: str | Sequence[str] = (),
    k: int = 10,
    checkpoint: str | None = None,
    device: str | None = None,
) -> SearchResult:
    """Find the most similar images by cosine similarity.

    Several query images count as one: the mean of their directions. A video, in `like`, is the mean
    of its frames. Rows named by `like` are not among the results. The search is exact up to a
    million rows; above, an index that `selfvit index` has built is used, if there is one: a few of
    its lists for up to 10 results, and all of them for more.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        images: Query image or images, embedded as the vectors were.
        like: Name or names of rows, or of videos, to use as queries.
        k: Number of results.
        checkpoint: Checkpoint of the vectors; None for the one that their folder names.
        device: Device to compute on; None for the best available.

    Raises:
        FileNotFoundError: If there are no vectors or no checkpoint.
        UnreadableImageError: If a query image cannot be read.
        ValueError: If there is no query, no such row, no vector, or the checkpoint is another one.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        images = [images]
    like = [like] if isinstance(like, str) else like
    if not images and not like:
        raise ValueError("a search needs a query: give an image, or a row with --like.")
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1.")
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    check_rows(collection, 1, "a search")
    rows_of = [collection.rows_of(name) for name in like]  # several are the frames of a video
    queries = [
        directions_of(directions_at(collection, rows).mean(axis=0, keepdims=True))
        for rows in rows_of
    ]
    if images:
        embedder = collection.embedder(checkpoint, device=device)
        given = [str(image) if isinstance(image, os.PathLike) else image for image in images]
        queries.append(directions_of(embedder(given)))
    query = directions_of(np.concatenate(queries).mean(axis=0, keepdims=True))  # (1, E)
    names = [*like, *(_name_of(image) for image in images)]
    left_out = sorted({row for rows in rows_of for row in rows})
    return find_matches(collection, query, names, k, left_out)


def _name_of(image: str | os.PathLike[str] | Image.Image) -> str:
    return "image" if isinstance(image, Image.Image) else str(image)


def directions_at(collection: Collection, rows: Sequence[int]) -> np.ndarray:
    """Return the directions of some rows, without those of all rows if an index may search them.

    Args:
        collection: Vectors.
        rows: R rows.

    Returns:
        Directions, (R, E), float32.
    """
    if len(collection) <= EXACT_UP_TO:
        return collection.directions[rows]
    return directions_of(collection.vectors_at(rows))


def find_matches(
    collection: Collection,
    query: np.ndarray,
    names: list[str],
    k: int,
    left_out: Sequence[int] = (),
) -> SearchResult:
    """Return the rows that are most similar to a query.

    Args:
        collection: Vectors.
        query: Vector of length 1, (1, E).
        names: Names of the query images.
        k: Number of rows.
        left_out: Rows that are not among the results, such as those of the query.
    """
    found, similarities, note = find_rows(collection, query, k, left_out)
    seconds = collection.seconds
    matches = [
        Match(
            collection.ids[row],
            float(similarity),
            int(row),
            None if seconds is None else seconds[row],
        )
        for row, similarity in zip(found, similarities, strict=True)
    ]
    return SearchResult(names, matches, note)


def find_rows(
    collection: Collection, query: np.ndarray, k: int, left_out: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return rows and similarities of the nearest rows, and a remark.

    Args:
        collection: Vectors.
        query: Vector of length 1, (1, E).
        k: Number of rows.
        left_out: Rows that are not among the results.
    """
    note = ""
    num_needed = min(k + len(left_out), len(collection))
    loaded = None if len(collection) <= EXACT_UP_TO else load_index(collection)
    if loaded is not None:
        # the recall is measured for a row of the collection, which is left out
        is_measured = k <= NEIGHBORS and len(left_out) <= 1
        rows, similarities, note = _search_index(*loaded, query, num_needed, is_measured)
    else:
        rows, similarities = nearest(query, collection.directions, num_needed)
        if len(collection) > EXACT_UP_TO:
            note = (
                f"all {len(collection):,} vectors were compared; selfvit index "
                f"{collection.folder} makes searches faster"
            )
    is_result = ~np.isin(rows[0], left_out)
    return rows[0][is_result][:k], similarities[0][is_result][:k], note


def _search_index(
    index: Any, description: IndexDescription, query: np.ndarray, k: int, is_measured: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Search the measured number of lists, or all lists if too few rows would be found."""
    if is_measured:
        similarities, rows = index.search(query, k)
        if (rows >= 0).all():
            note = (
                f"found with an index whose recall@{NEIGHBORS} is {description.recall:.3f} "
                f"({description.num_queries} rows measured)"
            )
            return rows, similarities, note
    index.nprobe = index.nlist
    similarities, rows = index.search(query, k)
    return rows, similarities, "all vectors of the index were compared, in float16"


def draw_results(
    result: SearchResult, queries: Sequence[Image.Image], images: CollectionImages, path: Path
) -> None:
    """Draw the query images and the results as a contact sheet.

    Args:
        result: Result of `search`.
        queries: Query images.
        images: Images of the collection.
        path: PNG file to write.
    """
    tiles = [
        Tile(picture, f"query\n{name}", is_marked=True)
        for picture, name in zip(queries, result.query, strict=True)
    ]
    tiles += [
        Tile(images.thumbnail(match.row, 512), f"{match.similarity:.3f}\n{match.path}")
        for match in result.results
    ]
    draw_sheet([SheetRow(tiles)], path)


def draw_patch_matches(
    result: SearchResult,
    query: Image.Image,
    images: CollectionImages,
    embedder: Embedder,
    path: Path,
) -> None:
    """Draw where the query and each result match: four pictures per result.

    Args:
        result: Result of `search`.
        query: Query image.
        images: Images of the collection.
        embedder: Embedder of the collection.
        path: PNG file to write.
    """
    shown = result.results[:MAX_ROWS]
    pictures = [images.picture(match.row) for match in shown]
    grids = patch_grids(embedder, [query, *pictures])
    rows = []
    for match, found, grid in zip(shown, pictures, grids[1:], strict=True):
        heats = patch_similarities(grids[0], grid)
        tiles = []
        for picture, heat, name in zip(
            (query, found), heats, (result.query[0], match.path), strict=True
        ):
            tiles += [Tile(picture, name), Tile(overlay(picture, heat))]
        rows.append(SheetRow(tiles, f"{match.similarity:.3f}  {match.path}"))
    draw_sheet(rows, path, per_line=4)


def patch_grids(embedder: Embedder, pictures: Sequence[Image.Image]) -> np.ndarray:
    """Return the patch tokens of images.

    Args:
        embedder: Embedder of all.
        pictures: B images.

    Returns:
        (B, h, w, D), float16.
    """
    import torch

    from ..embedding.embedder import Embedder
    from ..embedding.preparation import preprocess

    pixels = torch.stack([preprocess(picture, embedder.processor) for picture in pictures])
    tokens = Embedder(embedder.model, embedder.processor, tokens="patches")
    found = [tokens.embed_tokens(batch)[1] for batch in pixels.split(embedder.batch_size)]
    return np.concatenate([patches for patches in found if patches is not None])


def patch_similarities(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how well each patch of an image is matched by some patch of another one.

    Args:
        first: Patch tokens of an image, (h, w, D).
        second: Those of another image.

    Returns:
        Largest cosine similarity of each patch to a patch of the other image, (h, w) each.
    """
    h, w = first.shape[:2]
    a, b = (directions_of(grid.reshape(h * w, -1).astype(np.float32)) for grid in (first, second))
    similarities = a @ b.T  # (h w, h w)
    return similarities.max(axis=1).reshape(h, w), similarities.max(axis=0).reshape(h, w)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay a heat map over an image in gray.

    Args:
        picture: Image.
        heat: Values, (h, w).
    """
    gray = picture.convert("L").convert("RGB")
    colors = Image.fromarray((heatmap(heat) * 255).astype(np.uint8))
    colors = colors.resize(gray.size, Image.Resampling.BICUBIC)
    return Image.blend(gray, colors, HEAT_SHARE)


def query_pictures(
    collection: Collection,
    images: CollectionImages,
    like: Sequence[str],
    given: Sequence[str],
) -> list[Image.Image]:
    """Return the query images of a search, in the order of `SearchResult.query`.

    Args:
        collection: Vectors.
        images: Images of the collection.
        like: Names of rows.
        given: Paths of image files.
    """
    return [
        *(images.picture(collection.row_of(name)) for name in like),
        *(decode_image(path, collection.pixel_range) for path in given),
    ]


__all__ = [
    "Match",
    "SearchResult",
    "draw_patch_matches",
    "directions_at",
    "draw_results",
    "find_matches",
    "find_rows",
    "overlay",
    "patch_similarities",
    "query_pictures",
    "search",
]
