"""The order of stamps, and pairs of images from two cameras. Stamps are nanoseconds."""

from collections import deque
from typing import Any

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.messages import REORDERED

APART = 3_000_000  # maximum time between the two images of a stereo pair
WAIT = 5  # left images that may wait for their right ones


def is_back(stamp: int, last: int) -> bool:
    """Tell whether time has jumped back from the last stamp to this one.

    Raises:
        EdgePoint2Error: the stamp is only a little older than the last one.
    """
    older = last - stamp
    if 0 < older <= REORDERED:
        raise EdgePoint2Error(f'they are {older * 1e-9:.3f} s older than the last ones')
    return older > 0


class Stamps:
    """Distinguishes messages out of order from time that jumps back."""

    def __init__(self) -> None:
        self._last = 0

    def take(self, stamp: int) -> float:
        """Return by how many seconds time jumps back, 0.0 if it does not.

        Raises:
            EdgePoint2Error: the stamp is only a little older than the last one.
        """
        back = (self._last - stamp) * 1e-9 if is_back(stamp, self._last) else 0.0
        self._last = stamp
        return back


class Pairs:
    """Pairs images of a left and a right camera that are at most APART from each other.

    A left image waits for its right one until a later right image has come or WAIT left ones wait: then it goes on
    alone. A right image without a left one is dropped.

    Attributes:
        alone: left images that went on alone.
        forgotten: left images that waited when time jumped back.
        forgotten_right: right images without a left one, and those that waited when time jumped back.
    """

    def __init__(self) -> None:
        self.alone = self.forgotten = self.forgotten_right = 0
        self._left: deque[tuple[int, Any]] = deque()  # (stamp, item), in order
        self._right: deque[tuple[int, Any]] = deque()

    @property
    def waiting(self) -> int:
        """Left images that wait for their right ones."""
        return len(self._left)

    def add_left(self, stamp: int, item: Any) -> list[tuple[Any, Any]]:
        """Take a left image and return what is ready: (left, right) items, None for a missing right one."""
        return self._add(self._left, stamp, item)

    def add_right(self, stamp: int, item: Any) -> list[tuple[Any, Any]]:
        """Take a right image and return what is ready, as add_left does."""
        return self._add(self._right, stamp, item)

    def _add(self, queue: deque[tuple[int, Any]], stamp: int, item: Any) -> list[tuple[Any, Any]]:
        if queue and is_back(stamp, queue[-1][0]):
            self.forgotten += _forget_after(self._left, stamp + REORDERED)
            self.forgotten_right += _forget_after(self._right, stamp + REORDERED)
        queue.append((stamp, item))
        ready = []
        while self._left and (self._right or len(self._left) > WAIT):
            left, found = self._left[0]
            while self._right and self._right[0][0] < left - APART:
                self._right.popleft()
                self.forgotten_right += 1
            if self._right and self._right[0][0] <= left + APART:
                ready.append((found, self._right.popleft()[1]))
            elif self._right or len(self._left) > WAIT:
                ready.append((found, None))
                self.alone += 1
            else:
                break
            self._left.popleft()
        while len(self._right) > 2 * WAIT:
            self._right.popleft()
            self.forgotten_right += 1
        return ready


def _forget_after(queue: deque[tuple[int, Any]], stamp: int) -> int:
    """Drop what is later than a stamp; return how much that was."""
    waiting = [entry for entry in queue if entry[0] <= stamp]
    forgotten = len(queue) - len(waiting)
    queue.clear()
    queue.extend(waiting)
    return forgotten
