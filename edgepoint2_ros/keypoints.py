"""From the network's dense maps to the best keypoints and their descriptors, with NumPy and OpenCV.

On a CPU this takes a third of the time of the same steps as operators of a runtime, which have no early exit: they sort
all cells and sample all K rows. On a GPU the steps belong in the model (network/sparse.py).
"""

import cv2
import numpy as np

from edgepoint2_ros.models import BORDER, MIN_CURVATURE, NMS_RADIUS

_WINDOW = np.ones((2 * NMS_RADIUS + 1, 2 * NMS_RADIUS + 1), np.uint8)

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def best_keypoints(
    cells: np.ndarray,
    descriptor_map: np.ndarray,
    image_shape: tuple[int, ...],
    mask: np.ndarray,
    count: int,
    threshold: float = -np.inf,
    subpixel: bool = True,
) -> Rows:
    """Return xy (N, 2) in pixels of the image, scores (N,) and descriptors (N, D), float32, best score first.

    A keypoint is the maximum of the 5x5 pixels around it (non-maximum suppression), at least BORDER pixels inside the
    grid.

    Args:
        cells: float32 (H/2, W/2, 4), contiguous: the scores, raw logits, of the four pixels of each 2x2 cell, row by
            row. H and W are the sides of the network's grid.
        descriptor_map: float32 (H/4, W/4, D), of any length.
        image_shape: (H, W) of the image, which the grid is stretched over.
        mask: uint8 (H, W), nonzero where keypoints are allowed, or (1, 1) for no mask.
        count: maximum number of rows.
        threshold: keypoints score above it.
        subpixel: refine positions by a parabola through the neighbouring scores.
    """
    score_map = _unfold(cells)
    height, width = score_map.shape
    highest = cv2.dilate(score_map, _WINDOW)
    if threshold > -np.inf:  # raised above it, so that no lower score equals it
        lowest = float(np.nextafter(np.float32(threshold), np.float32(np.inf)))
        highest = cv2.max(highest, lowest, dst=highest)  # type: ignore[call-overload]  # it takes scalars, too
    maxima = cv2.compare(score_map, highest, cv2.CMP_EQ)
    maxima[:BORDER] = maxima[-BORDER:] = maxima[:, :BORDER] = maxima[:, -BORDER:] = 0
    if mask.shape != (1, 1):
        maxima = cv2.copyTo(maxima, mask)
    index = np.flatnonzero(np.bitwise_and(maxima, 1, out=maxima).view(bool))
    scores = score_map.ravel()
    index = _best(scores, index, count)  # still row by row: reading the maps in order is twice as fast

    row, column = np.divmod(index.astype(np.int32), np.int32(width))
    right, down = np.zeros((2, len(index)), np.float32)
    if subpixel:
        right, down = _peak(scores, index, 1), _peak(scores, index, width)
    descriptors = _sample(descriptor_map, row, column, right, down)
    scale = np.array([image_shape[1] / width, image_shape[0] / height], np.float32)
    xy = (np.stack([column, row], axis=1).astype(np.float32) + np.stack([right, down], axis=1)) * scale
    order = np.argsort(-scores[index])
    return xy[order], scores[index[order]], descriptors[order]


def _best(scores: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Return the ``count`` entries of ``index`` with the highest scores, in their original order."""
    if len(index) <= count:
        return index
    return np.sort(index[np.argpartition(scores[index], len(index) - count)[-count:]])


def _unfold(cells: np.ndarray) -> np.ndarray:
    """Return the score map (H, W) of cells (H/2, W/2, 4): two scores at a time, as they lie side by side."""
    height, width, _ = cells.shape
    score_map = np.empty((2 * height, 2 * width), np.float32)
    score_map.view(np.float64).reshape(height, 2, width)[...] = cells.view(np.float64).transpose(0, 2, 1)
    return score_map


def _peak(scores: np.ndarray, index: np.ndarray, step: int) -> np.ndarray:
    """Return the vertex, between -0.5 and 0.5, of the parabola through three neighbours a, b, c.

    With b the largest, it is (c - a) / (4b - 2a - 2c).
    """
    before, centre, after = scores[index - step], scores[index], scores[index + step]
    curvature = 4 * centre - 2 * (before + after)
    return np.clip((after - before) / np.maximum(curvature, MIN_CURVATURE), -0.5, 0.5)


def _sample(
    descriptor_map: np.ndarray, row: np.ndarray, column: np.ndarray, right: np.ndarray, down: np.ndarray
) -> np.ndarray:
    """Return unit descriptors (N, D), interpolated bilinearly from the four vectors around each keypoint.

    The map is four times as coarse as the score map: pixel p lies at (p + 1/2) / 4 - 1/2 = (2p - 3) / 8 on it. Half a
    pixel more or less stays between the same two vectors, so these follow from integers.
    """
    height, width, size = descriptor_map.shape
    x, y = 2 * column - 3, 2 * row - 3
    right = (x & 7).astype(np.float32) / 8 + right / 4
    down = (y & 7).astype(np.float32) / 8 + down / 4
    corner = (y >> 3) * width + (x >> 3)
    corners = np.stack([corner, corner + 1, corner + width, corner + width + 1], axis=1)
    weights = np.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], axis=1)
    vectors = descriptor_map.reshape(height * width, size).take(corners, axis=0)  # (N, 4, D)
    descriptors = np.matmul(weights[:, None], vectors)[:, 0]
    descriptors /= np.maximum(np.sqrt(np.einsum('nd,nd->n', descriptors, descriptors)), 1e-12)[:, None]
    return descriptors
