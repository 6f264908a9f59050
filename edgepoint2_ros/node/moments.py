"""Keypoints, the image they were found in, and the depth or right image nearest in time."""

from collections import deque
from typing import Any, NamedTuple

from edgepoint2_ros.messages import REORDERED

MISSING = ('no image', 'no depth')  # why keypoints can be dropped


class Moment(NamedTuple):
    """What belongs together."""

    keypoints: Any
    image: Any
    depth: Any


class Moments:
    """Synchronises messages, whatever order they come in. Stamps are nanoseconds.

    An image has the stamp of its keypoints. Depth is the nearest within ``interval``, which is known once a later one
    has come. Keypoints wait for both, until later ones are complete, or ``capacity`` of them wait. What is in the
    future once time has jumped back is dropped.

    Attributes:
        missed: dropped keypoints, by what they waited for.
    """

    def __init__(self, interval: int, capacity: int):
        self.missed = dict.fromkeys(MISSING, 0)
        self._interval, self._capacity = interval, capacity
        self._room = max(2, capacity)  # images or depths: the nearest depth is known once there are two
        self._waiting: deque[tuple[int, Any]] = deque()
        self._images: dict[int, Any] = {}
        self._depths: dict[int, Any] = {}

    @property
    def missing(self) -> str:
        """What the keypoints that have waited longest wait for, one of MISSING; '' if none wait."""
        return self._lack(self._waiting[0][0]) if self._waiting else ''

    def add_image(self, stamp: int, image: Any) -> list[Moment]:
        """Take an image and return what is complete now, oldest first."""
        self._keep(self._images, stamp, image)
        return self._collect()

    def add_depth(self, stamp: int, depth: Any) -> list[Moment]:
        """Take depth or a right image and return what is complete now, oldest first."""
        self._keep(self._depths, stamp, depth)
        return self._collect()

    def add_keypoints(self, stamp: int, keypoints: Any) -> list[Moment]:
        """Take keypoints and return what is complete now, oldest first."""
        for last, _ in [entry for entry in self._waiting if entry[0] > stamp + REORDERED]:
            self._miss(last)  # time has jumped back
        self._waiting = deque(entry for entry in self._waiting if entry[0] <= stamp + REORDERED)
        self._waiting.append((stamp, keypoints))
        if len(self._waiting) > self._capacity:
            self._miss(self._waiting.popleft()[0])
        return self._collect()

    def _keep(self, kept: dict[int, Any], stamp: int, item: Any) -> None:
        """Add an image or depth to those kept; it replaces one of its stamp.

        Those of its own kind that are much later are from before time jumped back. The others may well be later: images
        do not wait for the extractor.
        """
        for later in [other for other in kept if other > stamp + REORDERED]:
            del kept[later]
        kept.pop(stamp, None)
        kept[stamp] = item
        if len(kept) > self._room:
            del kept[next(iter(kept))]

    def _collect(self) -> list[Moment]:
        ready: list[Moment] = []
        for place in range(len(self._waiting) - 1, -1, -1):  # the newest first: older ones that still wait are late
            stamp, keypoints = self._waiting[place]
            depth = self._nearest(stamp)
            if stamp not in self._images or depth is None:
                if ready:
                    self._miss(stamp)
                    del self._waiting[place]
                continue
            ready.append(Moment(keypoints, self._images.pop(stamp), depth))
            del self._waiting[place]
        return ready[::-1]

    def _nearest(self, stamp: int) -> Any:
        """Return the depth nearest to a stamp, or None if there is none or a nearer one may come."""
        if not self._depths:
            return None
        time = min(self._depths, key=lambda other: abs(other - stamp))
        is_final = time >= stamp or any(other > stamp for other in self._depths)
        return self._depths[time] if is_final and abs(time - stamp) <= self._interval else None

    def _miss(self, stamp: int) -> None:
        self.missed[self._lack(stamp)] += 1

    def _lack(self, stamp: int) -> str:
        return 'no depth' if stamp in self._images else 'no image'
