"""What the score threshold is worth: keypoints, inliers and poses scene by scene, and what a frame costs.

    pip install ".[evaluation,openvino]"
    python examples/score_threshold.py --sequences kitchen corridor --pairs scenes/*.txt

Keypoints come best first, so that a lower threshold only adds to them: each image is extracted once, and cut.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # before numpy is loaded, as in the node

import numpy as np

from edgepoint2_ros.bench.report import markdown
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.benchmark import POSE_THRESHOLDS, RIGHT_EPIPOLAR
from edgepoint2_ros.evaluation.pairs import fit, name_scene, read_image, read_pose_pairs
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.matching import match

THRESHOLDS = (-5.0, -6.0, -7.0, -8.0, -10.0)
LONG_SIDE = 640  # pixels of the images
FRAMES = 60  # of a sequence, spread over it, each with the one that follows
SEEDS = 3  # of the estimation of a pose


def cut(features: Features, threshold: float) -> Features:
    """Return the features that score above a threshold."""
    best = slice(int(np.count_nonzero(features.scores > threshold)))
    rows = {name: getattr(features, name)[best] for name in ('xy', 'scores', 'descriptors')}
    return replace(features, **rows)


def successive(files: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of successive images of a sequence, spread over it."""
    starts = np.unique(np.linspace(0, len(files) - 2, FRAMES).astype(int))
    return [tuple(fit(read_image(files[k]), LONG_SIDE)[0] for k in (start, start + 1)) for start in starts]


def count_inliers(a: Features, b: Features, pairs: np.ndarray) -> int:
    """Return how many matches agree on one epipolar geometry."""
    if len(pairs) < 8:
        return 0
    xy = [features.xy[rows].astype(float) for features, rows in zip((a, b), pairs.T)]
    _, found = metrics.import_poselib().estimate_fundamental(*xy, {'max_epipolar_error': RIGHT_EPIPOLAR})
    return found['num_inliers']


def follow(extractor: Extractor, images: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return keypoints, and inliers between successive images, of each pair at each threshold: (N, T, 2)."""
    rows = []
    for pair in images:
        found = [extractor.extract(image) for image in pair]
        rows.append([])
        for threshold in THRESHOLDS:
            a, b = (cut(features, threshold) for features in found)
            rows[-1].append((len(a), count_inliers(a, b, match(a, b))))
    return np.array(rows, float)


def place(extractor: Extractor, listing: Path) -> np.ndarray:
    """Return keypoints, right matches and pose errors of the pairs of a scene at each threshold: (N, T, 2 + SEEDS)."""
    known, rows = {}, []
    for pair in read_pose_pairs(listing, listing.parent, LONG_SIDE):
        for name, image in zip(pair.sources, (pair.image_a, pair.image_b)):
            if name not in known:
                known[name] = extractor.extract(image)
        rows.append([])
        for threshold in THRESHOLDS:
            a, b = (cut(known[name], threshold) for name in pair.sources)
            if rows[-1] and len(a) + len(b) == 2 * rows[-1][-1][0]:  # as before: a lower threshold added nothing
                rows[-1].append(rows[-1][-1])
                continue
            pairs = match(a, b)
            matched = a.xy[pairs[:, 0]], b.xy[pairs[:, 1]], pair.intrinsics_a, pair.intrinsics_b
            right = np.count_nonzero(metrics.epipolar_errors(*matched, pair.pose) <= RIGHT_EPIPOLAR)
            poses = [metrics.estimate_pose(*matched, seed) for seed in range(SEEDS)]
            errors = [metrics.pose_error(pose, pair.pose) for pose in poses]
            rows[-1].append(((len(a) + len(b)) / 2, right, *errors))
    if not rows:
        raise EdgePoint2Error(f'{listing}: expected at least one pair of images that can be read')
    return np.array(rows)


def clock(model: str, images: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, float]]:
    """Return ms of CPU for extracting an image and for matching it with the last, at each threshold, on one thread."""
    times = []
    for threshold in THRESHOLDS:
        extractor = Extractor(model, threads=1, score_threshold=threshold)
        rows = []
        for pair in images:
            first = extractor.extract(pair[0])
            begin = time.process_time()
            second = extractor.extract(pair[1])
            middle = time.process_time()
            match(first, second)
            rows.append((middle - begin, time.process_time() - middle))
        times.append(tuple(1e3 * np.median(rows, axis=0)))
    return times


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=['T-32', 'S-64', 'E-64'])
    parser.add_argument('--weights', default='auto')
    parser.add_argument('--sequences', nargs='+', default=[], type=Path, metavar='DIR', help='images in order')
    parser.add_argument('--pairs', nargs='+', default=[], type=Path, metavar='FILE', help='as for the evaluation')
    parser.add_argument('--max-keypoints', type=int, default=2048)
    options = parser.parse_args()
    tables = {'keypoints / inliers': [], 'right matches / AUC@5/10/20': [], 'ms extraction + matching': []}
    try:
        for model in options.models:
            extractor = Extractor(
                model,
                weights=options.weights,
                precision='fp32',
                max_keypoints=options.max_keypoints,
                score_threshold=min(THRESHOLDS),
            )
            for folder in options.sequences:
                images = successive(find_images([folder]))
                means = follow(extractor, images).mean(axis=0)
                cells = [f'{keypoints:.0f} / {inliers:.0f}' for keypoints, inliers in means]
                tables['keypoints / inliers'].append([f'{model}, {folder.name}', *cells])
                cells = [f'{extract:.1f} + {matching:.1f}' for extract, matching in clock(model, images)]
                tables['ms extraction + matching'].append([f'{model}, {folder.name}', *cells])
            for listing in options.pairs:
                found = place(extractor, listing).swapaxes(0, 1)
                cells = []
                for rows in found:
                    areas = np.mean([metrics.area_under_curve(own, POSE_THRESHOLDS) for own in rows[:, 2:].T], axis=0)
                    cells.append(f'{rows[:, 1].mean():.0f} / {"/".join(f"{100 * area:.1f}" for area in areas)}')
                tables['right matches / AUC@5/10/20'].append([f'{model}, {name_scene(listing)}', *cells])
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1
    for title, rows in tables.items():
        if rows:
            names = ['', *(f'{threshold:g}' for threshold in THRESHOLDS)]
            print(f'\n{title}\n\n{markdown(dict(zip(names, zip(*rows))))}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
