"""Bundle adjustment: poses and points that minimise the reprojection errors in several images.

Source: Triggs et al., "Bundle Adjustment - A Modern Synthesis" (Schur complement, Huber weights, Levenberg-Marquardt).
"""

from typing import NamedTuple

import cv2
import numpy as np


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
    """Return poses and points with smaller reprojection errors: bundle adjustment with Huber weights.

    Args:
        poses: (C, 4, 4) world to camera.
        points: (M, 3) in the world.
        camera, point: (N,) int, camera and point of each observation,
        xy: (N, 2) and its pixel.
        matrix: (3, 3) camera matrix.
        fixed: number of poses, from the first, that are held fixed.
        steps: maximum number of Levenberg-Marquardt steps.
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
            # Derivative of the pixel by the point in the camera's frame, of that by the camera's rotation and
            # translation and by the point in the world.
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
            new_poses[fixed + i] = make_pose(cv2.Rodrigues(pose_step[i, :3])[0], pose_step[i, 3:]) @ poses[fixed + i]
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


def make_pose(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the pose (4, 4) of a rotation matrix (3, 3) and a translation of three numbers."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, np.ravel(translation)
    return pose


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (N, 3) moved by a pose (4, 4)."""
    return points @ pose[:3, :3].T + pose[:3, 3]
