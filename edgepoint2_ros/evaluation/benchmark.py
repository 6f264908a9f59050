"""Runs every method on every pair and summarises the results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.methods import Method
from edgepoint2_ros.evaluation.pairs import HomographyPair, PosePair, pair_digest
from edgepoint2_ros.features import Features

MATCH_THRESHOLDS = tuple(range(1, 11))  # pixels, of the mean matching accuracy
CORNER_THRESHOLDS = (1, 3, 5)  # pixels, of the homography accuracy
POSE_THRESHOLDS = (5, 10, 20)  # degrees, of the area under the curve
RIGHT = 3.0  # pixels (homographies); maximum error of a match that counts as right
RIGHT_EPIPOLAR = 2.0  # pixels from the epipolar line (poses)


@dataclass(frozen=True)
class Result:
    """One method on one pair.

    Attributes:
        benchmark: name of the set of pairs, for example ``synthetic``.
        group: part of the set, for example ``viewpoint``, or a scene.
        pair, method: names.
        sources: the images that the pair was made from; pairs that share one are not independent.
        keypoints: mean of the two images.
        matches: number of mutual nearest neighbours.
        right: share of matches within RIGHT pixels of the true position, or RIGHT_EPIPOLAR of the true epipolar line.
        repeatability: share; None for poses.
        accuracy: share of matches within each of MATCH_THRESHOLDS; None for poses.
        errors: corner error in pixels (homographies) or pose error in degrees, one for each estimation.
        digest: of the pair's images and geometry, see `pair_digest`.
    """

    benchmark: str
    group: str
    pair: str
    method: str
    sources: tuple[str, ...]
    keypoints: float
    matches: int
    right: float
    repeatability: float | None
    accuracy: np.ndarray | None
    errors: np.ndarray
    digest: str = ''


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
    benchmark: str,
    pairs: Iterable[HomographyPair | PosePair],
    methods: Sequence[Method],
    picture_every: int,
    seeds: int = 1,
) -> tuple[list[Result], list[Picture]]:
    """Return the result of each method on each pair, and pictures of every ``picture_every``-th pair (0: none).

    ``seeds``: how often each pose and homography is estimated, from different random samples; 0 skips it.
    """
    results, pictures = [], []
    # Features of a scene's images, each of which is in several pairs, by image and method.
    known: dict[Any, Features] = {}
    scene = None
    for number, pair in enumerate(pairs):
        if pair.group != scene:
            known.clear()
            scene = pair.group
        digest = pair_digest(pair)
        for method in methods:
            result, picture = _run_pair(benchmark, pair, method, seeds, known)
            results.append(replace(result, digest=digest))
            if picture_every and number % picture_every == 0:
                pictures.append(picture)
    return results, pictures


def extract_pair(
    pair: HomographyPair | PosePair, method: Method, known: dict[Any, Features]
) -> tuple[Features, Features]:
    """Return a method's features of both images of a pair.

    Args:
        pair, method: the pair and the method.
        known: features of the scene's images so far, a cache.
    """
    if not isinstance(pair, PosePair) or not pair.sources:
        return method.extract(pair.image_a), method.extract(pair.image_b)
    for name, image in zip(pair.sources, (pair.image_a, pair.image_b)):
        if (name, method.name) not in known:
            known[name, method.name] = method.extract(image)
    a, b = (known[name, method.name] for name in pair.sources)
    return a, b


def _run_pair(
    benchmark: str, pair: HomographyPair | PosePair, method: Method, seeds: int, known: dict[Any, Features]
) -> tuple[Result, Picture]:
    a, b = extract_pair(pair, method, known)
    matches = method.match(a, b)
    matched_a, matched_b = a.xy[matches[:, 0]], b.xy[matches[:, 1]]
    if isinstance(pair, HomographyPair):
        misses = metrics.matching_errors(matched_a, matched_b, pair.homography)
        right = misses <= RIGHT
        repeatability = metrics.repeatability(a.xy, b.xy, pair.homography, a.image_size, b.image_size)
        accuracy = metrics.share_within(misses, MATCH_THRESHOLDS)
        estimates = [metrics.estimate_homography(matched_a, matched_b, seed) for seed in range(seeds)]
        errors = [metrics.corner_error(estimate, pair.homography, a.image_size) for estimate in estimates]
    else:
        misses = metrics.epipolar_errors(matched_a, matched_b, pair.intrinsics_a, pair.intrinsics_b, pair.pose)
        right = misses <= RIGHT_EPIPOLAR
        repeatability, accuracy = None, None
        cameras = pair.intrinsics_a, pair.intrinsics_b
        poses = [metrics.estimate_pose(matched_a, matched_b, *cameras, seed) for seed in range(seeds)]
        errors = [metrics.pose_error(pose, pair.pose) for pose in poses]
    return (
        Result(
            *(benchmark, pair.group, pair.name, method.name, pair.sources or (pair.name,)),
            *((len(a) + len(b)) / 2, len(matches), float(right.mean()) if len(right) else 0.0),
            *(repeatability, accuracy, np.array(errors)),
        ),
        Picture(benchmark, pair.name, method.name, pair.image_a, pair.image_b, matched_a, matched_b, right),
    )


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one row per benchmark, group and method, in order of appearance; shares in percent.

    If a benchmark has several groups, a row ``all`` comes first: over all pairs for homographies, but the mean over the
    groups for poses, since these are scenes.
    """
    rows = []
    for (benchmark, group), methods in _sort(results).items():
        for method, own in methods.items():
            parts = [_means(part) for part in _scenes(own)]
            means = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
            rows.append({'benchmark': benchmark, 'group': group, 'method': method, 'pairs': len(own), **means})
    return rows


