"""The node as a robot runs it: a process of its own, fed and read over real DDS."""

import re
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import GetState
from node_rig import ROOT, TIMEOUT, Process, Rig, destroy, wait_until

from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.messages import decode
from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node import parameters

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def shared(official_model, tmp_path_factory, ros):
    """One T-32 node that many tests feed, and its rig. The node must live through them all."""
    official_model('T-32')
    process = Process(tmp_path_factory.mktemp('shared'), 'shared', image_reliability='reliable', queue_policy='all')
    rig = Rig('shared')
    rig.connect()
    yield process, rig
    process.interrupt()
    assert process.end() == 0
    assert 'Traceback' not in process.output
    destroy(rig.node, rig.target)


@pytest.mark.parametrize(
    ('model', 'encoding', 'cosine'),
    [('T-32', 'float32', 0.99999), ('M-48', 'float16', 0.9999), ('E-64', 'int8', 0.9995)],
)
def test_the_keypoints_are_those_of_the_extractor_and_the_header_is_the_images(
    model, encoding, cosine, official_model, photograph, start, rig
):
    official_model(model)
    namespace = model.replace('-', '')
    process = start(namespace, model=model, descriptor_encoding=encoding, max_keypoints=500)
    camera = rig(namespace)
    gray = np.ascontiguousarray(photograph[:, :, 1])
    camera.connect_and_settle(gray)
    assert f'{model} ' in process.output  # the log names the model
    expected = Extractor(model, max_keypoints=500).extract(gray)
    for _ in range(3):
        message = camera.answer(gray)
        assert (message.model, message.digest) == (model, expected.digest)
        assert (message.image_width, message.image_height, message.descriptor_size) == (640, 480, int(model[2:]))
        features = decode(message)
        assert len(features) == 500
        np.testing.assert_allclose(features.xy, expected.xy, atol=1e-3)
        np.testing.assert_allclose(features.scores, expected.scores, atol=1e-3)
        assert np.sum(features.descriptors * expected.descriptors, axis=1).min() > cosine
    process.interrupt()
    assert process.end() == 0
    assert 'Traceback' not in process.output


def test_every_encoding_gives_the_same_keypoints(shared, photograph):
    _, rig = shared
    rgb = photograph[:, :, ::-1]
    alpha = np.full((480, 640, 1), 255, np.uint8)
    reference = decode(rig.answer(photograph, 'bgr8'))
    assert len(reference) > 1000
    for encoding, pixels in {
        'rgb8': rgb,
        'rgba8': np.concatenate([rgb, alpha], axis=2),
        'bgra8': np.concatenate([photograph, alpha], axis=2),
    }.items():
        np.testing.assert_array_equal(decode(rig.answer(pixels, encoding)).xy, reference.xy)


def test_padded_rows_are_understood(shared, photograph):
    _, rig = shared
    gray = np.ascontiguousarray(photograph[:, :, 1])
    padded = np.pad(gray, ((0, 0), (0, 24)), constant_values=255)
    reference = decode(rig.answer(gray))
    np.testing.assert_array_equal(decode(rig.answer(padded, width=640)).xy, reference.xy)


def test_a_resolution_change_in_the_stream_is_followed(shared, photograph):
    _, rig = shared
    for height, width in [(480, 640), (240, 320), (101, 333), (480, 640)]:
        message = rig.answer(np.ascontiguousarray(photograph[:height, :width]))
        assert (message.image_width, message.image_height) == (width, height)
        assert len(message.x) > 50
        assert max(message.x) < width
        assert max(message.y) < height


def test_an_image_without_features_gives_an_empty_message_with_its_header(shared):
    _, rig = shared
    message = rig.answer(np.full((480, 640), 128, np.uint8))
    assert len(message.x) == len(message.y) == len(message.score) == len(message.descriptors) == 0
    assert (message.image_width, message.image_height, message.model) == (640, 480, 'T-32')
    assert len(decode(message)) == 0


@pytest.mark.parametrize(
    'changes',
    [
        {'encoding': '64FC1'},
        {'encoding': 'no such thing'},
        {'step': 100},
        {'step': 641},
        {'data': array('B', bytes(1000))},
        {'data': array('B')},
        {'width': 0, 'height': 0, 'step': 0, 'data': array('B')},
        {'width': 0},
        {'height': 0},
        {'width': 2**31, 'height': 2**31, 'step': 2**31},
        {'width': 63, 'height': 63, 'step': 63, 'data': array('B', bytes(63 * 63))},
        {'width': 6000, 'height': 6000, 'step': 6000, 'data': array('B', bytes(6000 * 6000))},
    ],
    ids=lambda changes: ', '.join(f'{k}={v}' if k != 'data' else f'{len(v)} bytes' for k, v in changes.items()),
)
def test_a_bad_image_is_dropped_and_the_next_is_answered(changes, shared, photograph):
    _, rig = shared
    gray = np.ascontiguousarray(photograph[:, :, 1])
    rig.received.clear()
    rig.send(gray, **changes)
    good = rig.send(gray)
    rig.wait_until(lambda: rig.received)
    assert [message.header for message in rig.received] == [good.header]


