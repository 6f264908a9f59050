"""Start the node extractor; `ros2 launch edgepoint2_ros extractor.launch.py --show-args` lists the arguments."""

from launch import LaunchDescription

from edgepoint2_ros.node.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('extractor')
