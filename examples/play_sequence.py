"""Play a recorded sequence to running nodes as a camera would, and measure the odometry that comes back.

    ros2 run edgepoint2_ros extractor --ros-args -p max_keypoints:=1000
    ros2 run edgepoint2_ros visual_odometry
    python examples/play_sequence.py DIR

DIR has one of the layouts that examples/odometry.py reads. Images go out on `image`, the calibration on `camera_info`.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from evo.core.trajectory import PoseTrajectory3D
from nav_msgs.msg import Odometry
from odometry import align, read_sequence
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

START = 1000  # seconds added to the stamps of the sequence: a stamp of 0 means none
DISCOVERY = 10.0  # seconds within which the nodes have to be found


def main() -> int:
    """Print how many images were followed, and how far from the true path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('sequence', type=Path, metavar='DIR')
    parser.add_argument('--rate', type=float, default=30.0, help='images a second (default: %(default)s)')
    parser.add_argument('--count', type=int, help='of images (default: all)')
    options = parser.parse_args()
    images, truth, (fx, fy, cx, cy) = read_sequence(options.sequence)
    images = list(itertools.islice(images, options.count))

    rclpy.init()
    node = rclpy.create_node('sequence')
    image_publisher = node.create_publisher(Image, 'image', QoSProfile(depth=5))
    camera_publisher = node.create_publisher(CameraInfo, 'camera_info', QoSProfile(depth=5))
    found = []
    node.create_subscription(Odometry, 'odometry', found.append, QoSProfile(depth=len(images)))

    def spin_until(end: float, done=lambda: False) -> None:
        while time.monotonic() < end and not done():
            rclpy.spin_once(node, timeout_sec=max(0.0, min(0.1, end - time.monotonic())))

    publishers = (image_publisher, camera_publisher)
    spin_until(time.monotonic() + DISCOVERY, lambda: all(p.get_subscription_count() for p in publishers))
    if not all(publisher.get_subscription_count() for publisher in publishers):
        sys.exit('nobody listens to image and camera_info: start the nodes extractor and visual_odometry first')
    spin_until(time.monotonic() + 1.0)  # they know this node; let it know their publishers

    height, width = images[0][1].shape
    matrix = np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], float)
    info = CameraInfo(height=height, width=width, k=matrix, d=[0.0] * 5, distortion_model='plumb_bob')
    begin = time.monotonic()
    for number, (stamp, grey) in enumerate(images, 1):
        image = Image(height=height, width=width, encoding='mono8', step=width, data=grey.tobytes())
        image.header.frame_id = info.header.frame_id = 'camera_optical'
        image.header.stamp.sec, image.header.stamp.nanosec = START + int(stamp), int(stamp % 1 * 1e9)
        info.header.stamp = image.header.stamp
        camera_publisher.publish(info)
        image_publisher.publish(image)
        spin_until(begin + number / options.rate)
    spin_until(time.monotonic() + 3.0)
    if not found:
        sys.exit('no odometry came back')

    stamps = [message.header.stamp.sec - START + message.header.stamp.nanosec / 1e9 for message in found]
    poses = [message.pose.pose for message in found]
    places = np.array([[p.position.x, p.position.y, p.position.z] for p in poses])
    turns = np.array([[p.orientation.w, p.orientation.x, p.orientation.y, p.orientation.z] for p in poses])
    truth, _, error = align(truth, PoseTrajectory3D(places, turns, np.array(stamps)))
    first = next(number for number, (stamp, _) in enumerate(images) if stamp > stamps[0] - 1e-3)
    print(
        f'{len(found)} of the {len(images) - first} images from the start of the map on were followed   '
        f'ATE {error * 1e3:.1f} mm of {truth.path_length:.2f} m'
    )
    rclpy.shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
