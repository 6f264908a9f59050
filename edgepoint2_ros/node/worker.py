"""The worker: a thread that takes images from the executor and publishes keypoint messages."""

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edgepoint2_ros.errors import EdgePoint2Error, in_words
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.images import to_array
from edgepoint2_ros.masks import combine
from edgepoint2_ros.messages import encode, encode_place, to_nanoseconds
from edgepoint2_ros.node.camera import CameraTopics
from edgepoint2_ros.node.mailbox import Mailbox
from edgepoint2_ros.node.overlay import draw_overlay
from edgepoint2_ros.node.survival import Failures
from edgepoint2_ros.places import Vocabulary

YIELD = 1e-3  # seconds that the executor leaves the worker when it hands over an image
LOG_PERIOD = 5.0  # seconds between two log lines about bad images
MOST_SIZES = 1000  # of images that are remembered: a camera may crop each one differently
OVERLAY_PERIOD = 1.0  # seconds between two overlays while the machine is overloaded

Arrival = tuple[Any, float]  # an image message and when it came


class Worker:
    """Serves the images of the cameras on its own thread while it is started.

    Args:
        node: whose cameras they are.
        failures: the node's; records what goes wrong after an image was answered.
        extractor: of the features; used by the worker's thread alone, except for its settings.
        vocabulary: if places are published.
        cameras: in the order of their numbers.
        settings: the values of the parameters.
        static_masks: those of the cameras that have a mask file, by the cameras' names.
        served: called after each image.
    """

    def __init__(
        self,
        node: Node,
        failures: Failures,
        extractor: Extractor,
        vocabulary: Vocabulary | None,
        cameras: Sequence[CameraTopics],
        settings: SimpleNamespace,
        static_masks: dict[str, np.ndarray],
        served: Callable[[], None],
    ):
        self._node = node
        self._failures = failures
        self._extractor = extractor
        self._vocabulary = vocabulary
        self._cameras = cameras
        self._settings = settings
        self._static_masks = static_masks
        self._served = served
        self._mailbox: Mailbox[Arrival] = Mailbox()
        self._thread: threading.Thread | None = None
        self._sizes: set[tuple[int, ...]] = set()  # shapes of images that the engine has run at
        self._last_overlay = 0.0
        self._last_complaint: dict[tuple[str, str], float] = {}

    def start(self) -> None:
        """Begin to serve."""
        self._mailbox = Mailbox(len(self._cameras), capacity(self._settings))
        self._thread = threading.Thread(target=self._work, args=(self._mailbox,), name='extractor')
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if it runs; an image being processed is finished first, waiting ones are dropped."""
        if self._thread is not None:
            for camera, count in zip(self._cameras, self._mailbox.close()):
                camera.health.drop('stopped', count)
            self._thread.join()
            self._thread = None

    def apply(self, settings: SimpleNamespace, static_masks: dict[str, np.ndarray] | None) -> None:
        """Use new settings, and new masks if given, from the next image on."""
        if static_masks is not None:
            self._static_masks = static_masks
        self._settings = settings
        if self._thread is not None:
            for camera, count in zip(self._cameras, self._mailbox.resize(capacity(settings))):
                camera.health.drop(_reason(settings), count)

    def take(self, message: Image | CompressedImage, camera: int) -> None:
        """Take an image message of a camera; it waits for the thread."""
        now = time.monotonic()
        health = self._cameras[camera].health
        health.arrive(now, len(message.data))
        idle = self._mailbox.is_idle
        if self._mailbox.put((message, now), camera):
            health.drop(_reason(self._settings))
        if idle:
            # Otherwise the executor, which prepares its next turn for half a millisecond, and the worker would share
            # the interpreter at the moment that counts.
            time.sleep(YIELD)

    def _work(self, mailbox: Mailbox[Arrival]) -> None:
        while (got := mailbox.get()) is not None:
            number, (message, arrival) = got
            camera = self._cameras[number]
            try:
                self._serve(camera, message, arrival)
            except Exception as error:  # whatever one image does, the next is processed
                camera.health.drop('bad' if isinstance(error, EdgePoint2Error) else 'error', error=in_words(error))
                self._complain(camera, error, 'image')
            self._served()

    def _serve(self, camera: CameraTopics, message: Image | CompressedImage, arrival: float) -> None:
        settings = self._settings  # one consistent set for this image, whatever changes meanwhile
        begun = time.monotonic()
        image = to_array(message)
        mask = self._mask(camera, to_nanoseconds(message.header.stamp), image, settings)
        read = time.monotonic()
        features = self._extract(image, mask)
        extracted = time.monotonic()
        if self._node.context.ok():
            camera.keypoints.publish(encode(features, message.header, settings.descriptor_encoding))
        published = time.monotonic()
        age = (self._node.get_clock().now().nanoseconds - to_nanoseconds(message.header.stamp)) * 1e-9
        camera.frame_id = message.header.frame_id
        times = (begun - arrival, read - begun, extracted - read, published - extracted, published - arrival, age)
        camera.health.serve(len(features), times)
        try:
            if self._vocabulary is not None and camera.are_places_wanted() and self._node.context.ok():
                camera.publish_place(encode_place(self._vocabulary.describe(features), features, message.header))
            if settings.overlay and camera.is_watched():
                self._draw(camera, image, features, message.header)
        except Exception as error:  # this image was answered
            self._failures.add(error)

    def _extract(self, image: np.ndarray, mask: np.ndarray | None) -> Features:
        """Return the features of an image; the first inference at a size takes longer, and all cameras wait for it."""
        if image.shape in self._sizes:
            return self._extractor.extract(image, mask)
        if len(self._sizes) >= MOST_SIZES:
            self._sizes.clear()
        self._sizes.add(image.shape)
        height, width = image.shape[:2]
        begun = time.monotonic()
        for camera in self._cameras:
            camera.health.begin_warm_up(f'the first inference at {width} x {height} pixels', begun)
        try:
            return self._extractor.extract(image, mask)
        finally:
            for camera in self._cameras:
                camera.health.end_warm_up(time.monotonic())

    def _mask(
        self, camera: CameraTopics, stamp: int, image: np.ndarray, settings: SimpleNamespace
    ) -> np.ndarray | None:
        """Return the mask of an image with a stamp in nanoseconds, or None if keypoints are allowed everywhere."""
        static = self._static_masks.get(camera.name)  # one look: another thread may replace them
        masks = [static] if static is not None else []
        newest = None
        while True:
            try:
                newest = camera.masks.at(stamp)
                break
            except Exception as error:  # that mask has been dropped
                camera.health.masks_bad += 1
                camera.health.last_error = f'mask: {in_words(error)}'
                self._complain(camera, error, 'mask')
        if newest is not None:
            masks.append(newest)
        elif lead := camera.masks.lead(stamp):
            camera.health.pass_masks(lead * 1e-9)
        return combine(masks, settings.border, image.shape[1], image.shape[0])

    def _draw(self, camera: CameraTopics, image: np.ndarray, features: Features, header: Header) -> None:
        """Publish the overlay; while images wait, only now and then."""
        now = time.monotonic()
        if not self._mailbox.is_empty and now < self._last_overlay + OVERLAY_PERIOD:
            return
        self._last_overlay = now
        text = f'{camera.label}  {features.model}  {len(features)} keypoints  {camera.health.last_rate_out:.1f} Hz'
        camera.publish_overlay(draw_overlay(image, features, text), header)

    def _complain(self, camera: CameraTopics, error: Exception, what: str) -> None:
        """Log an error that concerns one message, unless another of its kind was logged a moment ago."""
        now = time.monotonic()
        if not self._node.context.ok() or now < self._last_complaint.get((camera.name, what), -LOG_PERIOD) + LOG_PERIOD:
            return
        self._last_complaint[camera.name, what] = now
        line = f'{f"{camera.name}: " if camera.name else ""}{what} dropped: {in_words(error)}'
        if isinstance(error, EdgePoint2Error):
            self._node.get_logger().warning(line)
        else:
            self._node.get_logger().error(line)


def capacity(settings: SimpleNamespace) -> int:
    """Return the maximum number of images of a camera that wait."""
    return 1 if settings.queue_policy == 'newest' else settings.queue_size


def _reason(settings: SimpleNamespace) -> str:
    """Return why an image is dropped for another one."""
    return 'newer' if settings.queue_policy == 'newest' else 'full'
