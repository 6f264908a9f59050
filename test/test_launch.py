"""The launch file, started by the real launch: arguments, parameter files of every form, topics, two side by side."""

import copy
import os
import re
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np
import pytest

for _module in ('launch', 'launch_ros', 'launch_testing'):
    pytest.importorskip(_module, reason=f'{_module} is not installed: it comes with a full ROS 2 only')

import launch
import launch_ros.actions
import launch_testing
import rclpy
import yaml
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import Image

from edgepoint2_ros.messages import decode
from edgepoint2_ros.models.variants import find_variant
from edgepoint2_ros.msg import KeypointArray

ROOT = Path(__file__).parents[1]
TIMEOUT = 30.0
FOLDER = tempfile.TemporaryDirectory()  # gone with this process: the nodes read from it while the test runs
MODEL = find_variant('M-48')
FORMS = {  # of a parameter file for the node of that name
    'plain': [('/forms/plain',)],
    'relative': [('forms/relative',)],
    'nested': [('forms', 'nested')],
    'any': [('/**',)],
    'any_name': [('/forms/*',)],
    'any_place': [('/**/any_place',)],
    'any_level': [('/*/any_level',)],
    'general_first': [('/**',), ('/forms/general_first',)],
}

if not os.environ.get('AMENT_PREFIX_PATH'):
    os.environ['AMENT_PREFIX_PATH'] = sys.prefix  # a ROS 2 from pip


def write(folder: Path, name: str, *keys: tuple, **parameters) -> str:
    """Write a file that gives parameters under each of the keys, and return its path."""
    content = {}
    for path in keys:
        section = {'ros__parameters': copy.deepcopy(parameters)}  # rcl reads no aliases
        for key in reversed(path):
            section = {key: section}
        content.update(section)
    file = folder / f'{name}.yaml'
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(file)


def documented() -> dict:
    """Return what the launch file in docs/nodes/extractor.md defines."""
    blocks = re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs' / 'nodes' / 'extractor.md').read_text(encoding='utf-8'), re.DOTALL
    )
    [code] = [block for block in blocks if 'generate_launch_description' in block]
    names = {}
    exec(code, names)
    return names


@pytest.mark.launch_test
def generate_test_description():
    folder = Path(FOLDER.name)
    names = documented()
    extractor = names['extractor']
    fleet = [
        launch_ros.actions.PushRosNamespace('fleet'),
        extractor(
            model=MODEL.name,
            descriptor_encoding='int8',
            score_threshold='-3',
            use_sim_time='true',
            image_reliability='reliable',
            namespace='robot/',
            cameras='[left, right]',
            image='stereo/{camera}/image_raw',
            keypoints='/features/{camera}',
            params_file=write(folder, 'robot', ('/**',), max_keypoints=77, model='T-32', score_threshold=-4.0),
        ),
    ]
    actions = [*names['generate_launch_description']().entities, launch.actions.GroupAction(fleet)]
    for name, keys in FORMS.items():
        file = write(folder, name, *keys, border=3, cameras=['front', 'rear'], max_keypoints=77)
        actions.append(extractor(namespace='forms', name=name, params_file=file, autostart='false', max_keypoints='5'))
    return launch.LaunchDescription([*actions, launch_testing.actions.ReadyToTest()])


class TestWhileItRuns(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        rclpy.init()
        cls.node = rclpy.create_node('test_launch')

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy_node()
        rclpy.try_shutdown()

    def wait_until(self, condition):
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, f'nothing happened for {TIMEOUT} s'
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def parameters(self, node: str, *names: str) -> dict:
        client = self.node.create_client(GetParameters, f'{node}/get_parameters')
        assert client.wait_for_service(TIMEOUT)
        future = client.call_async(GetParameters.Request(names=names))
        self.wait_until(future.done)
        return {name: parameter_value_to_python(value) for name, value in zip(names, future.result().values)}

    def test_an_argument_that_was_given_wins_and_the_file_has_the_rest(self):
        expected = {
            'model': MODEL.name,
            'descriptor_encoding': 'int8',
            'score_threshold': -3.0,
            'max_keypoints': 77,
            'autostart': True,
            'use_sim_time': True,
            'cameras': ['left', 'right'],
        }
        assert self.parameters('/fleet/robot/extractor', *expected) == expected

    def test_that_holds_for_every_form_of_a_parameter_file(self):
        expected = {'max_keypoints': 5, 'border': 3, 'cameras': ['front', 'rear']}
        for name in FORMS:
            with self.subTest(name):
                assert self.parameters(f'/forms/{name}', *expected) == expected

    def test_one_that_is_included_beside_another_has_none_of_its_arguments(self):
        front = {
            'cameras': ['left', 'right'],
            'image': '/front/{camera}/image_rect',
            'keypoints': '',
            'max_keypoints': 500,
        }
        rear = {'cameras': [''], 'image': '/rear/image_raw', 'keypoints': '/rear/keypoints', 'max_keypoints': 2048}
        assert self.parameters('/front', *front) == front
        assert self.parameters('/rear', *rear) == rear
        self.wait_until(lambda: self.node.count_subscribers('/front/right/image_rect') == 1)
        self.wait_until(lambda: self.node.count_publishers('/rear/keypoints') == 1)

    def test_the_topics_have_the_names_that_were_asked_for(self):
        for camera in ('left', 'right'):
            self.check_topics(camera)

    def check_topics(self, name):
        received = []
        features = f'/features/{name}'
        self.node.create_subscription(KeypointArray, features, received.append, 10)
        camera = self.node.create_publisher(Image, f'/fleet/robot/stereo/{name}/image_raw', 10)
        self.wait_until(lambda: camera.get_subscription_count() == 1 and self.node.count_publishers(features) == 1)
        pixels = np.random.default_rng(0).integers(0, 256, (240, 320), np.uint8)
        image = Image(height=240, width=320, step=320, encoding='mono8', data=pixels.tobytes())
        image.header.frame_id = name
        camera.publish(image)
        self.wait_until(lambda: received)
        assert received[0].header == image.header
        assert received[0].descriptor_encoding == KeypointArray.INT8
        assert len(decode(received[0])) <= 77


@launch_testing.post_shutdown_test()
class TestAfterShutdown(unittest.TestCase):
    def test_the_nodes_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
