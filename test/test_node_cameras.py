"""Several cameras with one model: topics, fairness, masks, compressed images, overlay, stats, diagnostics, over DDS."""

import re

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from node_rig import Process, Rig, destroy, wait_until
from sensor_msgs.msg import CompressedImage, Image

from edgepoint2_ros.messages import decode

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
DEFAULTS = {'max_keypoints': 2048, 'border': 0, 'mask_file': '', 'queue_policy': 'newest', 'score_threshold': -8.0}

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def stereo(official_model, tmp_path_factory, ros):
    """A node with two cameras that many tests feed: its process and a rig for each camera."""
    official_model('T-32')
    process = Process(
        tmp_path_factory.mktemp('stereo'),
        'stereo',
        cameras='[left, right]',
        image_reliability='reliable',
        image_depth=50,  # a loaded machine takes them late
    )
    rigs = Rig('stereo', 'left'), Rig('stereo', 'right')
    for rig in rigs:
        rig.connect()
    yield process, *rigs
    process.interrupt()
    assert process.end() == 0
    assert 'Traceback' not in process.output
    for rig in rigs:
        destroy(rig.node, rig.target)


@pytest.fixture
def left(stereo):
    yield stereo[1]
    assert stereo[1].set_together(**DEFAULTS).successful
    stereo[1].send_mask(np.full((480, 640), 255, np.uint8), stamp=0)  # time was set back: no other mask counts any more


def level(status) -> int:
    return status.level


def values(status) -> dict:
    return {pair.key: pair.value for pair in status.values}


def test_each_camera_is_answered_on_its_own_topic(stereo, gray):
    _, left, right = stereo
    others = np.ascontiguousarray(gray[:, ::-1])
    for rig, pixels in ((left, gray), (right, others), (left, gray)):
        other = right if rig is left else left
        other.received.clear()
        message = rig.answer(pixels)
        other.spin(0.05)
        assert not other.received
        assert len(message.x) > 1000
    assert decode(left.answer(gray)).xy.tolist() != decode(right.answer(others)).xy.tolist()


def test_a_fast_camera_does_not_starve_a_slow_one(stereo, gray):
    _, left, right = stereo
    large = np.tile(gray, (3, 3))  # takes far longer to process than to send
    left.received.clear()
    right.received.clear()
    image = None
    for number in range(12):
        left.send(large)
        if number == 8:
            image = right.send(gray)
    right.wait_until(lambda: right.received)
    assert right.received[0].header == image.header
    left.wait_until(lambda: left.next_stats().waiting == 0)
    stats = left.stats[-1]
    assert stats.dropped_newer > 0
    assert stats.received == stats.processed + stats.dropped_newer
    assert right.next_stats().dropped_newer == 0


def test_masked_places_take_no_slot_of_the_best(left, gray):
    assert left.set(max_keypoints=100)[0].successful
    everywhere = decode(left.answer(gray))
    mask = np.zeros_like(gray)
    mask[:, 320:] = 1
    left.send_mask(mask, stamp=1_700_000_000)
    features = decode(left.answer(gray))
    assert len(everywhere) == len(features) == 100
    assert everywhere.xy[:, 0].min() < 300
    assert features.xy[:, 0].min() >= 319


def test_the_newest_mask_at_or_before_the_image_counts(left, gray):
    upper, lower = np.zeros_like(gray), np.zeros_like(gray)
    upper[:240] = 255
    lower[240:] = 255
    stamp = left.answer(gray).header.stamp.sec + 1000
    left.send_mask(upper, stamp=stamp)
    left.send_mask(lower, stamp=stamp + 10)
    for after, allowed in ((0, (0, 240)), (9, (0, 240)), (10, (239, 480)), (1000, (239, 480))):
        y = decode(left.answer(gray, stamp=stamp + after)).xy[:, 1]
        assert allowed[0] <= y.min() <= y.max() <= allowed[1]
    # A recording that begins anew: its images come before every mask, then its masks come again.
    assert len(left.answer(gray, stamp=stamp - 500).x) > 1000
    left.send_mask(upper, stamp=stamp - 400)
    assert max(left.answer(gray, stamp=stamp + 2000).y) <= 240


