"""The metrics of the evaluation, as plain functions of numpy arrays. Lengths in pixels, angles in degrees."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error

RANSAC_THRESHOLD = 3.0  # pixels, of a homography
EPIPOLAR_THRESHOLD = 1.0  # pixels, of an essential matrix
MAX_ITERATIONS = 10000
CONFIDENCE = 0.9999

_SAMPLING = {'max_iterations': MAX_ITERATIONS, 'success_prob': CONFIDENCE}


def transform(xy: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Map points (N, 2) by a homography (3, 3); points that it sends behind the camera become NaN."""
    moved = np.column_stack([xy, np.ones(len(xy))]) @ np.asarray(homography, float).T
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(moved[:, 2:] > 0, moved[:, :2] / moved[:, 2:], np.nan)


def inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which points (N, 2) lie in an image of (width, height): bool (N,), False for NaN."""
    return np.all((xy >= -0.5) & (xy < np.array(size) - 0.5), axis=1)


def repeatability(
    xy_a: np.ndarray,
    xy_b: np.ndarray,
    homography: np.ndarray,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    threshold: float = 3.0,
) -> float:
    """Return the share of keypoints in the area visible in both images that have a counterpart in the other.

    Args:
        xy_a, xy_b: keypoints (N, 2) and (M, 2).
        homography: (3, 3), maps pixels of a to pixels of b.
        size_a, size_b: (width, height).
        threshold: maximum distance of a counterpart, in pixels of the image it is in.
    """
    inverse = np.linalg.inv(homography)
    a_in_b, b_in_a = transform(xy_a, homography), transform(xy_b, inverse)
    common_a, common_b = inside(a_in_b, size_b), inside(b_in_a, size_a)
    total = np.count_nonzero(common_a) + np.count_nonzero(common_b)
    if total == 0:
        return 0.0
    repeated = _has_neighbour(a_in_b[common_a], xy_b, threshold) + _has_neighbour(b_in_a[common_b], xy_a, threshold)
    return repeated / total


def _has_neighbour(xy: np.ndarray, others: np.ndarray, threshold: float) -> int:
    if len(xy) == 0 or len(others) == 0:
        return 0
    squared = ((xy[:, None] - others[None]) ** 2).sum(axis=2)
    return int(np.count_nonzero(squared.min(axis=1) <= threshold**2))


def matching_errors(matched_a: np.ndarray, matched_b: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """Return the distance of each match (N, 2), (N, 2) from its true position in b: (N,), infinite if there is none."""
    errors = np.linalg.norm(transform(matched_a, homography) - matched_b, axis=1)
    return np.where(np.isnan(errors), np.inf, errors)


def share_within(errors: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the share of errors (N,) at or below each threshold; 0 if there are no errors at all."""
    if len(errors) == 0:
        return np.zeros(len(thresholds))
    return np.array([np.mean(errors <= threshold) for threshold in thresholds])


def import_poselib() -> Any:
    """Return the module poselib.

    Raises:
        EdgePoint2Error: it is not installed.
    """
    try:
        import poselib
    except ImportError as error:
        raise EdgePoint2Error(
            f'homographies and poses are estimated by poselib ({error}): pip install "edgepoint2_ros[evaluation]"'
        ) from None
    return poselib


def estimate_homography(matched_a: np.ndarray, matched_b: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Return the homography from a to b by LO-RANSAC, or None if none is found.

    Args:
        matched_a, matched_b: (N, 2) pixels.
        seed: of the samples that RANSAC draws.

    Raises:
        EdgePoint2Error: poselib is not installed.
    """
    poselib = import_poselib()
    if len(matched_a) < 4:
        return None
    sampling = {'max_reproj_error': RANSAC_THRESHOLD, **_SAMPLING, 'seed': seed}
    homography, found = poselib.estimate_homography(*_doubles(matched_a, matched_b), sampling)
    if not found['num_inliers']:
        return None
    # The sign of a homography is ambiguous: the matches must lie in front of the camera.
    return homography * np.sign(homography[2] @ [*matched_a[found['inliers']].mean(axis=0), 1])


def corner_error(estimated: np.ndarray | None, homography: np.ndarray, size: tuple[int, int]) -> float:
    """Return the mean distance of a's four corners under both homographies; infinite without an estimate."""
    if estimated is None:
        return float('inf')
    right, bottom = size[0] - 1, size[1] - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], float)
    error = np.linalg.norm(transform(corners, estimated) - transform(corners, homography), axis=1).mean()
    return float(error) if np.isfinite(error) else float('inf')


