"""A player as `ros2 bag play` is one: publishes the bytes of a bag as they are. Used by test_bags.py."""

import sys
import time
from pathlib import Path

import rclpy
from rclpy.qos import QoSProfile
from rosbags.highlevel import AnyReader

from edgepoint2_ros.msg import KeypointArray

rclpy.init()
node = rclpy.create_node('player')
with AnyReader([Path(sys.argv[1])]) as reader:
    publisher = node.create_publisher(KeypointArray, reader.connections[0].topic, QoSProfile(depth=50))
    while publisher.get_subscription_count() == 0:
        time.sleep(0.05)
    for _, _, raw in reader.messages():
        publisher.publish(bytes(raw))
publisher.wait_for_all_acked()
rclpy.shutdown()
