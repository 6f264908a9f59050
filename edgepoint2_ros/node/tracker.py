"""The process of the node tracker: the executable of ``ros2 run edgepoint2_ros tracker``."""

import os
import sys
from typing import Any

from edgepoint2_ros.node.survival import run

# Before numpy is loaded: the matrices here are small, and further threads only spin while they wait.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')


def main(args: list[str] | None = None) -> int:
    """Run the node until Ctrl-C and return the exit code."""
    return run('tracker', _make_node, args)


def _make_node() -> Any:
    # Only now that a signal is heeded: this takes a second.
    from edgepoint2_ros.node.tracker_node import TrackerNode

    return TrackerNode()


if __name__ == '__main__':
    sys.exit(main())
