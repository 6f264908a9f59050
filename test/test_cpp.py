"""The C++ header, as a package that finds this one meets it, on the bytes that Python wrote."""

import dataclasses
import json
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

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match, match_guided
from edgepoint2_ros.messages import ENCODINGS, decode, encode
from edgepoint2_ros.models import SHIPPED, min_cosine

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


# Processors for which the header is compiled, too, by Debian's cross compilers, and run in QEMU: `aarch64 s390x`.
CROSS_TARGETS = os.environ.get('EDGEPOINT2_CPP_TARGETS', '').split()
CROSS_OPTIONS = ['-std=c++17', '-O3', '-Wall', '-Wextra', '-Wpedantic', '-Wconversion', '-Werror']
CROSS_OPTIONS += ['-static', '-DWITHOUT_MIDDLEWARE']


@pytest.fixture(scope='module', params=['native', *CROSS_TARGETS])
def reader(request, tmp_path_factory):
    """Build test/cpp against the installed package; return a function that runs it on messages."""
    return build_reader(tmp_path_factory.mktemp('reader'), request.param)


@pytest.fixture(scope='module', params=['', '-ffast-math'])
def careful_reader(request, reader, tmp_path_factory):
    """Return the reader, also built with an option that lets compilers assume that no number is infinite or NaN."""
    return build_reader(tmp_path_factory.mktemp('careful'), 'native', request.param) if request.param else reader


