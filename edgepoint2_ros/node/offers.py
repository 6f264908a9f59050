"""Subscriptions that follow the QoS that the publishers of a topic offer.

Topics have their names before remapping: rclpy remaps whatever it is given, and would remap a full name twice.
"""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data


def find_reliability(node: Node, topic: str) -> ReliabilityPolicy | None:
    """Return the reliability that every publisher of a topic offers, or None without a publisher."""
    offers = {offer.qos_profile.reliability for offer in node.get_publishers_info_by_topic(topic)}
    if not offers:
        return None
    return ReliabilityPolicy.RELIABLE if offers == {ReliabilityPolicy.RELIABLE} else ReliabilityPolicy.BEST_EFFORT


class LatchedToo:
    """A subscription that receives, beside new messages, those latched before the node started."""

    def __init__(self, node: Node, kind: type, topic: str, receive: Callable[[Any], None]):
        """Subscribe; the caller must call `adapt` now and then.

        Args:
            node: an rclpy node.
            kind: of the messages.
            topic: their topic.
            receive: called with each message, perhaps twice with a latched one.
        """
        self._node, self._arguments = node, (kind, topic, receive)
        node.create_subscription(*self._arguments, qos_profile_sensor_data)
        self._latched: Any = None  # a second subscription

    def adapt(self) -> None:
        """Subscribe to latched messages while a publisher offers them.

        Not always: if none does, both sides would log a QoS mismatch.
        """
        offers = [offer.qos_profile for offer in self._node.get_publishers_info_by_topic(self._arguments[1])]
        latches = any(
            offer.durability == DurabilityPolicy.TRANSIENT_LOCAL and offer.reliability == ReliabilityPolicy.RELIABLE
            for offer in offers
        )
        if latches and self._latched is None:
            qos = QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._latched = self._node.create_subscription(*self._arguments, qos)
        elif not latches and self._latched is not None:
            self._node.destroy_subscription(self._latched)
            self._latched = None
