"""A soak: two cameras at 30 Hz that restart at random while parameters change at random, and a third that floods.

The third is a process of its own that publishes images of 4 MB at best effort as fast as it can, so that the middleware
loses most of them. Nothing may be lost uncounted, and nothing may grow. One minute by default, ``SOAK_SECONDS`` of it
if that is set; `make soak` runs ten minutes and prints the figures.
"""

import os
import random
import time

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from node_rig import Flood, Process, Rig, Usage
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image

SECONDS = float(os.environ.get('SOAK_SECONDS', 60))
WARM_UP = min(60.0, SECONDS / 3)
RATE = 30.0
SETTLE = 0.7  # seconds for the middleware to deliver or to discover
ROWS = 1024  # of the images that flood: 4 MB each
# MB. The middleware keeps room for as many of the large images as ever waited at once: image_depth at most.
GROWTH = 5 + 5 * 4

pytestmark = pytest.mark.slow


class Camera(Rig):
    """A camera that sends at its rate, stops and restarts, and counts."""

    def __init__(self, namespace: str, name: str, picture: np.ndarray, executor, chance: random.Random):
        super().__init__(namespace, name)
        self.name = name
        self.sent = self.restarts = self.answered = self.overlays = 0
        self._chance = chance
        self._images = [self.image(picture), self.image(cv2.resize(picture, (320, 240)))]
        self._image = self._images[0]
        self._next = self._resume = time.monotonic()
        self._stop = self._next + chance.uniform(4, 12)
        self._watching = None
        self._introduced = self._running = False
        executor.add_node(self.node)

    def introduce(self) -> bool:
        """Send an image as soon as the node listens; return whether it has come. What is lost from then on shows."""
        if not self._introduced:
            if self.is_connected():
                self._send()
                self._introduced = True
            return False
        return bool(self.stats) and self.stats[-1].received + self.stats[-1].lost == self.sent

    def step(self, now: float) -> float:
        """Do what is due and return when to come again."""
        if now >= self._stop:
            if self.camera is not None and now >= self._stop + SETTLE:
                self.unplug()
                self.camera = None
                self.restarts += 1
                self._resume = now + self._chance.uniform(0, 2)
            if self.camera is None and now >= self._resume:
                self.plug_in(100)
                self._image = self._chance.choice(self._images)
                self._stop = now + self._chance.uniform(4, 12)
                self._introduced = self._running = False
            return now + 0.05
        if not self._running:
            self._running, self._next = self.introduce(), now
            return now + 0.05
        if now >= self._next:
            self._send()
            self._next = max(self._next + 1 / RATE, now)
        self.answered += len(self.received)
        self.received.clear()
        return min(self._next, now + 0.05)

    def _send(self) -> None:
        self._image.header.stamp.nanosec = self.sent
        self.camera.publish(self._image)
        self.sent += 1

    def watch(self, wanted: bool) -> None:
        """Look at the overlay, or stop looking."""
        if wanted and self._watching is None:
            self._watching = self.node.create_subscription(Image, f'{self.prefix}overlay', self._see, 1)
        elif not wanted and self._watching is not None:
            self.node.destroy_subscription(self._watching)
            self._watching = None

    def _see(self, _) -> None:
        self.overlays += 1

    def burst(self) -> None:
        """Send more of each size than will ever wait, so that what the middleware keeps for them is there."""
        for image in self._images * 5:
            self._image = image
            self._send()


def random_parameters(chance: random.Random, masks: list[str]) -> tuple[dict, bool]:
    """Return parameters to set together and whether they are all right."""
    values = {
        'max_keypoints': chance.randint(1, 2048),
        'score_threshold': chance.uniform(-6, 0),
        'descriptor_encoding': chance.choice(['float32', 'float16', 'int8']),
        'border': chance.choice([0, 0, 10, 100]),
        'overlay': chance.random() < 0.5,
        'queue_policy': chance.choice(['newest', 'newest', 'all']),
        'queue_size': chance.randint(1, 3),
        'mask_file': chance.choice(['', *masks]),
    }
    values = {name: values[name] for name in chance.sample(sorted(values), chance.randint(1, len(values)))}
    if chance.random() < 0.8:
        return values, True
    bad = {'max_keypoints': 9999, 'mask_file': '/no/such/file', 'model': 'E-64', 'descriptor_encoding': 'int4'}
    name = chance.choice(sorted(bad))
    return {**values, name: bad[name]}, False