def compare(results: Sequence[Result], rivals: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the differences between methods and their rivals, in rows like those of `summarise`.

    Each column holds the mean paired difference, scene by scene, and its standard error: how much it would vary with
    other images of these scenes. Pairs that share an image are not treated as independent.

    Args:
        results: of all methods on the same pairs.
        rivals: names of a method and of the one subtracted from it.
    """
    rows = []
    for (benchmark, group), methods in _sort(results).items():
        for method, rival in rivals:
            means, errors = [], []
            for own, other in zip(_scenes(methods[method]), _scenes(methods[rival])):
                gains = np.array([list(scores(result).values()) for result in own])
                gains -= [list(scores(result).values()) for result in other]
                means.append(gains.mean(axis=0))
                errors.append(metrics.standard_error(gains, [result.sources for result in own]))
            mean, error = np.mean(means, axis=0), np.linalg.norm(errors, axis=0) / len(errors)
            columns = {name: (float(m), float(e)) for name, m, e in zip(scores(own[0]), mean, error)}
            rows.append({'benchmark': benchmark, 'group': group, 'method': method, 'rival': rival, **columns})
    return rows


def _sort(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, list[Result]]]:
    """Return the results by benchmark and group, ``all`` first if there are several, and by method."""
    groups: dict[str, dict[str, None]] = {}
    for result in results:
        groups.setdefault(result.benchmark, {}).setdefault(result.group)
    found: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for benchmark, names in groups.items():
        for name in ('all', *names) if len(names) > 1 else names:
            methods = found[benchmark, name] = {}
            for result in results:
                if result.benchmark == benchmark and name in ('all', result.group):
                    methods.setdefault(result.method, []).append(result)
    return found


def _scenes(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results of one method, those of poses by scene."""
    scenes: dict[str, list[Result]] = {}
    for result in results:
        scenes.setdefault(result.group if result.accuracy is None else '', []).append(result)
    return list(scenes.values())


def scores(result: Result) -> dict[str, float]:
    """Return the contribution of one pair to the mean in each column; shares in percent.

    The area under the curve of pose errors is, except for the straight lines that join its steps, the mean over the
    pairs of 1 - error / threshold, and 0 beyond the threshold.
    """
    values = {'keypoints': result.keypoints, 'matches': float(result.matches)}
    if result.accuracy is None or result.repeatability is None:  # poses
        values['right'] = 100 * result.right
        for degrees in POSE_THRESHOLDS if len(result.errors) else ():
            values[f'AUC@{degrees}'] = 100 * float(np.maximum(0, 1 - result.errors / degrees).mean())
        return values
    values['repeatability'] = 100 * result.repeatability
    for pixels, share in zip(MATCH_THRESHOLDS, result.accuracy):
        values[f'MMA@{pixels}'] = 100 * float(share)
    for pixels in CORNER_THRESHOLDS if len(result.errors) else ():
        values[f'homography@{pixels}'] = 100 * float((result.errors <= pixels).mean())
    return values


def _means(results: Sequence[Result]) -> dict[str, float]:
    parts = [scores(result) for result in results]
    means = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    if results[0].accuracy is None and len(results[0].errors):
        errors = np.array([result.errors for result in results]).T
        areas = 100 * np.mean([metrics.area_under_curve(own, POSE_THRESHOLDS) for own in errors], axis=0)
        means.update({f'AUC@{degrees}': float(area) for degrees, area in zip(POSE_THRESHOLDS, areas)})
    return means
