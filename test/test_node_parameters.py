"""The parameters of the nodes as ROS gives them: files of every form, the topics they name, dumps that are loaded."""

import subprocess
import sys

import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

import yaml
from lifecycle_msgs.msg import Transition
from node_rig import ROOT, TIMEOUT, interrupt, wait_until
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python

from edgepoint2_ros.node.parameters import TABLES, AcceptsUnchanged, declare

pytestmark = pytest.mark.slow

STEREO = {'cameras': ['left', 'right'], 'image': '/stereo/{camera}/image_rect'}


@pytest.fixture(autouse=True)
def model(official_model):
    official_model('T-32')


@pytest.fixture
def file(tmp_path):
    """Return a function that writes parameters into a file, under the keys given."""

    def write(parameters: dict, *keys: str):
        content = {'ros__parameters': parameters}
        for key in reversed(keys):
            content = {key: content}
        path = tmp_path / 'parameters.yaml'
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize(
    ('namespace', 'keys'),
    [
        ('form/plain', ('/form/plain/extractor',)),
        ('form/relative', ('form/relative/extractor',)),
        ('form/nested', ('form', 'nested', 'extractor')),
        ('form/any', ('/**',)),
        ('form/any_name', ('/form/any_name/*',)),
        ('form/any_place', ('/**/extractor',)),
        ('form/any_level', ('/form/*/extractor',)),
    ],
)
def test_every_form_of_a_parameter_file_names_cameras_and_topics(namespace, keys, file, start):
    process = start(namespace, params_file=file(STEREO, *keys))
    process.wait_for('waiting for images on /stereo/left/image_rect, /stereo/right/image_rect')


def test_topics_are_those_of_the_parameters_and_can_be_remapped(photograph, start, rig):
    topics = {'image': 'pictures/{camera}', 'mask': '{camera}/allowed', 'keypoints': '/renamed/{camera}/keypoints'}
    quoted = {name: f"'{topic}'" for name, topic in topics.items()}
    rules = 'pictures/right:=right/image', 'right/allowed:=right/mask'
    process = start('renamed', rules, cameras='[left, right]', image_reliability='reliable', **quoted)
    process.wait_for('waiting for images on /renamed/pictures/left, /renamed/right/image')
    camera = rig('renamed', 'right')
    camera.connect()
    assert len(camera.answer(photograph).x) > 1000
    wait_until(lambda: camera.node.count_subscribers('/renamed/left/allowed') == 1)


@pytest.mark.parametrize(
    ('values', 'complaint'),
    [
        (
            {'image': '/cam'},
            "parameter image: expected {camera} in it, one topic for each of ['left', 'right'], got '/cam'",
        ),
        ({'keypoints': '/cam//keypoints'}, "parameter keypoints: expected a topic, or nothing, got '/cam//keypoints'"),
        ({'cameras': "['0', '1']"}, "which begin with no digit; or [''], got ['0', '1']"),
        ({'max_keypoints': 1000.0}, 'parameter max_keypoints: expected integer from 1, got 1000.0'),
        ({'use_sim_time': 5}, 'use_sim_time'),
    ],
)
def test_a_value_that_does_not_fit_ends_the_node_with_a_line_that_names_it(values, complaint, start):
    process = start('unfit', **{'cameras': '[left, right]', **values})
    assert process.end() == 1
    assert complaint in process.output
    assert 'Traceback' not in process.output


def test_a_parameter_that_does_not_exist_is_said(file, start):
    parameters = {'max_keypoint': 100, 'border': 3, 'use_sim_time': False, 'driver': {'rate': 30}}
    process = start('typo', params_file=file(parameters, '/**'), thread=2)
    process.wait_for('waiting for images')
    warnings = [line.split(': ', 1)[1] for line in process.output.splitlines() if 'does not exist' in line]
    assert sorted(warnings) == [
        'parameter driver.rate does not exist, its value is not used',
        'parameter max_keypoint does not exist, its value is not used; did you mean max_keypoints?',
        'parameter thread does not exist, its value is not used; did you mean threads?',
    ]


