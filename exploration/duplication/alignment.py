"""Agreement of two images after they were aligned: which pairs show the same picture.

The second image is registered to the first one by Gauss-Newton steps (Lucas and Kanade, IJCAI 1981)
over the scale and the position of each axis, and over gain and offset of the brightness.
"""

# P pairs · S side of a thumbnail · G parts per side of a thumbnail

from __future__ import annotations

import numpy as np

SIDE = 48  # pixels of a thumbnail (S)
PARTS = 4  # per side (G)
PAIRS_AT_A_TIME = 64
NUM_STEPS = 6
MAX_SCALE, MAX_SHIFT = 0.08, 0.05 * SIDE  # of the alignment: fraction, pixels
MAX_MEAN_RATIO = 1.4  # of the mean colors; brightness that varies by 15 % both ways is 1.35
MEAN_OFFSET = 0.05  # keeps the ratio of dark colors finite
NOISE = 1 / 255  # contrast below which an image is uniform
WHOLE_SHARE = 1.0  # of the contrast of the whole image, in the reference of a part
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
GRID = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how well the images of each pair agree after alignment.

    The value is that of the part of the image that agrees worst, so that two pictures that differ
    in one detail do not agree.

    Args:
        first: Thumbnails, (P, S, S, 3), uint8.
        second: Thumbnails to compare with them, (P, S, S, 3), uint8.

    Returns:
        Agreement, (P,), at most 1 (the same picture); the order of a pair does not matter.
    """
    result = np.zeros(len(first), dtype=np.float32)
    places = np.flatnonzero(_is_alike_in_color(first, second))
    for start in range(0, len(places), PAIRS_AT_A_TIME):
        block = places[start : start + PAIRS_AT_A_TIME]
        a, b = (images[block].astype(np.float32) / 255 for images in (first, second))
        result[block] = np.maximum(_aligned_agreement(a, b), _aligned_agreement(b, a))
    return result


def _is_alike_in_color(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = (images.mean(axis=(1, 2)) / 255 + MEAN_OFFSET for images in (first, second))  # (P, 3)
    return (np.abs(np.log(a / b)) <= np.log(MAX_MEAN_RATIO)).all(axis=1)


def _aligned_agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    rows, columns, mask = _align(first @ LUMA, second @ LUMA)
    channels = [rows @ first[..., c] @ columns.transpose(0, 2, 1) for c in range(3)]
    warped = _standardized(np.stack(channels, axis=-1), mask)
    target = _standardized(second, mask)
    energy = (_of_parts(warped**2) + _of_parts(target**2)) / 2  # (P, G G)
    reference = energy + WHOLE_SHARE * energy.mean(axis=1, keepdims=True) + 1e-6
    return 1 - (_of_parts((warped - target) ** 2) / reference).max(axis=1)


def _align(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the scales and shifts that move the first gray images onto the second ones.

    Returns:
        Matrices that resample rows and columns, (P, S, S) each, and the mask of the pixels that
        both images have, (P, S, S).
    """
    along_x, along_y = np.gradient(first, axis=2), np.gradient(first, axis=1)
    moves = np.zeros((len(first), 4), dtype=np.float32)  # scale, shift of columns; of rows
    best, best_moves = np.full(len(first), -np.inf), moves.copy()
    for step in range(NUM_STEPS + 1):
        rows, columns, mask = _resampling(moves)
        columns = columns.transpose(0, 2, 1)
        warped = rows @ first @ columns
        products = _standardized(warped, mask) * _standardized(second, mask)
        correlation = products.sum(axis=(1, 2))
        is_better = correlation > best
        best = np.where(is_better, correlation, best)
        best_moves[is_better] = moves[is_better]
        if step == NUM_STEPS:
            break
        gradients = rows @ along_x @ columns, rows @ along_y @ columns
        moves = _step(moves, warped, second, gradients, mask)
    return _resampling(best_moves)


def _step(
    moves: np.ndarray,
    warped: np.ndarray,
    target: np.ndarray,
    gradients: tuple[np.ndarray, np.ndarray],
    mask: np.ndarray,
) -> np.ndarray:
    """Return the moves after a Gauss-Newton step, within their limits."""
    x, y = gradients
    columns = [x * GRID, x, y * GRID[:, None], y, warped, np.ones_like(warped)]
    jacobian = np.stack([column * mask for column in columns], axis=1)  # (P, 6, S, S)
    jacobian = jacobian.reshape(len(moves), 6, -1)
    residual = ((target - warped) * mask).reshape(len(moves), -1, 1)
    normal = jacobian @ jacobian.transpose(0, 2, 1) + 1e-3 * np.eye(6, dtype=np.float32)
    change = np.linalg.solve(normal.astype(np.float64), (jacobian @ residual).astype(np.float64))
    limits = np.array([MAX_SCALE, MAX_SHIFT] * 2)
    return np.clip(moves + change[:, :4, 0], -limits, limits).astype(np.float32)


def _resampling(moves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrices, inside = [], []
    for scale, shift in ((moves[:, 2], moves[:, 3]), (moves[:, 0], moves[:, 1])):
        places = (SIDE - 1) / 2 + (1 + scale[:, None]) * GRID + shift[:, None]  # (P, S)
        distances = np.abs(places[:, :, None] - np.arange(SIDE, dtype=np.float32))
        matrices.append(np.maximum(0, 1 - distances).astype(np.float32))
        inside.append((places >= 0) & (places <= SIDE - 1))
    mask = inside[0][:, :, None] & inside[1][:, None, :]
    return matrices[0], matrices[1], mask.astype(np.float32)


def _standardized(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return images of mean 0 and length 1 within the mask; uniform images are shorter."""
    axes = tuple(range(1, images.ndim))
    weights = mask if images.ndim == 3 else np.repeat(mask[..., None], 3, axis=-1)
    count = weights.sum(axis=axes, keepdims=True)
    centered = images - (images * weights).sum(axis=axes, keepdims=True) / count
    centered = centered * weights
    length = np.sqrt((centered**2).sum(axis=axes, keepdims=True))
    return centered / np.maximum(length, NOISE * np.sqrt(count))


def _of_parts(values: np.ndarray) -> np.ndarray:
    """Return the sum over each part of an image, (P, G G)."""
    part = SIDE // PARTS
    grid = values.reshape(len(values), PARTS, part, PARTS, part, 3)
    return grid.sum(axis=(2, 4, 5)).reshape(len(values), -1)


__all__ = ["SIDE", "agreement"]
