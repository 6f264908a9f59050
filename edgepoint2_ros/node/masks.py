"""Where keypoints are allowed: the masks that come on a topic, a mask from a file, and a border, put together."""

import bisect
import threading
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.images import to_mask

KEPT = 30  # masks of one camera that wait for their images


class Masks:
    """The masks of one camera: the newest at or before an image's stamp counts.

    One thread may `put` while another asks `at`.
    """

    def __init__(self):
        self._kept: list[list] = []  # [stamp, message, or the mask made of it], stamps in ascending order
        self._lock = threading.Lock()

    def put(self, stamp: int, message) -> None:
        """Keep a mask message (sensor_msgs/Image) with its stamp in nanoseconds.

        A stamp before the newest one means that time was set back, say by a recording that begins anew: the masks kept
        so far belong to another time.
        """
        with self._lock:
            if self._kept and stamp < self._kept[-1][0]:
                self._kept.clear()
            self._kept = [*self._kept[1 - KEPT :], [stamp, message]]

    def at(self, stamp: int) -> np.ndarray | None:
        """Return the mask (H, W) uint8 that counts at ``stamp``, nonzero = allowed, or None where there is none.

        Raises:
            ImageError: that mask cannot be read; it is forgotten, so that the next call has the one before it.
        """
        with self._lock:
            place = bisect.bisect_right(self._kept, stamp, key=lambda entry: entry[0])
            if place == 0:
                return None
            entry = self._kept[place - 1]
        if not isinstance(entry[1], np.ndarray):
            try:
                entry[1] = to_mask(entry[1])
            except Exception:
                with self._lock:
                    self._kept = [other for other in self._kept if other is not entry]
                raise
        return entry[1]


def read_mask_file(path: str) -> np.ndarray:
    """Return a mask (H, W) uint8 from an image file, 255 = allowed: where the image is not black.

    Raises:
        EdgePoint2Error: there is no such file, or it is not an image, or it is too large.
    """
    try:
        file = Path(path).expanduser()
        # Any depth: made 8 bits, small values of 16 bits would become 0.
        mask = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH) if file.is_file() else None
    except (OSError, RuntimeError, ValueError, cv2.error) as error:
        raise EdgePoint2Error(f'mask_file: expected an image, but {path} cannot be read as one: {error}') from error
    if mask is None:
        raise EdgePoint2Error(f'mask_file: expected an image, but {file} cannot be read as one')
    return (mask != 0).astype(np.uint8) * 255


def combine(masks: list[np.ndarray], border: int, width: int, height: int) -> np.ndarray | None:
    """Return one mask (height, width) uint8 that allows what all of them allow, or None where everything is allowed.

    Args:
        masks: (h, w) uint8 each, nonzero = allowed; those of another size are scaled, without new values.
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
