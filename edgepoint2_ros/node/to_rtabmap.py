"""The process of the node to_rtabmap: the executable of ``ros2 run edgepoint2_ros to_rtabmap``."""

import os
import sys
from typing import Any

from edgepoint2_ros.node.survival import run

# A compressed image that claims to be larger than any supported one must not exhaust the memory.
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(2**24))
os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')


def main(args: list[str] | None = None) -> int:
    """Run the node until Ctrl-C and return the exit code."""
    return run('to_rtabmap', _make_node, args)


def _make_node() -> Any:
    # Only now that a signal is heeded: this takes a second.
    from edgepoint2_ros.node.to_rtabmap_node import ToRtabmapNode

    return ToRtabmapNode()


if __name__ == '__main__':
    sys.exit(main())