def test_nothing_is_lost_uncounted_and_nothing_grows(official_model, photograph, tmp_path, ros):
    official_model('T-32')
    chance = random.Random(1)
    picture = np.ascontiguousarray(photograph[:, :, 1])
    mask = tmp_path / 'mask.png'
    cv2.imwrite(str(mask), np.tri(480, 640, dtype=np.uint8) * 255)
    settings = {'cameras': '[left, right, wild]', 'border': 1}
    process = Process(tmp_path, 'soak', **settings)
    executor = SingleThreadedExecutor()
    cameras = [Camera('soak', name, picture, executor, chance) for name in ('left', 'right')]
    wild = Rig('soak', 'wild')
    wild.unplug()
    executor.add_node(wild.node)

    def settle() -> None:
        """Wait until nothing comes any more, and all of it is in the stats."""
        for camera in (*cameras, wild):
            camera.stats.clear()
        settled = time.monotonic() + 3
        while time.monotonic() < settled or not all(
            camera.stats and camera.stats[-1].rate_in == camera.stats[-1].waiting == 0 for camera in (*cameras, wild)
        ):
            executor.spin_once(timeout_sec=0.1)

    def come_through() -> tuple[int, int]:
        """Return how many images the flood has published, and how many of them the node knows of."""
        published = flood.stop()
        settle()
        return published, wild.stats[-1].received + wild.stats[-1].lost

    try:
        with Flood(wild.topic('image'), [ROWS]) as flood:
            while not all(camera.introduce() for camera in cameras):
                executor.spin_once(timeout_sec=0.1)
            operator = Rig('soak')
            while wild.node.count_publishers(wild.topic('image')) == 0:
                time.sleep(0.05)
            begin = time.monotonic()
            change = begin + 5
            usage, changes, refusals = [], 0, 0
            for camera in cameras:
                camera.watch(True)
            for border in (0, 1) * 4:  # with and without a mask: whatever is made for each kind of input is made now
                assert operator.set_together(border=border, queue_policy='all', queue_size=3).successful
                flood.start()
                for camera in cameras:
                    camera.burst()
                settled = time.monotonic() + 0.7
                while time.monotonic() < settled:
                    executor.spin_once(timeout_sec=0.1)
                before = come_through()
            flood.start()
            while (now := time.monotonic()) < begin + SECONDS:
                again = min(camera.step(now) for camera in cameras)
                executor.spin_once(timeout_sec=max(0.0, again - time.monotonic()))
                if now >= change:
                    change = now + chance.uniform(0.5, 3)
                    values, right = random_parameters(chance, [str(mask)])
                    assert operator.set_together(**values).successful == right, values
                    changes, refusals = changes + right, refusals + (not right)
                    chance.choice(cameras).watch(chance.random() < 0.5)
                if len(usage) < now - begin:
                    usage.append(Usage(process.pid))
            after = come_through()
        for camera in cameras:
            camera.answered += len(camera.received)
            stats = camera.stats[-1]
            dropped = stats.received - stats.processed
            print(
                f'{camera.name}: {camera.sent} sent, {camera.restarts} restarts, {stats.received} received, '
                f'{stats.lost} lost by the middleware, {stats.processed} processed, {stats.dropped_newer} dropped for '
                f'newer ones, {stats.dropped_full} by a full queue, {camera.answered} answered, '
                f'{camera.overlays} overlays'
            )
            assert stats.dropped_bad == stats.dropped_error == stats.waiting == 0
            assert dropped == stats.dropped_newer + stats.dropped_full
            assert camera.sent == stats.received + stats.lost
            assert camera.answered == stats.processed > 0
            assert camera.restarts > 0
        stats = wild.stats[-1]
        print(
            f'wild: {after[0] - before[0]} sent, {after[1] - before[1]} received or lost by the middleware; in all '
            f'{stats.received} received, {stats.lost} lost, {stats.processed} processed'
        )
        assert after[0] - before[0] == after[1] - before[1]
        assert stats.lost > 0
        assert stats.received - stats.processed == stats.dropped_newer + stats.dropped_full
        assert len(wild.received) == stats.processed
        warm = usage[int(WARM_UP) :]
        first, last = warm[: len(warm) // 4], warm[-(len(warm) // 4) :]
        growth = np.median([each.memory for each in last]) - np.median([each.memory for each in first])
        print(f'{changes} changes of parameters, {refusals} refused')
        print('memory (MB):', *(f'{each.memory:.0f}' for each in usage[:: max(1, len(usage) // 20)]))
        print(f'after {WARM_UP:.0f} s {warm[0]}; at the end {warm[-1]}')
        print(f'growth of memory {growth:.1f} MB (medians of the first and the last quarter after the warm-up)')
        assert growth < GROWTH
        assert max(each.threads for each in last) <= max(each.threads for each in first)
        assert max(each.files for each in last) <= max(each.files for each in first)
    finally:
        process.interrupt()
        assert process.end() == 0
    assert 'Traceback' not in process.output
