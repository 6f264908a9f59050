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

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Transform, TransformStamped, Vector3
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from node_rig import end_rigs
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header
from test_frames import between, turned
from test_odometry import MATRIX, Cloud, align, go

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.messages import encode, to_nanoseconds
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.camera_info import read_camera
from edgepoint2_ros.node.frames import to_matrix
from edgepoint2_ros.node.parameters import VISUAL_ODOMETRY
from edgepoint2_ros.node.visual_odometry_node import AHEAD, UNKNOWN, VisualOdometryNode, to_velocity

ROOT = Path(__file__).parents[1]
START = 1_700_000_000_123_456_789  # stamp of image 0, nanoseconds
STEP = 100_000_000  # between two images
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

pytestmark = pytest.mark.slow


@pytest.fixture
def settings():
    return {}


@pytest.fixture
def start_rig(settings, tmp_path):
    """Return a function that starts the node as a process, and a node that speaks with it."""
    context = rclpy.Context()
    rclpy.init(context=context)
    rigs = []

    def start(**options):
        rigs.append(Rig(context, tmp_path / 'log.txt', {'start_depth': 8.0, **settings}, **options))
        rigs[-1].start()
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.executor.shutdown()  # it keeps what it waited for
    end_rigs(rigs)
    rclpy.shutdown(context=context)


@pytest.fixture
def rig(start_rig):
    return start_rig()


def command(settings: dict) -> list[str]:
    values = [part for name, value in settings.items() for part in ('-p', f'{name}:={value}')]
    return [sys.executable, '-m', 'edgepoint2_ros.node.visual_odometry', '--ros-args', *values]


def calibration(matrix=MATRIX, size=(640, 480), d=(0.0,) * 5, **fields) -> CameraInfo:
    fields = {'k': np.ravel(matrix), 'distortion_model': 'plumb_bob', **fields}
    return CameraInfo(width=size[0], height=size[1], d=d, **fields)


class Rig:
    def __init__(self, context, log: Path, settings: dict, camera_qos=10, keypoints_qos=10, latched=None, **process):
        """Set up the other side.

        Args:
            context: of rclpy.
            log: where the node's output goes.
            settings: the node's parameters.
            camera_qos, keypoints_qos: of the publishers.
            latched: a CameraInfo that is published before the node starts.
            **process: options of its process.
        """
        self.log, self.odometry, self.paths = log, [], []
        self._settings, self._process = settings, process
        self.node, self.target = rclpy.create_node('rig', context=context), '/visual_odometry'
        self.executor = rclpy.executors.SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.keypoints = self.node.create_publisher(KeypointArray, 'keypoints', keypoints_qos)
        self.camera = self.node.create_publisher(CameraInfo, 'camera_info', camera_qos)
        self.clock = self.node.create_publisher(Clock, '/clock', 10)
        self.node.create_subscription(Odometry, 'odometry', self.odometry.append, 200)
        self.node.create_subscription(PathMessage, 'path', self.paths.append, 200)
        if latched is not None:
            self.camera.publish(latched)

    def start(self) -> None:
        with open(self.log, 'w') as file:
            self.process = subprocess.Popen(
                command(self._settings), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, **self._process
            )
        self.wait_until(lambda: self.keypoints.get_subscription_count() and self.camera.get_subscription_count())
        self.wait_until(lambda: self.node.count_publishers('odometry') and self.node.count_publishers('path'))

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_until(self, condition, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output
            self.executor.spin_once(timeout_sec=0.02)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.output)

    def wait_for_odometry(self, number: int) -> None:
        """Wait for the odometry of an image."""
        self.wait_until(lambda: self.odometry and self.number(self.odometry[-1]) == number)

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
        while text not in self.output:
            assert time.monotonic() < end, self.output
            send()
            self.spin(0.2)

    def send_camera(self, text: str, *args, **fields) -> None:
        """Publish a calibration until the node has said ``text``."""
        info = calibration(*args, **fields)
        self.repeat(lambda: self.camera.publish(info), text)

    def send(self, features, number: int, encoding: str = 'int8') -> None:
        """Publish keypoints as those of image ``number``."""
        stamp = START + number * STEP
        header = Header(frame_id='camera_optical', stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9))
        self.clock.publish(Clock(clock=header.stamp))
        self.keypoints.publish(encode(features, header, encoding))

    def fly(self, views, first: int = 0) -> None:
        """Send what a camera sees at successive images, and wait until the last one is placed."""
        self.send_all(views, first)
        self.wait_for_odometry(first + len(views) - 1)

    def send_all(self, views, first: int = 0) -> None:
        for number, (features, _) in enumerate(views, first):
            self.send(features, number)
            self.spin(0.05)

    @staticmethod
    def number(message) -> int:
        """Return which image a message belongs to."""
        return round((to_nanoseconds(message.header.stamp) - START) / STEP)


