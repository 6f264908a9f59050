"""The launch description of a node, made from the table of its parameters."""

from collections.abc import Iterable
from typing import Any, List  # noqa: UP035 (launch_ros does not take list[str])

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.node.parameters import Parameter

# The value of an argument that was not given: then the parameter file, or the node itself, has the word.
NOT_GIVEN = ''
STRINGS = List[str]  # noqa: UP006
USE_SIM_TIME = Parameter('use_sim_time', False, 'Take the time from the topic /clock, as a simulation gives it.')


def describe(executable: str, parameters: Iterable[Parameter], params_file: Any = NOT_GIVEN) -> LaunchDescription:
    """Return what starts a node, with an argument for its name, its namespace and each of its parameters.

    Args:
        executable: of this package, which is the node's name, too.
        parameters: the node's.
        params_file: the parameter file where the user names none.
    """
    every = [*parameters, USE_SIM_TIME]

    def start(context: Any) -> list[Any]:
        return _start(context, executable, every)

    return LaunchDescription([*_arguments(executable, every, params_file), OpaqueFunction(function=start)])


def _arguments(executable: str, parameters: list[Parameter], params_file: Any) -> list[Any]:
    arguments = [
        DeclareLaunchArgument('name', default_value=executable, description='Name of the node.'),
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('params_file', default_value=params_file, description='Parameter file (YAML).'),
    ]
    for parameter in parameters:
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


def _start(context: Any, executable: str, parameters: list[Parameter]) -> list[Any]:
    values = {}
    for parameter in parameters:
        text = LaunchConfiguration(parameter.name).perform(context)
        if text != NOT_GIVEN:
            value = parameter.parse(text)  # an error of launch would not name the argument
            value_type = STRINGS if parameter.type is list else parameter.type
            values[parameter.name] = ParameterValue(value, value_type=value_type)
    namespace = LaunchConfiguration('namespace').perform(context)
    has_file = LaunchConfiguration('params_file').perform(context) != NOT_GIVEN
    return [
        Node(
            package='edgepoint2_ros',
            executable=executable,
            name=LaunchConfiguration('name'),
            namespace=namespace.rstrip('/') or namespace[:1],  # launch refuses robot/
            parameters=[*([LaunchConfiguration('params_file')] if has_file else []), values],
            output='screen',
        )
    ]
