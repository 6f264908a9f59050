"""The demo's consumer: matches the keypoints of successive frames and says how well that goes."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from edgepoint2_ros.demo.figures import Display, Figures
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.files import write_image
from edgepoint2_ros.messages import decode, to_nanoseconds
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.scenes.sources import open_source

PATIENCE = 60.0  # seconds to wait for the first keypoints


def main(args: Sequence[str] | None = None) -> int:
    """Consume for some seconds, then print a summary and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--source', help='source of the camera')
    parser.add_argument('--start', type=int, required=True, help='time of frame 0, nanoseconds since the epoch')
    parser.add_argument('--seconds', type=float, default=10.0)
    parser.add_argument('--picture', type=Path, required=True, help='picture of matches to write')
    options = parser.parse_args(args)
    try:
        return _consume(options)
    except EdgePoint2Error as error:
        print(f'consumer: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        rclpy.try_shutdown()


def _consume(options: argparse.Namespace) -> int:
    figures = Figures(open_source(options.source, colour=True), options.start)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C comes as KeyboardInterrupt
    node = Node('consumer')
    node.create_subscription(
        KeypointArray, 'keypoints', lambda m: figures.add(to_nanoseconds(m.header.stamp), decode(m)), 5
    )
    wait_until = time.monotonic() + PATIENCE
    while not figures.arrivals and time.monotonic() < wait_until:
        rclpy.spin_once(node, timeout_sec=0.1)
    if not figures.arrivals:
        print(f'consumer: no keypoints came within {PATIENCE:.0f} s', file=sys.stderr)
        return 1

    display, end = Display(figures), time.monotonic() + options.seconds
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
        display.update()
    write_image(options.picture, figures.picture())
    print(f'\n{figures.summary()}\nmatches drawn: {options.picture}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
