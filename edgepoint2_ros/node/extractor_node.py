"""The lifecycle node ``extractor``: images of one or more cameras in, keypoints out."""

import functools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image

from edgepoint2_ros.errors import EdgePoint2Error, in_words
from edgepoint2_ros.extractor import Extractor, ExtractorSettings
from edgepoint2_ros.masks import read_mask_file
from edgepoint2_ros.node import parameters
from edgepoint2_ros.node.camera import CameraTopics
from edgepoint2_ros.node.diagnostics import every_second, to_diagnostics, to_status
from edgepoint2_ros.node.health import ERROR, OK, SILENCE, WARN, judge
from edgepoint2_ros.node.survival import Failures
from edgepoint2_ros.node.worker import Worker, capacity
from edgepoint2_ros.places import open_vocabulary

Transition = Callable[['ExtractorNode', LifecycleState], TransitionCallbackReturn]


def explained(transition: Transition) -> Transition:
    """Log what goes wrong in a transition: rclpy would swallow it and call on_error."""

    @functools.wraps(transition)
    def run(self: 'ExtractorNode', state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:
            self._failure = f'{transition.__name__}: {in_words(error)}'
            self.failures.add(error)
            raise

    return run


class ExtractorNode(parameters.AcceptsUnchanged, LifecycleNode):
    """Subscribes to the images of its cameras while active and publishes a keypoint message for each one processed.

    The executor's thread only puts images into a mailbox; a worker thread extracts and publishes.

    Attributes:
        cameras: while it is configured.
        failures: unexpected exceptions in its callbacks.
        statuses: the latest diagnostics: of the engine, then, while active, of each camera.
    """

    live = frozenset(parameter.name for parameter in parameters.EXTRACTOR if parameter.live)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('extractor', **kwargs)
        self.failures = Failures(self)
        self.statuses: list[DiagnosticStatus] = []
        self._failures_told = 0  # of them, in the diagnostics so far
        self._extractor: Extractor | None = None
        self.cameras: list[CameraTopics] = []
        self._worker: Worker | None = None
        self._state = 'unconfigured'
        self._failure = ''  # why it is unconfigured, unless that was requested
        self._waits_for = ''  # what the engine says while it is not ready
        parameters.declare(self, parameters.EXTRACTOR)
        self.add_on_set_parameters_callback(self._change_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        every_second(self, self.report)

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
            static_masks = _read_masks(settings)
            extractor = Extractor(ExtractorSettings.of(settings), report=self._hear_engine)
            vocabulary = open_vocabulary(extractor.model) if settings.place else None
            self._extractor = extractor
        except EdgePoint2Error as error:
            self.get_logger().error(str(error))
            self._failure = str(error)
            return TransitionCallbackReturn.FAILURE
        finally:
            self._waits_for = ''
        self.cameras = [
            CameraTopics(self, name, topics[name], settings.transport, settings.place) for name in settings.cameras
        ]
        self._worker = Worker(
            self, self.failures, extractor, vocabulary, self.cameras, settings, static_masks, self._be_ready
        )
        self._state = 'inactive'
        self.get_logger().info(self._extractor.description)
        return TransitionCallbackReturn.SUCCESS

    @explained
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._worker is not None  # since it was configured
        settings = self._settings
        self._worker.start()
        for number, camera in enumerate(self.cameras):
            camera.reset()
            camera.subscribe(functools.partial(self.receive, camera=number), settings, _depth(settings))
        self._state = 'active'
        self.get_logger().info(f'waiting for images on {", ".join(camera.topic for camera in self.cameras)}')
        return TransitionCallbackReturn.SUCCESS

    @explained
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        self.report()
        for camera in self.cameras:
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
        self._state = 'finalized'
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: back to unconfigured, from where it can be retried."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def receive(self, message: Image | CompressedImage, camera: int = 0) -> None:
        """Take an image message of a camera; it waits for the worker."""
        if self._worker is not None:
            self._worker.take(message, camera)

    def stop(self) -> None:
        """End the subscriptions and the worker's thread, if any; an image being processed is finished first."""
        for camera in self.cameras:
            camera.unsubscribe()
        if self._worker is not None:
            self._worker.stop()

    def report(self) -> None:
        """Publish diagnostics, and the stats of the cameras while active."""
        statuses = []
        for camera in self.cameras if self._state == 'active' else ():
            try:
                statuses.append(self._report_camera(camera))
            except Exception as error:  # whatever one camera does, the others are reported, and so is this
                self.failures.add(error)
        failures = self.failures.count
        self.statuses = [self._engine_status(), *statuses]
        self._diagnostics.publish(to_diagnostics(self, self.statuses))
        self._failures_told = failures

    def _report_camera(self, camera: CameraTopics) -> DiagnosticStatus:
        """Publish the stats of a camera and return its diagnostics."""
        camera.adapt(self._settings)
        period = camera.health.end_period(time.monotonic())
        silence = camera.explain_silence() if period.silent > SILENCE else ''
        masks = camera.explain_masks()
        level, reason = judge(period, camera.health, camera.topic, silence, masks)
        verdict = level, silence, masks, period.idle
        if verdict != camera.verdict:
            camera.verdict = verdict
            if level == OK:
                self.get_logger().info(f'{camera.label}: {reason}')
            else:
                self.get_logger().warning(f'{camera.label}: {reason}')
        camera.publish_stats(period)
        task = 'image of engine' if camera.label == 'engine' else camera.label
        return self._status(task, level, reason, camera.describe(period))

    def _release(self) -> None:
        self.stop()
        for camera in self.cameras:
            camera.destroy()
        self.cameras = []
        self._extractor = self._worker = None
        self._state = 'unconfigured'

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
        if self._state == 'finalized':
            return self._status('engine', WARN, 'finalized: only a new process can take images again', values)
        return self._status('engine', ERROR if self._failure else OK, self._failure or self._state, values)

    def _be_ready(self) -> None:
        """Clear what the engine said while it was not ready: it has answered."""
        self._waits_for = ''

    def _hear_engine(self, line: str) -> None:
        """Take a line from the engine about something slow or failed."""
        if line.startswith('not ready: '):
            self._waits_for = line
        self.get_logger().warning(line)

    def _change_parameters(self, changes: 'list[Parameter[Any]]') -> SetParametersResult:
        extractor = self._extractor
        try:
            wanted = {change.name: change.value for change in changes}
            values = parameters.check_changes(wanted, configured=extractor is not None)
            if extractor is not None:
                self._apply(extractor, values)
        except Exception as error:  # if it left this callback, the request would get no answer
            if not isinstance(error, EdgePoint2Error):
                self.failures.add(error)
            return SetParametersResult(successful=False, reason=in_words(error))
        return SetParametersResult(successful=True)

    def _apply(self, extractor: Extractor, values: dict[str, Any]) -> None:
        """Change settings while configured, all of them or, by an EdgePoint2Error, none."""
        settings = SimpleNamespace(**{**vars(self._settings), **values})
        # First what can still fail: a file that cannot be read, more keypoints than the model supports.
        static_masks = _read_masks(settings) if 'mask_file' in values else None
        extractor.max_keypoints = settings.max_keypoints
        extractor.score_threshold = settings.score_threshold
        self._settings = settings
        if self._worker is not None:
            self._worker.apply(settings, static_masks)
        for camera in self.cameras:
            camera.deepen(_depth(settings))


def _depth(settings: SimpleNamespace) -> int:
    """Return the depth of the middleware's queue for images: a burst waits there first."""
    return max(settings.image_depth, capacity(settings))


def _read_masks(settings: SimpleNamespace) -> dict[str, np.ndarray]:
    """Return the mask of each camera by its name, from the mask files; none if the parameter is empty."""
    if not settings.mask_file:
        return {}
    try:
        return {name: read_mask_file(settings.mask_file.replace('{camera}', name)) for name in settings.cameras}
    except EdgePoint2Error as error:
        raise EdgePoint2Error(f'mask_file: {error}') from None
