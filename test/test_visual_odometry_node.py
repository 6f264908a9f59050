"""The node visual_odometry as a process of its own, fed and read over real DDS."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from test_odometry import MATRIX, Cloud, align, go

from edgepoint2_ros.messages import encode
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.visual_odometry import AHEAD, VisualOdometryNode, to_quaternion

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture
def settings():
    return {'start_depth': 8.0}


@pytest.fixture
def rig(settings, tmp_path):
    """The node as a process, and a node that speaks with it."""
    context = rclpy.Context()
    rclpy.init(context=context)
    rig = Rig(context, tmp_path / 'log.txt', settings)
    yield rig
    rig.process.kill()
    rig.node.destroy_node()
    rclpy.shutdown(context=context)


def command(settings: dict) -> list[str]:
    values = [part for name, value in settings.items() for part in ('-p', f'{name}:={value}')]
    return [sys.executable, '-m', 'edgepoint2_ros.node.visual_odometry', '--ros-args', *values]


class Rig:
    def __init__(self, context, log: Path, settings: dict):
        self.log, self.odometry, self.paths = log, [], []
        self.node = rclpy.create_node('rig', context=context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.keypoints = self.node.create_publisher(KeypointArray, 'keypoints', 10)
        self.camera = self.node.create_publisher(CameraInfo, 'camera_info', 10)
        self.node.create_subscription(Odometry, 'odometry', self.odometry.append, 200)
        self.node.create_subscription(PathMessage, 'path', self.paths.append, 200)
        with open(log, 'w') as file:
            self.process = subprocess.Popen(command(settings), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        self.wait_until(lambda: self.keypoints.get_subscription_count() and self.camera.get_subscription_count())
        self.wait_until(lambda: self.node.count_publishers('odometry') and self.node.count_publishers('path'))

    def wait_until(self, condition, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()
            self.executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def keep_pace(self, number: int) -> None:
        """Wait for the answer to an image, or for a moment: there is none before the start, or to one that got lost."""
        end = time.monotonic() + (2.0 if self.odometry else 0.1)
        while time.monotonic() < end:
            if self.odometry and self.odometry[-1].header.stamp.sec == 1_700_000_000 + number:
                return
            self.executor.spin_once(timeout_sec=0.02)

    def repeat(self, send, text: str) -> None:
        """Send until the node has said ``text``: a best-effort reader loses what comes before it knows the writer."""
        end = time.monotonic() + 30
        while text not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()
            send()
            self.spin(0.2)

    def send_camera(self, text: str, matrix=MATRIX, size=(640, 480), d=(0.0,) * 5) -> None:
        info = CameraInfo(width=size[0], height=size[1], k=np.ravel(matrix), d=d, distortion_model='plumb_bob')
        self.repeat(lambda: self.camera.publish(info), text)

    def send(self, features, number: int) -> None:
        header = Header(frame_id='camera_optical')
        header.stamp.sec, header.stamp.nanosec = 1_700_000_000 + number, 123_456_789
        self.keypoints.publish(encode(features, header, 'int8'))


def test_the_path_of_the_camera_is_published(rig):
    cloud = Cloud()
    views = [cloud.look(*go(k / 10)) for k in range(40)]
    rig.send_camera('move it sideways')
    for number, (features, _) in enumerate(views):
        rig.send(features, number)
        rig.keep_pace(number)
    rig.wait_until(lambda: rig.odometry and rig.odometry[-1].header.stamp.sec == 1_700_000_039)
    assert len(rig.odometry) >= 30
    numbers = [message.header.stamp.sec - 1_700_000_000 for message in rig.odometry]
    assert all(message.header.stamp.nanosec == 123_456_789 for message in rig.odometry)
    last = rig.odometry[-1]
    assert (last.header.frame_id, last.child_frame_id) == ('odom', 'camera_optical')
    places = np.array([[p.x, p.y, p.z] for p in (message.pose.pose.position for message in rig.odometry)])
    truth = np.array([(AHEAD @ views[number][1])[:3, 3] for number in numbers])
    scale, distances = align(places, truth)
    assert scale == pytest.approx(1, rel=0.3)
    assert distances.max() < 0.05
    assert places[-1][0] > places[0][0]  # ahead is x
    rig.wait_until(lambda: len(rig.paths[-1].poses) == len(rig.odometry))
    assert rig.paths[-1].poses[-1].pose == last.pose.pose


def test_bad_messages_are_named_and_change_nothing(rig):
    cloud = Cloud()
    views = [cloud.look(*go(k / 10))[0] for k in range(40)]
    rig.repeat(lambda: rig.send(views[0], 0), 'waiting for a usable camera_info')
    rig.send_camera('camera_info cannot be used: camera matrix: expected (3, 3) with positive', np.zeros((3, 3)))
    rig.send_camera('camera_info cannot be used: distortion: expected 0, 4, 5, 8, 12 or 14', d=[0.1] * 6)
    rig.send_camera('camera of 320x240', size=(320, 240))
    rig.repeat(lambda: rig.send(views[0], 0), 'of 640x480 pixels do not belong to the camera_info of 320x240')
    rig.send_camera('camera of 640x480', MATRIX + np.diag([1e-9, 0, 0]))
    broken = encode(views[0], Header(), 'int8')
    broken.descriptor_encoding = 9
    rig.repeat(lambda: rig.keypoints.publish(broken), 'keypoints dropped: descriptor encoding 9')
    for number, features in enumerate(views):
        rig.send(features, number)
        rig.spin(0.1)
    rig.wait_until(lambda: rig.odometry)
    assert 'starting -> tracking' in rig.log.read_text()


def test_after_a_change_of_model_the_map_starts_anew(rig):
    cloud = Cloud()
    rig.send_camera('move it sideways')
    for digest in ('a', 'b'):
        for number in range(40):
            features, _ = cloud.look(*go(number / 10))
            rig.send(dataclasses.replace(features, digest=digest), number)
            rig.keep_pace(number)
        rig.wait_until(lambda: rig.odometry and rig.odometry[-1].header.stamp.sec == 1_700_000_039)
        rig.wait_until(lambda: rig.paths[-1].header == rig.odometry[-1].header)
        assert len(rig.paths[-1].poses) == len(rig.odometry) >= 30
        rig.odometry.clear()
    assert rig.log.read_text().count('keypoints of T-32 [b] follow those of T-32 [a]: the map starts anew') == 1


@pytest.mark.parametrize('settings', [{'start_depth': 2, 'ratio': 1, 'min_cosine': 0, 'path_length': 0}])
def test_integers_will_do_for_numbers_and_a_path_of_no_length_is_empty(rig):
    cloud = Cloud()
    rig.send_camera('move it sideways')
    for number in range(12):
        rig.send(cloud.look(*go(number / 10))[0], number)
        rig.spin(0.1)
    rig.wait_until(lambda: rig.odometry and rig.paths)
    assert not any(path.poses for path in rig.paths)


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('start_depth', '0', 'a positive number'),
        ('ratio', 'much', 'number'),
        ('rectified', '1', 'true or false'),
        ('path_length', '-1', 'integer from 0 to 1000000'),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, value, expected):
    process = subprocess.run(command({name: value}), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.startswith(f'visual_odometry: parameter {name}: expected {expected}, got ')
    assert process.stderr.count('\n') == 1


@pytest.mark.parametrize('error', [cv2.error('no'), np.linalg.LinAlgError('no')])
def test_keypoints_that_the_arithmetic_fails_on_are_dropped(error, monkeypatch):
    def fail(*_):
        raise error

    features = Cloud().look(*go(0))[0]
    rclpy.init()
    try:
        node = VisualOdometryNode()
        node._take_camera(CameraInfo(width=640, height=480, k=np.ravel(MATRIX), distortion_model='plumb_bob'))
        with monkeypatch.context() as patch:
            patch.setattr(node._odometry, 'track', fail)
            node._take(encode(features, Header()))
        node._take(encode(features, Header()))
        assert node._odometry.state == 'starting'
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(number, rig):
    rig.process.send_signal(number)
    assert rig.process.wait(30) == 0
    assert 'Traceback' not in rig.log.read_text()


def test_quaternions_turn_as_their_matrices():
    rng = np.random.default_rng(0)
    for vector in [*rng.uniform(-3, 3, (50, 3)), np.zeros(3), np.array([np.pi, 0, 0])]:
        x, y, z, w = to_quaternion(cv2.Rodrigues(vector)[0])
        assert x * x + y * y + z * z + w * w == pytest.approx(1)
        angle = 2 * np.arctan2(np.linalg.norm([x, y, z]), w)
        axis = np.array([x, y, z]) / max(np.linalg.norm([x, y, z]), 1e-12)
        np.testing.assert_allclose(cv2.Rodrigues(axis * angle)[0], cv2.Rodrigues(vector)[0], atol=1e-9)
