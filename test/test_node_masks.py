"""Masks on their topic, over DDS: large ones, latched ones, lost ones, and ones that come from the future."""

from array import array

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from diagnostic_msgs.msg import DiagnosticStatus
from node_rig import wait_until
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import Image

OK, WARN = DiagnosticStatus.OK, DiagnosticStatus.WARN
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def model(official_model):
    official_model('T-32')


@pytest.fixture
def left_half(gray):
    mask = np.zeros_like(gray)
    mask[:, :320] = 255
    return mask


def policies(camera) -> list[tuple]:
    """Return what the node asks for its masks."""
    infos = camera.node.get_subscriptions_info_by_topic(camera.topic('mask'))
    return [(info.qos_profile.reliability, info.qos_profile.durability) for info in infos]


def test_large_masks_of_a_reliable_publisher_all_arrive(start, rig):
    """0.9 MB each, of which best effort loses most."""
    start('large_masks')
    camera = rig('large_masks')
    camera.connect()
    mask = camera.image(np.full((720, 1280), 255, np.uint8))
    for number in range(40):
        mask.header.stamp.nanosec = number
        camera.mask.publish(mask)
        camera.spin(0.05)
        assert camera.mask.wait_for_all_acked(rclpy.duration.Duration(seconds=20))
    camera.wait_until(lambda: camera.next_stats().masks_received == 40)
    assert camera.stats[-1].masks_lost == 0
    assert camera.status('image').level == WARN  # there are no images, that is all
    assert 'no image' in camera.diagnostics['image'].message


def test_masks_that_best_effort_loses_are_counted_and_said(start, rig, gray):
    process = start('lossy_masks')
    camera = rig('lossy_masks')
    camera.node.destroy_publisher(camera.mask)
    camera.mask = camera.node.create_publisher(Image, 'mask', qos_profile_sensor_data)
    camera.connect()
    camera.wait_until(lambda: policies(camera) == [(ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)])
    small, large = (camera.image(np.full(shape, 255, np.uint8), stamp=0) for shape in ((4, 4), (2000, 2000)))
    sent = 0

    def publish(mask) -> None:
        nonlocal sent
        camera.mask.publish(mask)
        sent += 1

    while not camera.stats or camera.stats[-1].masks_received == 0:  # one at a time until the first arrives
        publish(small)
        first = sent
        camera.answer(gray)
        camera.next_stats()
    for _ in range(40):
        publish(large)
        camera.answer(gray)
    publish(small)  # the numbers of masks tell what was lost before
    camera.answer(gray)
    stats = camera.next_stats()
    if stats.masks_lost == 0 and stats.masks_received == sent:
        pytest.skip('this middleware lost none')
    assert stats.masks_lost > 0
    if hasattr(rclpy.subscription.Subscription, 'CallbackType'):  # else, in Humble, masks have no numbers
        assert sent - first + 1 <= stats.masks_received + stats.masks_lost <= sent
    process.wait_for('masks lost in transit, older ones count instead')


def test_a_mask_that_was_latched_before_the_node_started_counts(start, rig, gray, left_half):
    camera = rig('latched')
    camera.node.destroy_publisher(camera.mask)
    camera.mask = camera.node.create_publisher(Image, 'mask', LATCHED)
    camera.mask.publish(camera.image(left_half, stamp=0))
    start('latched')
    camera.connect()
    camera.wait_until(lambda: camera.stats and camera.stats[-1].masks_received)
    assert policies(camera) == [(ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)]
    assert max(camera.answer(gray).x) <= 320


def test_masks_are_asked_for_as_they_are_offered(start, rig, gray, left_half):
    start('offers')
    camera = rig('offers')
    camera.connect()
    for qos in (qos_profile_sensor_data, LATCHED, QoSProfile(depth=5)):
        camera.node.destroy_publisher(camera.mask)
        camera.mask = camera.node.create_publisher(Image, 'mask', qos)
        camera.connect()
        expected = [(qos.reliability, qos.durability)]
        camera.wait_until(lambda: policies(camera) == expected)  # noqa: B023
        camera.wait_until(lambda: camera.mask.get_subscription_count() == 1)
        camera.spin(0.3)
        camera.send_mask(left_half, stamp=0)
        assert max(camera.answer(gray).x) <= 320
        camera.send_mask(np.full_like(gray, 255), stamp=0)
        assert max(camera.answer(gray).x) > 400


def test_a_mask_that_is_later_than_every_image_is_said(start, rig, gray, left_half):
    process = start('later')
    camera = rig('later')
    camera.connect()
    camera.send_mask(left_half, stamp=camera.answer(gray).header.stamp.sec + 3600)
    answers = []

    def is_said(status) -> bool:
        answers.append(camera.answer(gray))
        return status.level == WARN and status.message.startswith('no mask applies: each is stamped 3')

    camera.status('image', is_said)
    assert all(max(answer.x) > 400 for answer in answers)
    assert 'no mask applies' in process.output
    camera.send_mask(left_half, stamp=0)  # for all

    def counts(status) -> bool:
        return max(camera.answer(gray).x) <= 320 and status.level == OK

    camera.status('image', counts)


def test_a_mask_for_all_images_and_late_ones_last_beside_those_of_moments(start, rig, gray, left_half):
    start('late')
    camera, now = rig('late'), 1_800_000_000
    camera.connect()
    upper_half, everything = np.zeros_like(gray), np.full_like(gray, 255)
    upper_half[:240] = 255

    def at(pixels, second: int, nanosecond: int) -> Image:
        image = camera.image(pixels)
        image.header.stamp.sec, image.header.stamp.nanosec = second, nanosecond
        return image

    def answer(second: int, nanosecond: int):
        camera.received.clear()
        image = at(gray, second, nanosecond)
        camera.camera.publish(image)
        return camera.answer_to(image)

    for mask in (at(left_half, 0, 0), at(everything, now, 900_000_000), at(upper_half, now, 500_000_000)):
        camera.mask.publish(mask)
        camera.spin(0.15)
    assert max(answer(now, 0).x) <= 320
    assert max(answer(now, 600_000_000).y) <= 240
    last = answer(now, 950_000_000)
    assert max(last.x) > 400 and max(last.y) > 400


def test_masks_that_the_middleware_loses_are_counted_and_said(gray, ros):
    from edgepoint2_ros.node.extractor_node import ExtractorNode

    node = ExtractorNode(namespace='lost_masks')
    try:
        assert node.start(lambda: False)
        camera = node.cameras[0]
        image = Image(height=480, width=640, step=640, encoding='mono8', data=array('B', gray.tobytes()))

        def process() -> None:
            processed = camera.health.processed
            node.receive(image)
            wait_until(lambda: camera.health.processed > processed)

        process()  # the first takes so long that the camera seems to be silent
        for lost, level in ((3, WARN), (0, OK)):
            camera.health.masks_lost += lost  # as the middleware's event does
            process()
            node.report()
            status = node.statuses[1]
            assert status.level == level
            assert ('3 masks lost in transit, older ones count instead' in status.message) == (level == WARN)
            assert {pair.key: pair.value for pair in status.values}['masks lost by the middleware'] == '3'
    finally:  # its worker would keep the process alive
        node.stop()
        node.destroy_node()
