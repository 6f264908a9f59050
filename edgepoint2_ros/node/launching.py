"""The launch description of a node, made from the table of its parameters."""

import os
from typing import Any, List  # noqa: UP035 (launch_ros does not take list[str])

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.node.parameters import TABLES, Parameter

# The value of an argument that was not given: the parameter file applies. Name and file have no other default either:
# what one launch file sets would hold for those included after it.
NOT_GIVEN = ''
LISTS = {str: List[str], float: List[float]}  # noqa: UP006
USE_SIM_TIME = Parameter('use_sim_time', False, 'Take the time from the topic /clock, as a simulation gives it.')


def describe(node: str) -> LaunchDescription:
    """Return what starts a node of this package, with arguments for its name, its namespace and each parameter."""
    parameters = [*TABLES[node], USE_SIM_TIME]
    return LaunchDescription([*_arguments(node, parameters), OpaqueFunction(function=_start, args=[node, parameters])])


def _arguments(node: str, parameters: list[Parameter]) -> list[Any]:
    arguments = [
        DeclareLaunchArgument(name, default_value=NOT_GIVEN, description=description)
        for name, description in (
            ('name', f'Name of the node. Default: {node}.'),
            ('namespace', 'Namespace of the node and its topics.'),
            ('params_file', f'Parameter file (YAML). Default: config/{node}.yaml of this package.'),
        )
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
            default = parameter.default
            value_type = LISTS[type(default[0])] if isinstance(default, tuple) else parameter.type
            values[parameter.name] = ParameterValue(value, value_type=value_type)
    file = os.path.expanduser(LaunchConfiguration('params_file').perform(context))
    if file != NOT_GIVEN and not os.path.isfile(file):  # launch would start the node without it
        raise EdgePoint2Error(f'params_file: expected a parameter file (YAML), and there is no file {file}')
    default_file = PathJoinSubstitution([FindPackageShare('edgepoint2_ros'), 'config', f'{node}.yaml'])
    namespace = LaunchConfiguration('namespace').perform(context)
    return [
        Node(
            package='edgepoint2_ros',
            executable=node,
            name=LaunchConfiguration('name').perform(context) or node,
            namespace=namespace.rstrip('/') or namespace[:1],  # launch refuses robot/
            parameters=[file or default_file, values],
            output='screen',
        )
    ]
