"""How many messages a subscription has lost, as far as the middleware tells, and never too many."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.qos import QoSProfile

MOST_LOST = 100_000  # messages that can be lost at once: more is implausible


class Losses:
    """Combines two sources, each of which may miss lost messages but never invents any.

    The middleware's events report messages lost in transit, but not those overwritten in the subscription's queue. The
    publisher's sequence numbers reveal both, but only once another message comes, only with a single publisher, and not
    in every middleware.
    """

    def __init__(self) -> None:
        self._told = 0  # by events
        self._missing = 0  # by sequence numbers, and by events where there were none
        self._last: int | None = None  # sequence number

    @property
    def count(self) -> int:
        """Messages lost so far."""
        return max(self._told, self._missing)

    def tell(self, change: int) -> None:
        """Take the ``total_count_change`` of a message_lost event."""
        self._told += to_lost(change)

    def take(self, number: int | None) -> None:
        """Take the sequence number of a message; None if it has none, or if there are several publishers."""
        if number is not None and self._last is not None and 0 < number - self._last <= MOST_LOST:
            self._missing += number - self._last - 1
        else:  # a beginning
            self._missing = self.count
        self._last = number


def to_lost(change: int) -> int:
    """Return how many messages were lost, by the ``total_count_change`` of a message_lost event.

    Fast DDS counts in 32 bits, with a bug: if a fragmented message is given up after a later small one has overtaken
    it, it adds 2^31 - 1, although it has counted that message already. Without that, the count is right. An event that
    is still implausible counts as one lost message.
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
        losses: the counter; sequence numbers start afresh from now on.
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

    def meet(event: Any) -> None:
        if event.current_count_change > 0:  # a publisher that numbers by itself, perhaps from far above the last one's
            losses.take(None)

    if hasattr(SubscriptionEventCallbacks(), 'matched'):  # not in Humble
        callbacks['matched'] = meet
    events = SubscriptionEventCallbacks(message_lost=tell, **callbacks)
    numbered = hasattr(Subscription, 'CallbackType')  # not in Humble
    subscription = with_events(
        node.create_subscription, events, kind, topic, receive_numbered if numbered else receive, qos
    )
    return subscription


def with_events(create: Callable[..., Any], events: Any, *arguments: Any) -> Any:
    """Return a publisher or subscription with event callbacks if the middleware has such events, else without."""
    try:
        from rclpy.event_handler import UnsupportedEventTypeError
    except ImportError:  # Humble
        from rclpy.qos_event import UnsupportedEventTypeError

    try:
        return create(*arguments, event_callbacks=events)
    except UnsupportedEventTypeError:
        return create(*arguments)
