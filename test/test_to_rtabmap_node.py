"""The node to_rtabmap as a process: what it publishes, what it drops and says, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_rig import end_rigs
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from test_rtabmap import Frame
from test_survival import interrupt_import

from edgepoint2_ros.models import find_model
from edgepoint2_ros.msg import KeypointArray

ROOT = Path(__file__).parents[1]
TIMEOUT = 30.0

pytestmark = pytest.mark.slow


class Rig:
    """The node as a process, and a camera, an extractor and a reader around it."""

    def __init__(self, folder: Path, environment: dict, latched: bool = False, image_qos=10, remap=(), **values):
        from rtabmap_msgs.msg import RGBDImage

        self.log = folder / 'to_rtabmap.log'
        command = [sys.executable, '-m', 'edgepoint2_ros.node.to_rtabmap', '--ros-args', '-r', '__ns:=/rig']
        for rule in remap:
            command += ['-r', rule]
        for name, value in values.items():
            command += ['-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}']
        with open(self.log, 'w') as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.node, self.target = rclpy.create_node('rig', namespace='/rig'), '/rig/to_rtabmap'
        self.received, self.diagnostics = [], []
        create = self.node.create_publisher
        self.keypoints = create(KeypointArray, values.get('keypoints', 'keypoints'), 10)
        self.image = create(Image, 'image', image_qos)
        self.compressed = create(CompressedImage, 'image/compressed', 10)
        self.depth = create(Image, 'depth', 10)
        self.right = create(Image, 'right/image', 10)
        info_qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL) if latched else 10
        self.info = create(CameraInfo, 'camera_info', info_qos)
        self.right_info = create(CameraInfo, 'right/camera_info', 10)
        self.node.create_subscription(RGBDImage, 'rgbd_image', self.received.append, 10)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 10)
        self.stamp = 1_700_000_000

    def _diagnose(self, message) -> None:
        self.diagnostics += [status for status in message.status if status.name == '/rig/to_rtabmap: rgbd_image']

    @property
    def output(self) -> str:
        return self.log.read_text()

    def frame(self) -> Frame:
        """Return the messages of the next moment."""
        self.stamp += 1
        frame = Frame()
        messages = (frame.keypoints, frame.rgb, frame.depth, frame.right, frame.info, frame.right_info)
        for header in (frame.header, *(message.header for message in messages)):
            header.stamp.sec = self.stamp
        return frame

    def publish(self, frame: Frame) -> None:
        """Publish a moment of a depth camera, the keypoints last."""
        self.info.publish(frame.info)
        self.image.publish(frame.rgb)
        self.depth.publish(frame.depth)
        self.keypoints.publish(frame.keypoints)

    def spin_until(self, condition, repeat=lambda: None) -> None:
        """Serve the rig, doing something every half second, until a condition holds."""
        end, again = time.monotonic() + TIMEOUT, 0.0
        while not condition():
            assert time.monotonic() < end, self.output
            assert self.process.poll() is None, self.output
            if time.monotonic() > again:
                repeat()
                again = time.monotonic() + 0.5
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def connect(self) -> None:
        """Publish moments until one is answered and the node asks for images as they are offered, and one more.

        Until then it may lose some; that one settles the moments before it.
        """
        self.spin_until(lambda: self.received and self.is_adapted(), lambda: self.publish(self.frame()))
        self.answer(self.frame())

    def is_adapted(self) -> bool:
        """Tell whether the node's subscriptions to images have the reliability that is offered."""
        return all(
            [reader.qos_profile.reliability for reader in self.node.get_subscriptions_info_by_topic(images.topic_name)]
            == [images.qos_profile.reliability]
            for images in (self.image, self.depth)
        )

    def answer(self, frame: Frame):
        """Publish a moment and return what the node makes of it."""
        self.received.clear()
        self.publish(frame)
        late = time.monotonic() + 5

        def publish_again() -> None:
            # Best-effort images may be lost, and Fast DDS has been seen to hold a message back until the next one.
            if time.monotonic() > late:
                self.publish(frame)

        self.spin_until(lambda: any(message.header == frame.rgb.header for message in self.received), publish_again)
        return self.received[-1]

    def values(self) -> dict[str, str]:
        """Return the counters of the next diagnostics."""
        self.diagnostics.clear()
        self.spin_until(lambda: self.diagnostics)
        return {each.key: each.value for each in self.diagnostics[-1].values}


@pytest.fixture
def start(ros, rtabmap_msgs, tmp_path):
    """Return a function that starts the node and what is around it."""
    rigs = []

    def start(**options) -> Rig:
        rigs.append(Rig(tmp_path, rtabmap_msgs, **options))
        return rigs[-1]

    yield start
    end_rigs(rigs)


