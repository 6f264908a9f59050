"""How many messages a subscription has lost, by what the middleware says of it and not a message more."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.qos import QoSProfile

MOST_LOST = 100_000  # messages that can be lost at once: what says more is nonsense


class Losses:
    """Puts together two accounts, each of which may miss some messages and neither of which invents any.

    The events of the middleware tell of messages that were lost on the way, but not of those that waited in the queue
    of the subscription until newer ones took their place. The numbers that a publisher gives its messages tell of both,
    but only once another message comes, only while there is one publisher, and not in every middleware.
    """

    def __init__(self) -> None:
        self._told = 0  # by events
        self._missing = 0  # by the numbers, and by events where there were none
        self._last: int | None = None  # number

    @property
    def count(self) -> int:
        """Messages lost so far."""
        return max(self._told, self._missing)

    def tell(self, change: int) -> None:
        """Take the ``total_count_change`` of a message_lost event."""
        self._told += to_lost(change)

    def take(self, number: int | None) -> None:
        """Take the number of a message; None where it has none, or where several publishers number theirs."""
        if number is not None and self._last is not None and 0 < number - self._last <= MOST_LOST:
            self._missing += number - self._last - 1
        else:  # a beginning
            self._missing = self.count
        self._last = number


def to_lost(change: int) -> int:
    """Return how many messages were lost, by the ``total_count_change`` of a message_lost event.

    Fast DDS counts in 32 bits, with a fault: where a message that comes in pieces is given up after a later small one
    has overtaken it, it adds 2^31 - 1, though it has counted that message already. What remains without that is right.
    An event that still makes no sense tells of one lost message, no more.
    """
    for faults in range(8):
        lost = (change - faults * (2**31 - 1)) % 2**32
        if lost <= MOST_LOST:
            return lost
    return 1


def subscribe(
    node: 'Node',
    kind: type,
    topic: str,
    receive: Callable[[Any], None],
    qos: 'QoSProfile',
    losses: Losses,
    count: Callable[[int], None] = lambda count: None,
    **callbacks: Any,
) -> Any:
    """Return a subscription whose lost messages are counted.

    Args:
        node, kind, topic, qos: as for rclpy.
        receive: called with each message.
        losses: what counts; from now on the numbers of the messages begin anew.
        count: called with the number of lost messages whenever it may have changed.
        **callbacks: further ones of SubscriptionEventCallbacks.
    """
    try:
        from rclpy.event_handler import SubscriptionEventCallbacks
    except ImportError:  # Humble
        from rclpy.qos_event import SubscriptionEventCallbacks
    from rclpy.subscription import Subscription

    losses.take(None)

    def receive_numbered(message: Any, info: dict[str, Any]) -> None:
        alone = subscription.get_publisher_count() <= 1
        losses.take(info.get('publication_sequence_number') if alone else None)
        count(losses.count)
        receive(message)

    def tell(event: Any) -> None:
        losses.tell(event.total_count_change)
        count(losses.count)

    events = SubscriptionEventCallbacks(message_lost=tell, **callbacks)
    numbered = hasattr(Subscription, 'CallbackType')  # not in Humble
    subscription = with_events(
        node.create_subscription, events, kind, topic, receive_numbered if numbered else receive, qos
    )
    return subscription


def with_events(create: Callable[..., Any], events: Any, *arguments: Any) -> Any:
    """Return a publisher or subscription with event callbacks where the middleware has such events, else without."""
    try:
        from rclpy.event_handler import UnsupportedEventTypeError
    except ImportError:  # Humble
        from rclpy.qos_event import UnsupportedEventTypeError

    try:
        return create(*arguments, event_callbacks=events)
    except UnsupportedEventTypeError:
        return create(*arguments)
