"""The launch description of a node, made from the table of its parameters."""

from typing import Any, List  # noqa: UP035 (launch_ros does not take list[str])

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.node.parameters import TABLES, Parameter

# The value of an argument that was not given: the parameter file applies.
NOT_GIVEN = ''
STRINGS = List[str]  # noqa: UP006
USE_SIM_TIME = Parameter('use_sim_time', False, 'Take the time from the topic /clock, as a simulation gives it.')


def describe(node: str) -> LaunchDescription:
    """Return what starts a node of this package, with arguments for its name, its namespace and each parameter."""
    parameters = [*TABLES[node], USE_SIM_TIME]
    return LaunchDescription([*_arguments(node, parameters), OpaqueFunction(function=_start, args=[node, parameters])])


def _arguments(node: str, parameters: list[Parameter]) -> list[Any]:
    params_file = PathJoinSubstitution([FindPackageShare('edgepoint2_ros'), 'config', f'{node}.yaml'])
    arguments = [
        DeclareLaunchArgument('name', default_value=node, description='Name of the node.'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('params_file', default_value=params_file, description='Parameter file (YAML).'),
    ]
    for parameter in parameters:
        choices = NAMES if parameter.name == 'model' else parameter.choices
        arguments.append(
            DeclareLaunchArgument(
                parameter.name,
                default_value=NOT_GIVEN,
                description=f'{parameter.description} Default: from params_file.',
                choices=[*choices, NOT_GIVEN] if choices else None,
            )
        )
    return arguments


def _start(context: Any, node: str, parameters: list[Parameter]) -> list[Any]:
    values = {}
    for parameter in parameters:
        text = LaunchConfiguration(parameter.name).perform(context)
        if text != NOT_GIVEN:
            value = parameter.parse(text)  # launch's own error would not name the argument
            value_type = STRINGS if parameter.type is list else parameter.type
            values[parameter.name] = ParameterValue(value, value_type=value_type)
    namespace = LaunchConfiguration('namespace').perform(context)
    return [
        Node(
            package='edgepoint2_ros',
            executable=node,
            name=LaunchConfiguration('name'),
            namespace=namespace.rstrip('/') or namespace[:1],  # launch refuses robot/
            parameters=[LaunchConfiguration('params_file'), values],
            output='screen',
        )
    ]