def estimate_pose(
    matched_a: np.ndarray, matched_b: np.ndarray, intrinsics_a: np.ndarray, intrinsics_b: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return rotation (3, 3) and direction of translation (3,) from camera a to camera b by LO-RANSAC, or None.

    Args:
        matched_a, matched_b: (N, 2) pixels.
        intrinsics_a, intrinsics_b: (3, 3) camera matrices, without distortion or skew.
        seed: of the samples that RANSAC draws.

    Raises:
        EdgePoint2Error: poselib is not installed.
    """
    poselib = import_poselib()
    if len(matched_a) < 5:
        return None
    sampling = {'max_epipolar_error': EPIPOLAR_THRESHOLD, **_SAMPLING, 'seed': seed}
    cameras = _camera(intrinsics_a), _camera(intrinsics_b)
    pose, found = poselib.estimate_relative_pose(*_doubles(matched_a, matched_b), *cameras, sampling)
    return (pose.R, pose.t) if found['num_inliers'] else None


def _doubles(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(array.astype(np.float64) for array in arrays)


def _camera(intrinsics: np.ndarray) -> dict[str, Any]:
    """Return a camera in poselib's format; the size of the image does not matter."""
    parameters = [intrinsics[k] for k in ((0, 0), (1, 1), (0, 2), (1, 2))]
    return {'model': 'PINHOLE', 'width': 1, 'height': 1, 'params': parameters}


def pose_error(pose: tuple[np.ndarray, np.ndarray] | None, truth: np.ndarray) -> float:
    """Return the larger of the angles of the rotation error and of the translation error; 180 without a pose.

    Two views do not determine the sign of an essential matrix's translation: the better one counts.

    Args:
        pose: rotation (3, 3) and translation (3,) of any length.
        truth: (4, 4), maps points from camera a's frame to camera b's.
    """
    if pose is None:
        return 180.0
    rotation, translation = pose
    cosine = (np.trace(rotation.T @ truth[:3, :3]) - 1) / 2
    rotation_error = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    true_translation = truth[:3, 3]
    length = np.linalg.norm(translation) * np.linalg.norm(true_translation)
    if length == 0:  # a pure rotation has no translation direction
        return float(rotation_error)
    translation_error = np.degrees(np.arccos(np.clip(abs(translation @ true_translation) / length, 0, 1)))
    return float(max(rotation_error, translation_error))


def area_under_curve(errors: Sequence[float] | np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return, for each threshold, the area under the curve "share of errors at most x", x up to it, divided by it."""
    ascending = np.sort(np.asarray(errors, float))
    if len(ascending) == 0:
        return np.zeros(len(thresholds))
    # The curve is piecewise linear from the origin through (error i, i / N), as is usual for this benchmark.
    x = np.concatenate([[0.0], ascending])
    y = np.arange(len(ascending) + 1) / len(ascending)
    areas = []
    for threshold in thresholds:
        last = np.searchsorted(x, threshold)
        xs = np.append(x[:last], threshold)
        ys = np.append(y[:last], y[last - 1])
        areas.append(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2) / threshold)
    return np.array(areas)


def epipolar_errors(
    matched_a: np.ndarray,
    matched_b: np.ndarray,
    intrinsics_a: np.ndarray,
    intrinsics_b: np.ndarray,
    pose: np.ndarray,
) -> np.ndarray:
    """Return the distance (N,) in pixels of each match's position in b from the epipolar line of its position in a."""
    x, y, z = pose[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ pose[:3, :3]
    fundamental = np.linalg.inv(intrinsics_b).T @ essential @ np.linalg.inv(intrinsics_a)
    lines = np.column_stack([matched_a, np.ones(len(matched_a))]) @ fundamental.T
    distances = np.abs((lines * np.column_stack([matched_b, np.ones(len(matched_b))])).sum(axis=1))
    return distances / np.maximum(np.linalg.norm(lines[:, :2], axis=1), 1e-12)


def standard_error(values: np.ndarray, sources: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the standard error of the means of ``values``, whose rows are correlated if they share a source.

    The covariance of two rows with a common source is the product of their residuals, that of others is zero: the
    cluster-robust estimate, here for pairs that share an image.

    Args:
        values: (N, C).
        sources: N groups of names: the images of each row.

    Returns:
        (C,), at least what it would be if all rows were independent; NaN for a single row.
    """
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    numbers = {name: k for k, name in enumerate(dict.fromkeys(name for own in sources for name in own))}
    made_from = np.zeros((len(values), len(numbers)), bool)
    for row, own in zip(made_from, sources):
        row[[numbers[name] for name in own]] = True
    alike = made_from.astype(float) @ made_from.T > 0
    residuals = values - values.mean(axis=0)
    together = np.einsum('ic,ij,jc->c', residuals, alike, residuals, optimize=True)
    return np.sqrt(np.maximum(together, (residuals**2).sum(axis=0)) / (len(values) * (len(values) - 1)))
