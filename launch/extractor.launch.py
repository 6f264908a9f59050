"""Start the node extractor; `ros2 launch edgepoint2_ros extractor.launch.py --show-args` lists the arguments."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from edgepoint2_ros.node.parameters import PARAMETERS
from edgepoint2_ros.variants import NAMES

# The value of an argument that was not given: then the parameter file has the word.
NOT_GIVEN = ''


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*_arguments(), OpaqueFunction(function=_start)])


def _arguments() -> list:
    default_file = PathJoinSubstitution([FindPackageShare('edgepoint2_ros'), 'config', 'extractor.yaml'])
    arguments = [
        DeclareLaunchArgument('image', default_value='image', description='Topic of the images.'),
        DeclareLaunchArgument('keypoints', default_value='keypoints', description='Topic of the keypoints.'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('params_file', default_value=default_file, description='Parameter file (YAML).'),
    ]
    for parameter in PARAMETERS:
        choices = NAMES if parameter.name == 'model' else parameter.choices
        arguments.append(
            DeclareLaunchArgument(
                parameter.name,
                default_value=NOT_GIVEN,
                description=f'{parameter.description} Not given: as params_file says.',
                choices=[*choices, NOT_GIVEN] if choices else None,
            )
        )
    return arguments


def _start(context) -> list:
    given = {
        parameter.name: ParameterValue(LaunchConfiguration(parameter.name), value_type=parameter.type)
        for parameter in PARAMETERS
        if LaunchConfiguration(parameter.name).perform(context) != NOT_GIVEN
    }
    return [
        Node(
            package='edgepoint2_ros',
            executable='extractor',
            namespace=LaunchConfiguration('namespace'),
            parameters=[LaunchConfiguration('params_file'), given],
            remappings=[('image', LaunchConfiguration('image')), ('keypoints', LaunchConfiguration('keypoints'))],
            output='screen',
        )
    ]
