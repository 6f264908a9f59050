"""What keeps a node alive: an exception in a callback is logged and counted, and the other callbacks are served.

And it starts without a home folder for the log files of ROS.
"""

import contextlib
import math
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rclpy.node import Node

PACKAGE = str(Path(__file__).parents[1])
LOG_PERIOD = 5.0  # seconds between two log lines about exceptions from the same location
PAUSE = 0.01  # seconds after an exception: one that recurs every time must not occupy a core


class Failures:
    """The unexpected exceptions in a node. Any thread may `add` one.

    Attributes:
        count: how many there were.
        last: the latest in words, with its location in the code; empty while there is none.
    """

    def __init__(self, node: 'Node') -> None:
        self._node = node
        self._lock = threading.Lock()
        self._logged: dict[str, float] = {}  # when, by location
        self.count = 0
        self.last = ''

    def add(self, error: Exception) -> None:
        """Count an exception, and log it unless one from the same location was logged a moment ago."""
        place = _place(error)
        now = time.monotonic()
        with self._lock:
            self.count += 1
            self.last = f'{type(error).__name__}: {" ".join(str(error).split())} ({place})'
            if not self._node.context.ok() or now < self._logged.get(place, -math.inf) + LOG_PERIOD:
                return
            self._logged[place] = now
            line = f'a callback failed, the node keeps running ({self.count} so far): {self.last}'
        self._node.get_logger().error(line)


def provide_log_folder() -> None:
    """Set a folder for the log files of ROS, which does not start without a writable one."""
    if os.environ.get('ROS_LOG_DIR'):
        return
    folder = os.path.expanduser(os.path.join(os.environ.get('ROS_HOME') or '~/.ros', 'log'))
    with contextlib.suppress(OSError):  # then ROS reports what is missing
        if folder.startswith('~') or not _is_writable(folder):
            folder = tempfile.mkdtemp(prefix='ros_log_')
            print(f'the log files of ROS go to {folder}: there is no home that can be written', file=sys.stderr)
        os.environ['ROS_LOG_DIR'] = folder


def run(name: str, make_node: Callable[[], Any], args: list[str] | None = None) -> int:
    """Run a node until Ctrl-C or SIGTERM and return the exit code; a failure to start is reported in one line.

    Args:
        name: of the program.
        make_node: imports what it needs and returns the node, which has an attribute ``failures``.
        args: of the command line, for ROS.
    """
    # Before anything slow is imported, which a signal would end with a traceback; and with rclpy's own handlers its
    # executor occasionally stays asleep.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    provide_log_folder()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
    except Exception as error:  # our own, or what rclpy makes of a parameter file, a namespace, use_sim_time
        print(f'{name}: {error}', file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        spin(executor, node, stop, timeout_sec=0.2)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()
    return 0


def spin(executor: Any, node: Any, stop: threading.Event, timeout_sec: float | None = None) -> None:
    """Serve the callbacks of a node, whatever they raise, until an event is set or ROS is shut down.

    Args:
        executor: a SingleThreadedExecutor that holds the node.
        node: an rclpy node with an attribute ``failures``.
        stop: a threading.Event.
        timeout_sec: how long to wait before checking ``stop`` again; None if whoever sets it wakes the executor.
    """
    while not stop.is_set() and node.context.ok():
        try:
            executor.spin_once(timeout_sec)
        except Exception as error:
            if not node.context.ok():
                return  # the exception only says that ROS is shut down
            node.failures.add(error)
            _free(node)
            stop.wait(PAUSE)


def _is_writable(folder: str) -> bool:
    """Create a folder; return whether that worked and it is writable."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _free(node: Any) -> None:
    """Release what rclpy was about to serve.

    If taking a message fails before its callback runs (no memory, a request that cannot be converted), rclpy waits
    forever for that callback to end: this entity and its group would no longer be served.
    """
    for entity in (*node.subscriptions, *node.timers, *node.services, *node.clients, *node.guards, *node.waitables):
        if entity._executor_event:
            entity._executor_event = False
            entity.callback_group.ending_execution(entity)


def _place(error: Exception) -> str:
    """Return where in this package an exception came from, or else where in another, as file, line and function."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE) and frame.filename != __file__]
    frame = (ours or frames)[-1]
    return f'{"/".join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}'