def views(count: int = 20, cloud: Cloud | None = None) -> list:
    """Return what a camera sees on its way, and its pose (4, 4), image by image."""
    cloud = cloud or Cloud()
    return [cloud.look(*go(k / 10)) for k in range(count)]


def to_pose(message) -> np.ndarray:
    """Return the pose of an Odometry or the motion of a TransformStamped as a matrix (4, 4)."""
    if isinstance(message, TransformStamped):
        return to_matrix(message.transform)
    place, turn = message.pose.pose.position, message.pose.pose.orientation
    return to_matrix(Transform(translation=Vector3(x=place.x, y=place.y, z=place.z), rotation=turn))


def test_the_path_of_the_camera_is_published(rig):
    seen = views(40)
    rig.send_camera('move it sideways')
    rig.fly(seen)
    assert len(rig.odometry) >= 30
    numbers = [rig.number(message) for message in rig.odometry]
    assert [to_nanoseconds(message.header.stamp) for message in rig.odometry] == [START + k * STEP for k in numbers]
    last = rig.odometry[-1]
    assert (last.header.frame_id, last.child_frame_id) == ('odom', 'camera_optical')
    places = np.array([[p.x, p.y, p.z] for p in (message.pose.pose.position for message in rig.odometry)])
    truth = np.array([(AHEAD @ seen[number][1])[:3, 3] for number in numbers])
    scale, distances = align(places, truth)
    assert scale == pytest.approx(1, rel=0.3)
    assert distances.max() < 0.05
    assert places[-1][0] > places[0][0]  # ahead is x
    rig.wait_until(lambda: len(rig.paths[-1].poses) == len(rig.odometry))
    assert rig.paths[-1].poses[-1].pose == last.pose.pose


def test_bad_messages_are_named_and_change_nothing(rig):
    seen = views()
    rig.repeat(lambda: rig.send(seen[0][0], 0), 'waiting for a usable camera_info')
    rig.send_camera('camera_info cannot be used: distortion: expected 0, 4, 5, 8, 12 or 14', d=[0.1] * 6)
    rig.send_camera('camera of 320x240', size=(320, 240))
    rig.repeat(lambda: rig.send(seen[0][0], 0), 'of 640x480 pixels do not belong to the camera_info of 320x240')
    rig.send_camera('camera of 640x480', MATRIX + np.diag([1e-9, 0, 0]))
    broken = encode(seen[0][0], Header(), 'int8')
    broken.descriptor_encoding = 9
    rig.repeat(lambda: rig.keypoints.publish(broken), 'keypoints dropped: descriptor encoding 9')
    rig.fly(seen)
    assert 'starting -> tracking' in rig.output


def with_number(place: int, value: float, rows: int = 3) -> np.ndarray:
    """Return the camera matrix, with as many columns, row by row and with one number changed."""
    matrix = np.eye(3, rows)
    matrix[:, :3] = MATRIX
    np.put(matrix, place, value)
    return matrix.ravel()


RAW = [{'k': with_number(place, value)} for place, value in ((0, np.nan), (5, np.nan), (4, np.inf), (4, -500), (0, 0))]
RAW += [{'d': [0, value, 0, 0, 0]} for value in (np.nan, -np.inf)]
RECTIFIED = [{'p': with_number(place, value, 4)} for place, value in ((0, np.nan), (6, np.nan), (5, np.inf), (5, -500))]


