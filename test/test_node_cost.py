"""What the node costs beyond extraction: from an image published to its keypoints received, in processes over DDS.

`pytest -s test/test_node_cost.py` prints the figures; on a machine that does nothing else they mean something.
"""

import threading
import time

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from rclpy.executors import SingleThreadedExecutor

from edgepoint2_ros.messages import to_nanoseconds

SECONDS = 6
RATE = 30.0

pytestmark = pytest.mark.slow


def test_little_is_added_to_the_extractors_own_time(official_model, photograph, start, rig):
    official_model('T-32')
    settings = {'backend': 'onnxruntime', 'threads': 1, 'max_keypoints': 1024, 'descriptor_encoding': 'int8'}
    start('cost', image_reliability='reliable', **settings)
    camera = rig('cost')
    gray = np.ascontiguousarray(photograph[:, :, 1])
    camera.connect()
    camera.answer(gray)
    times = []

    def receive(message) -> None:
        times.append((time.time_ns() - to_nanoseconds(message.header.stamp)) * 1e-6)

    camera.node.create_subscription(type(camera.received[0]), 'keypoints', receive, 10)
    executor = SingleThreadedExecutor()
    executor.add_node(camera.node)
    reader = threading.Thread(target=executor.spin, daemon=True)
    reader.start()
    time.sleep(1.0)
    camera.stats.clear()
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
    busy = [stats for stats in camera.stats if stats.rate_out > 0.8 * RATE]
    own, inside, age = (
        np.mean([getattr(stats, name) for stats in busy])
        for name in ('extract_mean_ms', 'latency_mean_ms', 'age_mean_ms')
    )
    mean, median, high = np.mean(times), *np.percentile(times, [50, 99])
    print(
        f'\n{len(times)} images: {mean - own:.2f} ms beyond extraction ({own:.2f} ms): {age - inside:.2f} on the way '
        f'in, {inside - own:.2f} in the node, {mean - age:.2f} on the way out (means)\n'
        f'from publisher to reader: median {median:.2f} ms, 99th percentile {high:.2f} ms'
    )
    assert len(times) > 0.8 * SECONDS * RATE
    assert mean - own < 6  # on a quiet machine a quarter of it
