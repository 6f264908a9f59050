"""Tracks: keypoints that show the same point in image after image. Plain numpy and OpenCV, no ROS.

The position of a track is predicted from its motion. A sample of the tracks, matched with the whole image, corrects the
predictions for changes in camera motion; then each track is searched for near its prediction, by its mean descriptor,
and matches must be inliers of one epipolar geometry. A track that is not found moves on with its neighbours for some
images and is recovered by its descriptor. New tracks start from the best keypoints in regions without tracks.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import check_comparable, check_usable, match, match_guided
from edgepoint2_ros.odometry import Camera

MAX_TRACKS = 400
MIN_COSINE = 0.7  # between a keypoint's descriptor and the mean descriptor of its track
MAX_LOST = 5  # consecutive images in which a track may be missing before it ends
SPARE = 1.15  # tracks followed for each one returned: the long-lived ones are returned
CELL = 0.4  # side of the cells with at most one new track, in units of the spacing of evenly spread tracks
LATEST = 0.5  # weight of the latest descriptor in the mean descriptor of a track
ANCHORS = 100  # tracks that are matched with the whole image,
ANCHOR_KEYPOINTS = 1024  # with its best keypoints,
ANCHOR_RATIO = 0.9  # and with this ratio test
MIN_ANCHORS = 8
NEAR = 0.05  # of the longer side of the image: neighbours this near move alike
REACH = 6.0  # minimum search radius around a predicted position, pixels
MAX_GAP = 1.0  # maximum seconds between images over which motion is extrapolated
MIN_GAP = 1e-3  # minimum seconds between images that say how fast something moves
MIN_FIT = 8  # minimum tracks to fit an epipolar geometry
FIT_ERROR = 1.0  # inlier threshold of the fit: pixels between a keypoint and its epipolar line
ERROR = 1.75  # the same to accept a track: keypoints jitter by a pixel
MAX_ERROR = 3.0  # the same for a lost track, whose last position is a guess
STEREO_ERROR = 2.0  # pixels between a keypoint of the right image and its epipolar line
STEREO_RATIO = 0.95  # ratio test among the keypoints near that line


@dataclass(frozen=True)
class Tracks:
    """The tracks visible in one image, those seen in the most images first.

    Rays are undistorted directions, x / z and y / z in the optical frame of a camera; NaN without a camera, and
    for what a fisheye lens sees at 90 degrees off its axis and beyond.

    Attributes:
        ids: (T,) uint64; a Tracker never reuses one.
        ages: (T,) int64, number of images that showed the track; 1 for a new one.
        xy: (T, 2) float32, pixels of the image, as the extractor gave them.
        rays: (T, 2) float64.
        velocities: (T, 2) float64, of the rays, per second since the track was last seen; 0 for a new one. Images less
            than a millisecond apart leave it as it was.
        scores: (T,) float32, raw detector logits.
        keypoints: (T,) int64, index of the track's keypoint in the features.
        right_keypoints: (T,) int64, the same in the features of the right camera; -1 if not seen there, or not in front
            of both cameras.
        right_xy: (T, 2) float32, pixels of the right image; NaN if not seen there.
        right_rays, right_velocities: (T, 2) float64, in the frame of the right camera; NaN if there are none; the
            velocity is 0 if the right camera did not see the track before.
    """

    ids: np.ndarray
    ages: np.ndarray
    xy: np.ndarray
    rays: np.ndarray
    velocities: np.ndarray
    scores: np.ndarray
    keypoints: np.ndarray
    right_keypoints: np.ndarray
    right_xy: np.ndarray
    right_rays: np.ndarray
    right_velocities: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Stereo:
    left: Camera
    right: Camera
    rotation: np.ndarray  # (3, 3) and
    shift: np.ndarray  # (3,) from the left camera's frame to the right one's
    fundamental: np.ndarray  # (3, 3)


class Tracker:
    """Follows the keypoints of one camera, or of the left one of a stereo pair.

    Features from other weights, of another image size or with descriptors of another size, or a stamp before the last
    one, reset it: all tracks are new, and their ids continue.

    Attributes:
        next_id: id of the next new track.
    """

    def __init__(
        self,
        camera: Camera | None = None,
        right: Camera | None = None,
        right_from_left: np.ndarray | None = None,
        max_tracks: int = MAX_TRACKS,
        max_lost: int = MAX_LOST,
        min_cosine: float = MIN_COSINE,
        first_id: int = 0,
    ):
        """Prepare to track.

        Args:
            camera: for rays and an exact epipolar geometry; without one, images are assumed to be undistorted.
            right: the right camera of a stereo pair, if there is one; then ``camera`` is the left one.
            right_from_left: (4, 4), maps points from the left camera's frame to the right one's.
            max_tracks: maximum number of tracks per image.
            max_lost: maximum number of consecutive images in which a track may be missing before it ends.
            min_cosine: minimum cosine of a keypoint's descriptor and the mean descriptor of its track.
            first_id: id of the first track, to continue the ids of another Tracker.

        Raises:
            EdgePoint2Error: max_tracks or max_lost out of range, or a right camera without a left one or a baseline.
        """
        if not max_tracks >= 1 or not max_lost >= 0:
            raise EdgePoint2Error(f'expected max_tracks from 1 and max_lost from 0, got {max_tracks} and {max_lost}')
        self._stereo: _Stereo | None = None
        if right is not None:
            shift = None if right_from_left is None else np.asarray(right_from_left)[:3, 3]
            if camera is None or shift is None or not 0 < np.linalg.norm(shift) < np.inf:
                raise EdgePoint2Error('a right camera needs the left one and where it stands: expected right_from_left')
            rotation = np.asarray(right_from_left, float)[:3, :3]
            essential = np.cross(shift, rotation, axisb=0, axisc=0)
            fundamental = np.linalg.inv(right.matrix).T @ essential @ np.linalg.inv(camera.matrix)
            self._stereo = _Stereo(camera, right, rotation, shift, fundamental)
        self._camera = camera
        self._max_tracks, self._max_lost, self._min_cosine = max_tracks, max_lost, min_cosine
        self.next_id = first_id
        self._pool = _new_pool(0, 0)
        self._last: Features | None = None
        self._stamp = 0.0

    def track(self, features: Features, stamp: float, right: Features | None = None) -> Tracks:
        """Return the tracks visible in an image.

        Args:
            features: of the image.
            stamp: its time in seconds.
            right: features of the right camera's image of the same time, if there is one.

        Raises:
            EdgePoint2Error: keypoints or descriptors are not finite, descriptors have no numbers, or left and right
                come from different weights. The tracks stay as they were.
        """
        check_usable(features)
        if right is not None:
            check_comparable(features, right)
            check_usable(right)
        if self._is_new(features, stamp):
            self._pool, self._stamp = _new_pool(0, features.descriptors.shape[1]), stamp
        keypoints = self._follow(features, stamp)
        keypoints = self._start(features, keypoints, stamp)
        active = int(np.count_nonzero(keypoints >= 0))
        tracks = self._report(features, keypoints[: min(active, self._max_tracks)], right, stamp)
        self._pool['right'][:active] = np.nan
        self._pool['right'][: len(tracks)] = tracks.right_rays
        self._pool['stamp'][:active] = stamp
        self._last, self._stamp = features, stamp
        return tracks

    def _is_new(self, features: Features, stamp: float) -> bool:
        last = self._last
        return (
            last is None
            or stamp < self._stamp
            or (last.model, last.digest, last.image_size) != (features.model, features.digest, features.image_size)
            or last.descriptors.shape[1] != features.descriptors.shape[1]
        )

    def _follow(self, features: Features, stamp: float) -> np.ndarray:
        """Advance the tracks to the next image; return the index of each track's keypoint, -1 for none."""
        pool, elapsed = self._pool, stamp - self._stamp
        keypoints = np.full(len(pool), -1)
        if len(pool) == 0:
            return keypoints
        places, radius = self._expect(features, elapsed)
        known = _as_features(pool['xy'], pool['descriptor'], features)
        pairs = match_guided(known, features, places, radius, min_cosine=self._min_cosine)
        seen, found = pairs.T
        flat = self._undistort(features.xy[found])
        good = self._agree(seen, flat)
        seen, found, flat = seen[good], found[good], flat[good]

        keypoints[seen] = found
        places[seen] = features.xy[found]
        if elapsed >= MIN_GAP:
            pool['motion'] = (places - pool['xy']) / elapsed
            pool['velocity'][seen] = (flat - pool['flat'][seen]) / (stamp - pool['stamp'][seen])[:, None]
        pool['xy'] = places
        pool['flat'][seen] = flat
        mean = (1 - LATEST) * pool['descriptor'][seen] + LATEST * features.descriptors[found]
        pool['descriptor'][seen] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        pool['age'][seen] += 1
        pool['lost'] += 1
        pool['lost'][seen] = 0
        inside = ((places >= 0) & (places < features.image_size)).all(axis=1)
        kept = np.flatnonzero((pool['lost'] == 0) | ((pool['lost'] <= self._max_lost) & inside))
        kept = kept[np.lexsort((-pool['age'][kept], pool['lost'][kept]))]
        self._pool = pool.take(kept)
        return keypoints[kept]

    def _expect(self, features: Features, elapsed: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted positions (P, 2) and search radii (P,) of the tracks."""
        pool = self._pool
        scale = NEAR * max(features.image_size)
        moved = pool['motion'] * (elapsed if elapsed <= MAX_GAP else 0)
        places = pool['xy'] + moved
        recent = np.count_nonzero(pool['lost'] == pool['lost'][0])
        sample = slice(0, recent, -(-recent // ANCHORS))
        known = _as_features(places[sample], pool['descriptor'][sample], features)
        best = _as_features(features.xy[:ANCHOR_KEYPOINTS], features.descriptors[:ANCHOR_KEYPOINTS], features)
        pairs = match(known, best, self._min_cosine, ANCHOR_RATIO)
        anchors = known.xy[pairs[:, 0]]
        missed = np.float32(best.xy[pairs[:, 1]] - anchors)
        if len(anchors) >= MIN_ANCHORS:  # drop those that their neighbours contradict
            near = _nearness(anchors, anchors, scale)
            np.fill_diagonal(near, 0)
            away = np.linalg.norm(missed - near @ missed / near.sum(axis=1, keepdims=True), axis=1)
            good = away <= 3 * np.partition(away, len(away) // 2)[len(away) // 2] + 3
            anchors, missed = anchors[good], missed[good]
        if len(anchors) < MIN_ANCHORS:
            return places, 2 * scale * (1 + pool['lost'])
        # The mean of the anchors' prediction errors, and of their squares, weighted by proximity.
        near = _nearness(places, anchors, scale)
        sums = near @ np.column_stack([missed, (missed**2).sum(axis=1), np.ones(len(missed), np.float32)])
        shift = sums[:, :2] / sums[:, 3:]
        spread = np.sqrt(np.maximum(sums[:, 2] / sums[:, 3] - (shift**2).sum(axis=1), 0))
        unsure = pool['lost'] + (pool['age'] == 1)
        radius = REACH + 2 * spread + unsure * (REACH / 2 + 0.1 * np.hypot(moved[:, 0], moved[:, 1]))
        return places + shift, radius

    def _agree(self, seen: np.ndarray, flat: np.ndarray) -> np.ndarray:
        """Return which tracks (N,), found at ``flat`` (N, 2), are inliers of one epipolar geometry: bool (N,)."""
        pool = self._pool
        lost = pool['lost'][seen]
        before = pool['flat'][seen]
        before[lost > 0] = self._undistort(pool['xy'][seen[lost > 0]])
        # What a fisheye lens sees beyond 90 degrees is on no epipolar line of a plane: it is not judged.
        judged = np.isfinite(before).all(axis=1) & np.isfinite(flat).all(axis=1)
        recent = judged & (lost == 0)
        fit = np.flatnonzero(recent if np.count_nonzero(recent) >= MIN_FIT else judged)
        fundamental = _find_fundamental(before[fit], flat[fit])
        if fundamental is None:
            return lost == 0
        a, b, c = fundamental[:, :2] @ before.T + fundamental[:, 2:]  # epipolar lines in this image and the previous
        d, e, _ = fundamental[:2].T @ flat.T + fundamental[2:].T
        steep = np.sqrt(np.minimum(a * a + b * b, d * d + e * e))
        x, y = flat.T
        return np.where(judged, np.abs(a * x + b * y + c) <= np.minimum(ERROR + lost / 2, MAX_ERROR) * steep, lost == 0)

    def _start(self, features: Features, keypoints: np.ndarray, stamp: float) -> np.ndarray:
        """Start tracks in regions without any; return the index of each track's keypoint."""
        pool = self._pool
        target = int(np.ceil(SPARE * self._max_tracks))
        active = int(np.count_nonzero(keypoints >= 0))
        if active >= target or len(features) == 0:
            return keypoints
        width, height = features.image_size
        side = CELL * np.sqrt(width * height / target)
        x, y = features.xy.T
        row, column = (np.clip(y, 0, height) / side).astype(int), (np.clip(x, 0, width) / side).astype(int)
        cells = row * (int(width / side) + 1) + column
        # Keypoints are written worst first, so that each cell keeps its best.
        best = np.full(cells.max() + 1, -1)
        best[cells[::-1]] = np.arange(len(features))[::-1]
        best[cells[keypoints[:active]]] = -1
        new = np.sort(best[best >= 0])[: target - active]
        xy = features.xy[new].astype(np.float64)
        flat = self._undistort(xy)
        motion = np.zeros((len(new), 2))
        old = slice(0, active, -(-active // ANCHORS) or 1)
        if active:
            near = _nearness(xy, pool['xy'][old], NEAR * max(width, height))
            motion = near @ pool['motion'][old] / near.sum(axis=1, keepdims=True)
        started = _new_pool(len(new), features.descriptors.shape[1])
        started['id'] = self.next_id + np.arange(len(new), dtype=np.uint64)
        started['age'], started['right'], started['stamp'] = 1, np.nan, stamp
        started['xy'], started['motion'], started['flat'] = xy, motion, flat
        started['descriptor'] = features.descriptors[new]
        self.next_id += len(new)
        # As bytes: numpy would concatenate the rows field by field.
        rows = [part.view(f'V{pool.itemsize}') for part in (pool[:active], started, pool[active:])]
        self._pool = np.concatenate(rows).view(pool.dtype)
        return np.concatenate([keypoints[:active], new, keypoints[active:]])

    def _report(self, features: Features, keypoints: np.ndarray, right: Features | None, stamp: float) -> Tracks:
        """Return the first tracks of the pool, those with keypoints (T,)."""
        pool = self._pool[: len(keypoints)]
        nowhere = np.full((len(pool), 2), np.nan)
        partners, right_xy, right_rays = np.full(len(pool), -1), nowhere.astype(np.float32), nowhere.copy()
        if right is not None and self._stereo is not None:
            pairs, rays = self._match_right(self._stereo, pool, right)
            partners[pairs[:, 0]] = pairs[:, 1]
            right_xy[pairs[:, 0]], right_rays[pairs[:, 0]] = right.xy[pairs[:, 1]], rays
        elapsed = (stamp - pool['stamp'])[:, None]
        velocities = (right_rays - pool['right']) / np.where(elapsed >= MIN_GAP, elapsed, np.inf)
        return Tracks(
            pool['id'].copy(),
            pool['age'].copy(),
            features.xy[keypoints],
            nowhere if self._camera is None else _to_rays(pool['flat'], self._camera),
            nowhere if self._camera is None else pool['velocity'] / self._camera.matrix.diagonal()[:2],
            features.scores[keypoints],
            keypoints,
            partners,
            right_xy,
            right_rays,
            np.where(np.isnan(pool['right']) & (partners >= 0)[:, None], 0, velocities),
        )

    def _match_right(self, stereo: _Stereo, pool: np.ndarray, right: Features) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs (Q, 2) of tracks and keypoints of the right image, and the rays (Q, 2) to the latter."""
        flat = stereo.right.undistort(right.xy)
        # Beyond 90 degrees, a point seen by a fisheye lens has no undistorted pixel.
        places = np.nan_to_num(flat, nan=-1e6, posinf=-1e6, neginf=-1e6).clip(-1e6, 1e6).astype(np.float32)
        straight = np.flatnonzero(np.isfinite(pool['flat']).all(axis=1))
        pairs = match_guided(
            _as_features(pool['flat'][straight], pool['descriptor'][straight], right),
            _as_features(places, right.descriptors, right),
            fundamental=stereo.fundamental,
            distance=STEREO_ERROR,
            min_cosine=self._min_cosine,
            ratio=STEREO_RATIO,
        )
        pairs[:, 0] = straight[pairs[:, 0]]
        ray, right_ray = _to_rays(pool['flat'][pairs[:, 0]], stereo.left), _to_rays(flat[pairs[:, 1]], stereo.right)
        one = np.ones((len(pairs), 1))
        # With p the ray turned into the right camera's frame, q the right ray and t the shift, q x (depth p + t) = 0.
        turned, seen = np.hstack([ray, one]) @ stereo.rotation.T, np.hstack([right_ray, one])
        parallax = np.cross(seen, turned)
        squared = (parallax**2).sum(axis=1)
        ahead = -(parallax * np.cross(seen, stereo.shift)).sum(axis=1)  # depth times the square
        # Beyond infinity, where jitter puts half of the far points, there is no depth: VINS-Fusion would assume 5 m.
        good = (ahead > 0) & (ahead * turned[:, 2] + stereo.shift[2] * squared > 0)
        return pairs[good], right_ray[good]

    def _undistort(self, xy: np.ndarray) -> np.ndarray:
        return self._camera.undistort(xy) if self._camera is not None else np.asarray(xy, np.float64)


def _as_features(xy: np.ndarray, descriptors: np.ndarray, like: Features) -> Features:
    rows = np.ascontiguousarray(descriptors)
    return Features(xy, np.zeros(len(xy)), rows, like.image_size, like.model, like.digest)


def _to_rays(flat: np.ndarray, camera: Camera) -> np.ndarray:
    """Return the rays (N, 2) of undistorted pixels (N, 2)."""
    return (flat - camera.matrix[:2, 2]) / camera.matrix.diagonal()[:2]


def _nearness(xy: np.ndarray, others: np.ndarray, scale: float) -> np.ndarray:
    """Return (N, M) weights that fall with the fourth power of the distance, from ``scale`` pixels on."""
    xy, others = np.float32(xy / scale), np.float32(others / scale)
    weights = xy @ (-2 * others.T)
    weights += (xy**2).sum(axis=1)[:, None] + 1
    weights += (others**2).sum(axis=1)
    np.square(weights, out=weights)  # in place: allocating memory for each step would cost more than the step
    return np.reciprocal(weights, out=weights)


def _find_fundamental(first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """Return the fundamental matrix with the most inliers among the points (N, 2); None if there is none.

    RANSAC, then the eight-point algorithm on its inliers: as good here as USAC_MAGSAC, in a fifth of the time.
    """
    if len(first) < MIN_FIT:
        return None
    fundamental, agree = cv2.findFundamentalMat(first, second, cv2.FM_RANSAC, FIT_ERROR, 0.99, 500)
    if agree is not None and np.count_nonzero(agree) >= MIN_FIT:
        good = agree.ravel() > 0
        fundamental, _ = cv2.findFundamentalMat(first[good], second[good], cv2.FM_8POINT)
    return fundamental if fundamental is not None and fundamental.shape == (3, 3) else None


def _new_pool(count: int, size: int) -> np.ndarray:
    """Return a pool of tracks (count,) with descriptors of ``size`` numbers, all zeros.

    It holds the tracks being followed: those visible in the last image first, the oldest of them first. It is one array
    because its rows are often reordered.
    """
    pair = np.float64, 2
    return np.zeros(
        count,
        [
            ('id', np.uint64),
            ('age', np.int64),  # images that showed it
            ('lost', np.int64),  # images since then
            ('xy', *pair),  # pixels in the last image, seen or predicted
            ('motion', *pair),  # pixels per second
            ('flat', *pair),  # where it was last seen, undistorted pixels
            ('velocity', *pair),  # of the same per second
            ('right', *pair),  # its ray in the right camera then; NaN if not seen there
            ('stamp', np.float64),  # when
            ('descriptor', np.float32, size),  # running mean of its keypoints' descriptors, of unit length
        ],
    )