def build_reader(folder: Path, target: str, flags: str = ''):
    command = [folder / 'reader']
    if target == 'native':
        configure = ['cmake', '-S', ROOT / 'test' / 'cpp', '-B', folder, f'-DPython3_EXECUTABLE={sys.executable}']
        configure += [f'-DCMAKE_CXX_FLAGS={flags}'] if flags else []  # otherwise those of the environment
        configure.append(f'-DCMAKE_PREFIX_PATH={sys.prefix}')  # a ROS 2 from pip; in a sourced one it does no harm
        builds = [configure, ['cmake', '--build', folder]]
    else:
        compiler = f'{target}-linux-gnu-g++'
        headers = [f'-I{path}' for path in Path(sys.prefix, 'include').iterdir()]
        builds = [[compiler, *CROSS_OPTIONS, *headers, ROOT / 'test' / 'cpp' / 'reader.cpp', '-o', *command]]
        command.insert(0, f'qemu-{target}-static')
    environment = dict(os.environ)
    environment.setdefault('AMENT_PREFIX_PATH', sys.prefix)
    for build in builds:
        done = subprocess.run(
            build, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
        )
        assert done.returncode == 0, done.stdout[-4000:]

    def run(action: str, *messages, options=(), code: int = 0) -> str:
        files = []
        for number, message in enumerate(messages):
            file = folder / f'{number}.cdr'
            file.write_bytes(message if isinstance(message, bytes) else serialize_message(message))
            files.append(str(file))
        done = subprocess.run(
            [*command, action, *files, *map(str, options)], capture_output=True, text=True, timeout=600
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


def test_both_languages_find_the_same_matches_among_thousands(reader):
    first, second = (encode(make(count, seed), Header(), 'int8') for count, seed in ((3000, 1), (10_001, 2)))
    found = numbers(reader('match', first, second))
    # Float sums in another order may decide otherwise between two that are all but equal.
    expected = {tuple(pair) for pair in match(decode(first), decode(second)).tolist()}
    same = {tuple(pair) for pair in found[:, :2].astype(int).tolist()} & expected
    assert len(same) > 0.999 * max(len(expected), len(found)) > 1000


FUNDAMENTAL = np.array([[1e-6, 2e-5, -0.01], [-1.5e-5, 3e-6, 0.02], [0.008, -0.025, 1.0]])
GUIDES = {
    'predicted': lambda xy: {'predicted': xy + 3, 'radius': 60.0},
    'radii': lambda xy: {'predicted': xy * 0.9, 'radius': np.linspace(0, 200, len(xy))},
    'places not finite': lambda xy: {'predicted': np.where(xy > 300, np.nan, xy), 'radius': 100.0},
    'places not finite, anywhere': lambda xy: {'predicted': np.where(xy > 500, np.nan, xy), 'radius': np.inf},
    'line': lambda xy: {'fundamental': FUNDAMENTAL, 'distance': 30.0},
    'rows': lambda xy: {'disparity': (-10.0, 200.0), 'distance': 20.0},
    'all': lambda xy: {
        'predicted': xy,
        'radius': 250.0,
        'fundamental': FUNDAMENTAL,
        'disparity': (-200.0, 150.0),
        'distance': 90.0,
    },
    'nowhere': lambda xy: {'predicted': xy - 5000, 'radius': 10.0},
}


def write_guide(folder, guide: dict) -> str:
    """Write what match_guided is told as the reader takes it; return the path."""
    lines = dict(guide)
    if 'predicted' in lines:
        lines['x'], lines['y'] = np.transpose(lines.pop('predicted'))
    path = folder / 'guide.txt'
    path.write_text(''.join(f'{name} {" ".join(map(repr, np.ravel(v).tolist()))}\n' for name, v in lines.items()))
    return str(path)


@pytest.mark.parametrize('options', [(), (0.2,), (-1, 0.95)], ids=['plain', 'cosine', 'ratio'])
@pytest.mark.parametrize('guide', GUIDES)
def test_both_languages_find_the_same_matches_where_they_are_told_to_search(guide, options, reader, tmp_path):
    first, second = (encode(make(count, seed), Header(), 'float32') for count, seed in ((300, 1), (311, 2)))
    told = GUIDES[guide](decode(first).xy.astype(np.float64))
    found = numbers(reader('guided', first, second, options=(write_guide(tmp_path, told), *options)))
    names = dict(zip(('min_cosine', 'ratio'), options))
    expected = match_guided(decode(first), decode(second), **told, **names)
    assert (len(expected) > 10) == (guide != 'nowhere')
    np.testing.assert_array_equal(found.reshape(-1, 3)[:, :2].astype(int), expected)


def test_of_equally_near_features_the_first_gets_the_match_in_both_languages(reader, tmp_path):
    features = make(40)
    twins = Features(
        *(np.repeat(array, 2, axis=0) for array in (features.xy, features.scores, features.descriptors)),
        *(features.image_size, features.model, features.digest),
    )
    first, second = encode(twins, Header()), encode(twins, Header())
    guide = {'predicted': twins.xy.astype(np.float64), 'radius': 1000.0}
    found = numbers(reader('guided', first, second, options=(write_guide(tmp_path, guide),)))
    assert found[:, :2].astype(int).tolist() == match_guided(twins, twins, **guide).tolist()


@pytest.mark.parametrize(
    ('guide', 'words'),
    [
        ({}, 'no search constraint: expected predicted and radius, fundamental or disparity'),
        ({'predicted': np.zeros((4, 2)), 'radius': 1.0}, 'predicted: expected 5, one for each feature, got 4 and 4'),
        ({'predicted': np.zeros((5, 2))}, 'radius: expected a number from 0, or 5 of them'),
        ({'predicted': np.zeros((5, 2)), 'radius': -1.0}, 'radius: expected a number from 0, or 5 of them, got -1'),
        (
            {'predicted': np.zeros((5, 2)), 'radius': np.zeros(3)},
            'radius: expected a number from 0, or 5 of them, got 3',
        ),
        ({'predicted': np.zeros((5, 2)), 'radius': np.nan}, 'radius: expected a number from 0, or 5 of them'),
        ({'radius': 20.0, 'fundamental': FUNDAMENTAL}, 'predicted: expected'),
        ({'disparity': (3.0, 2.0)}, 'disparity: expected minimum and maximum, got 3.000000 and 2.000000'),
        ({'disparity': (0.0, np.nan)}, 'disparity: expected minimum and maximum, got'),
        ({'disparity': (0.0, 2.0), 'distance': 0.0}, 'distance: expected a positive number of pixels'),
        ({'disparity': (0.0, 2.0), 'distance': np.nan}, 'distance: expected a positive number of pixels'),
    ],
)
def test_a_guide_that_makes_no_sense_is_refused(guide, words, careful_reader, tmp_path):
    message = encode(make(5), Header())
    assert words in careful_reader('guided', message, message, options=(write_guide(tmp_path, guide),), code=1)
    with pytest.raises(EdgePoint2Error):
        match_guided(make(5), make(5), **guide)


@pytest.mark.parametrize(
    ('name', 'words', 'value'),
    [('xy', 'positions of keypoints to match are not finite', value) for value in (np.nan, np.inf)]
    # An infinite number times a negative one is no best match, and the square of 1e30 is no float32.
    + [('descriptors', 'hold numbers that are not finite', value) for value in (np.nan, np.inf, -np.inf, 1e30)],
)
def test_what_is_not_finite_is_not_matched(name, words, value, careful_reader, tmp_path):
    reader, good = careful_reader, make(5)
    values = getattr(good, name).copy()
    values[2, 0] = value
    broken = dataclasses.replace(good, **{name: values})
    everywhere = {'disparity': (-1e3, 1e3), 'distance': 1e3}
    guide = write_guide(tmp_path, everywhere)
    for first, second in ((good, broken), (broken, good)):
        messages = encode(first, Header()), encode(second, Header())
        assert words in reader('guided', *messages, options=(guide,), code=1)
        with pytest.raises(EdgePoint2Error, match=words):
            match_guided(first, second, **everywhere)
        if name == 'descriptors':
            assert words in reader('match', *messages, code=1)
            with pytest.raises(EdgePoint2Error, match=words):
                match(first, second)


def test_no_keypoints_give_no_matches(reader, tmp_path):
    some, none = encode(make(5), Header()), encode(make(0), Header())
    without = encode(dataclasses.replace(make(0), descriptors=np.zeros((0, 0), np.float32)), Header())
    for pair in ((some, none), (none, some), (none, none), (some, without), (without, some)):
        assert reader('match', *pair) == ''
    assert reader('decode', none) == ''
    for radius in (20.0, np.zeros(0)):
        guide = write_guide(tmp_path, {'predicted': np.zeros((0, 2)), 'radius': radius})
        assert reader('guided', none, some, options=(guide,)) == ''


def test_features_of_different_weights_are_refused(reader):
    error = reader('match', encode(make(5, digest='a'), Header()), encode(make(5, digest='b'), Header()), code=1)
    assert error.startswith('features of T-32 [a] cannot be matched with features of T-32 [b]')


def test_descriptors_of_different_sizes_are_refused(reader):
    other = dataclasses.replace(make(5, size=48), model='T-32')
    error = reader('match', encode(make(5), Header()), encode(other, Header()), code=1)
    assert error.startswith('descriptors of 32 numbers cannot be matched with those of 48')


def test_both_languages_know_the_min_cosine_of_every_model_that_ships(reader):
    cards = sorted(SHIPPED.glob('*.json'))
    for card in cards:
        features = dataclasses.replace(make(1), model=card.stem, digest=json.loads(card.read_text())['digest'])
        expected = min_cosine(features.model, features.digest)
        assert float(reader('min_cosine', encode(features, Header()))) == pytest.approx(expected, abs=1e-6), card.stem
    for other in (dataclasses.replace(features, digest='a'), dataclasses.replace(features, model='T-32@mine')):
        assert reader('min_cosine', encode(other, Header())) == 'none\n'


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


@pytest.mark.parametrize(
    ('limits', 'words'),
    [
        (('nan',), 'min_cosine: expected a number, got nan'),
        (('-1', '0'), 'ratio: expected more than 0 and at most 1, got 0'),
        (('-1', '-0.9'), 'ratio: expected more than 0 and at most 1, got -0.9'),
        (('-1', '1.5'), 'ratio: expected more than 0 and at most 1, got 1.5'),
        (('-1', 'nan'), 'ratio: expected more than 0 and at most 1, got nan'),
    ],
)
def test_limits_that_mean_nothing_are_refused(limits, words, careful_reader, tmp_path):
    message = encode(make(5), Header())
    guide = write_guide(tmp_path, {'predicted': np.zeros((5, 2)), 'radius': 1.0})
    assert words in careful_reader('match', message, message, options=limits, code=1)
    assert words in careful_reader('guided', message, message, options=(guide, *limits), code=1)
