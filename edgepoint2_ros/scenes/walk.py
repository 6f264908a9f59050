"""A walk through a rendered hall hung with photographs, with a hand-held camera whose path is known exactly."""

from collections.abc import Sequence

import cv2
import numpy as np

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
MATRIX = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
FRAME_RATE = 30
Triple = tuple[float, float, float]
Plane = tuple[np.ndarray, tuple[float, float], list[np.ndarray]]

HALL = (8.0, 3.5, 14.0)  # metres: width, height, length
BOARDS = 14  # that stand in the hall


class Walk:
    """A hall and a path through it; x to the right, y downwards, z along the hall, metres.

    Args:
        photographs: uint8 (H, W) or (H, W, 3), to hang on walls and boards.
        seed: of the arrangement and of the camera's noise.
    """

    def __init__(self, photographs: Sequence[np.ndarray], seed: int = 0):
        self._seed = seed
        self._planes = _furnish(photographs, np.random.default_rng(seed))

    def pose(self, k: int) -> np.ndarray:
        """Return the camera pose in frame k: (4, 4), maps points from its optical frame to the hall."""
        t = k / FRAME_RATE
        step = 2 * np.pi * 1.8 * t  # 1.8 steps a second
        position = np.array([1.2 * np.sin(0.5 * t), -0.1 + 0.02 * np.sin(step), -5.5 + 0.9 * t])
        position += 0.015 * np.array([np.sin(step / 2), 0, np.cos(step)])
        yaw = 0.35 * np.sin(0.6 * t) + 0.015 * np.sin(step / 2 + 1)
        pitch, roll = 0.05 * np.sin(0.9 * t) + 0.01 * np.sin(step), 0.04 * np.sin(0.7 * t + 1)
        turn = cv2.Rodrigues(np.array([0, yaw, 0.0]))[0] @ cv2.Rodrigues(np.array([pitch, 0, roll]))[0]
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, position
        return pose

    def image(self, k: int) -> np.ndarray:
        """Return frame k, uint8 (HEIGHT, WIDTH), with camera noise and exposure drift."""
        to_camera = np.linalg.inv(self.pose(k))
        x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        rays = np.stack([(x - MATRIX[0, 2]) / FOCAL, (y - MATRIX[1, 2]) / FOCAL, np.ones(x.shape)], axis=-1)
        image, nearness = np.zeros((HEIGHT, WIDTH), np.float32), np.zeros((HEIGHT, WIDTH))
        for plane, size, pyramid in self._planes:
            at_camera = to_camera @ plane
            normal, middle = at_camera[:3, 2], at_camera[:3, 3]
            offset = normal @ middle
            if abs(offset) < 1e-6:
                continue
            inverse_depth = rays @ (normal / offset)  # of a plane this is linear in the pixel
            corners = at_camera[:3, :2] @ (np.array([[-1, 1, 1, -1], [-1, -1, 1, 1]]) * np.array(size)[:, None] / 2)
            if (corners[2] + middle[2] < 0.05).all() or (inverse_depth < nearness).all():
                continue
            level = _level(pyramid, size, max(0.5, np.linalg.norm(middle) - max(size) / 3))
            # Pixels of the photograph to metres on the plane to pixels of the camera.
            scale = np.array(size) / level.shape[1::-1]
            to_metres = np.array(
                [[scale[0], 0, (scale[0] - size[0]) / 2], [0, scale[1], (scale[1] - size[1]) / 2], [0, 0, 1]]
            )
            homography = MATRIX @ np.column_stack([at_camera[:3, :2], middle]) @ to_metres
            seen = cv2.warpPerspective(level, homography, (WIDTH, HEIGHT), borderValue=-1)
            visible = (seen >= 0) & (inverse_depth > nearness) & (inverse_depth < 10)
            image[visible], nearness[visible] = seen[visible], inverse_depth[visible]
        rng = np.random.default_rng([self._seed, k])
        image = image * (1 + 0.15 * np.sin(0.05 * k)) + rng.normal(0, 2, image.shape)
        return np.clip(image, 0, 255).astype(np.uint8)


def _furnish(photographs: Sequence[np.ndarray], rng: np.random.Generator) -> list[Plane]:
    """Return planes: (4, 4) from plane to hall, (width, height) in metres, pyramid of the photograph."""
    pyramids = [_pyramid(photograph) for photograph in photographs]
    width, height, length = HALL
    # Each wall is tiled, so that a photograph covers only some metres: middle, outward turn, size, number of tiles.
    walls: list[tuple[Triple, Triple, tuple[float, float], int]] = [
        ((0, 0, length / 2), (0, 0, 0), (width, height), 3),
        ((-width / 2, 0, 0), (0, -np.pi / 2, 0), (length, height), 5),
        ((width / 2, 0, 0), (0, np.pi / 2, 0), (length, height), 5),
        ((0, height / 2, 0), (np.pi / 2, 0, 0), (width, length), 3),
        ((0, -height / 2, 0), (-np.pi / 2, 0, 0), (width, length), 3),
    ]
    planes = []
    for middle, turn, size, tiles in walls:
        wall = _place(middle, turn)
        for i in range(tiles):
            tile = np.eye(4)
            tile[0, 3] = size[0] * ((i + 0.5) / tiles - 0.5)
            planes.append((wall @ tile, (size[0] / tiles, size[1]), pyramids[rng.integers(len(pyramids))]))
    for i in range(BOARDS):
        side = 1 if i % 2 else -1
        middle = (side * rng.uniform(1.9, 3.4), rng.uniform(-0.6, 0.8), -4 + 10.5 * i / BOARDS)
        board = rng.uniform(0.7, 1.4)
        turn = (rng.normal(0, 0.15), side * rng.uniform(0.1, 0.9), rng.normal(0, 0.1))
        planes.append((_place(middle, turn), (board, board), pyramids[rng.integers(len(pyramids))]))
    return planes


def _place(middle: Sequence[float], turn: Sequence[float]) -> np.ndarray:
    plane = np.eye(4)
    plane[:3, :3], plane[:3, 3] = cv2.Rodrigues(np.array(turn, float))[0], middle
    return plane


def _pyramid(photograph: np.ndarray) -> list[np.ndarray]:
    gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY) if photograph.ndim == 3 else photograph
    levels: list[np.ndarray] = [gray.astype(np.float32)]
    while min(levels[-1].shape) > 64:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return levels


def _level(pyramid: list[np.ndarray], size: tuple[float, float], distance: float) -> np.ndarray:
    """Return the level with about as many pixels as the camera has for a photograph at this distance."""
    wanted = FOCAL * size[0] / distance
    return min(pyramid, key=lambda level: abs(np.log(level.shape[1] / wanted)))
