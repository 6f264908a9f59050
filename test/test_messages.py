"""Features become KeypointArray messages and come back."""

import subprocess
import sys
from array import array

import numpy as np
import pytest

from edgepoint2_ros.errors import MessageError
from edgepoint2_ros.features import Features
from edgepoint2_ros.messages import ENCODINGS, decode, dequantise, encode, quantise

NUMBER_SIZE = {'float32': 4, 'float16': 2, 'int8': 1}
LOWEST_COSINE = {'float32': 1 - 1e-6, 'float16': 1 - 1e-6, 'int8': 0.9995}


@pytest.fixture
def header():
    """A header as a camera stamps it."""
    std_msgs = pytest.importorskip('std_msgs.msg', reason='ROS 2 is not installed')
    header = std_msgs.Header(frame_id='camera_optical')
    header.stamp.sec, header.stamp.nanosec = 1_700_000_000, 123_456_789
    return header


def features(count=100, size=32) -> Features:
    """Return features with random contents."""
    rng = np.random.default_rng(count)
    descriptors = rng.normal(size=(count, size)).astype(np.float32)
    return Features(
        xy=(rng.random((count, 2)) * (639, 479)).astype(np.float32),
        scores=np.sort(rng.normal(size=count).astype(np.float32))[::-1],
        descriptors=descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        image_size=(640, 480),
        model=f'T-{size}',
        digest='0123456789abcdef',
    )


@pytest.mark.parametrize('count', [0, 1, 2048])
@pytest.mark.parametrize('size', [32, 48, 64])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_a_round_trip_keeps_everything(encoding, size, count, header):
    sent = features(count, size)
    message = encode(sent, header, encoding)
    assert message.header == header
    assert len(message.descriptors) == count * size * NUMBER_SIZE[encoding]

    got = decode(message)
    np.testing.assert_array_equal(got.xy, sent.xy)
    np.testing.assert_array_equal(got.scores, sent.scores)
    assert (got.image_size, got.model, got.digest) == (sent.image_size, sent.model, sent.digest)
    assert got.xy.dtype == got.scores.dtype == got.descriptors.dtype == np.float32
    assert got.descriptors.shape == (count, size)
    assert (np.sum(got.descriptors * sent.descriptors, axis=1) >= LOWEST_COSINE[encoding]).all()
    np.testing.assert_allclose(np.linalg.norm(got.descriptors, axis=1), 1, atol=1e-6)


def test_float32_comes_back_bit_for_bit(header):
    sent = features()
    np.testing.assert_array_equal(decode(encode(sent, header)).descriptors, sent.descriptors)


def test_a_message_survives_serialisation(header):
    serialization = pytest.importorskip('rclpy.serialization', reason='ROS 2 is not installed')
    message = encode(features(), header, 'int8')
    assert serialization.deserialize_message(serialization.serialize_message(message), type(message)) == message


def test_the_constants_of_the_message_are_the_encodings(header):
    for encoding in ENCODINGS:
        message = encode(features(), header, encoding)
        assert message.descriptor_encoding == getattr(message, encoding.upper())


def test_int8_rows_use_the_whole_range_and_float_rows_are_little_endian():
    rows = features().descriptors
    assert (np.abs(quantise(rows, 'int8').astype(int)).max(axis=1) == 127).all()
    assert quantise(rows, 'float32').dtype.str == '<f4'
    assert quantise(rows, 'float16').dtype.str == '<f2'
    np.testing.assert_array_equal(quantise(np.float32([[3, -4, 0, 1]]), 'int8'), [[95, -127, 0, 32]])


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_a_row_of_zeros_stays_zeros(encoding):
    assert not dequantise(quantise(np.zeros((2, 32), np.float32), encoding)).any()


def test_an_unknown_encoding_is_named(header):
    with pytest.raises(MessageError, match="'int4' is unknown: expected one of float32, float16, int8"):
        encode(features(), header, 'int4')


@pytest.mark.parametrize(
    ('field', 'value', 'complaint'),
    [
        ('y', array('f', [0] * 99), 'x, y and score differ in length: 100, 99 and 100 numbers'),
        ('score', array('f'), 'x, y and score differ in length: 100, 100 and 0 numbers'),
        ('descriptor_encoding', 3, r'descriptor encoding 3: expected 0 \(float32\)'),
        ('descriptor_encoding', 0, 'have 3200 bytes: expected 12800 for 100 keypoints of 32 numbers as float32'),
        ('descriptor_size', 64, 'descriptors have 3200 bytes: expected 6400 for 100 keypoints of 64 numbers as int8'),
        ('descriptors', array('B'), 'descriptors have 0 bytes: expected 3200'),
    ],
)
def test_fields_that_contradict_each_other_are_named(field, value, complaint, header):
    message = encode(features(), header, 'int8')
    setattr(message, field, value)
    with pytest.raises(MessageError, match=complaint):
        decode(message)


def test_importing_needs_no_ros():
    code = 'import sys, edgepoint2_ros.messages; sys.exit(bool({"rclpy", "edgepoint2_ros.msg"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
