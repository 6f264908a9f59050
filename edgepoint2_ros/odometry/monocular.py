"""The visual odometry of one camera: a map of points, and each image placed in it.

Source of the parts: Hartley and Zisserman, "Multiple View Geometry".
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import check_comparable, match, match_guided
from edgepoint2_ros.odometry.bundle import adjust, make_pose, transform
from edgepoint2_ros.odometry.camera import Camera

ERROR = 2.0  # pixels that a point may miss its keypoint by
MIN_COSINE = 0.7  # of matches between descriptors
MIN_TRACKED = 20  # points that place an image
MIN_START = 80  # points that start a map
MIN_PARALLAX = np.radians(1.0)  # between the rays to a new point
START_PARALLAX = np.radians(1.5)  # median of the first points
KEYFRAME_SHARE = 0.7  # a keyframe is due when fewer points are tracked than this share of the last keyframe's
KEYFRAME_EVERY = 15  # images after which one is due anyway
WINDOW = 6  # keyframes whose points are tracked and adjusted
SEARCH_RADIUS = 15.0  # pixels around where a point is expected
MAX_LOST = 15  # images in a row after which the map starts anew


@dataclass
class _Frame:
    """An image that was placed: world-to-camera pose (4, 4), features without distortion, and their points' numbers."""

    pose: np.ndarray
    features: Features
    points: np.ndarray  # (N,) int: number of the keypoint's point in the map, -1 for none


