"""The demo's consumer: matches the keypoints of successive frames and says how well that goes."""

import argparse
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from edgepoint2_ros.drawing import draw_matches, write_caption
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import write_image
from edgepoint2_ros.matching import match, transfer_error, verify
from edgepoint2_ros.messages import decode, to_nanoseconds
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.scenes.sources import FRAME_RATE, open_source

TOLERANCE = 3.0  # pixels
PICTURE_FRAMES = 15  # the two frames of the picture lie half a second apart
PATIENCE = 60.0  # seconds to wait for the first keypoints


@dataclass
class Frame:
    """One message that came: its place in the source's sequence, its features and how old they were on arrival."""

    number: int
    features: Features
    latency: float  # seconds from the image's stamp to here


class Consumer:
    """Takes frames one by one and keeps the figures."""

    def __init__(self, source, start: int):
        self.source = source
        self._start = start
        self.recent: deque[Frame] = deque()  # those of the last half second
        self.best_pair: tuple[Frame, Frame] | None = None  # half a second apart, the most matches that fit
        self.best_count = -1
        self.arrivals: list[float] = []
        self.latencies: list[float] = []
        self.counts: list[int] = []
        self.inliers: list[float] = []

    def take(self, message: KeypointArray) -> None:
        now = time.time_ns()
        stamp = to_nanoseconds(message.header.stamp)
        number = round((stamp - self._start) * FRAME_RATE * 1e-9)
        frame = Frame(number, decode(message), (now - stamp) * 1e-9)
        self.arrivals.append(now * 1e-9)
        self.latencies.append(frame.latency)
        self.counts.append(len(frame.features))
        if self.recent:
            *_, good = self.match(self.recent[-1], frame)
            self.inliers.append(np.mean(good) if len(good) else 0.0)
        self.recent.append(frame)
        if number - self.recent[0].number >= PICTURE_FRAMES:
            count = np.count_nonzero(self.match(self.recent[0], frame)[2])
            if count > self.best_count:
                self.best_count, self.best_pair = count, (self.recent[0], frame)
            self.recent = deque([frame])

    def match(self, first: Frame, second: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the places of the matches in both frames, (N, 2) each, and which of them fit the motion, (N,) bool."""
        pairs = match(first.features, second.features)
        first_xy, second_xy = first.features.xy[pairs[:, 0]], second.features.xy[pairs[:, 1]]
        motion = self.source.motion(first.number, second.number)
        if motion is not None:
            return first_xy, second_xy, transfer_error(motion, first_xy, second_xy) <= TOLERANCE
        # Nobody knows this motion: the matches must at least agree on one epipolar geometry.
        inliers, _ = verify(first.features, second.features, pairs, threshold=TOLERANCE)
        return first_xy, second_xy, np.isin(pairs[:, 0], inliers[:, 0])

    def line(self, last: int) -> str:
        """Return the figures of the last frames in one line."""
        arrivals, inliers = self.arrivals[-last - 1 :], self.inliers[-last:]
        rate = (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], 1e-9)
        share = f'{np.mean(inliers):6.1%}' if inliers else '     -'
        return (
            f'{rate:5.1f} frames/s   latency {np.median(self.latencies[-last:]) * 1e3:5.1f} ms   '
            f'{np.mean(self.counts[-last:]):5.0f} keypoints   inliers {share}'
        )

    def picture(self) -> np.ndarray:
        """Return the matches of two frames half a second apart, those of the run that match best."""
        first, second = self.best_pair or (self.recent[0], self.recent[-1])
        first_xy, second_xy, good = self.match(first, second)
        picture = draw_matches(
            self.source.image(first.number), self.source.image(second.number), first_xy, second_xy, good
        )
        share = np.mean(good) if len(good) else 0.0
        seconds = (second.number - first.number) / FRAME_RATE
        return write_caption(
            picture,
            f'EdgePoint2 {second.features.model}: two frames {seconds:.2f} s apart, {len(good)} matches, '
            f'{share:.1%} within {TOLERANCE:.0f} px of the motion (green)',
        )


def main(args=None) -> int:
    """Consume for some seconds, then print a summary and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--source', help='what the camera shows')
    parser.add_argument('--start', type=int, required=True, help='moment of frame 0, nanoseconds since the epoch')
    parser.add_argument('--seconds', type=float, default=10.0)
    parser.add_argument('--picture', type=Path, required=True, help='file of the picture of matches')
    options = parser.parse_args(args)
    try:
        return _consume(options)
    except EdgePoint2Error as error:
        print(f'consumer: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        rclpy.try_shutdown()


def _consume(options) -> int:
    consumer = Consumer(open_source(options.source, colour=True), options.start)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C comes as KeyboardInterrupt
    node = Node('consumer')
    node.create_subscription(KeypointArray, 'keypoints', consumer.take, 5)
    wait_until = time.monotonic() + PATIENCE
    while not consumer.arrivals and time.monotonic() < wait_until:
        rclpy.spin_once(node, timeout_sec=0.1)
    if not consumer.arrivals:
        print(f'consumer: no keypoints came within {PATIENCE:.0f} s', file=sys.stderr)
        return 1

    live = sys.stdout.isatty()
    begin = printed = time.monotonic()
    while (now := time.monotonic()) < begin + options.seconds:
        rclpy.spin_once(node, timeout_sec=0.1)
        if now - printed > (0.25 if live else 1.0):
            print(f'{now - begin:5.1f} s  {consumer.line(FRAME_RATE)}', end='   \r' if live else '\n', flush=True)
            printed = now
    frames = len(consumer.arrivals)
    write_image(options.picture, consumer.picture())
    print(
        f'\n{frames} frames: {consumer.line(frames)} (within {TOLERANCE:.0f} px of the '
        f'{"known motion" if consumer.source.motion(0, 1) is not None else "epipolar geometry that fits best"})\n'
        f'latency from the image stamp to keypoints received: median {np.median(consumer.latencies) * 1e3:.1f} ms, '
        f'95 % below {np.percentile(consumer.latencies, 95) * 1e3:.1f} ms\nmatches drawn: {options.picture}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
