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
# What `ros2 launch` does with a file that includes others, until ENOUGH nodes were started.
CODE = """
import sys
import launch

enough, files = int(sys.argv[1]), sys.argv[2].split()
arguments = [argument.split(':=', 1) for argument in sys.argv[3:]]
started = []

def count(event, context):
    started.append(event.cmd)
    print('started', *event.cmd, flush=True)
    return launch.actions.Shutdown() if len(started) == enough else None

service = launch.LaunchService()
service.include_launch_description(launch.LaunchDescription([
    launch.actions.RegisterEventHandler(launch.event_handlers.OnProcessStart(on_start=count)),
    *(
        launch.actions.IncludeLaunchDescription(
            launch.launch_description_sources.PythonLaunchDescriptionSource(file), launch_arguments=arguments
        )
        for file in files
    ),
]))
sys.exit(service.run())
"""

pytestmark = pytest.mark.slow


def start(*arguments: str, node: str = 'extractor', enough: int = 0) -> subprocess.CompletedProcess:
    """Launch one node, or several named with spaces between, until they end or enough of them were started."""
    environment = {'AMENT_PREFIX_PATH': sys.prefix, **os.environ}
    files = ' '.join(str(LAUNCH / f'{name}.launch.py') for name in node.split())
    command = [sys.executable, '-c', CODE, str(enough), files, *arguments]
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
        ('visual_odometry', 'pose_covariance_diagonal:=[1.0]', 'parameter pose_covariance_diagonal: expected'),
        (
            'tracker',
            'cameras:=[{name: left}]',
            "which begin with no digit; or [''], got [{'name': 'left'}]",
        ),
        (
            'tracker',
            'params_file:=/nowhere.yaml',
            'params_file: expected a parameter file (YAML), and there is no file',
        ),
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


def test_a_list_of_numbers_reaches_the_node():
    result = start('pose_covariance_diagonal:=[1e-2, 1, 1, 0.1, 0.1, 0.1]', node='visual_odometry', enough=1)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith('started')]
    assert 'visual_odometry' in line, result.stdout + result.stderr


def test_each_of_several_launch_files_has_its_own_name_and_parameters():
    result = start(node='extractor tracker', enough=2)
    lines = [line for line in result.stdout.splitlines() if line.startswith('started')]
    assert len(lines) == 2, result.stdout + result.stderr
    for line, node in zip(lines, ('extractor', 'tracker'), strict=True):
        assert f'__node:={node}' in line
        assert f'config/{node}.yaml' in line