def test_masks_of_another_size_are_scaled_and_bad_ones_are_dropped(left, gray):
    small = np.zeros((24, 32), np.uint16)
    small[:, :16] = 65535
    left.send_mask(small, 'mono16', stamp=1)  # time was set back
    reference = left.answer(gray)
    assert max(reference.x) <= 320
    left.send_mask(small, 'bgr8', stamp=2)
    left.send_mask(small, 'mono8', stamp=3, step=1)
    assert left.answer(gray).x == reference.x  # the one before them counts
    assert left.answer(gray).x == reference.x
    assert left.next_stats().masks_bad == 2
    assert "mask: image encoding 'bgr8' is unknown" in values(left.status('left'))['last error']


def test_a_border_and_a_mask_file_change_while_running(left, gray, tmp_path):
    assert left.set(border=100)[0].successful
    features = decode(left.answer(gray))
    assert features.xy.min() >= 99
    assert features.xy[:, 0].max() <= 540
    mask = np.zeros((480, 640), np.uint8)
    mask[:, :320] = 200
    cv2.imwrite(str(tmp_path / 'left.png'), mask)
    cv2.imwrite(str(tmp_path / 'right.png'), mask)
    assert left.set_together(border=0, mask_file=str(tmp_path / '{camera}.png')).successful
    assert max(left.answer(gray).x) <= 320
    assert left.set(border=5000)[0].successful  # nothing is left of the image
    assert len(left.answer(gray).x) == 0


def test_parameters_change_together_or_not_at_all(left, gray):
    before = left.answer(gray)
    for bad, complaint in [
        ({'mask_file': '/no/such/file.png'}, 'mask_file: expected an image, but /no/such/file.png cannot be read'),
        ({'mask_file': '~nosuchuser/mask.png'}, 'mask_file: expected an image, but ~nosuchuser/mask.png cannot'),
        ({'mask_file': f'{"a" * 300}.png'}, 'File name too long'),
        ({'max_keypoints': 0}, 'max_keypoints'),
        ({'queue_policy': 'oldest'}, 'queue_policy: expected one of newest, all'),
        ({'cameras': ['left']}, 'cameras can change only while the node is unconfigured'),
    ]:
        result = left.set_together(border=200, descriptor_encoding='int8', **bad)
        assert not result.successful
        assert complaint in result.reason
        after = left.answer(gray)
        assert (after.x, after.descriptor_encoding) == (before.x, before.descriptor_encoding)


def test_the_queue_policy_changes_while_running(left, gray):
    assert left.set_together(queue_policy='all', queue_size=50).successful
    left.received.clear()
    images = []
    for _ in range(20):
        images.append(left.send(gray))
        left.spin(0.005)
    left.wait_until(lambda: len(left.received) == 20)
    assert [message.header for message in left.received] == [image.header for image in images]
    assert left.set(queue_policy='newest')[0].successful
    dropped = left.next_stats().dropped_newer
    large = left.image(np.tile(gray, (2, 2)))

    def send() -> None:
        left.camera.publish(large)
        left.spin(0.005)

    wait_until(lambda: left.stats[-1].dropped_newer > dropped, send)
    wait_until(lambda: left.stats[-1].waiting == 0, lambda: left.spin(0.1))