def test_moments_of_a_depth_camera_become_rgbd_images(start):
    rig = start()
    rig.connect()
    frame = rig.frame()
    message = rig.answer(frame)
    assert (message.rgb, message.depth) == (frame.rgb, frame.depth)
    assert (message.rgb_camera_info, message.depth_camera_info) == (frame.info, frame.info)
    assert (len(message.key_points), message.rgb_compressed.format) == (3, '')
    rig.process.send_signal(signal.SIGINT)
    assert rig.process.wait(TIMEOUT) == 0
    assert 'Traceback' not in rig.output


def test_a_rectified_stereo_pair_has_its_right_image_in_place_of_depth(start):
    rig = start(stereo=True)

    def publish():
        frame = rig.frame()
        rig.right_info.publish(frame.right_info)
        rig.right.publish(frame.right)
        rig.publish(frame)

    rig.spin_until(lambda: rig.received, publish)
    assert rig.received[0].depth.encoding == 'mono8'
    assert rig.received[0].depth_camera_info.p[3] == -60.0


def test_compressed_images_a_latched_calibration_and_other_topics_are_heard(start):
    rig = start(transport='compressed', keypoints='features', latched=True)
    rig.info.publish(rig.frame().info)

    def publish():
        frame = rig.frame()
        rig.compressed.publish(_compress(frame))
        rig.depth.publish(frame.depth)
        rig.keypoints.publish(frame.keypoints)

    rig.spin_until(lambda: rig.received, publish)
    assert rig.received[0].rgb_compressed.format == 'jpeg'


def _compress(frame: Frame) -> CompressedImage:
    return frame.compressed('.jpg', 'jpeg', np.zeros((480, 640), np.uint8))


def test_best_effort_images_are_heard(start):
    rig = start(image_qos=qos_profile_sensor_data)
    rig.connect()


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda f: setattr(f.info, 'width', 320), 'camera_info: expected one of 640x480 pixels, got 320x480'),
        (lambda f: f.info.p.__setitem__(0, 0.0), 'focal lengths'),
        (lambda f: setattr(f.depth, 'data', f.depth.data[:100]), 'do not fit 100 bytes'),
        (lambda f: setattr(f, 'depth', f.right), 'depth: expected one of 16UC1'),
        (lambda f: setattr(f.rgb, 'encoding', 'jpeg'), "got 'jpeg'"),
        (lambda f: setattr(f.keypoints, 'image_width', 320), 'differ in their size'),
        (lambda f: setattr(f.keypoints, 'descriptors', f.keypoints.descriptors[:-1]), 'descriptors'),
    ],
)
def test_a_bad_moment_is_dropped_counted_and_named_and_the_next_is_answered(change, words, start):
    rig = start()
    rig.connect()

    def publish():
        bad = rig.frame()
        change(bad)
        rig.publish(bad)

    rig.spin_until(lambda: words in rig.output, publish)
    rig.spin_until(lambda: any(words in status.message for status in rig.diagnostics), publish)
    values = rig.values()
    assert int(values['dropped: bad']) > 0
    assert words in values['last error']
    rig.answer(rig.frame())


def test_an_image_without_keypoints_is_answered(start):
    rig = start()
    rig.connect()
    frame = rig.frame()
    for name in ('x', 'y', 'score', 'descriptors'):
        del getattr(frame.keypoints, name)[:]
    assert len(rig.answer(frame).key_points) == 0


def test_keypoints_whose_image_or_depth_never_comes_are_counted(start):
    rig = start()
    rig.connect()
    before = rig.values()
    for missing in ('image', 'depth'):
        frame = rig.frame()
        if missing == 'depth':
            rig.image.publish(frame.rgb)
        rig.keypoints.publish(frame.keypoints)
        rig.answer(rig.frame())
    after = rig.values()
    assert int(after['dropped: no image']) - int(before['dropped: no image']) == 1
    assert int(after['dropped: no depth']) - int(before['dropped: no depth']) == 1


def test_keypoints_whose_depth_has_a_stamp_too_far_from_theirs_are_counted_and_named(start):
    rig = start(max_interval=0.02)
    rig.connect()
    before = rig.values()
    frame = rig.frame()
    frame.depth.header.stamp.nanosec += 30_000_000
    rig.diagnostics.clear()
    rig.publish(frame)
    rig.answer(rig.frame())
    words = '1 images without a match within max_interval on /rig/depth (1 publish it): are they synchronised?'
    rig.spin_until(lambda: any(status.message == words for status in rig.diagnostics))
    after = rig.values()
    assert int(after['dropped: no depth']) - int(before['dropped: no depth']) == 1
    assert after['dropped: no image'] == before['dropped: no image']


