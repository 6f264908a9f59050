"""The lifecycle node ``extractor``: images of one or more cameras in, keypoints out."""

import functools
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor, ExtractorSettings
from edgepoint2_ros.features import Features
from edgepoint2_ros.images import to_array
from edgepoint2_ros.masks import combine, read_mask_file
from edgepoint2_ros.messages import encode, encode_place, to_nanoseconds
from edgepoint2_ros.node import parameters
from edgepoint2_ros.node.camera import Camera
from edgepoint2_ros.node.diagnostics import to_diagnostics, to_status
from edgepoint2_ros.node.health import ERROR, OK, SILENCE, WARN, judge
from edgepoint2_ros.node.mailbox import Mailbox
from edgepoint2_ros.node.overlay import draw_overlay
from edgepoint2_ros.node.survival import Failures
from edgepoint2_ros.places import Vocabulary, open_vocabulary

YIELD = 1e-3  # seconds that the executor leaves to the worker when it hands over an image
LOG_PERIOD = 5.0  # seconds between two log lines about bad images
REPORT_PERIOD = 1.0  # seconds between two diagnostics
MOST_SIZES = 1000  # of images that are remembered: a camera may crop each one in another way
OVERLAY_PERIOD = 1.0  # seconds between two overlays while the machine is overloaded

Arrival = tuple[Any, float]  # an image message and when it came
Transition = Callable[['ExtractorNode', LifecycleState], TransitionCallbackReturn]


