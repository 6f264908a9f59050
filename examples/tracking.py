"""Tracks of EdgePoint2 beside optical flow (KLT) on corners and plain matching, on sequences with known poses.

    pip install evo scipy
    python examples/tracking.py DIR [DIR ...]                     # layouts as for examples/odometry.py
    python examples/tracking.py DIR --model S-64 --every 3        # every third image
    python examples/tracking.py DIR --picture tracks.jpg          # the tracks over the last image

KLT is that of VINS-Fusion's front end: windows of 21x21 on four levels, followed back to within half a pixel, new
corners where no track is within 30 pixels (150 tracks; nearer for more). Plain matching, `matched`, chains the mutual
nearest neighbours of successive images: what one has without a tracker. A track is followed after n images where the
image shows it still; it is right where it lies within 2 pixels of the epipolar line that the recorded poses give. Over
many images these are not that exact: refined are those near them that fit the tracks of the tracker and of KLT best,
as many of each; images with too few of either are left out. Times are of one core and of the tracking alone: without
the extraction for EdgePoint2, with the search for corners for KLT.
"""

import argparse
import os
import sys
import time
from itertools import islice
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # before numpy is loaded, as in the node

import cv2
import numpy as np
from evo.core import sync
from odometry import read_sequence
from scipy.optimize import least_squares

from edgepoint2_ros.drawing import draw_tracks
from edgepoint2_ros.evaluation.metrics import epipolar_errors
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import refuse_existing
from edgepoint2_ros.matching import match
from edgepoint2_ros.odometry import Camera
from edgepoint2_ros.tracking import Tracker

COUNTS = (150, 400)
GAPS = (1, 10, 30)  # images
RIGHT = 2.0  # pixels from the epipolar line
KLT = {'winSize': (21, 21), 'maxLevel': 3}
BACK = 0.5  # pixels between a corner and where it is when followed there and back
MIN_TRACKS = 8  # of each kind that a motion is refined by
MIN_DISTANCE = 30  # pixels between corners, for 150 of them


