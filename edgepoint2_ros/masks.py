"""Where keypoints are allowed: masks from a topic, a mask from a file, and a border, combined."""

import bisect
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.image_files import load, turn_upright
from edgepoint2_ros.images import to_mask
from edgepoint2_ros.messages import REORDERED

KEPT = 30  # masks of one camera that wait for their images, at least


class Masks:
    """The masks of one camera: the newest at or before an image's stamp applies; before all of them, that of stamp 0.

    One thread may `put` while another calls `at`.

    Attributes:
        capacity: the most that are kept, for as many images that wait; the oldest goes first.
    """

    def __init__(self, capacity: int = KEPT) -> None:
        self.capacity = capacity
        self._kept: list[list[Any]] = []  # [stamp, message, or the mask made of it], stamps in ascending order
        self._always: list[Any] | None = None  # the same, of stamp 0
        self._lock = threading.Lock()

    def put(self, stamp: int, message: Any) -> None:
        """Keep a mask message (sensor_msgs/Image) with its stamp in nanoseconds.

        A stamp more than REORDERED before the newest one means that time jumped back, say because a recording
        restarted: the masks kept so far belong to another time, except that of stamp 0.
        """
        with self._lock:
            if stamp == 0:
                self._always = [stamp, message]
                return
            if self._kept and stamp < self._kept[-1][0] - REORDERED:
                self._kept.clear()
            bisect.insort(self._kept, [stamp, message], key=lambda entry: entry[0])
            del self._kept[: -self.capacity]

    def at(self, stamp: int) -> np.ndarray | None:
        """Return the mask (H, W) uint8 that applies at ``stamp``, nonzero = allowed, or None if there is none.

        Raises:
            ImageError: that mask cannot be read; it is dropped, so that the next call returns the one before it.
        """
        with self._lock:
            place = bisect.bisect_right(self._kept, stamp, key=lambda entry: entry[0])
            entry = self._kept[place - 1] if place else self._always
        if entry is None:
            return None
        if not isinstance(entry[1], np.ndarray):
            try:
                entry[1] = to_mask(entry[1])
            except Exception:
                with self._lock:
                    self._kept = [other for other in self._kept if other is not entry]
                    self._always = None if self._always is entry else self._always
                raise
        return entry[1]

    def lead(self, stamp: int) -> int:
        """Return by how many nanoseconds all masks are later than ``stamp``, or 0 if one applies or none has come."""
        with self._lock:
            return max(0, self._kept[0][0] - stamp) if self._kept and self._always is None else 0


def read_mask_file(path: str) -> np.ndarray:
    """Return a mask (H, W) uint8 from an image file, 255 = allowed: where the image is neither black nor transparent.

    Lossy formats such as JPEG leave noise in the black: in those, anything darker than half brightness is black.

    Args:
        path: the file: also ``~/PATH``, ``file:///PATH``, or ``package://NAME/PATH`` in the share folder of a package.

    Raises:
        ImageError: there is no such file, or it is not an image, damaged, truncated, or too large.
    """
    picture = load(_find_file(path))
    pixels = np.atleast_3d(turn_upright(picture.pixels, picture.orientation))
    half = np.iinfo(pixels.dtype).max / 2 if pixels.dtype.kind in 'iu' else 0.5
    brightness = np.nan_to_num(pixels[:, :, :3]).max(axis=2)
    allowed = brightness != 0 if picture.is_lossless else brightness > half
    if pixels.shape[2] == 4:
        allowed &= pixels[:, :, 3] > half
    return allowed.astype(np.uint8) * 255


def _find_file(path: str) -> Path:
    try:
        url = urlsplit(path)
        if url.scheme == 'package':
            from ament_index_python.packages import get_package_share_directory  # exists only with ROS

            return Path(get_package_share_directory(url.netloc)) / unquote(url.path).lstrip('/')
        if url.scheme == 'file':
            if url.netloc not in ('', 'localhost'):
                raise ValueError(f'{url.netloc} is another host')
            return Path(unquote(url.path))
        return Path(path).expanduser()
    except (ImportError, LookupError, OSError, RuntimeError, ValueError) as error:
        reason = error.args[0] if error.args else error
        raise ImageError(f'expected an image, but {path} cannot be read as one: {reason}') from None


def combine(masks: list[np.ndarray], border: int, width: int, height: int) -> np.ndarray | None:
    """Return one mask (height, width) uint8 that allows what all of them allow, or None where everything is allowed.

    Args:
        masks: (h, w) uint8 each, nonzero = allowed; those of another size are resized by nearest neighbour.
        border: pixels along the edges where nothing is allowed.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    if not masks and not border:
        return None
    allowed = np.zeros((height, width), np.uint8)
    inside = slice(border, max(border, height - border)), slice(border, max(border, width - border))
    allowed[inside] = 1
    for mask in masks:
        if mask.shape != allowed.shape:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
        allowed &= mask != 0
    return allowed
