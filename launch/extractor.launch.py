"""Start the node extractor; `ros2 launch edgepoint2_ros extractor.launch.py --show-args` lists the arguments."""

from typing import List  # noqa: UP035 (launch_ros does not take list[str])

import yaml
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from edgepoint2_ros.node.parameters import PARAMETERS
from edgepoint2_ros.variants import NAMES

# The value of an argument that was not given: then the parameter file, or the node itself, has the word.
NOT_GIVEN = ''
STRINGS = List[str]  # noqa: UP006
TOPICS = ('image', 'mask', 'keypoints')


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*_arguments(), OpaqueFunction(function=_start)])


def _arguments() -> list:
    default_file = PathJoinSubstitution([FindPackageShare('edgepoint2_ros'), 'config', 'extractor.yaml'])
    arguments = [
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of the node and its topics.'),
        DeclareLaunchArgument('params_file', default_value=default_file, description='Parameter file (YAML).'),
    ]
    for topic in TOPICS:
        description = f'Topic instead of `{topic}`; {{camera}} in it stands for the name of each of the `cameras`.'
        arguments.append(DeclareLaunchArgument(topic, default_value=NOT_GIVEN, description=description))
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


def find_cameras(params_file: str, namespace: str) -> list:
    """Return the cameras that a parameter file gives to the node in ``namespace``, or else its default."""
    with open(params_file, encoding='utf-8') as file:
        nodes = yaml.safe_load(file) or {}
    names = '**', f'{namespace}/extractor'.lstrip('/')
    cameras = ['']
    for name, node in nodes.items():  # of several that name the node, the last one counts
        if name.lstrip('/') in names:
            cameras = ((node or {}).get('ros__parameters') or {}).get('cameras', cameras)
    return cameras


def _start(context) -> list:
    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    parameters = {
        parameter.name: ParameterValue(
            LaunchConfiguration(parameter.name), value_type=STRINGS if parameter.type is list else parameter.type
        )
        for parameter in PARAMETERS
        if given(parameter.name) != NOT_GIVEN
    }
    if given('cameras') != NOT_GIVEN:
        cameras = yaml.safe_load(given('cameras'))
    else:
        cameras = find_cameras(given('params_file'), given('namespace'))
    if not isinstance(cameras, list):
        raise ValueError(f'cameras: expected a list such as [left, right], got {cameras!r}')
    remappings = []
    for topic in TOPICS:
        target = given(topic)
        if target == NOT_GIVEN:
            continue
        if len(cameras) > 1 and '{camera}' not in target:
            raise ValueError(f'{topic}:={target}: expected {{camera}} in it, one topic for each of {cameras}')
        for camera in cameras:
            remappings.append((f'{camera}/{topic}' if camera else topic, target.replace('{camera}', camera)))
    return [
        Node(
            package='edgepoint2_ros',
            executable='extractor',
            namespace=LaunchConfiguration('namespace'),
            parameters=[LaunchConfiguration('params_file'), parameters],
            remappings=remappings,
            output='screen',
        )
    ]