def test_without_a_calibration_the_node_says_what_it_waits_for(start):
    rig = start()

    def publish():
        frame = rig.frame()
        for publisher, message in ((rig.image, frame.rgb), (rig.depth, frame.depth), (rig.keypoints, frame.keypoints)):
            publisher.publish(message)

    rig.spin_until(lambda: 'waiting for /rig/camera_info' in rig.output, publish)
    rig.connect()


def test_another_model_and_time_that_jumps_back_are_followed(start):
    rig = start()
    rig.connect()
    frame = rig.frame()
    frame.keypoints.digest = 'b'
    rig.answer(frame)
    rig.stamp -= 1000
    rig.answer(rig.frame())


def test_with_place_each_image_has_a_global_descriptor_and_those_of_other_weights_are_dropped(start):
    rig = start(place=True)
    other = 'the features are of T-32 [a]: places of different weights cannot be compared'
    rig.spin_until(lambda: other in rig.output, lambda: rig.publish(rig.frame()))
    assert not rig.received
    digest = find_model('T-32').digest

    def publish():
        frame = rig.frame()
        frame.keypoints.digest = digest
        rig.publish(frame)

    rig.spin_until(lambda: rig.received, publish)
    assert len(rig.received[0].global_descriptor.data) > 0


def test_silence_is_seen_in_the_diagnostics(start):
    rig = start()
    rig.spin_until(lambda: any('no keypoints for' in status.message for status in rig.diagnostics))


@pytest.mark.parametrize(('missing', 'topic'), [('image', '/rig/image'), ('depth', '/rig/depth')])
def test_while_nothing_gets_through_the_input_that_is_missing_is_named(missing, topic, start):
    rig = start(queue_size=1000)
    rig.connect()

    def publish():
        frame = rig.frame()
        rig.info.publish(frame.info)
        if missing == 'depth':
            rig.image.publish(frame.rgb)
        rig.keypoints.publish(frame.keypoints)

    rig.diagnostics.clear()
    words = f's: keypoints wait for a match on {topic} (1 publish it)'
    rig.spin_until(lambda: any(words in status.message for status in rig.diagnostics), publish)
    assert rig.diagnostics[-1].level == DiagnosticStatus.WARN
    rig.diagnostics.clear()
    rig.spin_until(
        lambda: any(status.level == DiagnosticStatus.OK for status in rig.diagnostics),
        lambda: rig.publish(rig.frame()),
    )


def test_those_who_publish_a_remapped_topic_are_counted(start):
    rig = start(remap=['keypoints:=features', 'image:=picture'], queue_size=1)
    features = rig.node.create_publisher(KeypointArray, 'features', 10)
    rig.node.create_publisher(Image, 'picture', 10)
    said = ['s on /rig/features (1 publish it)', 'without their image on /rig/picture (1 publish it)']

    def publish():
        features.publish(rig.frame().keypoints)

    for words, repeat in zip(said, (lambda: None, publish)):
        rig.spin_until(lambda: any(words in status.message for status in rig.diagnostics), repeat)  # noqa: B023


def test_a_signal_while_the_node_imports_what_it_needs_ends_it_quietly(rtabmap_msgs):
    assert interrupt_import('edgepoint2_ros.node.to_rtabmap', signal.SIGINT, env=rtabmap_msgs) == (0, '')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['-p', 'transport:=smoke'], 'parameter transport: expected one of raw, compressed'),
        (['-p', 'queue_size:=0'], 'parameter queue_size: expected'),
        (['-p', 'image:=a b'], 'a b'),
    ],
)
def test_a_node_that_cannot_start_says_why_in_one_line(arguments, words, rtabmap_msgs):
    code, output = _run(arguments, rtabmap_msgs)
    assert code == 1
    assert words in output
    assert 'Traceback' not in output


def test_without_the_messages_of_rtabmap_the_node_says_what_to_install(tmp_path):
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    (tmp_path / 'rtabmap_msgs.py').write_text('raise ImportError("not here")')
    code, output = _run([], environment)
    assert code == 1
    assert 'to_rtabmap: rtabmap_msgs is not installed' in output
    assert len(output.strip().splitlines()) == 1


def _run(arguments: list[str], environment: dict) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, '-m', 'edgepoint2_ros.node.to_rtabmap', '--ros-args', *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
    )
    return done.returncode, done.stdout
