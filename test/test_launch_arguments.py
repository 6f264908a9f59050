"""What the launch files say to arguments that they cannot use, in the real launch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

for _module in ('launch', 'launch_ros'):
    pytest.importorskip(_module, reason=f'{_module} is not installed: it comes with a full ROS 2 only')

LAUNCH = Path(__file__).parents[1] / 'launch'
TIMEOUT = 60.0
# What `ros2 launch` does with a file and its arguments.
CODE = """
import sys
import launch

source = launch.launch_description_sources.PythonLaunchDescriptionSource(sys.argv[1])
arguments = [argument.split(':=', 1) for argument in sys.argv[2:]]
service = launch.LaunchService()
service.include_launch_description(
    launch.LaunchDescription([launch.actions.IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""

pytestmark = pytest.mark.slow


def start(*arguments: str, node: str = 'extractor') -> subprocess.CompletedProcess:
    environment = {'AMENT_PREFIX_PATH': sys.prefix, **os.environ}
    command = [sys.executable, '-c', CODE, LAUNCH / f'{node}.launch.py', *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.mark.parametrize(
    ('node', 'argument', 'complaint'),
    [
        ('extractor', 'max_keypoints:=1000.0', 'parameter max_keypoints: expected integer from 1, got 1000.0'),
        ('extractor', "cameras:=['0','1']", "which begin with no digit; or [''], got ['0', '1']"),
        ('extractor', 'cameras:=left', 'parameter cameras: expected a list like [left, right]'),
        ('extractor', 'image:=/cam//image', "parameter image: expected a topic, or nothing, got '/cam//image'"),
        ('extractor', 'use_sim_time:=5', 'parameter use_sim_time: expected true or false, got 5'),
        ('extractor', 'model:=T-64', 'Argument "model" provided value "T-64" is not valid'),
        ('tracker', 'max_tracks:=many', 'parameter max_tracks: expected integer from 1'),
        ('to_rtabmap', 'place:=5', 'parameter place: expected true or false, got 5'),
        ('visual_odometry', 'ratio:=2.0', 'parameter ratio: expected a number above 0, at most 1, got 2.0'),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(node, argument, complaint):
    result = start(argument, node=node)
    assert result.returncode == 1
    assert complaint in result.stdout + result.stderr
    assert 'process started' not in result.stdout + result.stderr


def test_a_topic_that_does_not_fit_the_cameras_ends_the_node():
    result = start('cameras:=[left, right]', 'image:=/cam/image')
    assert "parameter image: expected {camera} in it, one topic for each of ['left', 'right'], got '/cam/image'" in (
        result.stdout + result.stderr
    )
