"""Visual odometry: where one camera is, from the features of its images alone. Plain numpy and OpenCV, no ROS.

An example of a consumer of keypoints rather than a SLAM: two images start a map of points in space, each further image
is placed by the points it sees (PnP), and keyframes add points and adjust the latest ones together. There is no loop
closure. One camera cannot know the scale: the caller says how far away the scene is at the start.

Source of the parts: Hartley and Zisserman, "Multiple View Geometry"; for the adjustment Triggs et al., "Bundle
Adjustment - A Modern Synthesis" (Schur complement, Huber weights, Levenberg-Marquardt).
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import check_comparable, match, match_guided

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


@dataclass(frozen=True)
class Camera:
    """A calibrated camera, with the fields k, d and distortion_model of a CameraInfo message.

    Attributes:
        matrix: (3, 3) camera matrix, pixels.
        distortion: (n,) coefficients, n = 4, 5, 8, 12 or 14, for equidistant 4; none or zeros for rectified images.
        model: ``plumb_bob``, ``rational_polynomial``, or ``equidistant`` for fisheye lenses.
    """

    matrix: np.ndarray
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(0))
    model: str = 'plumb_bob'

    def __post_init__(self) -> None:
        # USAC of OpenCV reads a matrix as if its rows followed each other, which those of a part of P do not.
        matrix = np.ascontiguousarray(self.matrix, float)
        object.__setattr__(self, 'matrix', matrix)
        if (
            matrix.shape != (3, 3)
            or not np.isfinite(matrix).all()
            or not (matrix.diagonal() > 0).all()
            or np.tril(matrix, -1).any()
            or matrix[2, 2] != 1
        ):
            raise EdgePoint2Error(
                'camera matrix: expected (3, 3) with positive focal lengths and finite numbers, as '
                f'[fx, 0, cx], [0, fy, cy], [0, 0, 1], got {matrix.tolist()}'
            )
        if self.model not in ('', 'plumb_bob', 'rational_polynomial', 'equidistant'):
            raise EdgePoint2Error(
                f'distortion model {self.model!r} is unknown: expected plumb_bob, rational_polynomial or equidistant'
            )
        count = len(self.distortion)
        if self.model == 'equidistant':  # RealSense cameras send a fifth coefficient, which is 0
            expected = '4 (equidistant; a fifth may be 0)'
            fits = count in (0, 4) or (count == 5 and self.distortion[4] == 0)
        else:
            expected = '0, 4, 5, 8, 12 or 14'
            fits = count in (0, 4, 5, 8, 12, 14)
        if not fits:
            raise EdgePoint2Error(f'distortion: expected {expected} coefficients, got {count}')
        if not np.isfinite(self.distortion).all():
            raise EdgePoint2Error(f'distortion: expected finite coefficients, got {list(self.distortion)}')

    def undistort(self, xy: np.ndarray) -> np.ndarray:
        """Return where pixels (N, 2) would be without distortion: (N, 2) float64."""
        xy = np.asarray(xy, np.float64).reshape(-1, 1, 2)
        if len(xy) == 0 or not np.any(self.distortion):
            return xy[:, 0]
        distortion = np.asarray(self.distortion, np.float64)
        if self.model == 'equidistant':
            return cv2.fisheye.undistortPoints(xy, self.matrix, distortion[:4], P=self.matrix)[:, 0]
        return cv2.undistortPoints(xy, self.matrix, distortion, P=self.matrix)[:, 0]


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
        relative = _pose(rotation, translation)
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
        in_world = _transform(np.linalg.inv(self._origin), points[good] * scale)
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
        seen = _transform(pose, known.xy)
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
        pose = _pose(cv2.Rodrigues(rotation)[0], translation)
        seen = _transform(pose, points)
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
            seen = _transform(pose, points)
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
            seen = _transform(pose, self._points[frame.points[known]])
            error = np.linalg.norm(self._project(seen) - frame.features.xy[known], axis=1)
            frame.points[known[(error > ERROR) | (seen[:, 2] <= 0)]] = -1


def adjust(
    poses: np.ndarray,
    points: np.ndarray,
    camera: np.ndarray,
    point: np.ndarray,
    xy: np.ndarray,
    matrix: np.ndarray,
    fixed: int,
    steps: int = 6,
) -> tuple[np.ndarray, np.ndarray]:
    """Return poses and points that fit what was seen better: bundle adjustment with Huber weights.

    Args:
        poses: (C, 4, 4) world to camera.
        points: (M, 3) in the world.
        camera, point: (N,) int, which camera saw which point,
        xy: (N, 2) and at which pixel.
        matrix: (3, 3) camera matrix.
        fixed: the first poses, so many, stay as they are.
        steps: most steps of Levenberg and Marquardt.
    """
    focal, free = matrix.diagonal()[:2], len(poses) - fixed
    damping, error = 1e-3, np.inf
    terms: _Equations | None = None
    new_poses, new_points = poses, points
    for _ in range(steps + 1):
        rotation = new_poses[camera, :3, :3]
        seen = np.einsum('nij,nj->ni', rotation, new_points[point]) + new_poses[camera, :3, 3]
        x, y, z = seen.T
        with np.errstate(divide='ignore', invalid='ignore'):
            residual = xy - (seen[:, :2] / z[:, None] * focal + matrix[:2, 2])
        length = np.linalg.norm(residual, axis=1)
        length[(z <= 1e-9) | ~np.isfinite(length)] = 1e6
        new_error = np.where(length < 1, length**2, 2 * length - 1).sum()
        if new_error < error:
            if error - new_error < 1e-4 * error:
                return new_poses, new_points
            poses, points, error, damping = new_poses, new_points, new_error, damping / 3
            weight = np.where(length < 1, 1, 1 / np.maximum(length, 1e-9))
            weight[length >= 1e6] = 0
            residual[length >= 1e6], z = 0, np.where(length >= 1e6, 1, z)
            # Derivative of the pixel by the point before the camera, of that by a turn and shift of the camera and by
            # the point in the world.
            by_seen = np.zeros((len(xy), 2, 3))
            by_seen[:, 0, 0], by_seen[:, 1, 1] = focal[0] / z, focal[1] / z
            by_seen[:, 0, 2], by_seen[:, 1, 2] = -focal[0] * x / z**2, -focal[1] * y / z**2
            zero = np.zeros_like(x)
            turn = np.stack([zero, z, -y, -z, zero, x, y, -x, zero], axis=1).reshape(-1, 3, 3)
            by_pose = np.concatenate([by_seen @ turn, by_seen], axis=2)
            by_point = by_seen @ rotation
            terms = _normal_equations(by_pose, by_point, residual, weight, camera - fixed, point, free, len(points))
        else:
            damping *= 10
        assert terms is not None  # the first error is finite
        pose_step, point_step = _solve_step(terms, damping)
        new_points = points + point_step
        new_poses = poses.copy()
        for i in range(free):
            new_poses[fixed + i] = _pose(cv2.Rodrigues(pose_step[i, :3])[0], pose_step[i, 3:]) @ poses[fixed + i]
    return poses, points


class _Equations(NamedTuple):
    """Blocks of the normal equations of C poses and M points, and the right-hand sides."""

    pose_pose: np.ndarray  # (C, 6, 6)
    point_point: np.ndarray  # (M, 3, 3)
    pose_point: np.ndarray  # (C, M, 6, 3)
    pose_side: np.ndarray  # (C, 6)
    point_side: np.ndarray  # (M, 3)


def _normal_equations(
    by_pose: np.ndarray,
    by_point: np.ndarray,
    residual: np.ndarray,
    weight: np.ndarray,
    camera: np.ndarray,
    point: np.ndarray,
    cameras: int,
    points: int,
) -> _Equations:
    weighted_pose, weighted_point = by_pose * weight[:, None, None], by_point * weight[:, None, None]
    free = camera >= 0
    pose_pose = _sum_by(camera[free], weighted_pose[free].transpose(0, 2, 1) @ by_pose[free], cameras)
    point_point = _sum_by(point, weighted_point.transpose(0, 2, 1) @ by_point, points)
    both = weighted_pose[free].transpose(0, 2, 1) @ by_point[free]
    pose_point = _sum_by(camera[free] * points + point[free], both, cameras * points).reshape(cameras, points, 6, 3)
    pose_side = _sum_by(camera[free], np.einsum('nij,ni->nj', weighted_pose[free], residual[free]), cameras)
    point_side = _sum_by(point, np.einsum('nij,ni->nj', weighted_point, residual), points)
    return _Equations(pose_pose, point_point, pose_point, pose_side, point_side)


def _solve_step(equations: _Equations, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve the normal equations for a step of the poses (C, 6) and of the points (M, 3), by the Schur complement."""
    pose_pose, point_point, pose_point, pose_side, point_side = equations
    cameras, points = len(pose_pose), len(point_point)
    diagonal = np.arange(3)
    damped = point_point.copy()
    damped[:, diagonal, diagonal] = damped[:, diagonal, diagonal] * (1 + damping) + 1e-9
    inverse = np.linalg.inv(damped)
    if cameras == 0:
        return np.zeros((0, 6)), np.einsum('mij,mj->mi', inverse, point_side)
    eliminated = (pose_point @ inverse[None]).transpose(0, 2, 1, 3).reshape(6 * cameras, 3 * points)
    coupling = pose_point.transpose(0, 2, 1, 3).reshape(6 * cameras, 3 * points)
    system = -eliminated @ coupling.T
    for i in range(cameras):
        block = pose_pose[i] + np.diag(pose_pose[i].diagonal() * damping + 1e-9)
        system[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] += block
    pose_step = np.linalg.solve(system, pose_side.ravel() - eliminated @ point_side.ravel())
    point_step = np.einsum('mij,mj->mi', inverse, point_side - (coupling.T @ pose_step).reshape(points, 3))
    return pose_step.reshape(cameras, 6), point_step


def _sum_by(index: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Return the sums (count, ...) of the values (N, ...) with the same index (N,)."""
    flat = values.reshape(len(values), -1)
    sums = [np.bincount(index, column, count) for column in flat.T]
    return np.stack(sums, axis=1).reshape(count, *values.shape[1:])


def _pose(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, np.ravel(translation)
    return pose


def _transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ pose[:3, :3].T + pose[:3, 3]