class VisualOdometry:
    """Follows one camera.

    Attributes:
        state: ``starting``, ``tracking`` or ``lost``.
        starts: how often a map was started; more than 1 after being lost.
        tracked: points that placed the last image.
    """

    def __init__(self, camera: Camera, start_depth: float = 1.0, min_cosine: float = MIN_COSINE, ratio: float = 1.0):
        """Prepare to track.

        Args:
            camera: the camera.
            start_depth: median distance of the scene from the camera at the start; gives the trajectory its unit.
            min_cosine, ratio: of matches, as for matching.match.

        Raises:
            EdgePoint2Error: start_depth is not positive.
        """
        if not start_depth > 0:
            raise EdgePoint2Error(f'start_depth: expected a positive distance, got {start_depth}')
        self.camera = camera
        self.state = 'starting'
        self.starts = 0
        self.tracked = 0
        self._start_depth = start_depth
        self._min_cosine, self._ratio = min_cosine, ratio
        self._origin = np.eye(4)  # world-to-camera pose of the image that the map starts at
        self._reference: Features | None = None
        self._points = np.zeros((0, 3))
        self._rows = np.zeros((0, 0), np.float32)  # descriptor of each point, from its latest keyframe
        self._keyframes: list[_Frame] = []
        self._since_keyframe = 0
        self._lost = 0
        self._last = np.eye(4)
        self._motion = np.eye(4)  # from the image before the last to the last, as the next is expected to go on

    @property
    def points(self) -> np.ndarray:
        """The map around the camera: (M, 3) points in the frame of the first image."""
        return self._points

    def track(self, features: Features) -> np.ndarray | None:
        """Return where the camera was for one image: (4, 4), maps points of its optical frame to the first one's.

        None while the map is starting (the camera has to move sideways first), and where the camera is lost.

        Raises:
            EdgePoint2Error: the features come from other weights than the ones before.
        """
        known = self._keyframes[-1].features if self._keyframes else self._reference
        if known is not None:
            check_comparable(known, features)
        features = replace(features, xy=self.camera.undistort(features.xy))
        pose = self._start(features) if self.state == 'starting' else self._place(features)
        return None if pose is None else np.linalg.inv(pose)

    def _start(self, features: Features) -> np.ndarray | None:
        if self._reference is None or len(self._reference) < MIN_START:
            self._reference = features
            return None
        pairs = match(self._reference, features, self._min_cosine, self._ratio)
        if len(pairs) < MIN_START:
            self._reference = features
            return None
        first, second = self._reference.xy[pairs[:, 0]], features.xy[pairs[:, 1]]
        try:
            method = cv2.USAC_MAGSAC
            essential, agree = cv2.findEssentialMat(first, second, self.camera.matrix, method, 0.999, ERROR / 2)
        except cv2.error:  # OpenCV's USAC fails on some matches of a camera that hardly moves
            return None
        if essential is None or essential.shape != (3, 3):
            return None
        _, rotation, translation, agree = cv2.recoverPose(
            essential, first, second, self.camera.matrix, mask=agree.copy()
        )
        relative = make_pose(rotation, translation)
        agree = agree.ravel().astype(bool)
        points, good, parallax = self._triangulate(np.eye(4), relative, first, second)
        good &= agree
        if np.count_nonzero(good) < MIN_START or np.median(parallax[agree]) < START_PARALLAX:
            return None
        scale = self._start_depth / np.median(points[good, 2])
        relative[:3, 3] *= scale
        self._points, self._rows = np.zeros((0, 3)), np.zeros((0, features.descriptors.shape[1]), np.float32)
        first = _Frame(self._origin, self._reference, np.full(len(self._reference), -1))
        second = _Frame(relative @ self._origin, features, np.full(len(features), -1))
        self._keyframes = [first, second]
        in_world = transform(np.linalg.inv(self._origin), points[good] * scale)
        self._add_points(in_world, first, second, pairs[good])
        self._adjust()
        self._reference = None
        self.state, self.tracked = 'tracking', len(in_world)
        self.starts += 1
        self._since_keyframe = self._lost = 0
        self._last, self._motion = self._keyframes[-1].pose, np.eye(4)
        return self._last

    def _place(self, features: Features) -> np.ndarray | None:
        """Place an image by the points of the latest keyframes."""
        local = np.unique(np.concatenate([frame.points for frame in self._keyframes]))
        local = local[local >= 0]
        known = replace(features, xy=self._points[local], scores=np.zeros(len(local)), descriptors=self._rows[local])
        pose, pairs = None, np.zeros((0, 2), int)
        if self.state == 'tracking':
            expected = self._motion @ self._last
            pairs = self._match_near(expected, known, features, 4 * SEARCH_RADIUS)
            pose, pairs = self._solve(known.xy, features.xy, pairs)
        if pose is None:  # it moved unexpectedly, or was lost: look everywhere
            pairs = match(known, features, self._min_cosine, self._ratio)
            pose, pairs = self._solve(known.xy, features.xy, pairs)
        if pose is not None:
            pairs = self._match_near(pose, known, features, SEARCH_RADIUS)
            pose, pairs = self._solve(known.xy, features.xy, pairs)
        if pose is None:
            self._give_up(features)
            return None
        self._motion = pose @ np.linalg.inv(self._last) if self.state == 'tracking' else np.eye(4)
        self.state, self._lost, self._last, self.tracked = 'tracking', 0, pose, len(pairs)
        self._since_keyframe += 1
        frame = _Frame(pose, features, np.full(len(features), -1))
        frame.points[pairs[:, 1]] = local[pairs[:, 0]]
        last = np.count_nonzero(self._keyframes[-1].points >= 0)
        if self._since_keyframe >= KEYFRAME_EVERY or len(pairs) < KEYFRAME_SHARE * last:
            self._add_keyframe(frame)
        return self._last

    def _give_up(self, features: Features) -> None:
        self.state, self.tracked = 'lost', 0
        self._lost += 1
        if self._lost >= MAX_LOST:  # a new map goes on where the camera was last seen
            self.state = 'starting'
            self._origin, self._reference, self._lost = self._last, features, 0

    def _match_near(self, pose: np.ndarray, known: Features, features: Features, radius: float) -> np.ndarray:
        """Match known points with the keypoints at most ``radius`` pixels from where they should be seen: (P, 2)."""
        seen = transform(pose, known.xy)
        places = np.where(seen[:, 2:] > 1e-6, self._project(seen), np.nan)
        return match_guided(known, features, places, radius, min_cosine=self._min_cosine)

    def _solve(self, points: np.ndarray, xy: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Return the pose that shows points at their keypoints, and the pairs that agree; None if too few do."""
        if len(pairs) < MIN_TRACKED:
            return None, pairs[:0]
        points, xy = points[pairs[:, 0]], xy[pairs[:, 1]]
        cv2.setRNGSeed(0)  # the same images give the same trajectory
        found, rotation, translation, agree = cv2.solvePnPRansac(
            points, xy, self.camera.matrix, None, iterationsCount=200, reprojectionError=ERROR, confidence=0.999,
            flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
        if not found or agree is None or len(agree) < MIN_TRACKED:
            return None, pairs[:0]
        agree = agree.ravel()
        rotation, translation = cv2.solvePnPRefineLM(
            points[agree], xy[agree], self.camera.matrix, None, rotation, translation
        )
        pose = make_pose(cv2.Rodrigues(rotation)[0], translation)
        seen = transform(pose, points)
        error = np.linalg.norm(self._project(seen) - xy, axis=1)
        agree = (error < ERROR) & (seen[:, 2] > 0)
        return (pose, pairs[agree]) if np.count_nonzero(agree) >= MIN_TRACKED else (None, pairs[:0])

    def _add_keyframe(self, frame: _Frame) -> None:
        """Take a placed image into the map: new points with the keyframes before it, then adjust the latest ones."""
        known = frame.points >= 0
        self._rows[frame.points[known]] = frame.features.descriptors[known]
        for earlier in self._keyframes[-3:][::-1]:
            pairs = match(earlier.features, frame.features, self._min_cosine, self._ratio)
            free = (earlier.points[pairs[:, 0]] < 0) & (frame.points[pairs[:, 1]] < 0)
            pairs = pairs[free]
            points, good, _ = self._triangulate(
                earlier.pose, frame.pose, earlier.features.xy[pairs[:, 0]], frame.features.xy[pairs[:, 1]]
            )
            self._add_points(points[good], earlier, frame, pairs[good])
        self._keyframes.append(frame)
        self._since_keyframe = 0
        self._adjust()
        self._forget()
        self._last = frame.pose

    def _forget(self) -> None:
        """Drop keyframes behind the window and the points that only they saw, so that a long way takes no memory."""
        self._keyframes = self._keyframes[-WINDOW:]
        seen = np.concatenate([frame.points for frame in self._keyframes])
        kept = np.unique(seen[seen >= 0])
        self._points, self._rows = self._points[kept], self._rows[kept]
        for frame in self._keyframes:
            known = frame.points >= 0
            frame.points[known] = np.searchsorted(kept, frame.points[known])

    def _add_points(self, points: np.ndarray, first: _Frame, second: _Frame, pairs: np.ndarray) -> None:
        numbers = len(self._points) + np.arange(len(points))
        self._points = np.concatenate([self._points, points])
        self._rows = np.concatenate([self._rows, second.features.descriptors[pairs[:, 1]]])
        first.points[pairs[:, 0]] = second.points[pairs[:, 1]] = numbers

    def _triangulate(
        self, first: np.ndarray, second: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return points (P, 3) in the world, which of them are good (P,), and the angle between their rays (P,)."""
        if len(first_xy) == 0:
            return np.zeros((0, 3)), np.zeros(0, bool), np.zeros(0)
        projection, other = (self.camera.matrix @ pose[:3] for pose in (first, second))
        homogeneous = cv2.triangulatePoints(projection, other, first_xy.T, second_xy.T).T
        with np.errstate(divide='ignore', invalid='ignore'):
            points = homogeneous[:, :3] / homogeneous[:, 3:]
        points[~np.isfinite(points).all(axis=1)] = 0
        good, rays = np.ones(len(points), bool), []
        for pose, xy in ((first, first_xy), (second, second_xy)):
            seen = transform(pose, points)
            good &= (seen[:, 2] > 0) & (np.linalg.norm(self._project(seen) - xy, axis=1) < ERROR)
            ray = points + pose[:3, :3].T @ pose[:3, 3]  # from the camera, which stands at -R^T t
            rays.append(ray / np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12))
        parallax = np.arccos(np.clip((rays[0] * rays[1]).sum(axis=1), -1, 1))
        return points, good & (parallax > MIN_PARALLAX), parallax

    def _project(self, seen: np.ndarray) -> np.ndarray:
        """Return the pixels (N, 2) of points (N, 3) in the camera's frame."""
        homogeneous = seen @ self.camera.matrix.T
        with np.errstate(divide='ignore', invalid='ignore'):
            return homogeneous[:, :2] / homogeneous[:, 2:]

    def _adjust(self) -> None:
        """Adjust the latest keyframes and their points together; then part keypoints from points they miss."""
        frames = self._keyframes[-WINDOW:]
        fixed = min(2, len(frames) - 1)  # two poses hold position and scale; a young map has only its first
        numbers = np.unique(np.concatenate([frame.points[frame.points >= 0] for frame in frames]))
        camera = np.concatenate([np.full(np.count_nonzero(f.points >= 0), i) for i, f in enumerate(frames)])
        point = np.searchsorted(numbers, np.concatenate([f.points[f.points >= 0] for f in frames]))
        xy = np.concatenate([f.features.xy[f.points >= 0] for f in frames])
        poses = np.stack([frame.pose for frame in frames])
        poses, points = adjust(poses, self._points[numbers], camera, point, xy, self.camera.matrix, fixed)
        self._points[numbers] = points
        for frame, pose in zip(frames, poses):
            frame.pose = pose
            known = np.flatnonzero(frame.points >= 0)
            seen = transform(pose, self._points[frame.points[known]])
            error = np.linalg.norm(self._project(seen) - frame.features.xy[known], axis=1)
            frame.points[known[(error > ERROR) | (seen[:, 2] <= 0)]] = -1
