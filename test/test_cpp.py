"""The C++ header, as a package that finds this one meets it, on the bytes that Python wrote."""

import os
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from rclpy.serialization import serialize_message
from std_msgs.msg import Header

from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match
from edgepoint2_ros.messages import ENCODINGS, decode, encode

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    """Build test/cpp against the installed package; return a function that runs it on messages."""
    folder = tmp_path_factory.mktemp('reader')
    environment = dict(os.environ)
    environment.setdefault('AMENT_PREFIX_PATH', sys.prefix)
    configure = ['cmake', '-S', ROOT / 'test' / 'cpp', '-B', folder, f'-DPython3_EXECUTABLE={sys.executable}']
    if 'ROS_DISTRO' not in environment:  # a ROS 2 from pip
        configure.append(f'-DCMAKE_PREFIX_PATH={sys.prefix}')
    for command in (configure, ['cmake', '--build', folder]):
        done = subprocess.run(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
        )
        assert done.returncode == 0, done.stdout[-4000:]

    def run(action: str, *messages, options=(), code: int = 0) -> str:
        files = []
        for number, message in enumerate(messages):
            file = folder / f'{number}.cdr'
            file.write_bytes(message if isinstance(message, bytes) else serialize_message(message))
            files.append(str(file))
        done = subprocess.run(
            [folder / 'reader', action, *files, *map(str, options)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    return run


def make(count: int, seed: int = 0, size: int = 32, digest: str = 'a') -> Features:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, size)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    xy = rng.uniform(0, 640, (count, 2)).astype(np.float32)
    scores = np.sort(rng.normal(size=count).astype(np.float32))[::-1]
    return Features(xy, scores, rows, (640, 480), f'T-{size}', digest)


def numbers(text: str) -> np.ndarray:
    return np.array([line.split() for line in text.splitlines()], float)


@pytest.mark.parametrize('size', [32, 48, 64])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_both_languages_read_the_same_features(encoding, size, reader):
    message = encode(make(100, size=size), Header(), encoding)
    features, found = decode(message), numbers(reader('decode', message))
    np.testing.assert_array_equal(found[:, :2].astype(np.float32), features.xy)
    np.testing.assert_array_equal(found[:, 2].astype(np.float32), features.scores)
    tolerance = 0 if encoding == 'float32' else 1e-7
    np.testing.assert_allclose(found[:, 3:].astype(np.float32), features.descriptors, rtol=0, atol=tolerance)


def test_every_float16_number_is_read(reader):
    message = encode(make(1, size=64), Header(), 'float16')
    message.descriptor_size = 16384
    # One large number sets the row's length, so that scaling leaves every finite float16 recognisable.
    for high in range(0, 0x7C00, 16384):
        halves = np.arange(high, high + 16384, dtype='<u2')
        halves = np.where(halves < 0x7C00, halves, 0x7BFF).astype('<u2')
        message.descriptors = array('B', halves.tobytes())
        expected = halves.view('<f2').astype(np.float64)
        expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(numbers(reader('decode', message))[0, 3:], expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize('options', [(), (0.4,), (-1, 0.9)], ids=['plain', 'cosine', 'ratio'])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_both_languages_find_the_same_matches(encoding, options, reader):
    first, second = (encode(make(count, seed), Header(), encoding) for count, seed in ((300, 1), (311, 2)))
    found = numbers(reader('match', first, second, options=options))
    expected = match(decode(first), decode(second), *options)
    assert len(expected) > 10
    np.testing.assert_array_equal(found[:, :2].astype(int), expected)


def test_no_keypoints_give_no_matches(reader):
    some, none = encode(make(5), Header()), encode(make(0), Header())
    for pair in ((some, none), (none, some), (none, none)):
        assert reader('match', *pair) == ''
    assert reader('decode', none) == ''


def test_features_of_different_weights_are_refused(reader):
    error = reader('match', encode(make(5, digest='a'), Header()), encode(make(5, digest='b'), Header()), code=1)
    assert error.startswith('features of T-32 [a] cannot be matched with features of T-32 [b]')


def _damage(**changes):
    message = encode(make(3), Header())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'y': array('f', [1.0])}, 'x, y and score differ in length: 3, 1 and 3 numbers'),
        ({'descriptor_encoding': 7}, 'descriptor encoding 7: expected 0 (float32), 1 (float16) or 2 (int8)'),
        ({'descriptor_encoding': 2}, 'descriptors have 384 bytes: expected 96 for 3 keypoints of 32 numbers'),
        ({'descriptors': array('B')}, 'descriptors have 0 bytes: expected 384'),
    ],
    ids=['lengths', 'encoding', 'too long', 'too short'],
)
def test_a_message_that_contradicts_itself_is_refused(changes, words, reader):
    assert words in reader('decode', _damage(**changes), code=1)