@pytest.mark.parametrize(('settings', 'bad'), [({}, RAW), ({'rectified': 'true'}, RECTIFIED)], ids=['K and D', 'P'])
def test_numbers_that_no_camera_has_are_said_once_and_the_next_good_ones_count(bad, rig):
    good = {'p': with_number(0, 500, 4)}
    for count, fields in enumerate([*bad, *bad], 1):
        for change, text in ((fields, 'camera_info cannot be used: '), ({}, 'move it sideways')):
            for _ in range(8):
                rig.camera.publish(calibration(**{**good, **change}))
                rig.spin(0.02)
            rig.wait_until(lambda text=text, count=count: rig.output.count(text) >= count)
            rig.spin(0.1)
            assert rig.output.count(text) == count, (change, rig.output)
    rig.fly(views())


def test_numbers_that_are_not_needed_may_be_anything_but_are_said(rig):
    info = calibration(p=with_number(0, np.nan, 4))
    for number, (features, _) in enumerate(views()):
        rig.camera.publish(info)
        rig.send(features, number)
        rig.spin(0.05)
    rig.wait_for_odometry(19)
    assert rig.output.count('camera_info: P is not finite, but is not needed') == 1
    assert rig.output.count('move it sideways') == 1


@pytest.mark.parametrize('offered', [10, qos_profile_sensor_data, LATCHED], ids=['reliable', 'best effort', 'latched'])
def test_a_calibration_is_heard_however_it_is_offered(offered, start_rig):
    rig = start_rig(camera_qos=offered)
    rig.send_camera('move it sideways')
    rig.fly(views())
    assert 'incompatible' not in rig.output


def test_a_calibration_that_was_latched_before_the_node_started_is_heard(start_rig):
    rig = start_rig(camera_qos=LATCHED, latched=calibration())
    rig.wait_for('move it sideways')
    rig.fly(views())
    assert rig.output.count('move it sideways') == 1


def test_once_its_publisher_latches_no_more_a_calibration_is_heard_again(start_rig):
    rig = start_rig(camera_qos=LATCHED, latched=calibration())
    rig.wait_for('camera of 640x480')
    rig.node.destroy_publisher(rig.camera)
    rig.camera = rig.node.create_publisher(CameraInfo, 'camera_info', qos_profile_sensor_data)
    rig.send_camera('camera of 320x240', size=(320, 240))
    rig.wait_until(lambda: rig.camera.get_subscription_count() == 1)


def test_a_part_of_the_sensor_in_larger_pixels_is_a_camera_of_its_own(rig):
    roi = RegionOfInterest(x_offset=200, y_offset=100, width=1280, height=960, do_rectify=True)
    whole = np.array([[1000.0, 0, 639 + 200], [0, 1000, 479 + 100], [0, 0, 1]])
    rig.send_camera('camera of 640x480 pixels', whole, (1920, 1200), binning_x=2, binning_y=2, roi=roi)
    seen = views()
    rig.fly(seen)
    truth = np.array([(AHEAD @ seen[rig.number(message)][1])[:3, 3] for message in rig.odometry])
    _, distances = align(np.array([to_pose(message)[:3, 3] for message in rig.odometry]), truth)
    assert distances.max() < 0.05


