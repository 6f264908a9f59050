"""Malformed and random messages by the thousand: the node answers the next good image every time, and counts them all.

Most are fed to a node in this process: what a message holds does not depend on how it came. A smaller number goes over
DDS, which has something to say about sizes and rates.
"""

import random
import time
from array import array

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from node_rig import TIMEOUT, wait_until
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import CompressedImage, Image

from edgepoint2_ros.images import ENCODINGS
from edgepoint2_ros.msg import KeypointArray

pytestmark = pytest.mark.slow

INTERESTING = [0, 1, 2, 3, 5, 31, 63, 64, 65, 96, 127, 128, 255, 256, 641, 65535, 2**31 - 1, 2**31, 2**32 - 1]
SEED = 20_260_101


class Generator:
    """Random messages: some of them nearly right, which is what finds faults."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self._noise = np.random.default_rng(seed).integers(0, 256, 400_000, np.uint8).tobytes()
        smooth = cv2.GaussianBlur(np.frombuffer(self._noise, np.uint8)[: 96 * 96 * 3].reshape(96, 96, 3), (0, 0), 2)
        self._files = [
            cv2.imencode(suffix, picture)[1].tobytes()
            for suffix in ('.jpg', '.png', '.jpg', '.png', '.bmp', '.webp', '.tiff')
            for picture in (smooth, smooth[:, :, 0], np.dstack([smooth, smooth[:, :, :1]]))
            if suffix != '.jpg' or picture.ndim == 2 or picture.shape[2] == 3
        ]
        self._files.append(cv2.imencode('.png', smooth.astype(np.uint16) * 200)[1].tobytes())

    def _number(self) -> int:
        return self.random.choice(INTERESTING)

    def _bytes(self, count: int) -> array:
        start = self.random.randrange(0, 1000)
        return array('B', self._noise[start : start + min(count, 300_000)])

    def _stamp(self, header) -> None:
        header.stamp.sec = self.random.choice([0, 1, 2**31 - 1, -(2**31), self.random.randrange(2_000_000_000)])
        header.stamp.nanosec = self.random.choice([0, 999_999_999, 2**32 - 1])
        header.frame_id = self.random.choice(['', 'camera', '\N{SNOWMAN}' * 300])

    def image(self) -> Image:
        """Return an image or mask of random size, encoding and contents, half of the time consistent in most of it."""
        message = Image()
        self._stamp(message.header)
        message.encoding = self.random.choice([*ENCODINGS, *ENCODINGS, '', '64FC1', 'bayer_rggb', 'mono8\t', 'é' * 500])
        message.is_bigendian = self.random.choice([0, 1, 255])
        if self.random.random() < 0.5:
            message.width, message.height, message.step = self._number(), self._number(), self._number()
            message.data = self._bytes(self.random.choice([0, 1, 4096, self.random.randrange(20_000)]))
            return message
        message.width, message.height = (self.random.randrange(1, 130) for _ in range(2))
        message.step = message.width * self.random.choice([1, 1, 2, 3, 4, 6, 8]) + self.random.choice([0, 0, 0, 1, -1])
        rows = int(message.height * self.random.choice([1, 1, 1, 1.5, 3]))
        message.data = self._bytes(max(0, message.step * rows + self.random.choice([0, 0, 0, 0, 1, -1])))
        if self.random.random() < 0.1:
            setattr(message, self.random.choice(['width', 'height', 'step']), self._number())
        return message

    def compressed(self) -> CompressedImage:
        """Return a picture file with random damage, or random bytes."""
        message = CompressedImage()
        self._stamp(message.header)
        message.format = self.random.choice(
            ['', 'jpeg', 'png', 'rgb8; jpeg compressed bgr8', '16UC1; compressedDepth png', '\N{SNOWMAN}' * 300]
        )
        data = bytearray(self.random.choice(self._files))
        damage = self.random.randrange(5)
        if damage == 0:
            data = data[: self.random.randrange(len(data))]
        elif damage == 1:
            data = bytearray(self._bytes(self.random.randrange(2000)))
        elif damage == 2:
            for _ in range(self.random.randrange(1, 20)):
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        elif damage == 3:
            start = self.random.randrange(len(data))
            data[start : start + self.random.randrange(50)] = self._bytes(self.random.randrange(50))
        message.data = array('B', bytes(data))
        return message


def add_up(health) -> bool:
    return health.received == health.processed + sum(health.dropped.values()) + health.waiting


@pytest.fixture(scope='module')
def good(photograph) -> np.ndarray:
    return np.ascontiguousarray(cv2.resize(photograph[:, :, 1], (160, 120), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(('transport', 'count'), [('raw', 14_000), ('compressed', 6_000)])
def test_after_any_message_the_next_good_image_is_answered(transport, count, good, official_model, ros):
    from edgepoint2_ros.node.extractor_node import ExtractorNode

    official_model('T-32')
    overrides = {'transport': transport, 'queue_policy': 'all', 'queue_size': 200, 'backend': 'onnxruntime'}
    overrides |= {'max_keypoints': 200}
    node = ExtractorNode(
        namespace='fuzz', parameter_overrides=[rclpy.Parameter(name, value=value) for name, value in overrides.items()]
    )
    reader, received = rclpy.create_node('reader', namespace='fuzz'), []
    reader.create_subscription(KeypointArray, 'keypoints', received.append, 100)
    executor = SingleThreadedExecutor()
    for each in (node, reader):
        executor.add_node(each)
    assert node.start(lambda: False)
    camera = node.cameras[0]
    wait_until(lambda: camera.keypoints.get_subscription_count() == 1)

    if transport == 'raw':
        answerable = Image(height=120, width=160, step=160, encoding='mono8', data=array('B', good.tobytes()))
    else:
        answerable = CompressedImage(format='jpeg', data=array('B', cv2.imencode('.jpg', good)[1].tobytes()))
    answerable.header.frame_id = 'the good one'
    generator = Generator(SEED)
    sent = 0
    for batch in range(count // 100):
        for _ in range(100):
            if transport == 'raw' and generator.random.random() < 0.3:
                camera.receive_mask(generator.image())
            else:
                node.receive(generator.image() if transport == 'raw' else generator.compressed())
                sent += 1
        # Good masks follow the bad ones, so that keypoints are allowed again.
        mask = Image(height=1, width=1, step=1, encoding='mono8', data=array('B', [255]))
        mask.header.stamp.sec = -(2**31)
        camera.receive_mask(mask)
        answerable.header.stamp.sec, answerable.header.stamp.nanosec = -(2**31), batch
        node.receive(answerable)
        sent += 1
        end = time.monotonic() + TIMEOUT
        while not (received and received[-1].header == answerable.header):
            assert time.monotonic() < end, f'no answer after batch {batch}'
            executor.spin_once(timeout_sec=0.05)
        assert len(received[-1].x) > 30
        assert camera.health.received == sent
        assert add_up(camera.health)
        received.clear()
    health = camera.health
    print(f'{transport}: {sent} images: {health.processed} answered, {health.dropped}; {health.masks_bad} bad masks')
    assert health.waiting == health.dropped['error'] == health.dropped['full'] == 0
    assert health.dropped['bad'] > count / 10
    assert health.processed > count / 50
    node.stop()
    node.destroy_node()
    reader.destroy_node()


def test_over_dds_too(good, official_model, start, rig):
    official_model('T-32')
    process = start('fuzzed', image_reliability='reliable', queue_policy='all', backend='onnxruntime', image_depth=100)
    camera = rig('fuzzed')
    camera.connect()
    generator = Generator(SEED + 1)
    sent = 0
    for _ in range(20):
        for _ in range(25):
            camera.camera.publish(generator.image())
            camera.mask.publish(generator.image())
            camera.spin(0.001)
        sent += 25
        keypoints = 0
        while keypoints <= 30:  # until the good mask counts
            camera.mask.publish(camera.image(np.full((1, 1), 255, np.uint8), stamp=-(2**31)))
            camera.spin(0.1)
            image = camera.send(good, stamp=-(2**31) + 1)
            sent += 1
            camera.wait_until(lambda: camera.received and camera.received[-1].header == image.header)  # noqa: B023
            keypoints = len(camera.received[-1].x)
            camera.received.clear()
    stats = camera.next_stats()
    assert stats.received == sent == stats.processed + stats.dropped_bad
    assert stats.dropped_error == stats.waiting == 0
    assert 'Traceback' not in process.output
