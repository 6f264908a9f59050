"""The node tracker as a process of its own, fed and read over real DDS."""

import dataclasses
import itertools
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_rig import end_rigs, wait_until
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, PointCloud
from std_msgs.msg import Header
from test_odometry import MATRIX, Cloud, go

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.messages import encode, to_nanoseconds
from edgepoint2_ros.msg import KeypointArray, Tracks
from edgepoint2_ros.node.camera_info import read_stereo
from edgepoint2_ros.node.diagnostics import to_status
from edgepoint2_ros.node.tracker_node import CHANNELS, VINS_IDS, TrackerNode, to_message, to_vins
from edgepoint2_ros.odometry import Camera
from edgepoint2_ros.tracking import Tracker

ROOT = Path(__file__).parents[1]
START = 1_700_000_000_123_456_789  # stamp of image 0, nanoseconds
STEP = 50_000_000  # between two images
SHIFT = 0.2  # from the left to the right camera of the stereo pair

pytestmark = pytest.mark.slow
starts = itertools.count()


@pytest.fixture
def start_rig(ros, tmp_path):
    """Return a function that starts the node as a process, and a node that speaks with it."""
    rigs = []

    def start(namespace: str, **settings):
        # A name of its own for each start: of a node before, the graph may hold remains.
        rigs.append(Rig(f'{namespace}_{next(starts)}', tmp_path / 'log.txt', settings))
        return rigs[-1]

    yield start
    end_rigs(rigs)


def command(settings: dict, namespace: str = 'any') -> list[str]:
    values = [part for name, value in settings.items() for part in ('-p', f'{name}:={value}')]
    return [
        *(sys.executable, '-m', 'edgepoint2_ros.node.tracker', '--ros-args', '-r', f'__ns:=/{namespace}'),
        *values,
    ]


def calibration(shift: float = 0.0, size=(640, 480), **fields) -> CameraInfo:
    p = np.column_stack([MATRIX, [-MATRIX[0, 0] * shift, 0, 0]])
    fields = {'k': np.ravel(MATRIX), 'p': np.ravel(p), 'r': np.eye(3).ravel(), 'd': (0.0,) * 5, **fields}
    return CameraInfo(width=size[0], height=size[1], distortion_model='plumb_bob', **fields)


class Rig:
    def __init__(self, namespace: str, log: Path, settings: dict):
        self.log, self.tracks, self.clouds, self.diagnostics = log, [], [], []
        self.node, self.target = rclpy.create_node('rig', namespace=namespace), f'/{namespace}/tracker'
        names = yaml.safe_load(settings.get('cameras', "['']"))
        prefixes = [f'{name}/' if name else '' for name in names]
        self.keypoints = [self.node.create_publisher(KeypointArray, f'{prefix}keypoints', 10) for prefix in prefixes]
        self.cameras = [self.node.create_publisher(CameraInfo, f'{prefix}camera_info', 10) for prefix in prefixes]
        self.node.create_subscription(Tracks, 'tracks', self.tracks.append, 100)
        self.node.create_subscription(PointCloud, 'feature_tracker/feature', self.clouds.append, 100)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 10)
        self._name = f'{self.target}: tracks'
        with open(log, 'w') as file:
            self.process = subprocess.Popen(
                command(settings, namespace), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
        publishers = [*self.keypoints, *self.cameras]
        self.wait_until(lambda: all(publisher.get_subscription_count() for publisher in publishers))
        # Then it knows the readers here as well, all of which were announced before that of diagnostics.
        self.wait_until(lambda: self.diagnostics)

    def _diagnose(self, message) -> None:
        self.diagnostics += [status for status in message.status if status.name == self._name]

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_until(self, condition) -> None:
        try:
            wait_until(condition, lambda: rclpy.spin_once(self.node, timeout_sec=0.02))
        except AssertionError as error:
            said = f'exit code {self.process.poll()}, {self.diagnostics[-1:]}, {self.output}'
            raise AssertionError(f'{error}: {said}') from None

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.output)

    def calibrate(self, *infos: CameraInfo, text: str = 'camera of 640x480 pixels') -> None:
        """Publish calibrations, one a camera, until the node has said ``text`` once more."""
        count = self.output.count(text)

        def is_said() -> bool:
            for publisher, info in zip(self.cameras, infos):
                publisher.publish(info)
            return self.output.count(text) > count

        self.wait_until(is_said)

    def send(self, features, stamp: int, side: int = 0, encoding: str = 'int8') -> None:
        header = Header(frame_id='optical', stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9))
        self.keypoints[side].publish(encode(features, header, encoding))

    def answer(self, features, number: int, right=None) -> Tracks:
        """Send image ``number``, and the right one with it, and return its tracks."""
        stamp, count = START + number * STEP, len(self.tracks)
        if right is not None:
            self.send(right, stamp, 1)
        self.send(features, stamp)
        late = time.monotonic() + 5

        def is_answered() -> bool:
            nonlocal late
            if time.monotonic() > late:
                # Fast DDS has been seen to hold a message back until the next one; this one is out of order.
                self.send(features, stamp - 1)
                late += 5
            return len(self.tracks) > count

        self.wait_until(is_answered)
        assert to_nanoseconds(self.tracks[-1].header.stamp) == stamp
        return self.tracks[-1]

    def wait_for_diagnostics(self, text: str) -> dict[str, str]:
        """Wait for a status that says ``text`` and return its values."""
        self.diagnostics.clear()
        self.wait_until(lambda: any(text in status.message for status in self.diagnostics))
        status = next(status for status in self.diagnostics if text in status.message)
        return {value.key: value.value for value in status.values}


