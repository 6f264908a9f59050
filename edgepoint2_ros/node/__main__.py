"""Start the node extractor: the executable of ``ros2 run edgepoint2_ros extractor``."""

import os
import signal
import sys


def main(args=None) -> int:
    """Run the node and return the exit code; Ctrl-C ends it with 0 at any moment."""
    # While modules load there is nothing to tidy up, and an interrupted import would only leave a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    from edgepoint2_ros.node.extractor_node import run

    code = run(args)
    # The interpreter's own tidying would bring the default handlers back.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == '__main__':
    sys.exit(main())
