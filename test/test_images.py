"""Image messages become arrays."""

from array import array
from types import SimpleNamespace

import numpy as np
import pytest

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.images import ENCODINGS, to_array

HEIGHT, WIDTH = 5, 7
CHANNELS = {'mono8': 1, 'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'bgra8': 4}
TO_BGR = {'rgb8': [2, 1, 0], 'bgr8': [0, 1, 2], 'rgba8': [2, 1, 0], 'bgra8': [0, 1, 2]}


def image(encoding='mono8', padding=0, wrap=bytes):
    """Return a message of random pixels with all fields of sensor_msgs/Image that count, and the pixels."""
    channels = CHANNELS[encoding]
    step = WIDTH * channels + padding
    rows = np.random.default_rng(0).integers(0, 256, (HEIGHT, step), np.uint8)
    message = SimpleNamespace(height=HEIGHT, width=WIDTH, encoding=encoding, step=step, data=wrap(rows.tobytes()))
    return message, rows[:, : WIDTH * channels].reshape(HEIGHT, WIDTH, channels)


@pytest.mark.parametrize('padding', [0, 1, 9])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_becomes_gray_or_bgr_and_padding_is_skipped(encoding, padding):
    message, pixels = image(encoding, padding=padding)
    expected = pixels[:, :, 0] if encoding == 'mono8' else pixels[:, :, TO_BGR[encoding]]
    result = to_array(message)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('encoding', ['mono8', 'bgr8'])
def test_what_needs_no_conversion_is_not_copied(encoding):
    message, _ = image(encoding, padding=3, wrap=lambda data: array('B', data))
    assert np.shares_memory(to_array(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize(
    'wrap', [bytes, bytearray, lambda data: array('B', data), lambda data: np.frombuffer(data, 'B')]
)
def test_data_may_be_any_buffer(wrap):
    message, pixels = image('rgb8', wrap=wrap)
    np.testing.assert_array_equal(to_array(message), pixels[:, :, ::-1])


def test_a_real_message_is_understood():
    sensor_msgs = pytest.importorskip('sensor_msgs.msg', reason='ROS 2 is not installed')
    fields, pixels = image('bgra8', padding=2, wrap=lambda data: array('B', data))
    np.testing.assert_array_equal(to_array(sensor_msgs.Image(**vars(fields))), pixels[:, :, :3])


@pytest.mark.parametrize(
    ('changes', 'complaint'),
    [
        ({'encoding': '32FC1'}, "image encoding '32FC1' is unknown: expected one of mono8, bgr8, rgb8"),
        ({'encoding': ''}, "image encoding '' is unknown"),
        ({'width': 0}, 'image of 0 x 5 pixels is empty'),
        ({'height': 0, 'data': b''}, 'image of 7 x 0 pixels is empty'),
        ({'step': 6}, 'image step is 6 bytes: expected at least 7 for 7 pixels of mono8'),
        ({'step': 0}, 'image step is 0 bytes'),
        ({'encoding': 'rgb8'}, 'image step is 7 bytes: expected at least 21 for 7 pixels of rgb8'),
        ({'data': bytes(34)}, 'image has 34 bytes: expected 35 for 5 rows of 7 bytes'),
        ({'data': b''}, 'image has 0 bytes: expected 35'),
        ({'step': 8}, 'image has 35 bytes: expected 40 for 5 rows of 8 bytes'),
        ({'width': 2**32 - 1, 'height': 2**32 - 1, 'step': 2**32 - 1}, 'image has 35 bytes: expected 18446744065'),
    ],
)
def test_fields_that_contradict_each_other_are_named(changes, complaint):
    message, _ = image('mono8')
    vars(message).update(changes)
    with pytest.raises(ImageError, match=complaint):
        to_array(message)