def see(cloud: Cloud, number: int, shift: float = 0.0):
    """Return what a camera sees in image ``number``, from a place to the right of its path."""
    position, turn = go(number / 20)
    pose = cloud.look(position, turn)[1]
    return cloud.look(pose[:3, :3] @ [shift, 0, 0] + position, turn)[0]


def test_tracks_are_those_of_the_library(start_rig):
    rig, cloud, library = start_rig('mono'), Cloud(), Tracker(Camera(MATRIX))
    rig.calibrate(calibration())
    for number in range(12):
        features = see(cloud, number)
        message = rig.answer(features, number)
        expected = library.track(features, number * STEP * 1e-9)
        assert message.header.frame_id == 'optical'
        assert (message.model, message.digest, message.cameras) == ('T-32', 'a', [''])
        np.testing.assert_array_equal(message.id, expected.ids)
        np.testing.assert_array_equal(message.age, expected.ages)
        np.testing.assert_array_equal(message.keypoint, expected.keypoints)
        np.testing.assert_array_equal(np.column_stack([message.x, message.y]), expected.xy)
        np.testing.assert_allclose(np.column_stack([message.bearing_x, message.bearing_y]), expected.rays, atol=1e-6)
        found = np.column_stack([message.velocity_x, message.velocity_y])
        np.testing.assert_allclose(found, expected.velocities, atol=1e-4)
        assert len(message.right_x) == len(message.right_keypoint) == 0
    assert len(message.id) == 400
    assert max(message.age) == 12
    assert rig.clouds == []
    values = rig.wait_for_diagnostics('400 tracks')
    assert (values['images'], values['published']) == ('12', '12')


def test_a_stereo_pair_gives_partners_and_what_vins_fusion_reads(start_rig):
    rig, cloud = start_rig('stereo', cameras='[left, right]', vins='true'), Cloud()
    rig.calibrate(calibration(), calibration(SHIFT))
    for number in range(5):
        left, right = see(cloud, number), see(cloud, number, SHIFT)
        message = rig.answer(left, number, right)
    assert message.cameras == ['left', 'right']
    partners = np.array(message.right_keypoint)
    both = partners >= 0
    assert both.mean() > 0.8
    rows = left.descriptors[np.array(message.keypoint)[both]], right.descriptors[partners[both]]
    assert ((rows[0] * rows[1]).sum(axis=1) > 0.99).all()
    np.testing.assert_array_equal(np.array(message.right_x)[both], right.xy[partners[both], 0])
    assert np.isnan(np.array(message.right_x)[~both]).all()
    assert (np.array(message.bearing_x)[both] > np.array(message.right_bearing_x)[both]).all()

    rig.wait_until(lambda: len(rig.clouds) == 5)
    cloud_message = rig.clouds[-1]
    assert cloud_message.header == message.header
    assert [channel.name for channel in cloud_message.channels] == list(CHANNELS)
    ids, camera, u, v, vx, vy, *truth = (np.array(channel.values) for channel in cloud_message.channels)
    assert len(cloud_message.points) == len(message.id) + both.sum()
    np.testing.assert_array_equal(ids[camera == 0], message.id)
    np.testing.assert_array_equal(ids[camera == 1], np.array(message.id)[both])
    np.testing.assert_array_equal(u[camera == 0], message.x)
    np.testing.assert_array_equal(v[camera == 1], np.array(message.right_y)[both])
    np.testing.assert_array_equal(vx[camera == 0], message.velocity_x)
    np.testing.assert_array_equal(vy[camera == 1], np.array(message.right_velocity_y)[both])
    assert not np.any(truth)
    places = np.array([[point.x, point.y, point.z] for point in cloud_message.points])
    np.testing.assert_array_equal(places[camera == 0, 0], message.bearing_x)
    assert (places[:, 2] == 1).all()


