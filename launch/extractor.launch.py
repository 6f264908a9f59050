"""Start the node extractor; `ros2 launch edgepoint2_ros extractor.launch.py --show-args` lists the arguments."""

from typing import List  # noqa: UP035 (launch_ros does not take list[str])

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.node.parameters import PARAMETERS, Parameter

# The value of an argument that was not given: then the parameter file, or the node itself, has the word.
NOT_GIVEN = ''
STRINGS = List[str]  # noqa: UP006
EVERY = (
    *PARAMETERS,
    Parameter('use_sim_time', False, 'Take the time from the topic /clock, as a simulation gives it.'),
)


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*_arguments(), OpaqueFunction(function=_start)])


def _arguments() -> list:
    default_file = PathJoinSubstitution([FindPackageShare('edgepoint2_ros'), 'config', 'extractor.yaml'])
    arguments = [
        DeclareLaunchArgument('name', default_value='extractor', description='Name of the node.'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('params_file', default_value=default_file, description='Parameter file (YAML).'),
    ]
    for parameter in EVERY:
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
    parameters = {}
    for parameter in EVERY:
        text = LaunchConfiguration(parameter.name).perform(context)
        if text != NOT_GIVEN:
            value = parameter.parse(text)  # an error of launch would not name the argument
            value_type = STRINGS if parameter.type is list else parameter.type
            parameters[parameter.name] = ParameterValue(value, value_type=value_type)
    namespace = LaunchConfiguration('namespace').perform(context)
    return [
        Node(
            package='edgepoint2_ros',
            executable='extractor',
            name=LaunchConfiguration('name'),
            namespace=namespace.rstrip('/') or namespace[:1],  # launch refuses robot/
            parameters=[LaunchConfiguration('params_file'), parameters],
            output='screen',
        )
    ]
