"""What keypoints cost on the wire, and what accuracy each encoding keeps: the tables of docs/internals/bandwidth.md.

sudo unshare -n sh -c 'ip link set lo up; python examples/bandwidth.py wire'   # alone on a loopback of its own
python examples/bandwidth.py accuracy FOLDER_OF_PHOTOGRAPHS
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

FRAMES, RATE = 60, 30
COUNTS = (300, 1000, 2048)
MODELS = ('T-32', 'S-64', 'E-64')


def sent() -> int:
    """Return how many bytes the loopback has sent."""
    for line in Path('/proc/net/dev').read_text().splitlines():
        name, _, numbers = line.partition(':')
        if name.strip() == 'lo':
            return int(numbers.split()[8])
    raise SystemExit('there is no interface lo')


def measure_wire() -> None:
    """Publish to a process of its own over UDP, and print the bytes that passed the loopback for each message."""
    if len(Path('/proc/net/dev').read_text().splitlines()) > 3:
        raise SystemExit('there is more than a loopback here: the traffic of others would be counted; see above')
    # Without shared memory, as between two machines; a discovery range of LOCALHOST would bring it back.
    os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'UDPv4'
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'SUBNET'
    os.environ['ROS_STATIC_PEERS'] = '127.0.0.1'
    import rclpy
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CompressedImage, Image
    from skimage import data
    from std_msgs.msg import Header

    from edgepoint2_ros.features import Features
    from edgepoint2_ros.messages import ENCODINGS, encode

    picture = cv2.resize(cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2GRAY), (640, 480))
    rng = np.random.default_rng(0)

    def keypoints(size: int, count: int, encoding: str):
        rows = rng.normal(size=(count, size)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        xy, scores = rng.uniform(0, 480, (count, 2)).astype(np.float32), np.zeros(count, np.float32)
        features = Features(xy, scores, rows, (640, 480), f'X-{size}', '0123456789abcdef')
        return encode(features, Header(frame_id='camera_optical'), encoding)

    messages = {'mono8 640x480': Image(width=640, height=480, encoding='mono8', step=640, data=picture.tobytes())}
    for quality in (95, 80):
        jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        messages[f'JPEG {quality}'] = CompressedImage(format='jpeg', data=jpeg)
    for count in COUNTS:
        for size in (32, 64):
            for encoding in ENCODINGS:
                messages[f'{count} x {size}-d {encoding}'] = keypoints(size, count, encoding)
        # 32 bytes of ORB are as many as 32 numbers of int8.
        messages[f'{count} x ORB'] = keypoints(32, count, 'int8')
        messages[f'{count} x 256-d float32'] = keypoints(256, count, 'float32')

    rclpy.init()
    node = rclpy.create_node('bandwidth')
    print('| message | payload, kB | on the wire, kB | Mbit/s at 30 Hz |\n|---|---|---|---|')
    for number, (name, message) in enumerate(messages.items()):
        topic = f'message_{number}'
        reader = subprocess.Popen([sys.executable, __file__, 'read', topic, type(message).__name__])
        publisher = node.create_publisher(type(message), topic, 10)
        while publisher.get_subscription_count() == 0:
            time.sleep(0.05)
        time.sleep(1)
        idle = sent()
        time.sleep(FRAMES / RATE)
        before = sent()
        for _ in range(FRAMES):
            publisher.publish(message)
            time.sleep(1 / RATE)
        after = sent()
        wire = (after - before - (before - idle)) / FRAMES
        payload = len(serialize_message(message))
        print(f'| {name} | {payload / 1e3:.1f} | {wire / 1e3:.1f} | {wire * 8 * RATE / 1e6:.1f} |', flush=True)
        reader.kill()
        reader.wait()
        node.destroy_publisher(publisher)
    rclpy.shutdown()


def read(topic: str, kind: str) -> None:
    """Receive messages until terminated."""
    import rclpy
    import sensor_msgs.msg

    import edgepoint2_ros.msg

    rclpy.init()
    node = rclpy.create_node('reader')
    message = getattr(edgepoint2_ros.msg, kind, None) or getattr(sensor_msgs.msg, kind)
    node.create_subscription(message, topic, lambda message: None, 10)
    rclpy.spin(node)


def measure_accuracy(folder: Path, weights: str) -> None:
    """Print the mean matching accuracy at 3 px on synthetic homographies for each model, encoding and count."""
    from edgepoint2_ros.evaluation.methods import OpenCVMethod
    from edgepoint2_ros.evaluation.metrics import matching_errors
    from edgepoint2_ros.evaluation.pairs import make_synthetic
    from edgepoint2_ros.extractor import Extractor
    from edgepoint2_ros.image_files import find_images
    from edgepoint2_ros.matching import match
    from edgepoint2_ros.messages import ENCODINGS, dequantise, quantise

    pairs = list(make_synthetic(find_images([folder]), 640))

    def accuracy(matches_of) -> float:
        shares = []
        for pair in pairs:
            first_xy, second_xy = matches_of(pair)
            errors = matching_errors(first_xy, second_xy, pair.homography)
            shares.append(np.mean(errors <= 3) if len(errors) else 0.0)
        return 100 * float(np.mean(shares))

    print(f'| features | {" | ".join(f"{count} keypoints" for count in COUNTS)} |\n|---|---|---|---|')
    for model in MODELS:
        extractor = Extractor(model, weights=weights) if weights else Extractor(model)
        found = {pair.name: (extractor.extract(pair.image_a), extractor.extract(pair.image_b)) for pair in pairs}
        for encoding in ENCODINGS:
            cells = []
            for count in COUNTS:

                def matches_of(pair, count=count, encoding=encoding, found=found):
                    a, b = (
                        replace(
                            features,
                            xy=features.xy[:count],
                            scores=features.scores[:count],
                            descriptors=dequantise(quantise(features.descriptors[:count], encoding)),
                        )
                        for features in found[pair.name]
                    )
                    matches = match(a, b)
                    return a.xy[matches[:, 0]], b.xy[matches[:, 1]]

                cells.append(f'{accuracy(matches_of):.1f}')
            print(f'| {model} {encoding} | {" | ".join(cells)} |', flush=True)
    cells = []
    for count in COUNTS:
        orb = OpenCVMethod('ORB', count)

        def matches_of_orb(pair, orb=orb):
            a, b = orb.extract(pair.image_a), orb.extract(pair.image_b)
            matches = orb.match(a, b)
            return a.xy[matches[:, 0]], b.xy[matches[:, 1]]

        cells.append(f'{accuracy(matches_of_orb):.1f}')
    print(f'| ORB | {" | ".join(cells)} |')
    print(f'{len(pairs)} pairs')


def main() -> int:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest='action', required=True)
    actions.add_parser('wire')
    reader = actions.add_parser('read')
    reader.add_argument('topic')
    reader.add_argument('kind')
    accuracy = actions.add_parser('accuracy')
    accuracy.add_argument('folder', type=Path)
    accuracy.add_argument('--weights', default='', help="as the extractor's")
    options = parser.parse_args()
    if options.action == 'wire':
        measure_wire()
    elif options.action == 'read':
        read(options.topic, options.kind)
    else:
        measure_accuracy(options.folder, options.weights)
    return 0


if __name__ == '__main__':
    sys.exit(main())
