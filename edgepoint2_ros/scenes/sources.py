"""Where the demo's camera takes its frames from: a virtual flight over photographs, a folder of images or a video."""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.image_files import SUFFIXES
from edgepoint2_ros.images import read_image

FRAME_RATE = 30  # frames per second

# Photographs that the scikit-image package ships, in rows of the wall.
_WALL = (('motorcycle_left.png', 'coffee.png', 'rocket.jpg'), ('brick.png', 'astronaut.png', 'motorcycle_right.png'))
_TILE = (800, 600)  # width, height in pixels of the wall


class Source(Protocol):
    """An endless sequence of frames, by number."""

    def image(self, k: int, /) -> np.ndarray:
        """Return frame k, (H, W) uint8 gray or (H, W, 3) uint8 BGR."""
        ...

    def motion(self, k: int, l: int, /) -> np.ndarray | None:  # noqa: E741
        """Return the homography (3, 3) that maps pixels of frame k to pixels of frame l, or None if unknown."""
        ...


def open_source(path: str | None, colour: bool = False) -> Source:
    """Return the source for a path: a folder, a video file, or None for the virtual flight.

    Raises:
        ImageError: there are no images, or they cannot be read.
    """
    if path is None:
        return VirtualFlight(colour)
    if Path(path).is_dir():
        return Folder(Path(path), colour)
    if Path(path).is_file():
        return Video(Path(path), colour)
    raise ImageError(f'no folder of images or video file {path}')


def play(source: Source, start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield frames when they are due, with that time; overdue ones are skipped, as by a camera.

    ``start`` is the time of frame 0, in nanoseconds since the epoch.
    """
    k = 0
    while True:
        k = max(k + 1, int((time.time_ns() - start) * FRAME_RATE * 1e-9) + 1)
        image = source.image(k)
        due = start + k * 1_000_000_000 // FRAME_RATE
        time.sleep(max(0, due - time.time_ns()) * 1e-9)
        yield due, image


class VirtualFlight:
    """A camera of 640x480 pixels that flies along a wall of photographs; its motion is known exactly."""

    def __init__(self, colour: bool = False):
        self._wall = _build_wall(colour)

    def image(self, k: int) -> np.ndarray:
        # The wall is mirrored beyond its edges: still a plane, still the same homography.
        return cv2.warpPerspective(self._wall, self._view(k), (640, 480), borderMode=cv2.BORDER_REFLECT_101)

    def motion(self, k: int, l: int) -> np.ndarray:  # noqa: E741
        return self._view(l) @ np.linalg.inv(self._view(k))

    def _view(self, k: int) -> np.ndarray:
        """Return the homography (3, 3) from the wall's pixels to those of frame k.

        A swaying pinhole camera, focal length 525 pixels, at (x, y, -distance) in front of the wall's plane z = 0.
        """
        height, width = self._wall.shape[:2]
        t = k / FRAME_RATE
        x = width * (0.5 + 0.3 * np.sin(0.5 * t))
        y = height * (0.5 + 0.22 * np.sin(0.73 * t + 1))
        distance = 600 + 130 * np.sin(0.61 * t)
        angles = np.array([0.16 * np.sin(0.9 * t), 0.2 * np.sin(0.7 * t + 2), 0.22 * np.sin(0.55 * t + 1)])
        rotation = cv2.Rodrigues(angles)[0]
        # A point (X, Y, 0) of the wall lies at R (X - x, Y - y, distance) in the camera's frame.
        to_camera = rotation @ np.array([[1, 0, -x], [0, 1, -y], [0, 0, distance]])
        return np.array([[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]) @ to_camera


class Folder:
    """The images of a folder by name, over and over."""

    def __init__(self, path: Path, colour: bool = False):
        self._colour = colour
        self._files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not self._files:
            raise ImageError(f'{path} holds no images ({", ".join(SUFFIXES)})')

    def image(self, k: int) -> np.ndarray:
        return _read(self._files[k % len(self._files)], self._colour)

    def motion(self, k: int, l: int) -> None:  # noqa: E741
        return None


class Video:
    """The frames of a video file, over and over."""

    def __init__(self, path: Path, colour: bool = False):
        self._colour = colour
        self._capture = cv2.VideoCapture(str(path))
        self._count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._path = path
        self._next = 0
        if self._count < 1:
            raise ImageError(f'{path} is not a video that OpenCV can read')

    def image(self, k: int) -> np.ndarray:
        k %= self._count
        if k != self._next:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, k)
        read, image = self._capture.read()
        self._next = k + 1
        if not read:
            raise ImageError(f'{self._path}: frame {k} cannot be read')
        return image if self._colour else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)

    def motion(self, k: int, l: int) -> None:  # noqa: E741
        return None


def find_photographs() -> Path | None:
    """Return the folder of the photographs that scikit-image ships, or None if it is not installed."""
    package = find_spec('skimage')
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / 'data'


def _build_wall(colour: bool) -> np.ndarray:
    folder = find_photographs()
    if folder is None:
        raise ImageError("the demo's photographs come with scikit-image: pip install scikit-image, or give --source")
    return np.vstack([np.hstack([_fill_tile(_read(folder / name, colour)) for name in row]) for row in _WALL])


def _fill_tile(photo: np.ndarray) -> np.ndarray:
    """Return the photograph scaled and cropped to fill a tile of the wall."""
    width, height = _TILE
    scale = max(width / photo.shape[1], height / photo.shape[0])
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[top : top + height, left : left + width]


def _read(path: Path, colour: bool) -> np.ndarray:
    image = read_image(path)
    return image if colour else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