def dump(camera) -> dict:
    """Return all parameters as `ros2 param dump` does."""
    names = sorted(camera.call(ListParameters, 'list_parameters', ListParameters.Request()).result.names)
    values = camera.call(GetParameters, 'get_parameters', GetParameters.Request(names=names)).values
    return {name: parameter_value_to_python(value) for name, value in zip(names, values)}


def load(camera, path) -> dict[str, str]:
    """Load a parameter file as `ros2 param load` does and return why parameters were refused."""
    parameter_client = pytest.importorskip('rclpy.parameter_client', reason='this ROS 2 has no client of parameters')
    from rclpy.parameter import parameter_dict_from_yaml_file

    client = parameter_client.AsyncParameterClient(camera.node, camera.target)
    assert client.wait_for_services(TIMEOUT)
    future = client.load_parameter_file(str(path), True)
    camera.wait_until(future.done)
    names = list(parameter_dict_from_yaml_file(str(path), True, [camera.target]))
    return {name: result.reason for name, result in zip(names, future.result().results) if not result.successful}


def test_what_was_dumped_can_be_loaded(file, start, rig):
    start('dumped', cameras='[left, right]', threads=1, model='T-48', weights='shipped')
    camera = rig('dumped', 'left')
    camera.connect()
    values = dump(camera)
    assert {'cameras', 'use_sim_time', 'image', 'lazy'} <= set(values)
    assert load(camera, file(values, camera.target)) == {}
    assert dump(camera) == values
    assert camera.set_together(**values).successful
    values['max_keypoints'] = 55
    assert load(camera, file(values, camera.target)) == {}
    assert dump(camera) == values
    refused = load(camera, file({**values, 'model': 'T-32', 'border': 5}, camera.target))
    assert refused == {'model': 'parameter model can change only while the node is unconfigured: clean it up first'}
    assert dump(camera) == {**values, 'border': 5}


def test_a_parameter_that_is_read_only_keeps_its_value(start, rig):
    start('kept', autostart=False)
    camera = rig('kept')
    values = dump(camera)
    if 'start_type_description_service' not in values:
        pytest.skip('this ROS 2 has no parameter of the kind')
    assert camera.set(start_type_description_service=True)[0].successful
    (result,) = camera.set(start_type_description_service=False)
    assert not result.successful
    assert 'read-only' in result.reason
    (result,) = camera.set(autostart=1)  # not the same as true
    assert 'autostart: expected true or false, got 1' in result.reason
    (result,) = camera.set(no_such_parameter=1)
    assert not result.successful
    assert camera.change_state(Transition.TRANSITION_CONFIGURE)


def test_the_dump_of_the_odometry_can_be_loaded(file, rig):
    command = [sys.executable, '-m', 'edgepoint2_ros.node.visual_odometry', '--ros-args', '-r', '__ns:=/odometry']
    process = subprocess.Popen([*command, '-p', 'start_depth:=3'], cwd=ROOT)
    try:
        camera = rig('odometry', node='visual_odometry')
        values = dump(camera)
        assert values['start_depth'] == 3
        assert load(camera, file(values, camera.target)) == {}
        assert set(load(camera, file({**values, 'start_depth': 4}, camera.target))) == {'start_depth'}
        assert dump(camera) == values
    finally:
        interrupt(process)


@pytest.mark.parametrize('name', ['visual_odometry', 'tracker', 'to_rtabmap'])
def test_what_is_read_at_start_can_be_set_to_what_it_is_and_nothing_else(name, ros):
    class Reader(AcceptsUnchanged, Node):
        """A node with the parameters of another."""

    node = Reader(name)
    for parameter, value in declare(node, TABLES[name]).items():
        assert node.set_parameters_atomically([rclpy.Parameter(parameter, value=value)]).successful
        refused = node.set_parameters_atomically([rclpy.Parameter(parameter, value='another')])
        assert 'read-only' in refused.reason
    node.destroy_node()
