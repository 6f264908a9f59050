"""The one table of parameters, and the documents made from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.node.parameters import PARAMETERS, check_changes, to_markdown, to_yaml
from edgepoint2_ros.variants import NAMES

ROOT = Path(__file__).parents[1]
REWRITE = 'run `python -m edgepoint2_ros.node.parameters`'
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def test_every_default_is_allowed_and_described():
    for parameter in PARAMETERS:
        value = parameter.check(parameter.default)
        assert type(value) is parameter.type
        assert parameter.description.endswith('.')
    assert len(BY_NAME) == len(PARAMETERS)


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
            "cameras: expected unique names of letters, digits, _ and /, or one empty name, got 'left'",
        ),
        ('cameras', [], 'expected unique names'),
        ('cameras', ['left', 'left'], 'expected unique names'),
        ('cameras', ['left', ''], 'expected unique names'),
        ('cameras', ['2nd'], 'expected unique names'),
        ('cameras', ['a//b'], 'expected unique names'),
        ('cameras', [1, 2], 'expected unique names'),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(name, value, complaint):
    with pytest.raises(EdgePoint2Error, match=complaint):
        BY_NAME[name].check(value)


def test_an_integer_will_do_for_a_number():
    value = BY_NAME['score_threshold'].check(-3)
    assert (value, type(value)) == (-3.0, float)


def test_cameras_have_names_that_topics_can_have():
    for names in ([''], ['left'], ['left', 'right'], ['rig_1/front', 'rig_1/rear']):
        assert BY_NAME['cameras'].check(names) == names


def test_changes_are_checked_together_and_others_parameters_are_left_alone():
    assert check_changes({'max_keypoints': 5, 'use_sim_time': True}, configured=True) == {'max_keypoints': 5}
    assert check_changes({'model': 'E-64'}, configured=False) == {'model': 'E-64'}
    with pytest.raises(EdgePoint2Error, match='model can change only while the node is unconfigured'):
        check_changes({'max_keypoints': 5, 'model': 'E-64'}, configured=True)
    with pytest.raises(EdgePoint2Error, match='max_keypoints'):
        check_changes({'score_threshold': 1.0, 'max_keypoints': -5}, configured=True)


def test_the_yaml_file_is_the_table():
    assert (ROOT / 'config' / 'extractor.yaml').read_text() == to_yaml(), REWRITE
    yaml = pytest.importorskip('yaml', reason='PyYAML is not installed')
    values = yaml.safe_load(to_yaml())['/**']['ros__parameters']
    assert values == {parameter.name: parameter.check(parameter.default) for parameter in PARAMETERS}


@pytest.mark.parametrize('name', ['README.md', 'docs/node.md'])
def test_readme_and_the_page_of_the_node_have_the_table(name):
    page = (ROOT / name).read_text()
    start, end = '<!-- parameters -->\n', '<!-- /parameters -->'
    assert start in page, f'{name} has no {start.strip()}'
    assert page.split(start)[1].split(end)[0] == to_markdown(), REWRITE


def test_the_table_needs_no_ros():
    code = 'import sys, edgepoint2_ros.node.parameters; sys.exit("rclpy" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
