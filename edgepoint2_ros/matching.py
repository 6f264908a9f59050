"""Matching of features: mutual nearest neighbours by cosine, and the geometry that they agree on."""

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features

GEOMETRIES = {'epipolar': 8, 'homography': 4}  # and how many matches one needs at least


def match(first: Features, second: Features, min_cosine: float = -1.0, ratio: float = 1.0) -> np.ndarray:
    """Return the pairs of features that are each other's nearest neighbour.

    Args:
        first: N features.
        second: M features of the same weights.
        min_cosine: pairs whose descriptors have a lower cosine are left out.
        ratio: pairs are left out unless the distance of their descriptors is less than this times the distance to the
            second best of ``second`` (Lowe's ratio test); 1 leaves the test out.

    Returns:
        (P, 2) int64: row (i, j) matches feature i of ``first`` with feature j of ``second``; i ascending, no j twice.

    Raises:
        EdgePoint2Error: the features come from different models or weights, or descriptors are not finite.
    """
    check_comparable(first, second)
    if len(first) == 0 or len(second) == 0:
        return np.empty((0, 2), np.int64)
    # Float descriptors even where they came as int8: numpy multiplies integers without BLAS, twenty times slower.
    cosine = first.descriptors @ second.descriptors.T
    best = cosine.max(axis=0)
    if not np.isfinite(best).all():
        raise EdgePoint2Error('descriptors to be matched hold numbers that are not finite')
    rows, nearest = np.arange(len(first)), cosine.argmax(axis=1)
    found = cosine[rows, nearest]
    # Comparing with the column's maximum is ten times faster than its argmax.
    keep = (found == best[nearest]) & (found >= min_cosine)
    if ratio < 1:
        cosine[rows, nearest] = -np.inf
        # Unit vectors of cosine c are sqrt(2 - 2 c) apart.
        keep &= 1 - found < ratio**2 * (1 - cosine.max(axis=1))
    # Equal descriptors are equally near: the first gets the match.
    once = np.sort(np.unique(nearest[keep], return_index=True)[1])
    return np.stack([rows[keep], nearest[keep]], axis=1)[once]


def check_comparable(first: Features, second: Features) -> None:
    """Raise EdgePoint2Error where features come from different models or weights."""
    if (first.model, first.digest) != (second.model, second.digest):
        raise EdgePoint2Error(
            f'features of {first.model} [{first.digest}] cannot be matched with features of '
            f'{second.model} [{second.digest}]: descriptors of different weights have nothing in common'
        )


def verify(
    first: Features, second: Features, pairs: np.ndarray, geometry: str = 'epipolar', threshold: float = 2.0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the matches that agree on one geometry, found by USAC_MAGSAC.

    Args:
        first, second: the features that were matched.
        pairs: (P, 2), as `match` returns them.
        geometry: ``epipolar`` for any static scene, ``homography`` for a plane or a camera that only turns.
        threshold: pixels between a match and the geometry, in the second image.

    Returns:
        Those of the pairs that agree (Q, 2), and the fundamental matrix or homography from first to second (3, 3); no
        pairs and None where there is no such geometry.

    Raises:
        EdgePoint2Error: the geometry is neither of the two.
    """
    import cv2  # matching alone needs no OpenCV

    if geometry not in GEOMETRIES:
        raise EdgePoint2Error(f'geometry {geometry!r} is unknown: expected one of {", ".join(GEOMETRIES)}')
    matrix = None
    if len(pairs) >= GEOMETRIES[geometry]:
        first_xy, second_xy = first.xy[pairs[:, 0]], second.xy[pairs[:, 1]]
        find = cv2.findHomography if geometry == 'homography' else cv2.findFundamentalMat
        matrix, agree = find(first_xy, second_xy, cv2.USAC_MAGSAC, threshold, confidence=0.999, maxIters=2000)
    if matrix is None or matrix.shape != (3, 3):
        return pairs[:0], None
    return pairs[agree.ravel().astype(bool)], matrix


def transfer_error(homography: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray) -> np.ndarray:
    """Return (N,) distances in pixels between ``second_xy`` (N, 2) and ``first_xy`` (N, 2) mapped by ``homography``."""
    mapped = np.column_stack([first_xy, np.ones(len(first_xy))]) @ homography.T
    return np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - second_xy, axis=1)