def test_bad_images_are_reported_in_one_line_and_counted(official_model, photograph, start, rig):
    official_model('T-32')
    process = start('reports', image_reliability='reliable', queue_policy='all')
    camera = rig('reports')
    camera.connect()
    for _ in range(5):
        camera.send(photograph, encoding='64FC1')
    camera.answer(photograph)
    assert 1 <= process.output.count('image dropped') < 5  # throttled
    assert "image dropped: image encoding '64FC1' is unknown: expected one of mono8" in process.output
    assert camera.change_state(Transition.TRANSITION_DEACTIVATE)
    process.wait_for('image: 6 images received, 1 processed, 5 dropped (5 bad)')


def test_all_images_are_processed_when_asked_for(shared, photograph):
    _, rig = shared
    rig.received.clear()
    images = []
    for _ in range(30):
        images.append(rig.send(photograph))
        rig.spin(0.005)
    rig.wait_until(lambda: len(rig.received) == len(images))
    assert [message.header for message in rig.received] == [image.header for image in images]


def test_the_newest_image_wins_when_more_come_than_can_be_processed(official_model, photograph, start, rig):
    official_model('T-32')
    process = start('newest', threads=1, image_reliability='reliable', max_keypoints=10)
    camera = rig('newest')
    camera.connect()
    large = np.tile(photograph[:, :, 1], (3, 3))  # takes far longer to process than to send
    images = [camera.send(large)]

    def send() -> None:
        images.append(camera.send(large))
        camera.spin(0.005)

    wait_until(lambda: camera.stats and camera.stats[-1].dropped_newer > 0, send)
    camera.wait_until(lambda: camera.received and camera.received[-1].header == images[-1].header)
    stamps = [message.header.stamp.sec for message in camera.received]
    assert stamps == sorted(set(stamps))
    assert camera.change_state(Transition.TRANSITION_DEACTIVATE)
    numbers = re.search(r'(\d+) images received, (\d+) processed, (\d+) dropped \((\d+) newer\)', process.output)
    received, processed, dropped, newer = (int(number) for number in numbers.groups())
    assert processed == len(stamps)
    assert received == processed + dropped
    assert dropped == newer > 0


def test_live_parameters_change_while_running_and_bad_values_are_refused(shared, photograph):
    _, rig = shared
    assert all(result.successful for result in rig.set(max_keypoints=100, descriptor_encoding='int8'))
    message = rig.answer(photograph)
    assert (len(message.x), message.descriptor_encoding) == (100, KeypointArray.INT8)
    lowest = min(message.score)
    assert rig.set(score_threshold=1000)[0].successful  # an integer will do
    assert len(rig.answer(photograph).x) == 0
    for values, complaint in [
        ({'max_keypoints': 0}, 'max_keypoints'),
        ({'descriptor_encoding': 'int4'}, 'expected one of float32, float16, int8, got'),
        ({'score_threshold': 'high'}, 'expected number from -1000.0 to 1000.0, got'),
        ({'model': 'E-64'}, 'model can change only while the node is unconfigured'),
    ]:
        result = rig.set(**values)[0]
        assert not result.successful
        assert complaint in result.reason
    rig.set(score_threshold=-5.0)
    assert min(rig.answer(photograph).score) == lowest
    assert all(result.successful for result in rig.set(max_keypoints=2048, descriptor_encoding='float32'))


def test_a_lifecycle_manager_can_drive_the_node_and_change_its_model(official_model, photograph, start, rig):
    official_model('T-32')
    official_model('M-48')
    process = start('managed', autostart=False, image_reliability='reliable')
    camera = rig('managed')
    assert camera.state() == 'unconfigured'
    assert camera.camera.get_subscription_count() == 0
    for model in ('T-32', 'M-48'):
        assert camera.set(model=model)[0].successful
        assert camera.change_state(Transition.TRANSITION_CONFIGURE)
        assert camera.camera.get_subscription_count() == 0
        assert camera.change_state(Transition.TRANSITION_ACTIVATE)
        camera.connect()
        assert camera.answer(photograph).model == model
        assert camera.change_state(Transition.TRANSITION_DEACTIVATE)
        camera.wait_until(lambda: camera.camera.get_subscription_count() == 0)
        assert camera.change_state(Transition.TRANSITION_CLEANUP)
    assert camera.set(model='T-64')[0].successful
    assert not camera.change_state(Transition.TRANSITION_CONFIGURE)
    assert camera.state() == 'unconfigured'
    process.wait_for("unknown model 'T-64': expected one of T-32")


