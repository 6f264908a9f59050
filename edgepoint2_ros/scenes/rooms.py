"""Rooms hung with photographs at different depths, rendered from two cameras: pairs with true parallax."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
INTRINSICS = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
PICTURES = 9  # before the back wall
BACK = 10.0  # metres to the back wall


def render_rooms(
    photographs: Sequence[np.ndarray], count: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield two views of each of ``count`` rooms: tilted pictures 3 to 8 m away in front of a wall with one more.

    The second camera is up to 1.5 m aside and also looks at the room's middle, a little off and rolled.

    Args:
        photographs: uint8 (H, W, 3) each, at least one.
        count: number of rooms.
        seed: of the arrangements, the cameras and their noise.

    Yields:
        Both images, uint8 (HEIGHT, WIDTH, 3), by cameras with INTRINSICS, and the pose (4, 4) that maps points from the
        first camera's frame to the second one's, in metres.
    """
    pyramids = [_pyramid(photograph) for photograph in photographs]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        planes = _hang_pictures(rng, len(pyramids))
        pose = _step_aside(rng)
        yield _render(planes, pyramids, np.eye(4), rng), _render(planes, pyramids, pose, rng), pose


def _hang_pictures(rng: np.random.Generator, photographs: int) -> list[tuple[np.ndarray, float, int]]:
    """Return planes: (4, 4) from picture to room (metres, origin in its middle), width in metres, photograph."""
    wall = np.eye(4)
    wall[2, 3] = BACK
    planes = [(wall, 3.0 * BACK, int(rng.integers(photographs)))]
    for _ in range(PICTURES):
        depth = rng.uniform(3, 8)
        turn, _ = cv2.Rodrigues(rng.normal(0, 0.35, 3) * [1, 1, 0.5])
        plane = np.eye(4)
        plane[:3, :3] = turn
        plane[:3, 3] = depth * np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.45, 0.45), 1])
        planes.append((plane, rng.uniform(0.25, 0.6) * depth, int(rng.integers(photographs))))
    return planes


def _step_aside(rng: np.random.Generator) -> np.ndarray:
    """Return the second camera's pose, which maps points from the first camera's frame to its own."""
    position = rng.uniform((-1.5, -0.6, -0.8), (1.5, 0.6, 0.8))
    aim = np.array([0, 0, 6]) + rng.normal(0, 0.4, 3)
    ahead = (aim - position) / np.linalg.norm(aim - position)
    roll = rng.normal(0, 0.15)
    right = np.cross([np.sin(roll), np.cos(roll), 0], ahead)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(ahead, right), ahead])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ position
    return pose


def _render(
    planes: Sequence[tuple[np.ndarray, float, int]],
    photographs: Sequence[list[np.ndarray]],
    pose: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return what a camera sees, uint8 (HEIGHT, WIDTH, 3): the nearest plane at every pixel, with four rays each."""
    x, y = np.meshgrid(np.arange(2 * WIDTH) / 2 - 0.25, np.arange(2 * HEIGHT) / 2 - 0.25)
    rays = np.stack([(x - INTRINSICS[0, 2]) / FOCAL, (y - INTRINSICS[1, 2]) / FOCAL, np.ones_like(x)], axis=-1)
    nearest = np.full(x.shape, np.inf)
    image = np.zeros((*x.shape, 3), np.uint8)
    for plane, width, index in planes:
        to_camera = pose @ plane
        normal, origin = to_camera[:3, 2], to_camera[:3, 3]
        slope = rays @ normal
        with np.errstate(divide='ignore', invalid='ignore'):
            depth = (origin @ normal) / slope
        local = (rays * depth[..., None] - origin) @ to_camera[:3, :2]  # metres right and down of its middle
        level = _level(photographs[index], width, float(np.linalg.norm(origin)))
        per_metre = level.shape[1] / width
        across = (local * per_metre + (np.array(level.shape[1::-1]) - 1) / 2).astype(np.float32)
        inside = ((across >= 0) & (across <= np.array(level.shape[1::-1]) - 1)).all(axis=-1)
        seen = inside & (depth > 0.1) & (depth < nearest)
        colours = cv2.remap(level, across[..., 0], across[..., 1], cv2.INTER_LINEAR)
        image[seen] = colours[seen]
        nearest[seen] = depth[seen]
    small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
    noisy = small * rng.uniform(0.8, 1.2) + rng.normal(0, 3, small.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _pyramid(photograph: np.ndarray) -> list[np.ndarray]:
    levels = [photograph]
    while max(levels[-1].shape) > 256:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return levels


def _level(pyramid: list[np.ndarray], width: float, distance: float) -> np.ndarray:
    """Return the level with about one pixel per ray, for a picture of ``width`` metres at ``distance`` metres."""
    rays_across = 2 * FOCAL * width / distance
    return min(pyramid, key=lambda level: abs(np.log(level.shape[1] / rays_across)))