@pytest.mark.parametrize('rectified', [False, True])
def test_pixels_of_a_part_of_the_sensor_lie_where_image_geometry_has_them(rectified):
    whole = np.array([[1000.0, 0, 800], [0, 1100, 600], [0, 0, 1]])
    info = calibration(whole, (1600, 1200), p=np.ravel(np.c_[whole + np.diag([10, 20, 0]), [5, 6, 0]]))
    for roi, binning, expected in (
        ((0, 0, 0, 0), (0, 0), (1600, 1200)),
        ((0, 0, 0, 0), (1, 1), (1600, 1200)),
        ((0, 0, 1600, 1200), (0, 0), (1600, 1200)),
        ((0, 0, 0, 0), (2, 4), (800, 300)),
        ((100, 60, 801, 900), (0, 0), (801, 900)),
        ((100, 60, 801, 900), (2, 3), (400, 300)),
    ):
        info.roi = RegionOfInterest(**dict(zip(('x_offset', 'y_offset', 'width', 'height'), roi)))
        info.binning_x, info.binning_y = binning
        camera, size = read_camera(info, rectified)
        assert size == expected
        pixel = (np.reshape(info.p, (3, 4))[:, :3] if rectified else whole) @ [0.1, -0.2, 1]
        np.testing.assert_allclose(
            (camera.matrix @ [0.1, -0.2, 1])[:2], (pixel[:2] - roi[:2]) / np.maximum(binning, 1), atol=1e-9
        )
    np.testing.assert_array_equal(info.k, whole.ravel())  # the message is as it was


@pytest.mark.parametrize('roi', [(1, 0, 640, 480), (0, 1, 640, 480), (0, 0, 640, 0), (10, 10, 0, 0), (0, 0, 1, 1)])
def test_a_part_that_the_sensor_does_not_have_is_refused(roi):
    region = RegionOfInterest(**dict(zip(('x_offset', 'y_offset', 'width', 'height'), roi)))
    with pytest.raises(EdgePoint2Error, match=f'expected a part of 640x480 pixels, got {roi[2]}x{roi[3]} at'):
        read_camera(calibration(roi=region, binning_x=2), False)


@pytest.mark.parametrize('settings', [{}, {'use_sim_time': 'true'}], ids=['time of the images', 'simulated time'])
def test_when_time_jumps_back_the_map_and_the_path_reset(rig):
    rig.send_camera('move it sideways')
    for restarts in range(3):
        rig.fly(views())
        rig.wait_until(lambda: rig.paths[-1].header == rig.odometry[-1].header)
        assert len(rig.paths[-1].poses) == len(rig.odometry) >= 10
        assert rig.output.count('time jumps back by 1.900 s: resetting the map and the path') == restarts
        assert rig.output.count('starting -> tracking') == restarts + 1
        rig.odometry.clear()


def test_images_out_of_order_are_left_out_and_restart_nothing(rig):
    seen = views()
    rig.send_camera('move it sideways')
    rig.fly(seen)
    rig.odometry.clear()
    rig.send(seen[16][0], 16)
    rig.wait_for('keypoints dropped: they are 0.300 s older than the last ones')
    rig.fly([Cloud().look(*go(2.0))], 20)
    assert [rig.number(message) for message in rig.odometry] == [20]
    assert rig.output.count('starting -> tracking') == 1


def test_images_without_a_stamp_are_followed(rig):
    rig.send_camera('move it sideways')
    for features, _ in views():
        rig.keypoints.publish(encode(features, Header(frame_id='camera_optical')))
        rig.spin(0.05)
    rig.wait_until(lambda: len(rig.odometry) >= 10)
    assert not any(message.twist.twist.linear.x for message in rig.odometry)


def test_after_a_change_of_model_the_map_starts_anew(rig):
    words = 'keypoints of T-32 [b] of 32 numbers follow those of T-32 [a] of 32 numbers: resetting the map'
    rig.send_camera('move it sideways')
    for first, digest in ((0, 'a'), (20, 'b')):
        rig.fly([(dataclasses.replace(features, digest=digest), pose) for features, pose in views()], first)
        rig.wait_until(lambda: rig.paths[-1].header == rig.odometry[-1].header)
        assert len(rig.paths[-1].poses) == len(rig.odometry) >= 10
        rig.odometry.clear()
    assert rig.output.count(words) == 1


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda rows: rows * np.nan, 'descriptors to be tracked hold numbers that are not finite'),
        (lambda rows: rows[:, :0], 'descriptors to be tracked: expected at least 1 number each, got 0'),
        (lambda rows: rows[:, :16], 'T-32 [a] of 32 numbers follow those of T-32 [a] of 16 numbers: resetting the map'),
    ],
    ids=['not finite', 'no numbers', 'half the numbers'],
)
def test_a_first_message_with_bad_descriptors_does_not_end_the_odometry(change, words, rig):
    (features, _), *others = views()
    rig.send_camera('move it sideways')
    broken = dataclasses.replace(features, descriptors=np.ascontiguousarray(change(features.descriptors)))
    rig.send(broken, 0, 'float32')
    rig.fly(others, 1)
    assert words in rig.output


