"""The mailbox between the middleware's thread, which must never wait, and the worker thread, which takes its time."""

import threading
from collections import deque


class Mailbox:
    """A queue of bounded length; when it is full, the oldest item makes room for the newest.

    With ``capacity`` 1 the newest item wins and nothing ever waits behind an older one.

    Attributes:
        received: items put in so far.
        dropped: items that made room for a newer one and were never taken out.
    """

    def __init__(self, capacity: int = 1):
        self.received = 0
        self.dropped = 0
        self._items = deque(maxlen=capacity)
        self._changed = threading.Condition()
        self._open = True

    def put(self, item) -> None:
        """Add ``item`` and return at once."""
        with self._changed:
            self.received += 1
            self.dropped += len(self._items) == self._items.maxlen
            self._items.append(item)
            self._changed.notify()

    def get(self):
        """Wait for the oldest item and take it out; None once the mailbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or not self._open)
            return self._items.popleft() if self._open else None

    def close(self) -> None:
        """End every wait; items still inside count as dropped."""
        with self._changed:
            self._open = False
            self.dropped += len(self._items)
            self._items.clear()
            self._changed.notify_all()