@pytest.mark.parametrize('namespace', ['nav2', 'robot/nav2'])
def test_the_lifecycle_manager_of_nav2_can_drive_the_node(namespace, official_model, photograph, start, rig):
    """By the calls that nav2_lifecycle_manager makes for its commands, each followed by a look at the state."""
    official_model('T-32')
    start(namespace, autostart=False, image_reliability='reliable')
    manager = rig(namespace)

    def change(*transitions: int) -> None:
        reached = {
            Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
            Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
            Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
            Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
            Transition.TRANSITION_UNCONFIGURED_SHUTDOWN: State.PRIMARY_STATE_FINALIZED,
        }
        for transition in transitions:
            assert manager.change_state(transition)
            assert manager.call(GetState, 'get_state', GetState.Request()).current_state.id == reached[transition]

    startup = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
    pause, resume = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE
    reset = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
    for commands in (startup, (pause, resume), (*reset, *startup)):
        change(*commands)
        manager.connect()
        assert len(manager.answer(photograph).x) > 1000
    change(*reset, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert manager.camera.get_subscription_count() == 0


@pytest.mark.parametrize(
    ('values', 'complaint'),
    [
        ({'model': 'T-64'}, f"unknown model 'T-64': expected one of {', '.join(NAMES)}"),
        (
            {'weights': '/no/such/model.onnx'},
            "weights '/no/such/model.onnx': expected auto or shipped or official or a path",
        ),
        (
            {'backend': 'abacus'},
            "parameter backend: expected one of auto, tensorrt, openvino, onnxruntime, got 'abacus'",
        ),
        ({'max_keypoints': -1}, 'parameter max_keypoints: expected integer from 1, got -1'),
        ({'threads': 'many'}, "parameter threads: expected integer from 0 to 256, got 'many'"),
    ],
)
def test_a_node_that_cannot_start_says_why_in_one_line_and_exits(values, complaint, official_model, start):
    official_model('T-32')
    process = start('wrong', **values)
    assert process.end() == 1
    assert complaint in process.output
    assert len(process.output.splitlines()) == 1


@pytest.mark.parametrize('damage', ['truncated', 'of another variant', 'no model'])
def test_a_corrupt_model_is_named(damage, official_model, start, tmp_path):
    model = official_model('M-48' if damage == 'of another variant' else 'T-32')
    broken = tmp_path / 'model.onnx'
    content = model.path.read_bytes()
    broken.write_bytes({'truncated': content[:-100], 'no model': b'hello'}.get(damage, content))
    broken.with_suffix('.json').write_bytes(model.path.with_suffix('.json').read_bytes())
    process = start('corrupt', weights=broken)
    assert process.end() == 1
    assert str(broken) in process.output
    assert len(process.output.splitlines()) == 1


def test_a_missing_parameter_file_is_named(tmp_path):
    command = [sys.executable, '-m', 'edgepoint2_ros.node', '--ros-args', '--params-file', '/no/such/file.yaml']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 1
    assert '/no/such/file.yaml' in result.stderr
    assert 'Traceback' not in result.stderr


def test_the_parameter_file_of_the_package_starts_the_node(official_model, tmp_path, rig):
    official_model('T-32')
    command = [sys.executable, '-m', 'edgepoint2_ros.node', '--ros-args', '-r', '__ns:=/file']
    command += ['--params-file', ROOT / 'config' / 'extractor.yaml']
    process = subprocess.Popen(command, cwd=ROOT)
    rig('file').connect()
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize('delay', [0, 0.05, 0.15, 0.3, 0.5, 0.8])
def test_ctrl_c_during_start_up_ends_quietly(delay, official_model, start):
    official_model('T-32')
    process = start('early')
    wait_until(lambda: _blocks(process.pid, signal.SIGTERM), lambda: time.sleep(0.001))  # our code has begun
    time.sleep(delay)
    process.interrupt()
    assert process.end() == 0
    assert 'Traceback' not in process.output
    assert 'ERROR' not in process.output


def test_a_queue_that_grows_while_running_takes_a_burst(official_model, gray, start, rig):
    official_model('T-32')
    start('growing', image_reliability='reliable')
    camera, small = rig('growing'), np.ascontiguousarray(gray[:64, :64])
    camera.node.destroy_publisher(camera.camera)
    camera.plug_in(1000)
    camera.connect_and_settle(small)
    assert camera.set_together(queue_policy='all', queue_size=500).successful
    camera.connect_and_settle(small)
    before = camera.next_stats().processed
    for _ in range(400):
        camera.send(small)
    camera.wait_until(lambda: camera.stats[-1].processed >= before + 400)
    assert camera.stats[-1].lost == camera.stats[-1].dropped_full == 0


def test_ctrl_c_pressed_repeatedly_while_images_come_ends_quietly(official_model, photograph, start, rig):
    official_model('T-32')
    process = start('busy', queue_policy='all')
    camera = rig('busy')
    camera.connect()
    for _ in range(20):
        camera.send(photograph)
    for _ in range(3):
        process.interrupt()
        time.sleep(0.02)
    assert process.end() == 0
    assert 'Traceback' not in process.output
    assert 'ERROR' not in process.output


def test_the_table_is_what_the_node_declares(shared):
    from rcl_interfaces.srv import ListParameters

    _, rig = shared
    names = set(rig.call(ListParameters, 'list_parameters', ListParameters.Request()).result.names)
    assert names >= {parameter.name for parameter in parameters.EXTRACTOR}


def _blocks(pid: int, number: int) -> bool:
    """Tell whether a process holds a signal back."""
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('SigBlk:'):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
