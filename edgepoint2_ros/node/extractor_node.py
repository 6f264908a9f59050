"""The lifecycle node ``extractor``: images in, keypoints out."""

import threading

from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import encode
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node import parameters
from edgepoint2_ros.node.mailbox import Mailbox

REPORT_PERIOD = 5.0  # seconds between two reports of bad images


class ExtractorNode(LifecycleNode):
    """Subscribes to ``image`` while active and publishes ``keypoints``, one message for each image processed.

    The executor's thread only puts images into a mailbox; a worker thread extracts and publishes.
    """

    def __init__(self, **kwargs):
        super().__init__('extractor', **kwargs)
        self._extractor = None
        self._publisher = None
        self._subscription = None
        self._mailbox = None
        self._worker = None
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._change_parameters)

    def start(self, interrupted) -> bool:
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

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._settings = parameters.read(self)
        try:
            self._extractor = Extractor(
                self._settings.model,
                weights=self._settings.weights,
                backend=self._settings.backend,
                precision=self._settings.precision,
                threads=self._settings.threads,
                max_keypoints=self._settings.max_keypoints,
                score_threshold=self._settings.score_threshold,
            )
        except EdgePoint2Error as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        self._publisher = self.create_publisher(KeypointArray, 'keypoints', 10)
        self.get_logger().info(self._extractor.description)
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._published = 0
        self._refused = 0
        self._mailbox = Mailbox(1 if self._settings.queue_policy == 'newest' else self._settings.queue_size)
        self._worker = threading.Thread(target=self._work, name='extractor')
        self._worker.start()
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self._settings.image_depth,
            reliability=ReliabilityPolicy[self._settings.image_reliability.upper()],
        )
        self._subscription = self.create_subscription(Image, 'image', self._mailbox.put, qos)
        self.get_logger().info(f'waiting for images on {self._subscription.topic_name}')
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        self.get_logger().info(
            f'{self._mailbox.received} images received, {self._published} processed, '
            f'{self._mailbox.dropped} dropped for newer ones, {self._refused} bad'
        )
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.destroy_publisher(self._publisher)
        self._extractor = None
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop()
        return TransitionCallbackReturn.SUCCESS

    def stop(self) -> None:
        """End the subscription and the worker, if there are any; an image in work is finished first."""
        if self._worker is not None:
            self.destroy_subscription(self._subscription)
            self._mailbox.close()
            self._worker.join()
            self._worker = None

    def _work(self) -> None:
        while (image := self._mailbox.get()) is not None:
            try:
                features = self._extractor.extract(to_array(image))
                message = encode(features, image.header, self._settings.descriptor_encoding)
                if self.context.ok():
                    self._publisher.publish(message)
                self._published += 1
            except EdgePoint2Error as error:
                self._refused += 1
                self.get_logger().warning(f'image dropped: {error}', throttle_duration_sec=REPORT_PERIOD)
            except Exception as error:  # whatever one image does, the next is processed
                self._refused += 1
                if self.context.ok():
                    self.get_logger().error(
                        f'image dropped: {type(error).__name__}: {error}', throttle_duration_sec=REPORT_PERIOD
                    )

    def _change_parameters(self, changes) -> SetParametersResult:
        configured = self._extractor is not None
        try:
            values = parameters.check_changes({change.name: change.value for change in changes}, configured)
            if configured:
                # First what can still be refused: the model knows its own most keypoints.
                if 'max_keypoints' in values:
                    self._extractor.max_keypoints = values['max_keypoints']
                if 'score_threshold' in values:
                    self._extractor.score_threshold = values['score_threshold']
                vars(self._settings).update(values)
        except EdgePoint2Error as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)
