"""The local map: keyframes, and the points that they see.

Source of the triangulation: Hartley and Zisserman, "Multiple View Geometry".
"""

from dataclasses import dataclass

import cv2
import numpy as np

from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match
from edgepoint2_ros.odometry.bundle import adjust, transform
from edgepoint2_ros.odometry.camera import Camera

ERROR = 2.0  # maximum reprojection error, pixels
MIN_PARALLAX = np.radians(1.0)  # between the rays to a new point
WINDOW = 6  # keyframes in the local bundle adjustment; older ones are dropped


@dataclass
class Frame:
    """An image with a pose.

    Attributes:
        pose: (4, 4), world to camera.
        features: undistorted.
        points: (N,) int, index of each keypoint's point in the map, -1 for none.
    """

    pose: np.ndarray
    features: Features
    points: np.ndarray

    @classmethod
    def at(cls, pose: np.ndarray, features: Features) -> 'Frame':
        """Return a frame that sees no point yet."""
        return cls(pose, features, np.full(len(features), -1))


class LocalMap:
    """The latest keyframes and their points.

    Attributes:
        points: (M, 3) in the world.
        descriptors: (M, D) of each point, from its latest keyframe.
        keyframes: at most `WINDOW`, the latest last.

    Args:
        camera: the camera.
        min_cosine, ratio: of matches between keyframes, as for matching.match.
    """

    def __init__(self, camera: Camera, min_cosine: float, ratio: float):
        self.points = np.zeros((0, 3))
        self.descriptors = np.zeros((0, 0), np.float32)
        self.keyframes: list[Frame] = []
        self._camera, self._min_cosine, self._ratio = camera, min_cosine, ratio

    def start(self, first: Frame, second: Frame, points: np.ndarray, pairs: np.ndarray) -> None:
        """Restart from two frames and the points (P, 3) triangulated from their matches (P, 2)."""
        self.points, self.descriptors = points[:0], second.features.descriptors[:0]
        self.keyframes = [first, second]
        self._add_points(points, first, second, pairs)
        self._adjust()

    def add_keyframe(self, frame: Frame) -> None:
        """Add a keyframe: triangulate new points with the keyframes before it, then adjust everything."""
        known = frame.points >= 0
        self.descriptors[frame.points[known]] = frame.features.descriptors[known]
        for earlier in self.keyframes[-3:][::-1]:
            pairs = match(earlier.features, frame.features, self._min_cosine, self._ratio)
            free = (earlier.points[pairs[:, 0]] < 0) & (frame.points[pairs[:, 1]] < 0)
            pairs = pairs[free]
            points, good, _ = triangulate(
                self._camera, earlier.pose, frame.pose, earlier.features.xy[pairs[:, 0]], frame.features.xy[pairs[:, 1]]
            )
            self._add_points(points[good], earlier, frame, pairs[good])
        self.keyframes.append(frame)
        self._adjust()
        self._forget()

    def _add_points(self, points: np.ndarray, first: Frame, second: Frame, pairs: np.ndarray) -> None:
        numbers = len(self.points) + np.arange(len(points))
        self.points = np.concatenate([self.points, points])
        self.descriptors = np.concatenate([self.descriptors, second.features.descriptors[pairs[:, 1]]])
        first.points[pairs[:, 0]] = second.points[pairs[:, 1]] = numbers

    def _adjust(self) -> None:
        """Run local bundle adjustment on the latest keyframes; then drop outlier observations."""
        frames = self.keyframes[-WINDOW:]
        fixed = min(2, len(frames) - 1)  # two poses fix position and scale; a new map has only its first
        numbers = np.unique(np.concatenate([frame.points[frame.points >= 0] for frame in frames]))
        camera = np.concatenate([np.full(np.count_nonzero(f.points >= 0), i) for i, f in enumerate(frames)])
        point = np.searchsorted(numbers, np.concatenate([f.points[f.points >= 0] for f in frames]))
        xy = np.concatenate([f.features.xy[f.points >= 0] for f in frames])
        poses = np.stack([frame.pose for frame in frames])
        poses, points = adjust(poses, self.points[numbers], camera, point, xy, self._camera.matrix, fixed)
        self.points[numbers] = points
        for frame, pose in zip(frames, poses):
            frame.pose = pose
            known = np.flatnonzero(frame.points >= 0)
            good = fits(self._camera, pose, self.points[frame.points[known]], frame.features.xy[known])
            frame.points[known[~good]] = -1

    def _forget(self) -> None:
        """Drop keyframes behind the window and the points that only they saw, so that memory stays bounded."""
        self.keyframes = self.keyframes[-WINDOW:]
        seen = np.concatenate([frame.points for frame in self.keyframes])
        kept = np.unique(seen[seen >= 0])
        self.points, self.descriptors = self.points[kept], self.descriptors[kept]
        for frame in self.keyframes:
            known = frame.points >= 0
            frame.points[known] = np.searchsorted(kept, frame.points[known])


def triangulate(
    camera: Camera, first: np.ndarray, second: np.ndarray, first_xy: np.ndarray, second_xy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points (P, 3) in the world, which of them are inliers (P,), and the angle between their rays (P,).

    Args:
        camera: of both images.
        first, second: (4, 4), their poses, world to camera.
        first_xy, second_xy: (P, 2), undistorted pixels of the points.
    """
    if len(first_xy) == 0:
        return np.zeros((0, 3)), np.zeros(0, bool), np.zeros(0)
    projection, other = (camera.matrix @ pose[:3] for pose in (first, second))
    homogeneous = cv2.triangulatePoints(projection, other, first_xy.T, second_xy.T).T
    with np.errstate(divide='ignore', invalid='ignore'):
        points = homogeneous[:, :3] / homogeneous[:, 3:]
    points[~np.isfinite(points).all(axis=1)] = 0
    good, rays = np.ones(len(points), bool), []
    for pose, xy in ((first, first_xy), (second, second_xy)):
        good &= fits(camera, pose, points, xy)
        ray = points + pose[:3, :3].T @ pose[:3, 3]  # from the camera centre, -R^T t
        rays.append(ray / np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-12))
    parallax = np.arccos(np.clip((rays[0] * rays[1]).sum(axis=1), -1, 1))
    return points, good & (parallax > MIN_PARALLAX), parallax


def fits(camera: Camera, pose: np.ndarray, points: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return which points (N, 3) lie in front of a camera and reproject within `ERROR` of xy (N, 2): (N,) bool."""
    seen = transform(pose, points)
    return (seen[:, 2] > 0) & (np.linalg.norm(camera.project(seen) - xy, axis=1) < ERROR)
