"""What the node costs beyond extraction, and what overload does to its latency: `python test/node_cost.py`.

From an image published to its keypoints received, in processes over DDS, beside a node that answers each image at once
with a message of the same size. On a machine that does nothing else the figures mean something.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import conftest  # noqa: F401  a ROS domain of our own
import numpy as np
import rclpy
from node_rig import Process, Rig
from rclpy.executors import SingleThreadedExecutor

from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.scenes.sources import VirtualFlight

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


def main() -> None:
    """Print both tables of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=6.0, help='of each measurement (default: %(default)s)')
    seconds = parser.parse_args().seconds
    rclpy.init()
    gray = VirtualFlight().image(0)
    with tempfile.TemporaryDirectory() as folder:
        measure_cost(gray, seconds, Path(folder))
        measure_overload(gray, seconds, Path(folder))
    rclpy.try_shutdown()


def measure_cost(gray: np.ndarray, seconds: float, folder: Path) -> None:
    """Print where the time goes beside that of the extraction."""
    relay = subprocess.Popen([sys.executable, '-c', RELAY])
    try:
        camera = Rig('relay')
        camera.connect()
        floor = round_trips(camera, gray, seconds)
    finally:
        relay.kill()
        relay.wait()
    settings = {'backend': 'onnxruntime', 'threads': 1, 'max_keypoints': KEYPOINTS, 'descriptor_encoding': 'int8'}
    node = Process(folder, 'cost', image_reliability='reliable', **settings)
    try:
        camera = Rig('cost')
        camera.connect()
        camera.answer(gray)
        camera.next_stats()  # that image, whose stamp is no time, is in those before
        camera.stats.clear()
        times = round_trips(camera, gray, seconds)
    finally:
        node.interrupt()
        node.end()
    busy = [stats for stats in camera.stats if stats.rate_out > 0]
    own, inside, age = (
        np.mean([getattr(stats, name) for stats in busy])
        for name in ('extract_mean_ms', 'latency_mean_ms', 'age_mean_ms')
    )
    mean = np.mean(times)
    print(
        f'{len(times)} of {int(seconds * RATE)} images answered: {mean - own:.2f} ms beyond extraction ({own:.2f} ms): '
        f'{age - inside:.2f} on the way in, {inside - own:.2f} in the node, {mean - age:.2f} on the way out (means)\n'
        f'a node that answers at once: {np.mean(floor):.2f} ms\n'
        f'from publisher to reader: median {np.median(times):.2f} ms, 99th percentile {np.percentile(times, 99):.2f} ms'
    )


def measure_overload(gray: np.ndarray, seconds: float, folder: Path) -> None:
    """Print the latency at twice the rate that the node can do."""
    node = Process(folder, 'overload', model='E-64', backend='onnxruntime', threads=1, image_reliability='reliable')
    try:
        camera = Rig('overload')
        camera.connect_and_settle(gray)
        send(camera, gray, 5, 2)
        extract = camera.stats[-1].extract_mean_ms
        send(camera, gray, 2e3 / extract, seconds)
    finally:
        node.interrupt()
        node.end()
    stats = camera.stats[-1]
    print(
        f'at twice the load: {stats.rate_in:.0f} images/s in, {stats.rate_out:.0f} out, extraction '
        f'{stats.extract_mean_ms:.0f} ms, latency {stats.latency_mean_ms / stats.extract_mean_ms:.2f} times that in '
        f'the mean, 95th percentile {stats.latency_p95_ms / stats.extract_mean_ms:.2f} times'
    )


def send(camera: Rig, pixels: np.ndarray, rate: float, seconds: float) -> None:
    """Send images at a rate, as a camera does: none is made up for when late."""
    image = camera.image(pixels)
    end = due = time.monotonic()
    end += seconds
    while time.monotonic() < end:
        image.header.stamp.nanosec += 1
        camera.camera.publish(image)
        due = max(due + 1 / rate, time.monotonic())
        camera.spin(due - time.monotonic())


def round_trips(camera: Rig, gray: np.ndarray, seconds: float) -> list[float]:
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
    for _ in range(int(seconds * RATE)):
        image.header.stamp.sec, image.header.stamp.nanosec = divmod(time.time_ns(), 1_000_000_000)
        camera.camera.publish(image)
        due += 1 / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
    time.sleep(1.5)
    executor.shutdown()
    reader.join(5)
    return times


if __name__ == '__main__':
    main()
