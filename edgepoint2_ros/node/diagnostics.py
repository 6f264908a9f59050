"""What a node reports: messages for /diagnostics, and how often."""

from collections.abc import Callable, Iterable, Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

LOG_PERIOD = 2.0  # seconds between two log lines of the same kind


def every_second(node: Node, act: Callable[[], None]) -> None:
    """Call ``act`` once a second by a steady clock, even while simulated time stands still or jumps."""
    node.create_timer(1.0, act, clock=Clock(clock_type=ClockType.STEADY_TIME))


def to_status(
    node: Node, task: str, level: int, reason: str, values: Mapping[str, object], hardware_id: str = ''
) -> DiagnosticStatus:
    """Return what one task of a node reports, under the node's name.

    Args:
        node: an rclpy node.
        task: what it is about.
        level: as edgepoint2_ros.node.health has it.
        reason: for the level, in words.
        values: further figures by name.
        hardware_id: what does the work.
    """
    return DiagnosticStatus(
        level=bytes([level]),
        name=f'{node.get_fully_qualified_name()}: {task}',
        message=reason,
        hardware_id=hardware_id,
        values=[KeyValue(key=name, value=str(value)) for name, value in values.items()],
    )


def to_diagnostics(node: Node, statuses: Iterable[DiagnosticStatus]) -> DiagnosticArray:
    """Return statuses as one message, stamped now."""
    message = DiagnosticArray(status=list(statuses))
    message.header.stamp = node.get_clock().now().to_msg()
    return message
