"""The figures of the demo: how well the keypoints of successive frames match, how fast and how late they come."""

import sys
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from edgepoint2_ros.drawing import draw_matches, write_caption
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match, transfer_error, verify
from edgepoint2_ros.scenes.sources import FRAME_RATE, Source

TOLERANCE = 3.0  # pixels
PICTURE_FRAMES = 15  # the two frames of the picture lie half a second apart


@dataclass
class Frame:
    """The features of an image: its index in the source's sequence, and their age on arrival."""

    number: int
    features: Features
    latency: float  # seconds from the image's stamp to arrival


class Figures:
    """Collects statistics from the features of successive frames."""

    def __init__(self, source: Source, start: int):
        self.source = source
        self._start = start
        self.recent: deque[Frame] = deque()  # those of the last half second
        self.best_pair: tuple[Frame, Frame] | None = None  # half a second apart, with the most inliers
        self.best_count = -1
        self.arrivals: list[float] = []
        self.latencies: list[float] = []
        self.counts: list[int] = []
        self.inliers: list[float] = []

    def add(self, stamp: int, features: Features) -> None:
        """Take the features, just received, of the image with that stamp, nanoseconds since the epoch."""
        now = time.time_ns()
        number = round((stamp - self._start) * FRAME_RATE * 1e-9)
        frame = Frame(number, features, (now - stamp) * 1e-9)
        self.arrivals.append(now * 1e-9)
        self.latencies.append(frame.latency)
        self.counts.append(len(frame.features))
        if self.recent:
            *_, good = self.match(self.recent[-1], frame)
            self.inliers.append(np.mean(good) if len(good) else 0.0)
        self.recent.append(frame)
        if number - self.recent[0].number >= PICTURE_FRAMES:
            count = int(np.count_nonzero(self.match(self.recent[0], frame)[2]))
            if count > self.best_count:
                self.best_count, self.best_pair = count, (self.recent[0], frame)
            self.recent = deque([frame])

    def match(self, first: Frame, second: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the positions of the matches in both frames, (N, 2) each, and which are inliers, (N,) bool."""
        pairs = match(first.features, second.features)
        first_xy, second_xy = first.features.xy[pairs[:, 0]], second.features.xy[pairs[:, 1]]
        motion = self.source.motion(first.number, second.number)
        if motion is not None:
            return first_xy, second_xy, transfer_error(motion, first_xy, second_xy) <= TOLERANCE
        # The motion is unknown: the matches must at least be inliers of one epipolar geometry.
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
        """Return the matches of two frames half a second apart, the best-matching ones of the run."""
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

    def summary(self) -> str:
        """Return the figures of the whole run in two lines."""
        frames = len(self.arrivals)
        known = self.source.motion(0, 1) is not None
        return (
            f'{frames} frames: {self.line(frames)} (within {TOLERANCE:.0f} px of the '
            f'{"known motion" if known else "epipolar geometry that fits best"})\n'
            f'latency from the image stamp to keypoints received: median {np.median(self.latencies) * 1e3:.1f} ms, '
            f'95 % below {np.percentile(self.latencies, 95) * 1e3:.1f} ms'
        )


class Display:
    """Prints the figures as they come: four times a second on a terminal, else once a second."""

    def __init__(self, figures: Figures):
        self._figures = figures
        self._live = sys.stdout.isatty()
        self._begin = self._printed = time.monotonic()

    def update(self) -> None:
        now = time.monotonic()
        if now - self._printed > (0.25 if self._live else 1.0):
            text = f'{now - self._begin:5.1f} s  {self._figures.line(FRAME_RATE)}'
            print(text, end='   \r' if self._live else '\n', flush=True)
            self._printed = now
