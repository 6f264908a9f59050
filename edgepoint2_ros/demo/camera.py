"""The demo's camera: publishes the frames of a source at 30 Hz in gray, stamped with the moment they are due."""

import argparse
import array
import sys
import time
from collections.abc import Sequence

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.scenes.sources import open_source, play


def main(args: Sequence[str] | None = None) -> int:
    """Publish until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--source', help='folder of images or video file (default: a virtual flight over photographs)')
    parser.add_argument('--start', type=int, required=True, help='time of frame 0, nanoseconds since the epoch')
    options = parser.parse_args(args)
    try:
        source = open_source(options.source)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C comes as KeyboardInterrupt
        node = Node('camera')
        publisher = node.create_publisher(Image, 'image', qos_profile_sensor_data)
        while publisher.get_subscription_count() == 0:
            time.sleep(0.05)
        for due, image in play(source, options.start):
            publisher.publish(_message(image, due))
        return 0
    except EdgePoint2Error as error:
        print(f'camera: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        rclpy.try_shutdown()


def _message(image: np.ndarray, stamp: int) -> Image:
    message = Image(height=image.shape[0], width=image.shape[1], encoding='mono8', step=image.shape[1])
    message.header.frame_id = 'camera'
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
    message.data = array.array('B', image.tobytes())
    return message


if __name__ == '__main__':
    sys.exit(main())