def test_the_overlay_is_drawn_while_somebody_looks(left, gray, photograph):
    pictures = []
    subscription = left.node.create_subscription(Image, 'left/overlay', pictures.append, 10)
    left.wait_until(lambda: left.node.count_subscribers(left.topic('overlay')) == 1)
    while not pictures:  # until the node knows of it
        left.answer(gray)
        left.spin(0.3)
    for pixels in (gray, photograph):
        pictures.clear()
        message = left.answer(pixels)
        left.wait_until(lambda: pictures)
        picture = pictures[-1]
        assert picture.header == message.header
        assert (picture.encoding, picture.width, picture.height) == ('bgr8', 640, 480)
        shown = np.frombuffer(picture.data, np.uint8).reshape(480, 640, 3)
        changed = (shown != (pixels if pixels.ndim == 3 else pixels[:, :, None])).any(axis=2)
        ys, xs = (np.rint(values).astype(int) for values in (message.y, message.x))
        assert changed[ys, np.minimum(xs + 3, 639)].mean() > 0.9
        assert changed.mean() < 0.4
    assert left.set(overlay=False)[0].successful
    pictures.clear()
    left.answer(gray)
    left.spin(0.2)
    assert not pictures
    assert left.set(overlay=True)[0].successful
    left.node.destroy_subscription(subscription)


def test_stats_and_diagnostics_tell_what_happened(left, gray):
    before = left.next_stats()
    for _ in range(5):
        left.answer(gray)
    left.send(gray, encoding='64FC1')
    status = left.status('left', lambda status: status.level != OK)
    assert status.level in (WARN, ERROR)
    assert 'images could not be used: image encoding' in status.message
    stats = left.next_stats()
    assert stats.received - before.received == 6
    assert stats.processed - before.processed == 5
    assert stats.dropped_bad - before.dropped_bad == 1
    assert (stats.camera, stats.header.frame_id) == ('left', 'camera_optical')
    shown = values(status)
    assert shown['topic'] == '/stereo/left/image'
    assert "'64FC1' is unknown" in shown['last error']
    assert {'wait mean / p95 / max (ms)', 'extract mean / p95 / max (ms)', 'rate in (Hz)'} <= set(shown)


def test_diagnostics_name_the_engine_and_a_camera_that_stopped(left, gray):
    engine = left.status('engine')
    assert (engine.level, engine.message) == (OK, 'active')
    assert values(engine)['model'] == 'T-32'
    assert values(engine)['digest'] == left.answer(gray).digest
    assert engine.hardware_id == values(engine)['backend']
    silent = left.status('left', lambda status: status.level == ERROR)
    assert 'no image for ' in silent.message
    assert '1 publish it' in silent.message
    left.unplug()
    silent = left.status('left', lambda status: 'it has no publisher' in status.message)
    left.plug_in()
    left.connect()

    def works(status) -> bool:
        left.answer(gray)  # one at a time: a loaded machine drops none
        return status.level == OK and 'images/s, latency' in status.message

    left.status('left', works)


def test_compressed_images_are_read(official_model, photograph, start, rig):
    official_model('T-32')
    start('compressed', transport='compressed', image_reliability='reliable')
    camera = rig('compressed')
    camera.connect()
    for data, format in (
        (cv2.imencode('.png', photograph)[1].tobytes(), 'bgr8; png compressed bgr8'),
        (cv2.imencode('.jpg', photograph)[1].tobytes(), 'rgb8; jpeg compressed bgr8'),
        (cv2.imencode('.jpg', photograph[:, :, 1])[1].tobytes(), 'jpeg'),
    ):
        camera.received.clear()
        message = camera.answer_to(camera.send_compressed(data, format))
        assert len(message.x) > 1000
        assert (message.image_width, message.image_height) == (640, 480)
        camera.send_compressed(data[:-50], format)  # cut off: dropped


