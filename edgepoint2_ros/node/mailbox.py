"""The mailbox between the middleware's thread, which must never block, and the slower worker thread."""

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar('Item')


class Mailbox(Generic[Item]):
    """One bounded queue per camera; the cameras with waiting items are served round-robin.

    With ``capacity`` 1 the newest item of a camera wins, and nothing ever waits behind an older one. However fast one
    camera is, another waits for at most one item of each.

    Attributes:
        is_idle: whether a thread waits for an item.
    """

    def __init__(self, cameras: int = 1, capacity: int = 1):
        self._queues: list[deque[Item]] = [deque() for _ in range(cameras)]
        self._capacity = capacity
        self._turns: deque[int] = deque()  # the cameras with waiting items, the next one first
        self._changed = threading.Condition()
        self._open = True
        self.is_idle = False

    def put(self, item: Item, camera: int = 0) -> int:
        """Add an item without blocking; return how many older ones it displaced, 0 or 1."""
        with self._changed:
            if not self._open:
                return 1  # the item itself
            queue = self._queues[camera]
            dropped = _shorten(queue, self._capacity - 1)
            if not queue and camera not in self._turns:
                self._turns.append(camera)
            queue.append(item)
            self._changed.notify()
            return dropped

    def get(self) -> tuple[int, Item] | None:
        """Wait for an item and remove it; return its camera and the item, or None once the mailbox is closed."""
        with self._changed:
            self.is_idle = True
            self._changed.wait_for(lambda: self._turns or not self._open)
            self.is_idle = False
            if not self._open:
                return None
            camera = self._turns.popleft()
            queue = self._queues[camera]
            item = queue.popleft()
            if queue:
                self._turns.append(camera)
            return camera, item

    @property
    def is_empty(self) -> bool:
        return not self._turns

    def resize(self, capacity: int) -> list[int]:
        """Change the length of the queues; return how many items each camera lost."""
        with self._changed:
            self._capacity = capacity
            return [_shorten(queue, capacity) for queue in self._queues]

    def close(self) -> list[int]:
        """End every wait; return how many waiting items of each camera are lost."""
        with self._changed:
            self._open = False
            self._turns.clear()
            self._changed.notify_all()
            return [_shorten(queue, 0) for queue in self._queues]


def _shorten(queue: deque[Item], length: int) -> int:
    """Drop the oldest items beyond ``length`` and return how many there were."""
    dropped = max(0, len(queue) - length)
    for _ in range(dropped):
        queue.popleft()
    return dropped