def test_numbers_that_a_float32_cannot_hold_are_taken_modulo_and_points_without_a_bearing_are_left_out():
    cloud = Cloud()
    tracks = Tracker(Camera(MATRIX), first_id=VINS_IDS + 5).track(see(cloud, 0), 0.0)
    tracks.rays[0] = np.nan
    message = to_vins(tracks, Header())
    assert np.array(message.channels[0].values).tolist() == list(range(6, 405))


def test_images_whose_stamps_do_not_pair_are_tracked_alone(start_rig):
    rig, cloud = start_rig('unpaired', cameras='[left, right]'), Cloud()
    rig.calibrate(calibration(), calibration(SHIFT))
    assert max(rig.answer(see(cloud, 0), 0, see(cloud, 0, SHIFT)).right_keypoint) >= 0
    for number in range(1, 8):
        rig.send(see(cloud, number), START + number * STEP)
        rig.send(see(cloud, number, SHIFT), START + number * STEP + STEP // 2, 1)
    rig.wait_until(lambda: len(rig.tracks) >= 7)
    assert set(rig.tracks[5].right_keypoint) == {-1}
    rig.wait_for('no keypoints of right within 3 ms of those of left')
    told = 'without their right ones: right'
    rig.wait_until(
        lambda: any(told in each.message and each.level == DiagnosticStatus.WARN for each in rig.diagnostics)
    )
    assert int(rig.wait_for_diagnostics('').get('without a right image')) >= 5
    message = rig.answer(see(cloud, 9), 9, see(cloud, 9, SHIFT))
    assert max(message.right_keypoint) >= 0
    assert max(message.age) >= 8


def test_bad_messages_are_named_and_counted_and_the_next_good_one_is_tracked(start_rig):
    rig, cloud = start_rig('bad'), Cloud()
    features = see(cloud, 0)
    rig.send(features, START)
    rig.wait_for('keypoints dropped: waiting for a usable camera_info')
    k = np.array(MATRIX)
    k[0, 0] = 0
    rig.calibrate(
        calibration(k=k.ravel()), text='camera_info cannot be used: camera matrix: expected (3, 3) with positive'
    )
    rig.calibrate(calibration(size=(320, 240)), text='camera of 320x240 pixels')
    rig.wait_until(lambda: rig.diagnostics)
    rig.send(features, START)
    values = rig.wait_for_diagnostics(
        'keypoints of an image of 640x480 pixels do not belong to the camera_info of 320x240'
    )
    assert (values['dropped: no calibration'], values['dropped: other size']) == ('1', '1')
    rig.calibrate(calibration())
    broken = encode(features, Header(), 'int8')
    broken.descriptor_encoding = 9
    rig.keypoints[0].publish(broken)
    rig.wait_for_diagnostics('descriptor encoding 9')
    for field in ('xy', 'descriptors'):
        values = getattr(features, field).copy()
        values[3] = np.nan
        rig.send(dataclasses.replace(features, **{field: values}), START, encoding='float32')
    rig.send(features, START)
    rig.wait_until(lambda: rig.tracks)
    assert rig.answer(see(cloud, 1), 1).age[0] >= 2


def test_descriptors_of_another_size_in_the_first_message_do_not_end_the_tracking(start_rig):
    rig, cloud = start_rig('size'), Cloud()
    rig.calibrate(calibration())
    features = see(cloud, 0)
    rig.send(dataclasses.replace(features, descriptors=features.descriptors[:, :0]), START, encoding='float32')
    rig.wait_for('descriptors to be tracked: expected at least 1 number each, got 0')
    half = np.ascontiguousarray(features.descriptors[:, :16])
    assert len(rig.answer(dataclasses.replace(features, descriptors=half), 1).id) == 400
    for number in range(2, 5):
        message = rig.answer(see(cloud, number), number)
    assert max(message.age) == 3
    rig.wait_for('keypoints of T-32 [a] of 32 numbers follow those of T-32 [a] of 16 numbers: resetting the tracks')
    values = rig.wait_for_diagnostics('')
    assert [values[name] for name in ('images', 'published', 'dropped: bad')] == ['5', '4', '1']


def follow_diagnostics(node: TrackerNode, monkeypatch):
    """Return a function that returns the values of a node's diagnostics, and the age of its oldest track."""
    found = {}

    def keep_ages(tracks, *rest):
        found['oldest'] = int(tracks.ages.max())
        return to_message(tracks, *rest)

    def keep_values(node, task, level, reason, values):
        found.update(values)
        return to_status(node, task, level, reason, values)

    monkeypatch.setattr('edgepoint2_ros.node.tracker_node.to_message', keep_ages)
    monkeypatch.setattr('edgepoint2_ros.node.tracker_node.to_status', keep_values)

    def values() -> dict[str, int]:
        node.report()
        return found

    return values


@pytest.mark.parametrize('error', [cv2.error('no'), np.linalg.LinAlgError('no'), ValueError('no')])
def test_an_image_that_tracking_fails_on_is_counted_and_the_next_one_is_tracked_anew(error, ros, monkeypatch):
    def fail(*_):
        raise error

    cloud, node = Cloud(), TrackerNode()
    values = follow_diagnostics(node, monkeypatch)
    node.calibrations[0].take(calibration())
    node.take(encode(see(cloud, 0), Header()))
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, 'track', fail)
        node.take(encode(see(cloud, 1), Header()))
    node.take(encode(see(cloud, 2), Header()))
    found = values()
    assert (found['images'], found['published'], found['dropped: bad'], node.failures.count) == (3, 2, 1, 1)
    assert found['oldest'] == 1
    node.destroy_node()


