"""The tables of parameters, and the documents made from them."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.node.parameters import EXTRACTOR, TABLES, TOPICS, check_changes, name_topics, to_markdown, to_yaml

ROOT = Path(__file__).parents[1]
REWRITE = 'run `python -m edgepoint2_ros.node.parameters`'
BY_NAME = {parameter.name: parameter for parameter in EXTRACTOR}


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_every_default_is_allowed_and_described(table):
    for parameter in table:
        value = parameter.check(parameter.default)
        assert type(value) is parameter.type
        assert parameter.description.endswith('.')
    assert len({parameter.name for parameter in table}) == len(table)


def test_every_variant_is_listed():
    assert all(name in BY_NAME['model'].description for name in NAMES)


@pytest.mark.parametrize(
    ('name', 'value', 'complaint'),
    [
        ('max_keypoints', 0, 'parameter max_keypoints: expected integer from 1, got 0'),
        ('max_keypoints', 10.0, 'expected integer from 1, got 10.0'),
        ('max_keypoints', True, 'expected integer from 1, got True'),
        ('score_threshold', float('nan'), 'expected number from -1000.0 to 1000.0, got nan'),
        ('score_threshold', 'low', "expected number from -1000.0 to 1000.0, got 'low'"),
        ('backend', 'abacus', "expected one of auto, tensorrt, openvino, onnxruntime, got 'abacus'"),
        ('model', 32, 'expected string, got 32'),
        ('autostart', 1, 'expected true or false, got 1'),
        ('autostart', None, 'expected true or false, got None'),
        (
            'cameras',
            'left',
            r'cameras: expected a list like \[left, right\] of unique names of letters, digits, _ and /, which begin '
            r"with no digit; or \[''\], got 'left'",
        ),
        ('cameras', [], 'expected a list like'),
        ('cameras', ['left', 'left'], 'expected a list like'),
        ('cameras', ['left', ''], 'expected a list like'),
        ('cameras', ['2nd'], 'expected a list like'),
        ('cameras', ['a//b'], 'expected a list like'),
        ('cameras', [1, 2], 'expected a list like'),
        ('image', '/cam//image', "image: expected a topic, or nothing, got '/cam//image'"),
        ('mask', 'mask/', 'expected a topic'),
        ('keypoints', '{camera', 'expected a topic'),
        ('keypoints', '2nd/keypoints', 'expected a topic'),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(name, value, complaint):
    with pytest.raises(EdgePoint2Error, match=complaint):
        BY_NAME[name].check(value)


@pytest.mark.parametrize('names', [[0], [False], [1.5], ['a', 0], ['2nd'], ['a b'], ['a', ''], ['a', 'b', 'c'], []])
def test_the_cameras_of_the_tracker_are_one_or_two_names(names):
    cameras = next(parameter for parameter in TABLES['tracker'] if parameter.name == 'cameras')
    with pytest.raises(EdgePoint2Error, match=r'cameras: expected one or two like \[left, right\]: unique names'):
        cameras.check(names)
    for good in ([''], ['left'], ['rig_1/left', 'rig_1/right']):
        assert cameras.check(good) == good


def test_an_integer_will_do_for_a_number():
    value = BY_NAME['score_threshold'].check(-3)
    assert (value, type(value)) == (-3.0, float)


def test_cameras_have_names_that_topics_can_have():
    for names in ([''], ['left'], ['left', 'right'], ['rig_1/front', 'rig_1/rear']):
        assert BY_NAME['cameras'].check(names) == names


@pytest.mark.parametrize(
    ('name', 'text', 'value'),
    [
        ('max_keypoints', '77', 77),
        ('score_threshold', '-3', -3.0),
        ('score_threshold', '-1e1', -10.0),
        ('max_keypoints', '0x10', 16),
        ('autostart', 'false', False),
        ('cameras', '[left, right]', ['left', 'right']),
        ('cameras', "['']", ['']),
        ('weights', '123', '123'),
        ('image', '/{camera}/image', '/{camera}/image'),
    ],
)
def test_a_launch_argument_is_read_as_in_a_parameter_file(name, text, value):
    pytest.importorskip('yaml', reason='PyYAML is not installed')
    read = BY_NAME[name].parse(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ('name', 'text', 'complaint'),
    [
        ('max_keypoints', '1000.0', 'max_keypoints: expected integer from 1, got 1000.0'),
        ('max_keypoints', 'many', "max_keypoints: expected integer from 1, got 'many'"),
        ('autostart', '1', 'autostart: expected true or false, got 1'),
        ('cameras', "['0','1']", r"cameras: expected a list .* which begin with no digit.*, got \['0', '1'\]"),
        ('max_keypoints', '1:30', "max_keypoints: expected integer from 1, got '1:30'"),
        ('cameras', 'left', "cameras: expected a list like .*, got 'left'"),
        ('cameras', '[{name: left}]', r"cameras: expected a list like .*, got \[{'name': 'left'}\]"),
        ('cameras', '[2001-99-99]', 'cameras: expected a list like '),
        ('cameras', '[left', r"cameras: expected a list like .*, got '\[left'"),
    ],
)
def test_a_launch_argument_that_is_wrong_is_named(name, text, complaint):
    pytest.importorskip('yaml', reason='PyYAML is not installed')
    with pytest.raises(EdgePoint2Error, match=f'parameter {complaint}'):
        BY_NAME[name].parse(text)


def settings(cameras, **topics):
    return SimpleNamespace(**{**dict.fromkeys(TOPICS, ''), 'cameras': cameras, **topics})


def test_the_topics_of_a_camera_bear_its_name():
    assert name_topics(settings(['']), '') == {
        'image': 'image',
        'mask': 'mask',
        'keypoints': 'keypoints',
        'place': 'place',
        'overlay': 'overlay',
        'stats': 'stats',
    }
    assert name_topics(settings(['left', 'right']), 'right')['stats'] == 'right/stats'


def test_a_topic_has_the_name_that_its_parameter_gives():
    stereo = settings(['left', 'right'], image='/stereo/{camera}/image_rect', keypoints='{camera}_keypoints')
    topics = name_topics(stereo, 'left')
    assert topics['image'] == '/stereo/left/image_rect'
    assert topics['keypoints'] == 'left_keypoints'
    assert topics['mask'] == 'left/mask'
    for cameras in (['front'], ['']):
        assert name_topics(settings(cameras, image='/cam/image'), cameras[0])['image'] == '/cam/image'


def test_a_topic_that_does_not_fit_the_cameras_is_refused():
    complaint = r"parameter image: expected {camera} in it, one topic for each of \['a', 'b'\], got '/cam/image'"
    with pytest.raises(EdgePoint2Error, match=complaint):
        name_topics(settings(['a', 'b'], image='/cam/image'), 'a')
    with pytest.raises(
        EdgePoint2Error, match='parameter mask: expected no {camera} in it, because cameras gives no names'
    ):
        name_topics(settings([''], mask='/{camera}/mask'), '')


def test_changes_are_checked_together_and_others_parameters_are_left_alone():
    assert check_changes({'max_keypoints': 5, 'use_sim_time': True}, configured=True) == {'max_keypoints': 5}
    assert check_changes({'model': 'E-64'}, configured=False) == {'model': 'E-64'}
    with pytest.raises(EdgePoint2Error, match='model can change only while the node is unconfigured'):
        check_changes({'max_keypoints': 5, 'model': 'E-64'}, configured=True)
    with pytest.raises(EdgePoint2Error, match='max_keypoints'):
        check_changes({'score_threshold': 1.0, 'max_keypoints': -5}, configured=True)


@pytest.mark.parametrize('node', TABLES)
def test_the_parameter_file_is_the_table(node):
    assert (ROOT / 'config' / f'{node}.yaml').read_text() == to_yaml(node), REWRITE
    yaml = pytest.importorskip('yaml', reason='PyYAML is not installed')
    values = yaml.safe_load(to_yaml(node))['/**']['ros__parameters']
    assert values == {parameter.name: parameter.check(parameter.default) for parameter in TABLES[node]}


@pytest.mark.parametrize('node', TABLES)
def test_the_page_of_the_node_has_the_table(node):
    page = (ROOT / 'docs' / 'nodes' / f'{node}.md').read_text()
    start, end = '<!-- parameters -->\n', '<!-- /parameters -->'
    assert page.split(start)[1].split(end)[0] == to_markdown(TABLES[node]), REWRITE


def test_the_table_needs_no_ros():
    code = 'import sys, edgepoint2_ros.node.parameters; sys.exit("rclpy" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