def test_each_message_that_exceeds_the_buffers_of_the_middleware_arrives(rig):
    cloud, rng = Cloud(), np.random.default_rng(0)
    cloud.points = rng.uniform((-6, -3, 3), (6, 3, 14), (7000, 3))
    cloud.rows = rng.normal(size=(7000, 64)).astype(np.float32)
    cloud.rows /= np.linalg.norm(cloud.rows, axis=1, keepdims=True)
    rig.send_camera('move it sideways')
    for number, (features, _) in enumerate(views(25, cloud)):
        parts = {name: getattr(features, name)[:2048] for name in ('xy', 'scores', 'descriptors')}
        message = dataclasses.replace(features, **parts)
        rig.send(message, number, 'float32')
        if rig.odometry:
            rig.wait_for_odometry(number)
        else:
            rig.spin(0.5)
    assert len(rig.odometry) >= 10


def test_keypoints_are_read_reliably(rig):
    [reader] = rig.node.get_subscriptions_info_by_topic('keypoints')
    assert reader.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_the_variances_are_all_there_and_the_twist_is_that_of_the_path(rig):
    rig.send_camera('move it sideways')
    rig.fly(views())
    defaults = {parameter.name: parameter.default for parameter in VISUAL_ODOMETRY}
    pose, twist = defaults['pose_covariance_diagonal'], defaults['twist_covariance_diagonal']
    first, *others = rig.odometry
    np.testing.assert_array_equal(np.reshape(first.pose.covariance, (6, 6)), np.diag(pose))
    np.testing.assert_array_equal(np.reshape(first.twist.covariance, (6, 6)), np.diag([UNKNOWN] * 6))
    for last, message in zip(rig.odometry, others):
        np.testing.assert_array_equal(np.reshape(message.pose.covariance, (6, 6)), np.diag(pose))
        np.testing.assert_array_equal(np.reshape(message.twist.covariance, (6, 6)), np.diag(twist))
        linear, angular = message.twist.twist.linear, message.twist.twist.angular
        seconds = (rig.number(message) - rig.number(last)) * STEP * 1e-9
        np.testing.assert_allclose(
            [linear.x, linear.y, linear.z, angular.x, angular.y, angular.z],
            to_velocity(to_pose(last), to_pose(message), seconds),
            atol=1e-6,
        )


def test_a_velocity_is_that_of_the_frame_as_it_is_now():
    now = turned((0, 0, np.pi / 2), (3, 4, 5))  # its x looks along y
    before = now @ np.linalg.inv(turned((0.1, 0.2, 0.3), (1, 0, 0)))
    velocity = to_velocity(before, now, 0.5)
    np.testing.assert_allclose(velocity[3:], [0.2, 0.4, 0.6], atol=1e-9)
    np.testing.assert_allclose(now[:3, :3] @ velocity[:3], (now - before)[:3, 3] / 0.5, atol=1e-9)


@pytest.mark.parametrize(
    'settings',
    [{'pose_covariance_diagonal': '[1, 2, 3, 4, 5, 6]', 'twist_covariance_diagonal': '[.1, .2, .3, .4, .5, 1.0e+3]'}],
)
def test_variances_are_what_they_are_set_to(rig):
    rig.send_camera('move it sideways')
    rig.fly(views())
    message = rig.odometry[-1]
    np.testing.assert_array_equal(np.reshape(message.pose.covariance, (6, 6)), np.diag([1.0, 2, 3, 4, 5, 6]))
    np.testing.assert_array_equal(np.reshape(message.twist.covariance, (6, 6)), np.diag([0.1, 0.2, 0.3, 0.4, 0.5, 1e3]))


