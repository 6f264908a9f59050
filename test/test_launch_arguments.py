"""What the launch file makes of its arguments and the parameter file; launch itself need not be installed."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml

LAUNCH_FILE = Path(__file__).parents[1] / 'launch' / 'extractor.launch.py'
MODULES = ('launch', 'launch.actions', 'launch.substitutions', 'launch_ros', 'launch_ros.actions')
MODULES += ('launch_ros.parameter_descriptions', 'launch_ros.substitutions')


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Return a function that gives the remappings of the node for arguments and a parameter file."""

    def start(parameters, **arguments) -> dict:
        file = tmp_path / 'parameters.yaml'
        file.write_text(parameters if isinstance(parameters, str) else yaml.safe_dump(parameters, sort_keys=False))
        for name in MODULES:
            monkeypatch.setitem(sys.modules, name, mock.MagicMock())
        arguments['params_file'] = str(file)
        sys.modules['launch.substitutions'].LaunchConfiguration = lambda name: SimpleNamespace(
            perform=lambda context: arguments.get(name, '')
        )
        sys.modules['launch_ros.actions'].Node = SimpleNamespace
        (node,) = runpy.run_path(str(LAUNCH_FILE))['_start'](None)
        return dict(node.remappings)

    return start


STEREO = {'ros__parameters': {'cameras': ['left', 'right']}}
BOTH = {'left/image': '/stereo/left/image_rect', 'right/image': '/stereo/right/image_rect'}


@pytest.mark.parametrize(
    ('key', 'namespace'),
    [('/**', ''), ('extractor', ''), ('/extractor', ''), ('/**', 'robot'), ('/robot/extractor', 'robot')],
)
def test_the_cameras_of_the_parameter_file_name_the_topics(key, namespace, start):
    assert start({key: STEREO}, namespace=namespace, image='/stereo/{camera}/image_rect') == BOTH


def test_the_cameras_of_the_argument_win(start):
    front = {'/**': {'ros__parameters': {'cameras': ['front']}}}
    assert start(front, cameras='[left, right]', image='/stereo/{camera}/image_rect') == BOTH
    assert start(front, image='/cam/image') == {'front/image': '/cam/image'}


def test_the_last_part_of_the_parameter_file_that_concerns_the_node_wins_as_in_the_node(start):
    front = {'ros__parameters': {'cameras': ['front']}}
    parameters = {'/**': front, 'other': front, 'extractor': STEREO, '/robot/extractor': front}
    assert start(parameters, image='/stereo/{camera}/image_rect') == BOTH
    parameters = {'extractor': front, '/**': STEREO}
    assert start(parameters, image='/stereo/{camera}/image_rect') == BOTH


@pytest.mark.parametrize('parameters', ['', '/**:\n', {'/**': {'ros__parameters': {'border': 3}}}, {'other': STEREO}])
def test_a_parameter_file_without_cameras_means_the_one_without_a_name(parameters, start):
    assert start(parameters, image='/cam/image', mask='/cam/mask') == {'image': '/cam/image', 'mask': '/cam/mask'}


def test_topics_that_do_not_fit_the_cameras_are_refused(start):
    with pytest.raises(ValueError, match=r"image:=/cam/image: expected {camera} in it, .* \['left', 'right'\]"):
        start({'/**': STEREO}, image='/cam/image')
    with pytest.raises(ValueError, match="cameras: expected a list such as .*, got 'left'"):
        start({}, cameras='left')
