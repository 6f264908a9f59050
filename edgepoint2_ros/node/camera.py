"""The topics of one camera: images and masks in; keypoints, overlay and stats out."""

import functools
import time
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

try:
    from rclpy.event_handler import PublisherEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks

from edgepoint2_ros.masks import KEPT, Masks
from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.msg import CameraStats, KeypointArray, Place
from edgepoint2_ros.node.health import BUSY, COMPRESSED, LARGE, OK, STAGES, TYPES, Health, Period, explain_types
from edgepoint2_ros.node.losses import Losses, subscribe, with_events
from edgepoint2_ros.node.offers import find_reliability

DEAF = 'publishers offer best effort, image_reliability requests reliable; set it to auto or best_effort'


class CameraTopics:
    """One camera of the node: what exists from configure to cleanup, and its subscriptions while the node is active.

    Attributes:
        name: as the parameter ``cameras`` says.
        topic: full name of the topic of its images.
        keypoints, overlay: publishers.
        places: publisher, or None if the node publishes no places.
        frame_id: of its last image.
        health: counters of its images since activation.
        verdict: of its last diagnostics: their level, why no image and no mask came, whether it was idle.
        masks: those received on its mask topic since activation.
    """

    def __init__(self, node: Node, name: str, topics: dict[str, str], transport: str, places: bool = False):
        """Create the publishers of a camera.

        Args:
            node: the node they belong to.
            name: of the camera, or ''.
            topics: their names before remapping, see `parameters.name_topics`.
            transport: ``raw`` or ``compressed``.
            places: whether to publish places.
        """
        self._node = node
        self.name = name
        self._image_topic = topics['image']
        self._mask_topic = topics['mask']
        self._type = Image
        if transport == 'compressed':
            # As in image_transport: a remapping applies to the image's name, and the transport is appended after it.
            self._image_topic = f'{node.resolve_topic_name(self._image_topic)}{COMPRESSED}'
            self._type = CompressedImage
        # Only to be shown and counted: anything else would remap this name a second time.
        self.topic = node.resolve_topic_name(self._image_topic)
        self.keypoints = with_events(
            node.create_publisher,
            PublisherEventCallbacks(incompatible_qos=self._explain_reader),
            KeypointArray,
            topics['keypoints'],
            10,
        )
        self.places = node.create_publisher(Place, topics['place'], 10) if places else None
        self.overlay = node.create_publisher(Image, topics['overlay'], 1)
        self._stats = node.create_publisher(CameraStats, topics['stats'], 10)
        self._transport = transport
        self._receive: Callable[[Any], None] | None = None  # while the node is active
        self._image_subscription: Any = None
        self._mask_subscription: Any = None
        self._reliability: ReliabilityPolicy | None = None  # requested for images
        self._mask_policies: tuple[ReliabilityPolicy, DurabilityPolicy] | None = None  # requested for masks
        self._adapts = False
        self.frame_id = ''
        self.reset()

    @property
    def label(self) -> str:
        """Its name in messages to users."""
        return self.name or 'image'

    def reset(self) -> None:
        """Forget everything received so far."""
        self.health = Health(time.monotonic())
        self.verdict = OK, '', '', False
        self.masks = Masks()
        self._losses = {'lost': Losses(), 'masks_lost': Losses()}

    def subscribe(self, receive: Callable[[Any], None], settings: SimpleNamespace, depth: int) -> None:
        """Begin to receive.

        Args:
            receive: called with each image message.
            settings: the values of the parameters.
            depth: of the middleware's queue for images.
        """
        self._receive = receive
        self._expect(depth)
        self._adapts = settings.image_reliability == 'auto'
        self.adapt(settings)

    def adapt(self, settings: SimpleNamespace) -> None:
        """Request images with the QoS offered, and, if lazy, only while somebody subscribes to the results.

        With reliability ``auto``, request reliable images if every publisher offers them, else best effort, which
        receives from every publisher, but the middleware may lose images that exceed its buffers. While nobody
        publishes, nothing changes: a camera that comes back offers what it did, and what it sent before it is
        discovered would be lost with the old subscription. Masks are always requested with the QoS offered.
        """
        if self._receive is None:
            return
        self._listen_for_masks()
        if settings.lazy and not self.is_wanted(settings):
            if self._image_subscription is not None:
                self._node.destroy_subscription(self._image_subscription)
                self._image_subscription = None
            self.health.pause()
            return
        if self._adapts:
            offered = find_reliability(self._node, self._image_topic)
            asked = offered or self._reliability or ReliabilityPolicy.BEST_EFFORT
        else:
            asked = ReliabilityPolicy[settings.image_reliability.upper()]
        if self._image_subscription is None:
            self.health.resume(time.monotonic())
        elif asked == self._reliability:
            return
        else:
            self._node.destroy_subscription(self._image_subscription)
        self._listen(self._receive, asked)

    def deepen(self, depth: int) -> None:
        """Request images anew if the middleware's queue for them is less deep than ``depth``."""
        if self._receive is None or depth <= self._depth:
            return
        self._expect(depth)
        if self._image_subscription is not None and self._reliability is not None:
            self._node.destroy_subscription(self._image_subscription)
            self._listen(self._receive, self._reliability)

    def _expect(self, depth: int) -> None:
        self._depth = depth
        self.masks.capacity = max(KEPT, 2 * depth)  # images wait in the middleware's queue and in the node's

    def receive_mask(self, message: Image) -> None:
        """Take a mask message, for images from its stamp on."""
        self.health.masks_received += 1
        self.masks.put(to_nanoseconds(message.header.stamp), message)

    def unsubscribe(self) -> None:
        for subscription in (self._image_subscription, self._mask_subscription):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._receive = self._image_subscription = self._mask_subscription = self._mask_policies = None

    def destroy(self) -> None:
        """Destroy its publishers and subscriptions."""
        self.unsubscribe()
        for publisher in (self.keypoints, self.places, self.overlay, self._stats):
            if publisher is not None:
                self._node.destroy_publisher(publisher)

    def is_wanted(self, settings: SimpleNamespace) -> bool:
        """Tell whether somebody subscribes to the results of its images."""
        return (
            self.keypoints.get_subscription_count() > 0
            or self.are_places_wanted()
            or (settings.overlay and self.is_watched())
        )

    def are_places_wanted(self) -> bool:
        """Tell whether places are published and somebody subscribes to them."""
        return self.places is not None and self.places.get_subscription_count() > 0

    def is_watched(self) -> bool:
        """Tell whether somebody subscribes to the overlay."""
        return self.overlay.get_subscription_count() > 0

    def publish_overlay(self, canvas: np.ndarray, header: Header) -> None:
        """Publish a picture (H, W, 3) uint8 BGR with the header of its image."""
        height, width = canvas.shape[:2]
        self.overlay.publish(
            Image(
                header=header,
                height=height,
                width=width,
                encoding='bgr8',
                step=width * 3,
                data=array('B', canvas.tobytes()),
            )
        )

    def publish_place(self, place: Place) -> None:
        """Publish the place of an image, if places are published."""
        if self.places is not None:
            self.places.publish(place)

    def publish_stats(self, period: Period) -> None:
        """Publish a period as CameraStats."""
        health, times = self.health, period.times
        latency = times['latency']
        message = CameraStats(
            camera=self.name,
            period=period.seconds,
            rate_in=period.rate_in,
            rate_out=period.rate_out,
            keypoints=period.keypoints,
            latency_mean_ms=latency[0],
            latency_p95_ms=latency[1],
            latency_max_ms=latency[2],
            extract_mean_ms=times['extract'][0],
            age_mean_ms=times['age'][0],
            received=health.received,
            processed=health.processed,
            waiting=health.waiting,
            lost=health.lost,
            masks_received=health.masks_received,
            masks_bad=health.masks_bad,
            masks_lost=health.masks_lost,
            **{f'dropped_{reason}': count for reason, count in health.dropped.items()},
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.header.frame_id = self.frame_id
        self._stats.publish(message)

    def describe(self, period: Period) -> dict[str, str]:
        """Return a period as the values of a DiagnosticStatus."""
        health = self.health
        values = {
            'topic': self.topic,
            'rate in (Hz)': f'{period.rate_in:.1f}',
            'rate out (Hz)': f'{period.rate_out:.1f}',
            'keypoints': f'{period.keypoints:.0f}',
        }
        for stage in STAGES:
            values[f'{stage} mean / p95 / max (ms)'] = ' / '.join(f'{value:.1f}' for value in period.times[stage])
        values |= {'received': str(health.received), 'processed': str(health.processed)}
        values |= {f'dropped: {reason}': str(count) for reason, count in health.dropped.items()}
        values |= {
            'lost by the middleware': str(health.lost),
            'masks': str(health.masks_received),
            'bad masks': str(health.masks_bad),
            'masks lost by the middleware': str(health.masks_lost),
            'images before every mask': str(health.unmasked),
            'last error': health.last_error,
        }
        return values

    def explain_silence(self) -> str:
        """Return why no image comes, as far as the other nodes' topics tell, and the settings that fix it."""
        publishers = self._node.get_publishers_info_by_topic(self._image_topic)
        fitting = [info for info in publishers if info.topic_type == TYPES[self._transport]]
        if not fitting:
            return explain_types(self.topic, self._transport, self._published) or 'it has no publisher'
        offers_best_effort = all(info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for info in fitting)
        if offers_best_effort and self._reliability == ReliabilityPolicy.RELIABLE and not self._adapts:
            return DEAF
        return f'{len(fitting)} publish it; {LARGE if self.health.may_be_large else "nothing is sent, or " + BUSY}'

    def explain_masks(self) -> str:
        """Return why no mask can come, if so: the topic has another type."""
        types = {info.topic_type for info in self._node.get_publishers_info_by_topic(self._mask_topic)}
        if not types or TYPES['raw'] in types:
            return ''
        topic = self._node.resolve_topic_name(self._mask_topic)
        return f'no mask can be read: {topic} carries {", ".join(sorted(types))}, expected {TYPES["raw"]}'

    def _published(self, topic: str) -> set[str]:
        """Return the types that are published under the full name of a topic."""
        if topic == self.topic:
            return {info.topic_type for info in self._node.get_publishers_info_by_topic(self._image_topic)}
        # What looks for publishers by name would remap this one a second time.
        types = dict(self._node.get_topic_names_and_types()).get(topic, [])
        return set(types) if self._node.count_publishers(topic) else set()

    def _listen(self, receive: Callable[[Any], None], reliability: ReliabilityPolicy) -> None:
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=self._depth, reliability=reliability)
        self._image_subscription = self._subscribe(
            self._type, self._image_topic, receive, qos, 'lost', incompatible_qos=self._explain_writer
        )
        self._reliability = reliability  # now that it is so

    def _subscribe(
        self,
        kind: type,
        topic: str,
        receive: Callable[[Any], None],
        qos: QoSProfile,
        counter: str,
        **callbacks: Any,
    ) -> Any:
        """Return a subscription whose lost messages are counted in ``health`` under the name ``counter``."""
        count = functools.partial(setattr, self.health, counter)
        return subscribe(self._node, kind, topic, receive, qos, self._losses[counter], count, **callbacks)

    def _listen_for_masks(self) -> None:
        """Request masks with the QoS that all their publishers offer; while there is none, nothing changes.

        Initially request the most (reliable, transient local), so that a mask published once, or before the node
        started, is not missed. A publisher that offers less is received from the next call on.
        """
        offers = [info.qos_profile for info in self._node.get_publishers_info_by_topic(self._mask_topic)]
        if not offers and self._mask_subscription is not None:
            return
        are_reliable = all(offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers)
        are_latched = all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
        reliability = ReliabilityPolicy.RELIABLE if are_reliable else ReliabilityPolicy.BEST_EFFORT
        durability = DurabilityPolicy.TRANSIENT_LOCAL if are_latched else DurabilityPolicy.VOLATILE
        policies = reliability, durability
        if policies == self._mask_policies:
            return
        if self._mask_subscription is not None:
            self._node.destroy_subscription(self._mask_subscription)
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=KEPT, reliability=reliability, durability=durability)
        # Without the default callbacks, which would warn about a QoS mismatch that is resolved in a moment.
        self._mask_subscription = self._subscribe(
            Image, self._mask_topic, self.receive_mask, qos, 'masks_lost', use_default_callbacks=False
        )
        self._mask_policies = policies

    def _explain_writer(self, event: Any) -> None:
        if self._adapts:
            return  # the next call requests what it offers
        self._node.get_logger().error(f'QoS mismatch on {self.topic}: {DEAF}')

    def _explain_reader(self, event: Any) -> None:
        self._node.get_logger().warning(
            f'QoS mismatch on {self.keypoints.topic_name}: a subscriber requests more than is offered (reliable, '
            f'volatile, no deadline); set its durability to volatile'
        )
