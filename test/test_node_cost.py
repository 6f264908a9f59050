"""What the node costs beyond extraction: from an image published to its keypoints received, in processes over DDS.

`pytest -s test/test_node_cost.py` prints the figures, beside those of a node that answers each image at once with a
message of the same size; on a machine that does nothing else they mean something.
"""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from rclpy.executors import SingleThreadedExecutor

from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.msg import KeypointArray

SECONDS = 6
RATE = 30.0
KEYPOINTS = 1024

RELAY = f"""
import array, rclpy
from sensor_msgs.msg import Image
from edgepoint2_ros.msg import KeypointArray

rclpy.init()
node = rclpy.create_node('relay', namespace='relay')
numbers, bytes_ = array.array('f', bytes({4 * KEYPOINTS})), array.array('B', bytes({32 * KEYPOINTS}))
answer = KeypointArray(
    x=numbers, y=numbers, score=numbers, descriptors=bytes_, descriptor_size=32, descriptor_encoding=2
)
publisher = node.create_publisher(KeypointArray, 'keypoints', 10)

def receive(image):
    answer.header = image.header
    publisher.publish(answer)

node.create_subscription(Image, 'image', receive, 10)
node.create_subscription(Image, 'mask', receive, 10)
rclpy.spin(node)
"""

pytestmark = pytest.mark.slow


def test_little_is_added_to_the_extractors_own_time(official_model, photograph, start, rig):
    official_model('T-32')
    settings = {'backend': 'onnxruntime', 'threads': 1, 'max_keypoints': KEYPOINTS, 'descriptor_encoding': 'int8'}
    gray = np.ascontiguousarray(photograph[:, :, 1])

    relay = subprocess.Popen([sys.executable, '-c', RELAY])
    try:
        camera = rig('relay')
        camera.connect()
        floor = _times(camera, gray)
    finally:
        relay.kill()
        relay.wait()
    start('cost', image_reliability='reliable', **settings)
    camera = rig('cost')
    camera.connect()
    camera.answer(gray)
    camera.stats.clear()
    times = _times(camera, gray)

    busy = [stats for stats in camera.stats if stats.rate_out > 0.8 * RATE]
    own, inside, age = (
        np.mean([getattr(stats, name) for stats in busy])
        for name in ('extract_mean_ms', 'latency_mean_ms', 'age_mean_ms')
    )
    mean = np.mean(times)
    print(
        f'\n{len(times)} images: {mean - own:.2f} ms beyond extraction ({own:.2f} ms): {age - inside:.2f} on the way '
        f'in, {inside - own:.2f} in the node, {mean - age:.2f} on the way out (means)\n'
        f'a node that answers at once: {np.mean(floor):.2f} ms\n'
        f'from publisher to reader: median {np.median(times):.2f} ms, 99th percentile {np.percentile(times, 99):.2f} ms'
    )
    assert len(times) > 0.8 * SECONDS * RATE
    assert mean - own < 6  # on a quiet machine a third of it


def _times(camera, gray: np.ndarray) -> list[float]:
    """Return the milliseconds from publishing to receiving for each image that was answered."""
    times = []

    def receive(message) -> None:
        times.append((time.time_ns() - to_nanoseconds(message.header.stamp)) * 1e-6)

    camera.node.create_subscription(KeypointArray, 'keypoints', receive, 10)
    executor = SingleThreadedExecutor()
    executor.add_node(camera.node)
    reader = threading.Thread(target=executor.spin, daemon=True)
    reader.start()
    time.sleep(1.0)
    image = camera.image(gray)
    due = time.perf_counter()
    for _ in range(int(SECONDS * RATE)):
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(time.time_ns(), 1_000_000_000)
        camera.camera.publish(image)
        due += 1 / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
    time.sleep(1.5)
    executor.shutdown()
    reader.join(5)
    return times
