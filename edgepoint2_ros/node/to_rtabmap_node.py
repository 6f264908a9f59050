"""The node to_rtabmap: keypoints, their image, depth and calibration in, rtabmap_msgs/RGBDImage out.

docs/nodes/to_rtabmap.md describes topics and parameters.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from edgepoint2_ros.bridges.rtabmap import import_messages, to_rtabmap
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.models import find_model
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.diagnostics import LOG_PERIOD, every_second, to_diagnostics, to_status
from edgepoint2_ros.node.health import COMPRESSED, ERROR, OK, SILENCE, WARN
from edgepoint2_ros.node.losses import Losses, subscribe
from edgepoint2_ros.node.moments import MISSING, Moment, Moments
from edgepoint2_ros.node.offers import LatchedToo, find_reliability
from edgepoint2_ros.node.parameters import TO_RTABMAP, AcceptsUnchanged, declare
from edgepoint2_ros.node.survival import Failures
from edgepoint2_ros.places import Vocabulary, open_vocabulary

TRANSPORTS = {'raw': Image, 'compressed': CompressedImage}
REASONS = (*MISSING, 'no camera_info', 'bad')  # why keypoints can go without an answer


class Input:
    """Images of one topic, with the QoS that their publishers offer; lost ones are counted."""

    def __init__(self, node: Node, kind: type, topic: str, depth: int, receive: Callable[[Any], None]):
        self._node, self._kind, self._topic, self._depth, self._receive = node, kind, topic, depth, receive
        self.losses = Losses()
        self._reliability: ReliabilityPolicy | None = None
        self._subscription: Any = None
        self.adapt()

    def adapt(self) -> None:
        """Request reliable images if every publisher offers them, else any; see `camera.CameraTopics.adapt`."""
        asked = find_reliability(self._node, self._topic) or self._reliability or ReliabilityPolicy.BEST_EFFORT
        if asked == self._reliability:
            return
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        qos = QoSProfile(depth=self._depth, reliability=asked)
        self._subscription = subscribe(self._node, self._kind, self._topic, self._receive, qos, self.losses)
        self._reliability = asked

    def describe(self) -> str:
        """Return its full name and its number of publishers, for a log."""
        return _describe(self._node, self._topic)


class ToRtabmapNode(AcceptsUnchanged, Node):
    """Packs the input of RTAB-Map's mapping node."""

    def __init__(self) -> None:
        super().__init__('to_rtabmap')
        self.failures = Failures(self)
        values = declare(self, TO_RTABMAP)
        self._messages = import_messages()
        self._place, self._weights = values['place'], values['weights']
        self._vocabulary: Vocabulary | None = None
        queue = values['queue_size']
        self._moments = Moments(round(values['max_interval'] * 1e9), queue)
        self._info_topics = [values['camera_info']] + ([values['right_camera_info']] if values['stereo'] else [])
        self._infos: dict[str, CameraInfo] = {}  # the latest, by topic
        self._received = self._published = 0
        self._dropped = dict.fromkeys(REASONS, 0)
        self._last_error = ''
        self._last_arrival = time.monotonic()
        self._unanswered: float | None = None  # when the first keypoints since the last answer came
        self._told = self._dropped | {'failed': 0, 'lost': 0, 'published': 0}  # in the diagnostics so far
        self._publisher = self.create_publisher(self._messages.RGBDImage, 'rgbd_image', 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._calibrations = [
            LatchedToo(self, CameraInfo, topic, partial(self._take_info, topic)) for topic in self._info_topics
        ]
        second = 'right_image' if values['stereo'] else 'depth'
        self._image = self._hear(values['image'], values['transport'], self._moments.add_image, queue)
        transport = 'raw' if values['stereo'] else values['depth_transport']
        self._second = self._hear(values[second], transport, self._moments.add_depth, queue)
        self._keypoints_topic = values['keypoints']
        self._losses = Losses()
        # Reliable, because the middleware loses best-effort messages that exceed its buffers (0.5 MB).
        qos = QoSProfile(depth=queue)
        subscribe(self, KeypointArray, self._keypoints_topic, self._take_keypoints, qos, self._losses)
        every_second(self, self._report)

    def _hear(self, topic: str, transport: str, add: Callable[[int, Any], list[Moment]], depth: int) -> Input:
        if transport == 'compressed':  # as image_transport does: a remapping names the image
            topic = self.resolve_topic_name(topic) + COMPRESSED
        return Input(self, TRANSPORTS[transport], topic, depth, partial(self._take_part, add))

    def _take_info(self, topic: str, info: CameraInfo) -> None:
        self._infos[topic] = info

    def _take_part(self, add: Callable[[int, Any], list[Moment]], message: Any) -> None:
        self._publish(add(to_nanoseconds(message.header.stamp), message))

    def _take_keypoints(self, message: KeypointArray) -> None:
        self._received += 1
        self._last_arrival = time.monotonic()
        self._unanswered = self._unanswered or self._last_arrival
        self._publish(self._moments.add_keypoints(to_nanoseconds(message.header.stamp), message))

    def _publish(self, moments: list[Moment]) -> None:
        for keypoints, image, depth in moments:
            missing = [self.resolve_topic_name(topic) for topic in self._info_topics if topic not in self._infos]
            if missing:
                self._drop('no camera_info', f'waiting for {" and ".join(missing)}')
                continue
            infos = [self._infos[topic] for topic in self._info_topics]
            for info in infos:
                info.header.stamp = image.header.stamp
            second = infos[1] if infos[1:] else None
            try:
                vocabulary = self._open_vocabulary(keypoints.model) if self._place else None
                result = to_rtabmap(keypoints, image, infos[0], depth, second, self._messages, vocabulary)
            except EdgePoint2Error as error:
                self._drop('bad', str(error))
                continue
            self._publisher.publish(result)
            self._published += 1
            self._unanswered = None

    def _open_vocabulary(self, model: str) -> Vocabulary:
        """Return the vocabulary of the first keypoints' model; it refuses those of another."""
        if self._vocabulary is None:
            self._vocabulary = open_vocabulary(find_model(model, self._weights))
        return self._vocabulary

    def _drop(self, reason: str, error: str) -> None:
        self._dropped[reason] += 1
        self._last_error = error
        self.get_logger().warning(f'keypoints dropped: {error}', throttle_duration_sec=LOG_PERIOD)

    def _report(self) -> None:
        """Adapt to the offered QoS, and publish diagnostics of the last second."""
        parts: tuple[Input | LatchedToo, ...] = (self._image, self._second, *self._calibrations)
        for part in parts:
            part.adapt()
        dropped = self._dropped | self._moments.missed
        lost = sum(losses.count for losses in (self._losses, self._image.losses, self._second.losses))
        now = dropped | {'failed': self.failures.count, 'lost': lost, 'published': self._published}
        new = {name: count - self._told[name] for name, count in now.items()}
        self._told = now
        level, reason = self._judge(new)
        if level != OK:
            self.get_logger().warning(reason, throttle_duration_sec=LOG_PERIOD)
        values = {
            'keypoints': self._received,
            'published': self._published,
            **{f'dropped: {name}': count for name, count in dropped.items()},
            'lost by the middleware': lost,
            'failed callbacks': self.failures.count,
            'last error': self._last_error,
        }
        self._diagnostics.publish(to_diagnostics(self, [to_status(self, 'rgbd_image', level, reason, values)]))

    def _judge(self, new: dict[str, int]) -> tuple[int, str]:
        """Return the level of the last second and the most severe reason for it.

        Args:
            new: how often each event happened in it.
        """
        now, missing = time.monotonic(), self._moments.missing
        silent, unanswered = now - self._last_arrival, now - (self._unanswered or now)
        if new['failed']:
            return ERROR, f'{new["failed"]} callbacks failed: {self.failures.last}'
        if new['bad'] or new['no camera_info']:
            count = new['bad'] + new['no camera_info']
            return (WARN if new['published'] else ERROR), f'{count} keypoints dropped: {self._last_error}'
        if new['no image']:
            return WARN, f'{new["no image"]} keypoints without their image on {self._image.describe()}'
        if new['no depth']:
            return WARN, (
                f'{new["no depth"]} images without a match within max_interval on {self._second.describe()}: are they '
                f'synchronised?'
            )
        if silent > SILENCE:
            return WARN, f'no keypoints for {silent:.0f} s on {_describe(self, self._keypoints_topic)}'
        if unanswered > SILENCE and missing:
            part = self._image if missing == 'no image' else self._second
            return WARN, f'nothing published for {unanswered:.0f} s: keypoints wait for a match on {part.describe()}'
        if new['lost']:
            return WARN, f'{new["lost"]} messages lost in transit'
        return OK, f'{new["published"]} images/s'


def _describe(node: Node, topic: str) -> str:
    """Return the full name of a topic, which is given before remapping, and its number of publishers, for a log."""
    publishers = node.get_publishers_info_by_topic(topic)  # count_publishers would not remap the name
    return f'{node.resolve_topic_name(topic)} ({len(publishers)} publish it)'