def test_an_image_without_keypoints_has_no_tracks_and_those_before_it_go_on(start_rig):
    rig, cloud = start_rig('empty'), Cloud()
    rig.calibrate(calibration())
    before = [rig.answer(see(cloud, number), number) for number in range(3)][-1]
    features = see(cloud, 3)
    nothing = dataclasses.replace(
        features, xy=features.xy[:0], scores=features.scores[:0], descriptors=features.descriptors[:0]
    )
    assert len(rig.answer(nothing, 3).id) == 0
    assert len(set(before.id) & set(rig.answer(see(cloud, 4), 4).id)) > 200


@pytest.mark.parametrize('change', ['model', 'time', 'calibration'])
def test_tracks_reset_with_numbers_of_their_own(change, start_rig):
    rig, cloud = start_rig(f'anew_{change}'), Cloud()
    rig.calibrate(calibration())
    used = set()
    for number in range(10, 13):
        used |= set(rig.answer(see(cloud, number), number).id)
    features, number = see(cloud, 13), 13
    if change == 'model':
        features = dataclasses.replace(features, digest='b')
    elif change == 'time':
        number = -100
    else:
        rig.calibrate(calibration(k=(MATRIX + np.diag([1.0, 0, 0])).ravel()))
    message = rig.answer(features, number)
    assert not used & set(message.id)
    assert set(message.age) == {1}
    said = {
        'model': 'keypoints of T-32 [b] of 32 numbers follow those of T-32 [a] of 32 numbers: resetting the tracks',
        'time': 'time jumps back by 5.600 s: resetting the tracks',
        'calibration': 'camera of 640x480 pixels',
    }
    rig.wait_for(said[change])  # what is logged may come after what is published


def test_images_out_of_order_are_left_out(start_rig):
    rig, cloud = start_rig('order'), Cloud()
    rig.calibrate(calibration())
    for number in (5, 6, 7):
        rig.answer(see(cloud, number), number)
    rig.send(see(cloud, 6), START + 6 * STEP)
    rig.wait_for('keypoints dropped: they are 0.050 s older than the last ones')
    assert max(rig.answer(see(cloud, 8), 8).age) == 4