class Flow:
    """Corners followed by optical flow."""

    def __init__(self, count: int):
        self._count = count
        self._distance = round(MIN_DISTANCE * np.sqrt(COUNTS[0] / count))
        self._last: np.ndarray | None = None
        self._xy, self._ids, self._ages = np.zeros((0, 2), np.float32), np.zeros(0, int), np.zeros(0, int)
        self._next = 0

    def track(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers (T,) and pixels (T, 2) of the tracks of a gray image."""
        if len(self._xy):
            moved, found, _ = cv2.calcOpticalFlowPyrLK(self._last, image, self._xy, None, **KLT)
            back, again, _ = cv2.calcOpticalFlowPyrLK(image, self._last, moved, None, **KLT)
            good = (found & again).ravel().astype(bool) & (np.linalg.norm(back - self._xy, axis=1) <= BACK)
            good &= ((np.rint(moved) >= 1) & (np.rint(moved) < np.array(image.shape[1::-1]) - 1)).all(axis=1)
            self._keep(moved, good)
        mask = np.full(image.shape, 255, np.uint8)
        good = np.zeros(len(self._xy), bool)
        for k in np.argsort(-self._ages, kind='stable'):  # those that last have their place first
            x, y = np.rint(self._xy[k]).astype(int).tolist()
            if mask[y, x]:
                good[k] = True
                cv2.circle(mask, (x, y), self._distance, 0, -1)
        self._keep(self._xy, good)
        if len(self._xy) < self._count:
            new = cv2.goodFeaturesToTrack(image, self._count - len(self._xy), 0.01, self._distance, mask=mask)
            new = np.zeros((0, 2), np.float32) if new is None else new.reshape(-1, 2)
            self._xy = np.concatenate([self._xy, new])
            self._ids = np.concatenate([self._ids, self._next + np.arange(len(new))])
            self._ages = np.concatenate([self._ages, np.ones(len(new), int)])
            self._next += len(new)
        self._last = image
        return self._ids, self._xy

    def _keep(self, xy: np.ndarray, good: np.ndarray) -> None:
        self._xy, self._ids, self._ages = xy[good], self._ids[good], self._ages[good] + 1


class Chain:
    """Keypoints that are each other's nearest neighbour in one image and the next."""

    def __init__(self, count: int):
        self._count = count
        self._last: Features | None = None
        self._ids = np.zeros(0, int)
        self._next = 0

    def track(self, features: Features, _: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers (T,) and pixels (T, 2) of the tracks of an image."""
        ids = np.full(len(features), -1)
        if self._last is not None:
            before, now = match(self._last, features).T
            ids[now] = self._ids[before]
        missing = max(self._count - np.count_nonzero(ids >= 0), 0)
        new = np.flatnonzero(ids < 0)[:missing]  # the best come first
        ids[new] = self._next + np.arange(len(new))
        self._next += len(new)
        self._last, self._ids = features, ids
        return ids[ids >= 0], features.xy[ids >= 0]


def follow(track, items) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """Return the tracks of each image, as numbers (T,) and pixels (T, 2), and the milliseconds of CPU for one image."""
    seen, times = [], []
    for item in items:
        begin = time.process_time()
        seen.append(track(*item))
        times.append(time.process_time() - begin)
    return seen, 1e3 * float(np.median(times))


def pair_up(seen: list, camera: Camera, gap: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return where the tracks that an image shows and ``gap`` images later, too, lie in both, undistorted (F, 2)."""
    pairs = []
    for (ids, xy), (later_ids, later_xy) in zip(seen, seen[gap:]):
        _, a, b = np.intersect1d(ids, later_ids, return_indices=True)
        pairs.append((camera.undistort(xy[a]), camera.undistort(later_xy[b])))
    return pairs


def refine(motion: np.ndarray, camera: Camera, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """Return the motion (4, 4) near a recorded one that fits the tracks of all methods best, as many of each.

    None where a method has too few.
    """
    count = min(len(a) for a, _ in pairs)
    distance = np.linalg.norm(motion[:3, 3])
    if count < MIN_TRACKS or distance == 0:
        return None
    chosen = [np.random.default_rng(0).permutation(len(a))[:count] for a, _ in pairs]
    first, second = (np.concatenate([pair[k][rows] for pair, rows in zip(pairs, chosen)]) for k in (0, 1))

    def turn(change: np.ndarray) -> np.ndarray:
        moved = np.eye(4)
        moved[:3, :3] = cv2.Rodrigues(change[:3] / camera.matrix[0, 0])[0] @ motion[:3, :3]
        moved[:3, 3] = motion[:3, 3] / distance + change[3:] / 20
        return moved

    def errors(change: np.ndarray) -> np.ndarray:
        return epipolar_errors(first, second, camera.matrix, camera.matrix, turn(change))

    return turn(least_squares(errors, np.zeros(6), loss='cauchy', max_nfev=30).x)


def measure(methods: dict[str, list], camera: Camera, poses: list[np.ndarray | None]) -> dict[str, list[float]]:
    """Return for each method the mean length of its tracks, their mean number in an image, and shares in %.

    For each of GAPS there are three: of tracks that are followed, and of these right by the recorded poses and right by
    the refined ones, which fit the first two methods.
    """
    figures = {}
    for name, seen in methods.items():
        lengths = np.unique(np.concatenate([ids for ids, _ in seen]), return_counts=True)[1]
        figures[name] = [float(lengths.mean()), float(np.mean([len(ids) for ids, _ in seen]))]
    for gap in GAPS:
        pairs = {name: pair_up(seen, camera, gap) for name, seen in methods.items()}
        motions = [
            None if pose is None or later is None else np.linalg.inv(later) @ pose
            for pose, later in zip(poses, poses[gap:])
        ]
        refined = [
            None if motion is None else refine(motion, camera, found[:2])
            for motion, *found in zip(motions, *pairs.values())
        ]
        for name, seen in methods.items():
            begun = sum(len(ids) for ids, _ in seen[:-gap])
            figures[name].append(100 * sum(len(a) for a, _ in pairs[name]) / max(begun, 1))
            for geometries in (motions, refined):
                errors = [
                    epipolar_errors(*found, camera.matrix, camera.matrix, motion)
                    for found, motion in zip(pairs[name], geometries)
                    if motion is not None
                ]
                right = np.concatenate([np.zeros(0), *errors]) <= RIGHT
                figures[name].append(100 * float(right.mean()) if len(right) else float('nan'))
    return figures


def find_poses(stamps: list[float], truth) -> list[np.ndarray | None]:
    """Return the pose (4, 4) of the camera at each stamp, None where it is not known."""
    numbers = sync.matching_time_indices(np.array(stamps), truth.timestamps, 0.02)
    known = {i: truth.poses_se3[j] for i, j in zip(*numbers)}
    return [known.get(k) for k in range(len(stamps))]


def main() -> int:
    """Follow all kinds of tracks through each sequence and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('sequences', nargs='+', type=Path, metavar='DIR')
    add('--model', default='T-32', help='default: %(default)s')
    add('--max-keypoints', type=int, default=1000, help='default: %(default)s')
    add('--min-cosine', type=float, help="of tracks (default: the tracker's)")
    add('--every', type=int, default=1, metavar='N', help='take every Nth image')
    add('--images', type=int, metavar='N', help='take only the first N images')
    add('--picture', type=Path, metavar='FILE', help='draw the tracks over the last image')
    options = parser.parse_args()
    refuse_existing([options.picture] if options.picture else [])
    cv2.setNumThreads(1)
    extractor = Extractor(options.model, max_keypoints=options.max_keypoints, threads=1)
    settings = {} if options.min_cosine is None else {'min_cosine': options.min_cosine}
    titles = ' '.join(f'{f"after {gap}":>9} {"right":>6} {"refined":>7}' for gap in GAPS)
    print(f'{"sequence":22} {"tracks of":10} {"most":>4} {"tracks":>6} {"length":>6} {titles} {"ms":>6}')
    for folder in options.sequences:
        images, truth, (fx, fy, cx, cy) = read_sequence(folder)
        camera = Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
        images = list(islice(images, 0, options.images, options.every))
        poses = find_poses([stamp for stamp, _ in images], truth)
        features: list[tuple[Features, float]] = [(extractor.extract(image), stamp) for stamp, image in images]
        for count in COUNTS:
            tracker = Tracker(camera, max_tracks=count, **settings)
            tracks, own = follow(tracker.track, features)
            flow, klt = follow(Flow(count).track, [(image,) for _, image in images])
            chains, matched = follow(Chain(count).track, features)
            tracks = [(found.ids.astype(int), found.xy) for found in tracks]
            figures = measure({options.model: tracks, 'KLT': flow, 'matched': chains}, camera, poses)
            for name, taken in ((options.model, own), ('KLT', klt), ('matched', matched)):
                length, number, *shares = figures[name]
                columns = ' '.join(
                    f'{a:8.1f}% {b:5.1f}% {c:6.1f}%'.replace('nan%', ' - ')
                    for a, b, c in zip(shares[::3], shares[1::3], shares[2::3])
                )
                print(
                    f'{folder.name[:22]:22} {name:10} {count:4} {number:6.0f} {length:6.1f} {columns} {taken:6.2f}',
                    flush=True,
                )
        if options.picture:
            cv2.imwrite(str(options.picture), draw_tracks(images[-1][1], tracks))
    return 0


if __name__ == '__main__':
    sys.exit(main())