def explained(transition: Transition) -> Transition:
    """Tell what goes wrong in a transition: rclpy would swallow it and call on_error."""

    @functools.wraps(transition)
    def run(self: 'ExtractorNode', state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self._failure = f'{transition.__name__}: {_in_words(error)}'
            self.failures.add(error)
            raise

    return run


class ExtractorNode(parameters.AcceptsUnchanged, LifecycleNode):
    """Subscribes to the images of its cameras while active and answers each one processed by a message of keypoints.

    The executor's thread only puts images into a mailbox; a worker thread extracts and publishes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('extractor', **kwargs)
        self.failures = Failures(self)
        self._failures_told = 0  # of them, in the diagnostics so far
        self._extractor: Extractor | None = None
        self._vocabulary: Vocabulary | None = None  # where places are published
        self._cameras: list[Camera] = []
        self._mailbox: Mailbox[Arrival] = Mailbox()  # another one at each activation
        self._worker: threading.Thread | None = None
        self._state = 'unconfigured'
        self._failure = ''  # why it is unconfigured, where that was not asked for
        self._waits_for = ''  # what the engine says while it is not ready
        self._sizes: set[tuple[int, ...]] = set()  # shapes of images that the engine has run at
        self._last_overlay = 0.0
        self._last_complaint: dict[tuple[str, str], float] = {}
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._change_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # By a steady clock: diagnostics go on while simulated time stands still or jumps.
        self.create_timer(REPORT_PERIOD, self.report, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def start(self, interrupted: Callable[[], bool]) -> bool:
        """Configure and activate, unless the parameter autostart is false.

        Args:
            interrupted: called before each step; once it returns True, nothing more is started.

        Returns:
            Whether the node is as it was asked to be.
        """
        if not parameters.read(self).autostart:
            return True
        for transition in (self.trigger_configure, self.trigger_activate):
            if interrupted() or transition() != TransitionCallbackReturn.SUCCESS:
                return False
        return True

    @explained
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._settings = settings = parameters.read(self)
        self._failure, self._waits_for = '', 'not ready: opening the engine'
        self.report()  # opening can take minutes, and no timer runs meanwhile
        try:
            topics = {name: parameters.name_topics(settings, name) for name in settings.cameras}
            self._static_masks = _read_masks(settings)
            extractor = Extractor(ExtractorSettings.of(settings), report=self._hear_engine)
            self._vocabulary = open_vocabulary(extractor.model) if settings.place else None
            self._extractor = extractor
        except EdgePoint2Error as error:
            self.get_logger().error(str(error))
            self._failure = str(error)
            return TransitionCallbackReturn.FAILURE
        finally:
            self._waits_for = ''
        self._cameras = [
            Camera(self, name, topics[name], settings.transport, settings.place) for name in settings.cameras
        ]
        self._state = 'inactive'
        self.get_logger().info(self._extractor.description)
        return TransitionCallbackReturn.SUCCESS

    @explained
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        settings = self._settings
        self._mailbox = Mailbox(len(self._cameras), _capacity(settings))
        self._worker = threading.Thread(target=self._work, args=(self._extractor, self._mailbox), name='extractor')
        self._worker.start()
        for number, camera in enumerate(self._cameras):
            camera.reset()
            camera.subscribe(
                functools.partial(self.receive, camera=number),
                settings,
                max(settings.image_depth, _capacity(settings)),  # a burst waits in the middleware first
            )
        self._state = 'active'
        self.get_logger().info(f'waiting for images on {", ".join(camera.topic for camera in self._cameras)}')
        return TransitionCallbackReturn.SUCCESS

    @explained
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        self.report()
        for camera in self._cameras:
            health = camera.health
            dropped = ', '.join(f'{count} {reason}' for reason, count in health.dropped.items() if count)
            self.get_logger().info(
                f'{camera.topic}: {health.received} images received, {health.processed} processed, '
                f'{sum(health.dropped.values())} dropped{f" ({dropped})" if dropped else ""}'
            )
        self._state = 'inactive'
        return TransitionCallbackReturn.SUCCESS

    @explained
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @explained
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: back to the start, from where it can be tried again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def receive(self, message: Image | CompressedImage, camera: int = 0) -> None:
        """Take an image message of a camera; it waits for the worker."""
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

    def stop(self) -> None:
        """End the subscriptions and the worker, if there are any; an image in work is finished first."""
        if self._worker is not None:
            for camera in self._cameras:
                camera.unsubscribe()
            for camera, count in zip(self._cameras, self._mailbox.close()):
                camera.health.drop('stopped', count)
            self._worker.join()
            self._worker = None

    def report(self) -> None:
        """Publish diagnostics, and the stats of the cameras while active."""
        statuses = []
        for camera in self._cameras if self._state == 'active' else ():
            try:
                statuses.append(self._report_camera(camera))
            except Exception as error:  # whatever one camera does, the others are reported, and this, too
                self.failures.add(error)
        failures = self.failures.count
        self._diagnostics.publish(to_diagnostics(self, [self._engine_status(), *statuses]))
        self._failures_told = failures

    def _report_camera(self, camera: Camera) -> DiagnosticStatus:
        """Publish the stats of a camera and return its diagnostics."""
        camera.adapt(self._settings)
        report = camera.health.report(time.monotonic())
        silence = camera.explain_silence() if report.silent > SILENCE else ''
        masks = camera.explain_masks()
        level, reason = judge(report, camera.health, camera.topic, silence, masks)
        verdict = level, silence, masks, report.idle
        if verdict != camera.verdict:
            camera.verdict = verdict
            if level == OK:
                self.get_logger().info(f'{camera.label}: {reason}')
            else:
                self.get_logger().warning(f'{camera.label}: {reason}')
        camera.publish_stats(report)
        return self._status(camera.label, level, reason, camera.describe(report))

    def _release(self) -> None:
        self.stop()
        for camera in self._cameras:
            camera.destroy()
        self._cameras = []
        self._extractor = self._vocabulary = None
        self._sizes.clear()
        self._state = 'unconfigured'

    def _work(self, extractor: Extractor, mailbox: Mailbox[Arrival]) -> None:
        while (got := mailbox.get()) is not None:
            number, (message, arrival) = got
            camera = self._cameras[number]
            try:
                self._serve(extractor, camera, message, arrival)
            except Exception as error:  # whatever one image does, the next is processed
                camera.health.drop('bad' if isinstance(error, EdgePoint2Error) else 'error', error=_in_words(error))
                self._complain(camera, error, 'image')
            self._waits_for = ''

    def _serve(self, extractor: Extractor, camera: Camera, message: Image | CompressedImage, arrival: float) -> None:
        settings = self._settings  # one set of them for this image, whatever changes meanwhile
        begun = time.monotonic()
        image = to_array(message)
        mask = self._mask(camera, to_nanoseconds(message.header.stamp), image, settings)
        read = time.monotonic()
        features = self._extract(extractor, image, mask)
        extracted = time.monotonic()
        if self.context.ok():
            camera.keypoints.publish(encode(features, message.header, settings.descriptor_encoding))
        published = time.monotonic()
        age = (self.get_clock().now().nanoseconds - to_nanoseconds(message.header.stamp)) * 1e-9
        camera.frame_id = message.header.frame_id
        times = (begun - arrival, read - begun, extracted - read, published - extracted, published - arrival, age)
        camera.health.serve(len(features), times)
        try:
            if self._vocabulary is not None and camera.are_places_wanted() and self.context.ok():
                camera.publish_place(encode_place(self._vocabulary.describe(features), features, message.header))
            if settings.overlay and camera.is_watched():
                self._draw(camera, image, features, message.header)
        except Exception as error:  # this image was answered
            self.failures.add(error)

    def _extract(self, extractor: Extractor, image: np.ndarray, mask: np.ndarray | None) -> Features:
        """Return the features of an image; the first inference at a size takes longer, and all cameras wait for it."""
        if image.shape in self._sizes:
            return extractor.extract(image, mask)
        if len(self._sizes) >= MOST_SIZES:
            self._sizes.clear()
        self._sizes.add(image.shape)
        height, width = image.shape[:2]
        begun = time.monotonic()
        for camera in self._cameras:
            camera.health.begin_warm_up(f'the first inference at {width} x {height} pixels')
        try:
            return extractor.extract(image, mask)
        finally:
            for camera in self._cameras:
                camera.health.end_warm_up(time.monotonic() - begun)

    def _mask(self, camera: Camera, stamp: int, image: np.ndarray, settings: SimpleNamespace) -> np.ndarray | None:
        """Return where keypoints are allowed in an image of a stamp in nanoseconds, or None for everywhere."""
        masks = [self._static_masks[camera.name]] if camera.name in self._static_masks else []
        newest = None
        while True:
            try:
                newest = camera.masks.at(stamp)
                break
            except Exception as error:  # that one is forgotten
                camera.health.masks_bad += 1
                camera.health.last_error = f'mask: {_in_words(error)}'
                self._complain(camera, error, 'mask')
        if newest is not None:
            masks.append(newest)
        elif lead := camera.masks.lead(stamp):
            camera.health.pass_masks(lead * 1e-9)
        return combine(masks, settings.border, image.shape[1], image.shape[0])

    def _draw(self, camera: Camera, image: np.ndarray, features: Features, header: Header) -> None:
        """Publish the overlay, unless images wait: then only once in a while."""
        now = time.monotonic()
        if not self._mailbox.is_empty and now < self._last_overlay + OVERLAY_PERIOD:
            return
        self._last_overlay = now
        text = f'{camera.label}  {features.model}  {len(features)} keypoints  {camera.health.last_rate_out:.1f} Hz'
        camera.publish_overlay(draw_overlay(image, features, text), header)

    def _status(self, task: str, level: int, reason: str, values: dict[str, str]) -> DiagnosticStatus:
        backend = '' if self._extractor is None else self._extractor.backend
        return to_status(self, task, level, reason, values, backend)

    def _engine_status(self) -> DiagnosticStatus:
        values = {}
        if self._extractor is not None:
            values = {
                'model': self._extractor.variant.name,
                'digest': self._extractor.digest,
                'backend': self._extractor.backend,
                'description': self._extractor.description,
            }
        values |= {'failed callbacks': str(self.failures.count), 'last failure': self.failures.last}
        if failed := self.failures.count - self._failures_told:
            return self._status('engine', ERROR, f'{failed} callbacks failed: {self.failures.last}', values)
        if self._waits_for:
            return self._status('engine', WARN, self._waits_for, values)
        return self._status('engine', ERROR if self._failure else OK, self._failure or self._state, values)

    def _hear_engine(self, line: str) -> None:
        """Take a line of the engine about what takes long or did not work out."""
        if line.startswith('not ready: '):
            self._waits_for = line
        self.get_logger().warning(line)

    def _complain(self, camera: Camera, error: Exception, what: str) -> None:
        """Log an error that concerns one message, unless another of its kind was logged a moment ago."""
        now = time.monotonic()
        if not self.context.ok() or now < self._last_complaint.get((camera.name, what), -LOG_PERIOD) + LOG_PERIOD:
            return
        self._last_complaint[camera.name, what] = now
        name = f'{camera.name}: ' if camera.name else ''
        if isinstance(error, EdgePoint2Error):
            self.get_logger().warning(f'{name}{what} dropped: {error}')
        else:
            self.get_logger().error(f'{name}{what} dropped: {_in_words(error)}')

    def _change_parameters(self, changes: 'list[Parameter[Any]]') -> SetParametersResult:
        extractor = self._extractor
        try:
            wanted = {change.name: change.value for change in changes}
            values = parameters.check_changes(wanted, configured=extractor is not None)
            if extractor is not None:
                self._apply(extractor, values)
        except Exception as error:  # one that left this callback would leave the request without an answer
            if not isinstance(error, EdgePoint2Error):
                self.failures.add(error)
            return SetParametersResult(successful=False, reason=_in_words(error))
        return SetParametersResult(successful=True)

    def _apply(self, extractor: Extractor, values: dict[str, Any]) -> None:
        """Change settings while configured, all of them or, by an EdgePoint2Error, none."""
        settings = SimpleNamespace(**{**vars(self._settings), **values})
        # First what can still be refused: a file that cannot be read, more keypoints than the model can give.
        static_masks = _read_masks(settings) if 'mask_file' in values else self._static_masks
        extractor.max_keypoints = settings.max_keypoints
        extractor.score_threshold = settings.score_threshold
        self._static_masks = static_masks
        self._settings = settings
        if self._worker is not None:
            for camera, count in zip(self._cameras, self._mailbox.resize(_capacity(settings))):
                camera.health.drop(_reason(settings), count)


def _capacity(settings: SimpleNamespace) -> int:
    return 1 if settings.queue_policy == 'newest' else settings.queue_size


def _reason(settings: SimpleNamespace) -> str:
    """Return why an image makes room for another one."""
    return 'newer' if settings.queue_policy == 'newest' else 'full'


def _read_masks(settings: SimpleNamespace) -> dict[str, np.ndarray]:
    """Return the mask files of the cameras by the cameras' names; none where the parameter is empty."""
    if not settings.mask_file:
        return {}
    try:
        return {name: read_mask_file(settings.mask_file.replace('{camera}', name)) for name in settings.cameras}
    except EdgePoint2Error as error:
        raise EdgePoint2Error(f'mask_file: {error}') from None


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, EdgePoint2Error) else f'{type(error).__name__}: {error}'
