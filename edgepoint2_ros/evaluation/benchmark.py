"""Runs every method on every pair and sums up the results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.methods import Method
from edgepoint2_ros.evaluation.pairs import HomographyPair, PosePair

MATCH_THRESHOLDS = tuple(range(1, 11))  # pixels, of the mean matching accuracy
CORNER_THRESHOLDS = (1, 3, 5)  # pixels, of the homography accuracy
POSE_THRESHOLDS = (5, 10, 20)  # degrees, of the area under the curve
RIGHT = 3.0  # pixels (homographies); a match at most so far off is drawn as a right one
RIGHT_EPIPOLAR = 2.0  # pixels from the epipolar line (poses)


@dataclass(frozen=True)
class Result:
    """One method on one pair.

    Attributes:
        benchmark: name of the set of pairs, for example ``synthetic``.
        group: part of the set, for example ``viewpoint``.
        pair, method: names.
        keypoints: mean of the two images.
        matches: number of mutual nearest neighbours.
        repeatability: share; None for poses.
        accuracy: share of matches within each of MATCH_THRESHOLDS; None for poses.
        error: corner error in pixels (homographies) or pose error in degrees.
    """

    benchmark: str
    group: str
    pair: str
    method: str
    keypoints: float
    matches: int
    repeatability: float | None
    accuracy: np.ndarray | None
    error: float


@dataclass(frozen=True)
class Picture:
    """Matches of one method on one pair, for the report; ``right`` is bool (N,)."""

    benchmark: str
    pair: str
    method: str
    image_a: np.ndarray
    image_b: np.ndarray
    matched_a: np.ndarray
    matched_b: np.ndarray
    right: np.ndarray


def run_benchmark(
    benchmark: str, pairs: Iterable[HomographyPair | PosePair], methods: Sequence[Method], picture_every: int
) -> tuple[list[Result], list[Picture]]:
    """Return the result of each method on each pair, and pictures of every ``picture_every``-th pair (0: none)."""
    results, pictures = [], []
    for number, pair in enumerate(pairs):
        for method in methods:
            result, picture = _run_pair(benchmark, pair, method)
            results.append(result)
            if picture_every and number % picture_every == 0:
                pictures.append(picture)
    return results, pictures


def _run_pair(benchmark: str, pair: HomographyPair | PosePair, method: Method) -> tuple[Result, Picture]:
    a, b = method.extract(pair.image_a), method.extract(pair.image_b)
    matches = method.match(a, b)
    matched_a, matched_b = a.xy[matches[:, 0]], b.xy[matches[:, 1]]
    if isinstance(pair, HomographyPair):
        group = pair.group
        misses = metrics.matching_errors(matched_a, matched_b, pair.homography)
        repeatability = metrics.repeatability(a.xy, b.xy, pair.homography, a.image_size, b.image_size)
        accuracy = metrics.share_within(misses, MATCH_THRESHOLDS)
        estimated = metrics.estimate_homography(matched_a, matched_b)
        error = metrics.corner_error(estimated, pair.homography, a.image_size)
        right = misses <= RIGHT
    else:
        group, repeatability, accuracy = 'all', None, None
        pose = metrics.estimate_pose(matched_a, matched_b, pair.intrinsics_a, pair.intrinsics_b)
        error = metrics.pose_error(pose, pair.pose)
        misses = metrics.epipolar_errors(matched_a, matched_b, pair.intrinsics_a, pair.intrinsics_b, pair.pose)
        right = misses <= RIGHT_EPIPOLAR
    keypoints = (len(a) + len(b)) / 2
    return (
        Result(benchmark, group, pair.name, method.name, keypoints, len(matches), repeatability, accuracy, error),
        Picture(benchmark, pair.name, method.name, pair.image_a, pair.image_b, matched_a, matched_b, right),
    )


def summarise(results: Sequence[Result]) -> list[dict[str, str | float]]:
    """Return one row per benchmark, group and method, in order of appearance; shares in percent.

    Where a benchmark has several groups, a row ``all`` over them comes first.
    """
    keys = {}  # ordered, without repetitions
    for result in results:
        groups = {other.group for other in results if other.benchmark == result.benchmark}
        if len(groups) > 1:
            keys.setdefault((result.benchmark, 'all'), {}).setdefault(result.method)
        keys.setdefault((result.benchmark, result.group), {}).setdefault(result.method)
    rows = []
    for (benchmark, group), methods in keys.items():
        for method in methods:
            own = [
                result
                for result in results
                if (result.benchmark, result.method) == (benchmark, method) and group in ('all', result.group)
            ]
            rows.append({'benchmark': benchmark, 'group': group, 'method': method, **_means(own)})
    return rows


def _means(results: Sequence[Result]) -> dict[str, float]:
    means = {
        'pairs': len(results),
        'keypoints': float(np.mean([result.keypoints for result in results])),
        'matches': float(np.mean([result.matches for result in results])),
    }
    errors = np.array([result.error for result in results])
    if results[0].accuracy is None:
        areas = 100 * metrics.area_under_curve(errors, POSE_THRESHOLDS)
        means.update({f'AUC@{degrees}': area for degrees, area in zip(POSE_THRESHOLDS, areas, strict=True)})
        return means
    means['repeatability'] = 100 * float(np.mean([result.repeatability for result in results]))
    accuracies = 100 * np.mean([result.accuracy for result in results], axis=0)
    means.update({f'MMA@{pixels}': share for pixels, share in zip(MATCH_THRESHOLDS, accuracies, strict=True)})
    shares = 100 * metrics.share_within(errors, CORNER_THRESHOLDS)
    means.update({f'homography@{pixels}': share for pixels, share in zip(CORNER_THRESHOLDS, shares, strict=True)})
    return means
