from dataclasses import replace

import numpy as np
import pytest

from edgepoint2_ros.engines import check, open_engine
from edgepoint2_ros.engines.check import MIN_COSINE, MIN_SHARE, compare
from edgepoint2_ros.errors import EngineError


def test_the_comparison_finds_what_is_wrong():
    generator = np.random.default_rng(0)
    xy = generator.uniform(0, 600, (500, 2)).astype(np.float32)
    descriptors = generator.normal(size=(500, 32)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    right = (xy, np.linspace(5, -4, 500, dtype=np.float32), descriptors)
    assert compare(right, right) == (1.0, pytest.approx(1.0))
    assert compare((xy + 3, *right[1:]), right)[0] < MIN_SHARE
    assert compare((*right[:2], descriptors[::-1]), right)[1] < MIN_COSINE
    assert compare((*right[:2], descriptors * np.nan), right) == (0.0, 0.0)
    assert compare((xy, right[1] - 100, descriptors), right) == (0.0, 0.0)


@pytest.mark.parametrize('shape', [(480, 640, 3), (240, 320, 1), (64, 1000, 3)])
def test_the_scene_has_the_size_that_is_asked_for(shape):
    image = check.draw_scene(*shape)
    assert image.shape == shape
    assert image.dtype == np.uint8
    assert image.std() > 30


def test_a_card_gives_back_the_best_features():
    generator = np.random.default_rng(0)
    xy = generator.uniform(0, 640, (300, 2)).astype(np.float32)
    descriptors = generator.normal(size=(300, 48)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    found, _, rounded = check.unpack(check.pack((xy, np.zeros(300), descriptors)), 48)
    np.testing.assert_allclose(found, xy[: check.CARD_BEST], atol=0.01)
    assert np.einsum('nd,nd->n', rounded, descriptors[: check.CARD_BEST]).min() > 0.999


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('name', ['T-32', 'E-64'])
def test_every_backend_finds_what_the_card_holds(name, backend, official_model):
    model = official_model(name)
    fastest = open_engine(model, backend)
    assert '% of the keypoints within 1 px' in check.check_against_card(fastest.run, model)
    engine = open_engine(model, backend, 'fp32')
    assert check.check(engine.run, model, (389, 517, 1)).startswith('100.0% of the keypoints')


def test_a_model_for_tensorrt_with_few_keypoints_is_held_against_as_many(official_model):
    model = replace(official_model('T-32'), max_keypoints=100)
    engine = open_engine(model, 'onnxruntime')
    found = check.check(lambda image, mask: engine.run(image, mask, 100), model, (480, 640, 3))
    assert found.startswith('100.0% of the keypoints')


def test_features_of_another_image_fail_the_check(official_model):
    model = official_model('T-32')
    engine = open_engine(model, 'onnxruntime')
    with pytest.raises(EngineError, match="failed the self-check against the model's card: .* expected 97% and 0.995"):
        check.check_against_card(lambda image, mask: engine.run(np.ascontiguousarray(image[:, ::-1]), mask), model)


def test_a_card_without_expected_features_says_so(official_model):
    model = official_model('T-32')
    card = {key: value for key, value in model.card.items() if key != 'expected'}
    with pytest.raises(EngineError, match='has no expected features on its card: export it again'):
        check.check_against_card(open_engine(model, 'onnxruntime').run, replace(model, card=card))
