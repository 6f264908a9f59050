"""Start the node to_rtabmap; `ros2 launch edgepoint2_ros to_rtabmap.launch.py --show-args` lists the arguments."""

from launch import LaunchDescription

from edgepoint2_ros.node.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('to_rtabmap')
