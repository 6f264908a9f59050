"""Start the node visual_odometry; `ros2 launch edgepoint2_ros visual_odometry.launch.py -s` lists the arguments."""

from launch import LaunchDescription

from edgepoint2_ros.node.launching import describe


def generate_launch_description() -> LaunchDescription:
    return describe('visual_odometry')