OPTICAL = turned((-np.pi / 2, 0, 0)) @ turned((0, np.pi / 2, 0))  # x right, y down, z ahead, in x ahead, y left, z up
MOUNT = turned((0, 0.1, 0.5), (0.3, -0.2, 0.4))


class Robot:
    """The rest of a robot: its static transforms, and who listens to /tf."""

    def __init__(self, rig):
        from tf2_msgs.msg import TFMessage

        self._rig, self._type, self.heard = rig, TFMessage, []
        self._static = rig.node.create_publisher(TFMessage, '/tf_static', LATCHED)
        rig.node.create_subscription(TFMessage, '/tf', lambda message: self.heard.extend(message.transforms), 100)

    def mount_camera(self) -> None:
        """Say where the camera is: on base_link, with a frame between, as drivers of cameras have it."""
        mounts = [between('base_link', 'camera_link', MOUNT), between('camera_link', 'camera_optical', OPTICAL)]
        self._static.publish(self._type(transforms=mounts))

    def check(self, frame: str) -> None:
        """Check that each odometry came as a transform, too."""
        odometry = self._rig.odometry
        self._rig.wait_until(lambda: len(self.heard) >= len(odometry))
        for message, transform in zip(odometry, self.heard, strict=True):
            assert transform.header == message.header
            assert (transform.header.frame_id, transform.child_frame_id) == ('odom', frame)
            np.testing.assert_array_equal(to_pose(transform), to_pose(message))


@pytest.mark.parametrize('settings', [{'publish_tf': 'true'}])
def test_the_frame_of_the_camera_is_published_on_request(tf2_msgs, start_rig):
    rig = start_rig(env=tf2_msgs)
    robot = Robot(rig)
    rig.wait_until(lambda: rig.node.count_publishers('/tf') == 1)
    rig.send_camera('move it sideways')
    rig.fly(views())
    robot.check('camera_optical')
    assert {message.child_frame_id for message in rig.odometry} == {'camera_optical'}


@pytest.mark.parametrize('settings', [{'publish_tf': 'true', 'base_frame': 'base_link'}])
def test_the_base_of_the_robot_is_followed_once_it_is_known_where_the_camera_is(tf2_msgs, start_rig):
    rig = start_rig(env=tf2_msgs)
    robot = Robot(rig)
    seen = views(30)
    rig.send_camera('move it sideways')
    rig.send_all(seen[:15])
    rig.wait_for("no odometry: /tf_static does not connect base_link with 'camera_optical', the frame of the images")
    assert rig.odometry == robot.heard == []
    robot.mount_camera()
    rig.spin(0.5)
    rig.fly(seen[15:], 15)
    robot.check('base_link')
    assert {message.child_frame_id for message in rig.odometry} == {'base_link'}
    # The base was where odom is when the camera was where its own path begins.
    mount = MOUNT @ OPTICAL
    found = [np.linalg.inv(mount) @ to_pose(message) @ mount for message in rig.odometry]
    truth = [seen[rig.number(message)][1] for message in rig.odometry]
    for pose, true in zip(found, truth):
        np.testing.assert_allclose(pose[:3, :3], true[:3, :3], atol=0.01)
    scale, distances = align(np.array(found)[:, :3, 3], np.array(truth)[:, :3, 3])
    assert scale == pytest.approx(1, rel=0.3)
    assert distances.max() < 0.05


@pytest.mark.parametrize('settings', [{'publish_tf': 'true'}])
def test_a_frame_that_has_a_parent_gets_no_second_one(tf2_msgs, start_rig):
    rig = start_rig(env=tf2_msgs)
    robot = Robot(rig)
    robot.mount_camera()
    rig.send_camera('move it sideways')
    rig.fly(views())
    rig.wait_for('camera_optical has a parent in the tree of base_link, and a frame has only one; set base_frame')
    assert robot.heard == []


