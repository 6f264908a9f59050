"""Start the node extractor; `ros2 launch edgepoint2_ros extractor.launch.py --show-args` lists the arguments."""

from launch import LaunchDescription
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from edgepoint2_ros.node.launching import describe
from edgepoint2_ros.node.parameters import PARAMETERS


def generate_launch_description() -> LaunchDescription:
    params_file = PathJoinSubstitution([FindPackageShare('edgepoint2_ros'), 'config', 'extractor.yaml'])
    return describe('extractor', PARAMETERS, params_file)
