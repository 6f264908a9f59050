"""The node with the parameter ``place``: one vector for each whole image, over DDS."""

import json

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from lifecycle_msgs.msg import Transition

from edgepoint2_ros.messages import decode
from edgepoint2_ros.models import SHIPPED, find_model
from edgepoint2_ros.msg import Place
from edgepoint2_ros.places import open_vocabulary

pytestmark = pytest.mark.slow


@pytest.fixture
def places(rig):
    """Return a function that subscribes to a camera's places: the camera, and the list that they come into."""

    def subscribe(namespace: str) -> tuple:
        camera, received = rig(namespace), []
        camera.node.create_subscription(Place, 'place', received.append, 10)
        return camera, received

    return subscribe


def test_each_image_gets_its_place_when_asked_for(start, places, official_model, gray):
    model = official_model('T-32')
    start('with_places', place=True)
    camera, received = places('with_places')
    camera.connect()
    camera.wait_until(lambda: camera.node.count_publishers('/with_places/place') == 1)
    while not received:  # until the node knows of the subscription
        camera.answer(gray)
        camera.spin(0.2)
    for pixels in (gray, np.ascontiguousarray(gray[:, ::-1]), np.full_like(gray, 128)):
        received.clear()
        keypoints = camera.answer(pixels)
        camera.wait_until(lambda: any(place.header == keypoints.header for place in received))  # noqa: B023
        place = received[-1]  # before it may come that of the last image, late
        assert (place.model, place.digest) == ('T-32', model.digest)
        expected = open_vocabulary(model).describe(decode(keypoints))
        np.testing.assert_allclose(place.descriptor, expected, atol=1e-5)
    assert not any(place.descriptor)  # of an image without keypoints


def test_after_a_change_of_model_places_are_those_of_the_new_one(start, places, official_model, gray):
    models = [official_model(name) for name in ('T-32', 'S-64')]
    start('places_of_two', place=True)
    camera, received = places('places_of_two')
    camera.connect()
    camera.wait_until(lambda: camera.node.count_publishers('/places_of_two/place') == 1)
    for model in models:
        if model is models[1]:
            assert camera.change_state(Transition.TRANSITION_DEACTIVATE)
            assert camera.change_state(Transition.TRANSITION_CLEANUP)
            [result] = camera.set(model='S-64')
            assert result.successful, result.reason
            assert camera.change_state(Transition.TRANSITION_CONFIGURE)
            assert camera.change_state(Transition.TRANSITION_ACTIVATE)
            camera.connect()
        received.clear()
        while not received:  # until the node knows of the subscription
            camera.answer(gray)
            camera.spin(0.2)
        keypoints = camera.answer(gray)
        camera.wait_until(lambda: any(place.header == keypoints.header for place in received))  # noqa: B023
        place = received[-1]  # before it may come that of the last image, late
        expected = open_vocabulary(model).describe(decode(keypoints))
        for made in (keypoints, place):
            assert (made.model, made.digest) == (model.variant.name, model.digest)
        assert len(place.descriptor) == len(expected)
        np.testing.assert_allclose(place.descriptor, expected, atol=1e-5)


def test_places_alone_keep_a_lazy_node_awake(start, places, gray):
    start('lazy_places', place=True, lazy=True)
    camera, received = places('lazy_places')
    camera.plug_in()
    camera.wait_until(lambda: (camera.send(gray), camera.spin(0.2), received)[-1])


def test_without_the_parameter_there_is_no_such_topic(start, places, gray):
    start('without_places')
    camera, _ = places('without_places')
    camera.connect()
    camera.answer(gray)
    assert camera.node.count_publishers('/without_places/place') == 0


def test_a_model_without_a_vocabulary_is_refused_with_what_to_do(start, official_model, tmp_path):
    official_model('T-32')
    for path in SHIPPED.glob('T-32*'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card = json.loads((tmp_path / 'T-32.json').read_text())
    del card['places']
    (tmp_path / 'T-32.json').write_text(json.dumps(card))
    assert find_model('T-32', str(tmp_path))
    node = start('no_vocabulary', place=True, weights=tmp_path)
    node.wait_for('has no vocabulary of places: make one with `edgepoint2 models vocabulary T-32')