def test_topics_are_remapped_and_the_transport_follows_the_image(official_model, start, rig):
    official_model('T-32')
    rules = (
        f'{name}/{topic}:=/rig/{name}/{topic}_raw' for name in ('left', 'right') for topic in ('image', 'keypoints')
    )
    process = start('remapped', tuple(rules), cameras='[left, right]', transport='compressed')
    process.wait_for('waiting for images on /rig/left/image_raw/compressed, /rig/right/image_raw/compressed')
    camera = rig('remapped')
    camera.wait_until(lambda: camera.node.count_subscribers('/rig/right/image_raw/compressed') == 1)
    camera.wait_until(lambda: camera.node.count_publishers('/rig/left/keypoints_raw') == 1)
    assert camera.node.count_publishers('/remapped/right/overlay') == 1


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_cameras_that_swap_their_topics_hear_what_they_say(transport, official_model, gray, start, rig):
    official_model('T-32')
    namespace = f'swapped_{transport}'
    rules = 'left/image:=right/image', 'right/image:=left/image'
    start(namespace, rules, cameras='[left, right]', transport=transport)
    left, right = rig(namespace, 'left'), rig(namespace, 'right')
    for camera in (left, right):
        camera.connect()  # by image_reliability auto: as the other's publisher offers
    for camera, other in ((left, right), (right, left)):
        camera.received.clear()
        if transport == 'raw':
            image = other.send(gray)
        else:
            image = other.send_compressed(cv2.imencode('.png', gray)[1].tobytes(), 'png')
        assert camera.answer_to(image).header == image.header
        topic = other.topic('image') + ('/compressed' if transport == 'compressed' else '')
        assert values(camera.status(camera.prefix[:-1]))['topic'] == topic


def test_the_topic_of_a_transport_can_be_remapped_by_itself(official_model, gray, start, rig):
    official_model('T-32')
    process = start('by_itself', ('image/compressed:=jpegs',), transport='compressed')
    process.wait_for('waiting for images on /by_itself/jpegs')
    camera = rig('by_itself')
    publisher = camera.node.create_publisher(CompressedImage, 'jpegs', 10)
    camera.wait_until(lambda: publisher.get_subscription_count() == 1)
    camera.status('image', lambda status: '1 publish it' in status.message)


def test_a_lazy_node_takes_images_only_while_somebody_wants_what_it_makes_of_them(official_model, gray, start, rig):
    official_model('T-32')
    process = start('lazy', lazy=True, image_reliability='reliable')
    camera = rig('lazy')

    def is_heard(heard: bool) -> bool:
        camera.send(gray)  # whoever listens or not: the camera goes on
        camera.spin(0.05)
        return camera.camera.get_subscription_count() == heard

    def check(heard: bool, message: str) -> None:
        camera.wait_until(lambda: is_heard(heard))
        camera.status('image', lambda status: (camera.send(gray), re.search(message, status.message))[1])

    taken = 'images/s, latency|images dropped: they arrive faster'  # the latter on a loaded machine
    check(True, taken)
    camera.node.destroy_subscription(camera.reader)
    check(False, 'idle: no subscribers to keypoints, place or overlay')
    process.wait_for('image: idle: no subscribers')
    before = camera.next_stats()
    assert before.received == before.processed + before.dropped_newer
    for _ in range(5):
        camera.send(gray)
        camera.spin(0.5)  # longer than a camera may be silent
    assert camera.next_stats().received == before.received
    assert camera.status('image').level == OK
    pictures = []
    subscription = camera.node.create_subscription(Image, 'overlay', pictures.append, 10)
    check(True, taken)
    camera.wait_until(lambda: pictures)
    assert camera.set(overlay=False)[0].successful  # then nothing is made for that reader
    check(False, 'idle')
    assert camera.set(lazy=False)[0].successful
    check(True, taken)
    camera.node.destroy_subscription(subscription)
    assert camera.set(lazy=True)[0].successful
    check(False, 'idle')
    camera.read()
    camera.received.clear()
    check(True, taken)
    assert camera.received
    assert camera.change_state(Transition.TRANSITION_DEACTIVATE)
    camera.wait_until(lambda: camera.camera.get_subscription_count() == 0)
    stats = camera.stats[-1]
    assert stats.received == stats.processed + stats.dropped_newer + stats.dropped_stopped
