"""Feature matching: mutual nearest neighbours by cosine, among all or near predictions; geometric verification."""

from typing import Any

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features

GEOMETRIES = {'epipolar': 8, 'homography': 4}  # with the minimum number of matches
BLOCK = 2**19  # cosines computed at a time
CELLS = 4  # of the grid for looking up points: this many are as wide as one is high,
MAX_CELLS = 512  # and at most this many are in a row or column
PAIRS = 512  # of descriptors multiplied at a time: few enough that memory is reused instead of reallocated


def match(first: Features, second: Features, min_cosine: float = -1.0, ratio: float = 1.0) -> np.ndarray:
    """Return the matches between two sets of features: mutual nearest neighbours.

    Args:
        first: N features.
        second: M features from the same weights.
        min_cosine: matches with a lower cosine are dropped; -1 keeps all, which is best if a geometry is estimated from
            them. `models.min_cosine` gives the value from which a match is more likely right than wrong, for matches
            that are not verified otherwise.
        ratio: matches are dropped unless their descriptor distance is less than this times the distance to the second
            best of ``second`` (Lowe's ratio test); 1 disables the test.

    Returns:
        (P, 2) int64: row (i, j) matches feature i of ``first`` with feature j of ``second``; i ascending, no j twice.

    Raises:
        EdgePoint2Error: the features come from different models or weights, descriptors are no floats, not finite or
            differ in size, or a limit is out of range.
    """
    check_comparable(first, second)
    _check_limits(min_cosine, ratio)
    if len(first) == 0 or len(second) == 0:
        return np.empty((0, 2), np.int64)
    _check_lengths(first, 'matched')
    _check_lengths(second, 'matched')
    # In blocks, their cosines stay in the cache, and 10,000 features take no more memory than 1000.
    nearest, found, runner_up = np.empty(len(first), np.int64), *np.empty((2, len(first)), np.float32)
    best = np.full(len(second), -np.inf, np.float32)
    block = max(1, BLOCK // len(second))
    buffer = np.empty((min(block, len(first)), len(second)), np.float32)
    for begin in range(0, len(first), block):
        part = slice(begin, begin + block)
        rows = first.descriptors[part]
        cosine = np.matmul(rows, second.descriptors.T, out=buffer[: len(rows)])
        at = np.arange(len(rows)), cosine.argmax(axis=1)
        nearest[part], found[part] = at[1], cosine[at]
        # Comparing with the column's maximum is ten times faster than its argmax.
        np.maximum(best, cosine.max(axis=0), out=best)
        if ratio < 1:
            cosine[at] = -np.inf
            runner_up[part] = cosine.max(axis=1)
    keep = (found == best[nearest]) & (found >= min_cosine)
    if ratio < 1:
        # Unit vectors of cosine c are sqrt(2 - 2 c) apart.
        keep &= 1 - found < ratio**2 * (1 - runner_up)
    i = np.flatnonzero(keep)
    j = nearest[i]
    once = _first_of_each(j, len(second))  # equal descriptors are equally near: the first gets the match
    return np.stack([i[once], j[once]], axis=1)


def match_guided(
    first: Features,
    second: Features,
    predicted: np.ndarray | None = None,
    radius: float | np.ndarray | None = None,
    fundamental: np.ndarray | None = None,
    disparity: tuple[float, float] | None = None,
    distance: float = 2.0,
    min_cosine: float = -1.0,
    ratio: float = 1.0,
) -> np.ndarray:
    """Return mutual nearest neighbours among the candidates that predictions and geometry allow.

    Candidates are near predicted positions, on epipolar lines, or in the rows of a rectified stereo pair. If several of
    these are given, all must hold.

    Args:
        first: N features.
        second: M features from the same weights.
        predicted: (N, 2), predicted position of each feature of ``first`` in the second image, pixels. A position that
            is not finite has no candidates.
        radius: of the search around ``predicted``, pixels in x and in y: one number or (N,); only with ``predicted``.
        fundamental: (3, 3), from pixels of the first image to lines in the second.
        disparity: minimum and maximum of x in the first image minus x in the second, in a rectified stereo pair with
            ``first`` on the left; pixels.
        distance: maximum distance of a feature of ``second`` from the epipolar line or row, pixels.
        min_cosine, ratio: as for `match`; the ratio is to the second best candidate.

    Returns:
        (P, 2) int64, as `match` returns them.

    Raises:
        EdgePoint2Error: no constraint is given, shapes or numbers are invalid, or as for `match`.
    """
    check_comparable(first, second)
    _check_limits(min_cosine, ratio)
    boxes = _search_boxes(first, predicted, radius, disparity, distance)
    if fundamental is not None and np.shape(fundamental) != (3, 3):
        raise EdgePoint2Error(f'fundamental: expected (3, 3), got {np.shape(fundamental)}')
    if boxes is None and fundamental is None:
        raise EdgePoint2Error('no search constraint: expected predicted and radius, fundamental or disparity')
    if len(first) == 0 or len(second) == 0:
        return np.empty((0, 2), np.int64)
    _check_lengths(first, 'matched')
    _check_lengths(second, 'matched')
    sources = (second,) if fundamental is None and disparity is None else (first, second)
    if not all(np.isfinite(features.xy).all() for features in sources):
        raise EdgePoint2Error('positions of keypoints to match are not finite')
    if boxes is not None:
        i, j = _find_inside(*boxes, second.xy)
    if fundamental is not None:
        lines = np.column_stack([first.xy, np.ones(len(first))]) @ np.transpose(fundamental)
        lines = (lines / np.maximum(np.linalg.norm(lines[:, :2], axis=1, keepdims=True), 1e-12)).astype(np.float32)
        points = np.column_stack([second.xy, np.ones(len(second))]).astype(np.float32)
        if boxes is None:
            i, j = np.nonzero(np.abs(lines @ points.T) <= distance)
        else:
            keep = np.abs(np.einsum('nk,nk->n', lines[i], points[j])) <= distance
            i, j = i[keep], j[keep]
    if len(i) == 0:
        return np.empty((0, 2), np.int64)
    cosine = np.empty(len(i), np.float32)
    for begin in range(0, len(i), PAIRS):
        part = slice(begin, begin + PAIRS)
        rows = first.descriptors.take(i[part], axis=0), second.descriptors.take(j[part], axis=0)
        np.einsum('nd,nd->n', *rows, out=cosine[part], casting='same_kind')
    if ratio >= 1:  # then candidates below the minimum cosine affect no others
        good = np.flatnonzero(cosine >= min_cosine)
        i, j, cosine = i.take(good), j.take(good), cosine.take(good)
        if len(i) == 0:
            return np.empty((0, 2), np.int64)
    return _pick_mutual(i, j, cosine, len(second), min_cosine, ratio)


def _pick_mutual(
    i: np.ndarray, j: np.ndarray, cosine: np.ndarray, count: int, min_cosine: float, ratio: float
) -> np.ndarray:
    """Return the mutual nearest neighbours (P, 2) among the candidates i, j, sorted by i.

    Ties go to the first. There are ``count`` features j.
    """
    first = np.ones(len(i), bool)
    np.not_equal(i[1:], i[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    highest = np.maximum.reduceat(cosine, starts)
    best = np.flatnonzero(cosine == np.repeat(highest, np.diff(starts, append=len(i))))
    if len(best) > len(starts):  # ties
        best = best[np.lexsort((j[best], i[best]))]
        best = best[np.unique(i[best], return_index=True)[1]]
    keep = highest >= min_cosine
    if ratio < 1:
        others = cosine.copy()
        others[best] = -np.inf
        keep &= 1 - highest < ratio**2 * (1 - np.maximum.reduceat(others, starts))
    # Nearest to its own j, too: among the best of each i, and then among all.
    nearest = np.full(count, -np.inf, np.float32)
    np.maximum.at(nearest, j[best], highest)
    contested = np.zeros(count, bool)
    contested[j[cosine > nearest[j]]] = True
    best = best[keep & (highest == nearest[j[best]]) & ~contested[j[best]]]
    best = best[_first_of_each(j[best], count)]
    return np.stack([i[best], j[best]], axis=1)


def _first_of_each(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the first occurrences of values (N,), integers below ``count``; ascending."""
    first = np.empty(count, np.int64)
    places = np.arange(len(values))
    first[values[::-1]] = places[::-1]  # the last write wins
    return np.flatnonzero(first[values] == places)


def _search_boxes(
    first: Features,
    predicted: np.ndarray | None,
    radius: float | np.ndarray | None,
    disparity: tuple[float, float] | None,
    distance: float,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the corners (N, 2) of each feature's search window; None if neither positions nor rows are given."""
    if not distance > 0:
        raise EdgePoint2Error(f'distance: expected a positive number of pixels, got {distance}')
    boxes = None
    if predicted is None and radius is not None:
        raise EdgePoint2Error('predicted: expected a position for each feature beside the radius, got none')
    if predicted is not None:
        predicted = np.asarray(predicted, np.float64)
        if predicted.shape != (len(first), 2):
            raise EdgePoint2Error(
                f'predicted: expected ({len(first)}, 2), a position for each feature, got {predicted.shape}'
            )
        reach = np.asarray(np.nan if radius is None else radius, np.float64)
        bad = np.count_nonzero(~(reach >= 0))
        if bad or reach.shape not in ((), (len(first),)):
            got = f'shape {reach.shape}, {bad} of them not' if reach.ndim else radius
            raise EdgePoint2Error(f'radius: expected a number from 0, or {len(first)} of them, got {got}')
        known = np.isfinite(predicted).all(axis=1, keepdims=True)
        predicted, reach = np.where(known, predicted, 0), reach.reshape(-1, 1)
        boxes = np.where(known, predicted - reach, np.inf), np.where(known, predicted + reach, -np.inf)
    if disparity is not None:
        least, most = disparity
        if not least <= most:
            raise EdgePoint2Error(f'disparity: expected minimum and maximum, got {disparity}')
        low, high = first.xy - np.array([most, distance]), first.xy + np.array([-least, distance])
        boxes = (low, high) if boxes is None else (np.maximum(boxes[0], low), np.minimum(boxes[1], high))
    return boxes


def _find_inside(low: np.ndarray, high: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return box i and point j for every point (M, 2) inside a box, (N, 2) to (N, 2); i ascends.

    Points are sorted by grid cell, row by row: a box covers one stretch of each row of cells that it overlaps.
    """
    # `take` gathers in a third of the time of an index, and there are thousands of candidates.
    (x, y), (from_x, from_y), (to_x, to_y) = (np.ascontiguousarray(corner.T, np.float64) for corner in (xy, low, high))
    # Of both: a single point far outside the image would make the grid huge, as would a single box.
    left, right = max(x.min(), from_x.min()), min(x.max(), to_x.max())
    top, bottom = max(y.min(), from_y.min()), min(y.max(), to_y.max())
    near = np.flatnonzero((x >= left) & (x <= right) & (y >= top) & (y <= bottom))
    if len(near) == 0:
        return near, near
    usual = np.partition(to_y - from_y, len(low) // 2)[len(low) // 2]
    height = max(1.0, min(usual, bottom - top), (bottom - top) / MAX_CELLS)
    width = max(height / CELLS, (right - left) / MAX_CELLS)
    rows, columns = int((bottom - top) / height) + 1, int((right - left) / width) + 2  # the last column stays empty
    cell = ((y.take(near) - top) / height).astype(int) * columns + ((x.take(near) - left) / width).astype(int)
    order = near.take(np.argsort(cell))
    begin = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=rows * columns))])
    from_row = np.clip((from_y - top) / height, 0, rows).astype(int)
    to_row = np.clip(np.floor((to_y - top) / height) + 1, 0, rows).astype(int)
    from_column = np.clip((from_x - left) / width, 0, columns - 1).astype(int)
    to_column = np.clip(np.floor((to_x - left) / width) + 1, 0, columns - 1).astype(int)
    box, row = _stretches(from_row, to_row)
    row *= columns
    stretch, place = _stretches(begin.take(row + from_column.take(box)), begin.take(row + to_column.take(box)))
    i, j = box.take(stretch), order.take(place)
    x, y = x.take(j), y.take(j)
    inside = (x >= from_x.take(i)) & (x <= to_x.take(i)) & (y >= from_y.take(i)) & (y <= to_y.take(i))
    inside = np.flatnonzero(inside)
    return i.take(inside), j.take(inside)


def _stretches(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return k and number for all integers begin[k] <= number < end[k], one range after another."""
    count = np.maximum(end - begin, 0)
    k = np.repeat(np.arange(len(count)), count)
    return k, np.arange(len(k)) + (begin - np.cumsum(count) + count).take(k)


def _check_lengths(features: Features, purpose: str) -> None:
    """Raise EdgePoint2Error unless descriptors are floats of finite length: then all their cosines are finite, too."""
    if features.descriptors.dtype.kind != 'f':  # int8 of a message: its numbers are 127 times as large, and overflow
        raise EdgePoint2Error(
            f'descriptors to be {purpose}: expected float32, as messages.decode returns them, got '
            f'{features.descriptors.dtype}'
        )
    if not np.isfinite(np.einsum('nd,nd->n', features.descriptors, features.descriptors)).all():
        raise EdgePoint2Error(f'descriptors to be {purpose} hold numbers that are not finite, or too large to multiply')


def _check_limits(min_cosine: float, ratio: float) -> None:
    if np.isnan(min_cosine):
        raise EdgePoint2Error(f'min_cosine: expected a number, got {min_cosine}')
    if not 0 < ratio <= 1:
        raise EdgePoint2Error(f'ratio: expected more than 0 and at most 1, got {ratio}')


def check_usable(features: Features) -> None:
    """Raise EdgePoint2Error if positions are not finite, or descriptors cannot be matched or have no numbers."""
    if not np.isfinite(features.xy).all():
        raise EdgePoint2Error('keypoints to be tracked hold numbers that are not finite')
    _check_lengths(features, 'tracked')
    if len(features) and not features.descriptors.shape[1]:
        raise EdgePoint2Error('descriptors to be tracked: expected at least 1 number each, got 0')


def check_comparable(first: Features, second: Features) -> None:
    """Raise EdgePoint2Error if features come from different models or weights, or their descriptors differ in size."""
    if (first.model, first.digest) != (second.model, second.digest):
        raise EdgePoint2Error(
            f'features of {first.model} [{first.digest}] cannot be matched with features of '
            f'{second.model} [{second.digest}]: descriptors of different weights cannot be compared'
        )
    sizes = first.descriptors.shape[1], second.descriptors.shape[1]
    if len(first) and len(second) and sizes[0] != sizes[1]:
        raise EdgePoint2Error(f'descriptors of {sizes[0]} numbers cannot be compared with descriptors of {sizes[1]}')


def verify(
    first: Features, second: Features, pairs: np.ndarray, geometry: str = 'epipolar', threshold: float = 2.0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the inliers of one geometry, estimated by USAC_MAGSAC, or by RANSAC if that fails.

    Args:
        first, second: the features that were matched.
        pairs: (P, 2), as `match` returns them.
        geometry: ``epipolar`` for any static scene, ``homography`` for a plane or a purely rotating camera.
        threshold: maximum error of an inlier, pixels in the second image.

    Returns:
        The inliers (Q, 2), and the fundamental matrix or homography from first to second (3, 3); no pairs and None if
        no geometry is found.

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
        settings: dict[str, Any] = {'confidence': 0.999, 'maxIters': 2000}
        try:
            matrix, agree = find(first_xy, second_xy, cv2.USAC_MAGSAC, threshold, **settings)
        except cv2.error:  # OpenCV's USAC fails on some matches of a camera that hardly moves
            matrix, agree = find(first_xy, second_xy, cv2.RANSAC, threshold, **settings)
    if matrix is None or matrix.shape != (3, 3):
        return pairs[:0], None
    return pairs[agree.ravel().astype(bool)], matrix


def transfer_error(homography: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray) -> np.ndarray:
    """Return (N,) distances in pixels between ``second_xy`` (N, 2) and ``first_xy`` (N, 2) mapped by ``homography``."""
    mapped = np.column_stack([first_xy, np.ones(len(first_xy))]) @ homography.T
    return np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - second_xy, axis=1)