@pytest.mark.parametrize('setting', ['publish_tf:=true', 'base_frame:=base_link'])
def test_where_the_message_of_tf2_is_missing_what_needs_it_is_refused_in_one_line(setting):
    module = 'edgepoint2_ros.node.visual_odometry'
    code = f'import sys; sys.modules["tf2_msgs"] = None; from {module} import main; sys.exit(main())'
    process = subprocess.run(
        [sys.executable, '-c', code, '--ros-args', '-p', setting], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1
    assert process.stderr.startswith('visual_odometry: base_frame and publish_tf need tf2_msgs: sudo apt install ros-')
    assert process.stderr.count('\n') == 1


def test_no_transforms_are_published_unasked(rig):
    rig.send_camera('move it sideways')
    rig.fly(views())
    assert rig.node.count_publishers('/tf') == rig.node.count_subscribers('/tf_static') == 0


@pytest.mark.parametrize('settings', [{'start_depth': 2, 'ratio': 1, 'min_cosine': 0, 'path_length': 0}])
def test_integers_will_do_for_numbers_and_a_path_of_no_length_is_empty(rig):
    rig.send_camera('move it sideways')
    rig.fly(views())
    rig.wait_until(lambda: rig.paths)
    assert not any(path.poses for path in rig.paths)


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('odom_frame', "''", 'the name of a frame'),
        ('base_frame', 'odom', 'another frame than odom_frame'),
        ('base_frame', '7', 'string'),
        ('publish_tf', 'yes!', 'true or false'),
        ('rectified', '1', 'true or false'),
        ('start_depth', '0', 'a positive number'),
        ('start_depth', '.inf', 'a positive number'),
        ('start_depth', '.nan', 'a positive number'),
        ('min_cosine', '70', 'number from -1.0 to 1.0'),
        ('ratio', 'much', 'a number above 0, at most 1'),
        ('ratio', '0', 'a number above 0, at most 1'),
        ('pose_covariance_diagonal', '[1, 1, 1, 1, 1]', '6 positive numbers'),
        ('pose_covariance_diagonal', '[1, 1, 1, 1, 1, 0]', '6 positive numbers'),
        ('twist_covariance_diagonal', '[1.0, 1.0, 1.0, 1.0, 1.0, .inf]', '6 positive numbers'),
        ('twist_covariance_diagonal', '1.0', '6 positive numbers'),
        ('twist_covariance_diagonal', '[a, b, c, d, e, f]', '6 positive numbers'),
        ('path_length', '-1', 'integer from 0 to 1000000'),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, value, expected):
    process = subprocess.run(command({name: value}), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.startswith(f'visual_odometry: parameter {name}: expected {expected}, got ')
    assert process.stderr.count('\n') == 1


@pytest.mark.parametrize('error', [cv2.error('no'), np.linalg.LinAlgError('no'), ValueError('no')])
def test_keypoints_that_the_arithmetic_fails_on_are_dropped(error, monkeypatch):
    def fail(*_):
        raise error

    features = Cloud().look(*go(0))[0]
    rclpy.init()
    try:
        node = VisualOdometryNode()
        node.calibration.take(CameraInfo(width=640, height=480, k=np.ravel(MATRIX), distortion_model='plumb_bob'))
        with monkeypatch.context() as patch:
            patch.setattr(node.odometry, 'track', fail)
            broken = node.odometry
            node.take(encode(features, Header()))
        node.take(encode(features, Header()))
        assert node.odometry is not broken  # which may have changed halfway
        assert (node.odometry.state, node.failures.count) == ('starting', 1)
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(number, rig):
    rig.process.send_signal(number)
    assert rig.process.wait(30) == 0
    assert 'Traceback' not in rig.output


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--params-file', '/no/such/file.yaml'], '/no/such/file.yaml'),
        (['-r', '__ns:=two words'], 'two words'),
        (['-p', 'use_sim_time:=3'], 'use_sim_time'),
        (['-p', 'start_depth:=-1'], 'start_depth'),
    ],
)
def test_what_cannot_be_started_is_an_error_of_few_lines_without_a_traceback(arguments, reason):
    command = [sys.executable, '-m', 'edgepoint2_ros.node.visual_odometry', '--ros-args', *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert reason in process.stderr
    assert 'Traceback' not in process.stderr
