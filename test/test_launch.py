"""The launch file, started by the real launch: two cameras, arguments, parameter file, topics and a clean exit."""

import os
import sys
import time
import unittest
from pathlib import Path

import numpy as np
import pytest

for _module in ('launch', 'launch_ros', 'launch_testing'):
    pytest.importorskip(_module, reason=f'{_module} is not installed: it comes with a full ROS 2 only')

import launch
import launch_testing
import rclpy
from launch.launch_description_sources import PythonLaunchDescriptionSource
from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from sensor_msgs.msg import Image

from edgepoint2_ros.messages import decode
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.variants import find_variant

ROOT = Path(__file__).parents[1]
TIMEOUT = 30.0
MODEL = find_variant('M-48')

if not os.environ.get('AMENT_PREFIX_PATH'):
    os.environ['AMENT_PREFIX_PATH'] = sys.prefix  # a ROS 2 from pip


@pytest.mark.launch_test
def generate_test_description():
    params_file = Path(os.environ['XDG_DATA_HOME']) / 'test_launch.yaml'
    params_file.write_text('/**:\n  ros__parameters: {max_keypoints: 77, model: T-32, score_threshold: -4.0}\n')
    arguments = {
        'model': MODEL.name,
        'descriptor_encoding': 'int8',
        'score_threshold': '-3',
        'image_reliability': 'reliable',
        'namespace': 'robot',
        'cameras': '[left, right]',
        'image': 'stereo/{camera}/image_raw',
        'keypoints': '/features/{camera}',
        'params_file': str(params_file),
    }
    source = PythonLaunchDescriptionSource(str(ROOT / 'launch' / 'extractor.launch.py'))
    return launch.LaunchDescription(
        [
            launch.actions.IncludeLaunchDescription(source, launch_arguments=arguments.items()),
            launch_testing.actions.ReadyToTest(),
        ]
    )


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

    def test_an_argument_that_was_given_wins_and_the_file_has_the_rest(self):
        expected = {
            'model': MODEL.name,
            'descriptor_encoding': 'int8',
            'score_threshold': -3.0,
            'max_keypoints': 77,
            'autostart': True,
            'cameras': ['left', 'right'],
        }
        client = self.node.create_client(GetParameters, '/robot/extractor/get_parameters')
        assert client.wait_for_service(TIMEOUT)
        future = client.call_async(GetParameters.Request(names=list(expected)))
        self.wait_until(future.done)
        values = [parameter_value_to_python(value) for value in future.result().values]
        values[-1] = list(values[-1])
        assert dict(zip(expected, values)) == expected

    def test_the_topics_have_the_names_that_were_asked_for(self):
        for camera in ('left', 'right'):
            self.check_topics(camera)

    def check_topics(self, name):
        received = []
        features = f'/features/{name}'
        self.node.create_subscription(KeypointArray, features, received.append, 10)
        camera = self.node.create_publisher(Image, f'/robot/stereo/{name}/image_raw', 10)
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
    def test_the_node_ended_cleanly(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