def test_the_counts_of_a_stereo_pair_add_up_side_by_side(ros, monkeypatch):
    cloud, node = Cloud(), TrackerNode(parameter_overrides=[Parameter('cameras', value=['left', 'right'])])
    for part, info in zip(node.calibrations, (calibration(), calibration(SHIFT))):
        part.take(info)

    def message(number: int, shift: float = 0.0) -> KeypointArray:
        stamp = START + number * STEP
        header = Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9))
        return encode(see(cloud, number, shift), header)

    values = follow_diagnostics(node, monkeypatch)
    for number in range(100, 103):
        node.take_right(message(number, SHIFT))
        node.take(message(number))
    for number in (103, 104, 0):  # the left ones of the right camera wait, then time jumps back
        node.take(message(number))
    for number in (1, 2, 1):
        node.take_right(message(number, SHIFT))
    node.take(message(2))
    found = values()
    assert (found['images'], found['published'], found['dropped: out of order']) == (7, 5, 2)
    assert (found['without a right image'], found['waiting for a right image']) == (1, 0)
    assert (found['right images without a left one'], found['right images out of order']) == (1, 1)
    assert found['images'] == found['published'] + found['dropped: out of order']
    node.destroy_node()


def test_a_right_image_of_another_model_is_refused_and_the_next_pair_tracked(start_rig):
    rig, cloud = start_rig('mixed', cameras='[left, right]'), Cloud()
    rig.calibrate(calibration(), calibration(SHIFT))
    rig.answer(see(cloud, 0), 0, see(cloud, 0, SHIFT))
    rig.send(see(cloud, 1), START + STEP)
    rig.send(dataclasses.replace(see(cloud, 1, SHIFT), digest='b'), START + STEP, 1)
    rig.wait_for('keypoints dropped: features of T-32 [a] cannot be matched with features of T-32 [b]')
    assert max(rig.answer(see(cloud, 2), 2, see(cloud, 2, SHIFT)).age) == 2


def test_a_stereo_pair_whose_calibration_has_no_baseline_is_refused(start_rig):
    rig = start_rig('baseline', cameras='[left, right]')
    rig.calibrate(calibration(), calibration(), text='the right camera_info: expected P with -fx * baseline')
    rig.calibrate(calibration(), calibration(SHIFT))


@pytest.mark.parametrize('rectified', [False, True])
def test_the_motion_between_two_cameras_is_that_of_their_calibration(rectified):
    turn = cv2.Rodrigues(np.array([0.01, -0.02, 0.03]))[0]
    shift = np.array([-0.2, 0.01, 0.02])
    rotations = cv2.stereoRectify(MATRIX, np.zeros(5), MATRIX, np.zeros(5), (640, 480), turn, shift[:, None])
    left, right = (
        calibration(r=np.ravel(rotation), p=np.ravel(matrix)) for rotation, matrix in zip(rotations[:2], rotations[2:4])
    )
    motion = read_stereo(left, right, rectified)
    if rectified:
        np.testing.assert_allclose(motion[:3, 3], [-np.linalg.norm(shift), 0, 0], atol=1e-9)
    else:
        np.testing.assert_allclose(motion[:3, :3], turn, atol=1e-9)
        np.testing.assert_allclose(motion[:3, 3], shift, atol=1e-9)


def test_a_stereo_pair_without_a_rotation_is_refused():
    with pytest.raises(EdgePoint2Error, match='the left camera_info: expected a rotation as R'):
        read_stereo(calibration(r=np.zeros(9)), calibration(SHIFT), False)


def test_keypoints_are_read_reliably(start_rig):
    rig = start_rig('reliable')
    [reader] = rig.node.get_subscriptions_info_by_topic('keypoints')
    assert reader.qos_profile.reliability == ReliabilityPolicy.RELIABLE


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('cameras', '[a, b, c]', 'one or two like [left, right]'),
        ('cameras', '[a, a]', 'one or two like [left, right]'),
        ('cameras', '[0]', 'one or two like [left, right]'),
        ('cameras', '[false]', 'one or two like [left, right]'),
        ('max_tracks', '0', 'integer from 1 to 10000'),
        ('max_lost', '-1', 'integer from 0 to 1000'),
        ('min_cosine', '2', 'number from -1.0 to 1.0'),
        ('vins', '1', 'true or false'),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, value, expected):
    process = subprocess.run(command({name: value}), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert process.stderr.startswith(f'tracker: parameter {name}: expected {expected}')
    assert process.stderr.count('\n') == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly(number, start_rig):
    rig = start_rig('end')
    rig.process.send_signal(number)
    assert rig.process.wait(30) == 0
    assert 'Traceback' not in rig.output
