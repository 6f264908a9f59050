"""Matching of features: mutual nearest neighbours by the cosine of their descriptors."""

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features


def match(first: Features, second: Features, min_cosine: float = -1.0) -> np.ndarray:
    """Return the pairs of features that are each other's nearest neighbour.

    Args:
        first: N features.
        second: M features of the same weights.
        min_cosine: pairs whose descriptors have a lower cosine are left out.

    Returns:
        (P, 2) int64: row (i, j) matches feature i of ``first`` with feature j of ``second``; i ascending.

    Raises:
        EdgePoint2Error: the features come from different models or weights.
    """
    if (first.model, first.digest) != (second.model, second.digest):
        raise EdgePoint2Error(
            f'features of {first.model} [{first.digest}] cannot be matched with features of '
            f'{second.model} [{second.digest}]: descriptors of different weights have nothing in common'
        )
    if len(first) == 0 or len(second) == 0:
        return np.empty((0, 2), np.int64)
    cosine = first.descriptors @ second.descriptors.T
    nearest = cosine.argmax(axis=1)
    rows = np.arange(len(first))
    keep = (cosine.argmax(axis=0)[nearest] == rows) & (cosine[rows, nearest] >= min_cosine)
    return np.stack([rows[keep], nearest[keep]], axis=1)


def transfer_error(homography: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray) -> np.ndarray:
    """Return (N,) distances in pixels between ``second_xy`` (N, 2) and ``first_xy`` (N, 2) mapped by ``homography``."""
    mapped = np.column_stack([first_xy, np.ones(len(first_xy))]) @ homography.T
    return np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - second_xy, axis=1)
