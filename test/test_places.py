"""Places: global descriptors of real images, and the vocabularies that the models ship with."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepoint2_ros.cli import main
from edgepoint2_ros.errors import EdgePoint2Error, ModelError
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.models import SHIPPED, find_model, write_entry
from edgepoint2_ros.models.variants import VARIANTS
from edgepoint2_ros.places import CENTRES, aggregate, most_similar, open_vocabulary, store_vocabulary, train_centres


@pytest.fixture(scope='module')
def extractor(official_model) -> Extractor:
    official_model('T-32')
    return Extractor('T-32', backend='onnxruntime', threads=1, max_keypoints=500)


@pytest.fixture
def photographs() -> list[np.ndarray]:
    """Photographs of different things, (H, W) uint8."""
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    colour = (data.astronaut(), data.coffee(), data.rocket(), data.chelsea())
    return [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in colour] + [data.camera(), data.coins()]


@pytest.fixture
def copy(tmp_path) -> Path:
    """The folder of a T-32 model that may be changed."""
    for suffix in ('.onnx', '.json'):
        (tmp_path / f'T-32{suffix}').write_bytes((SHIPPED / f'T-32{suffix}').read_bytes())
    return tmp_path


def test_a_photograph_is_found_again_by_another_view_of_it(extractor, photographs):
    vocabulary = open_vocabulary(extractor.model)
    places = np.stack([vocabulary.describe(extractor.extract(image)) for image in photographs])
    assert places.shape == (len(photographs), vocabulary.size)
    assert places.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(places, axis=1), 1, rtol=1e-5)
    for number, image in enumerate(photographs):
        height, width = image.shape
        turned = cv2.getRotationMatrix2D((width / 2, height / 2), 8, 1.15)
        view = cv2.warpAffine(image, turned, (width, height), borderMode=cv2.BORDER_REFLECT)
        view = cv2.convertScaleAbs(view, alpha=0.7)
        query = vocabulary.describe(extractor.extract(view))
        assert most_similar(places, query, 1).tolist() == [number]


def test_an_image_without_keypoints_has_a_place_of_zeros(extractor):
    vocabulary = open_vocabulary(extractor.model)
    nothing = extractor.extract(np.full((64, 64), 128, np.uint8))
    assert len(nothing) == 0
    assert vocabulary.describe(nothing).tolist() == [0] * vocabulary.size


def test_the_differences_to_the_nearest_centre_are_summed_and_their_roots_taken():
    centres = np.array([[1, 0], [0, 1]], np.float32)
    rows = np.array([[0.8, 0.6], [0.96, 0.28], [0, 1]], np.float32)
    # To the first centre (-0.24, 0.88), to the second nothing.
    expected = np.array([-np.sqrt(0.24), np.sqrt(0.88), 0, 0]) / np.sqrt(0.24 + 0.88)
    np.testing.assert_allclose(aggregate(rows, centres), expected, rtol=1e-5)


def test_the_best_places_come_first():
    places = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    assert most_similar(places, np.array([0, 1], np.float32), 2).tolist() == [1, 2]
    assert most_similar(places, np.array([0, 1], np.float32), 9).tolist() == [1, 2, 0]


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_every_model_ships_with_a_vocabulary_of_its_own(variant):
    model = find_model(variant.name, 'shipped')
    vocabulary = open_vocabulary(model)
    assert vocabulary.centres.shape == (CENTRES, variant.descriptor_size)
    assert (vocabulary.model, vocabulary.digest) == (variant.name, model.digest)


def test_features_of_other_weights_are_refused(extractor, photographs):
    features = extractor.extract(photographs[0])
    with pytest.raises(EdgePoint2Error, match=rf'of T-32 \[{features.digest}\], the features are of T-32 \[other\]'):
        open_vocabulary(extractor.model).describe(replace(features, digest='other'))


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'digest': 'other'}, r'was learned from the weights \[other\], the model has \['),
        ({'centres': 'AAA'}, r'malformed vocabulary of places \(Error'),
        ({'centres': 'AAAA'}, r'malformed vocabulary of places \(ValueError'),
        ({'centres': ''}, 'is empty'),
        ({'scale': None}, r'malformed vocabulary of places \(TypeError'),
        ({'scale': 'nan'}, 'malformed vocabulary of places'),
        (None, 'has no vocabulary of places'),
    ],
    ids=str,
)
def test_a_vocabulary_that_does_not_fit_is_refused_with_what_to_do(change, expected, copy):
    card = json.loads((copy / 'T-32.json').read_text())
    card['places'] = None if change is None else card['places'] | change
    (copy / 'T-32.json').write_text(json.dumps(card))
    with pytest.raises(ModelError, match=expected) as caught:
        open_vocabulary(find_model('T-32', str(copy)))
    assert 'edgepoint2 models vocabulary T-32' in str(caught.value)


def test_a_vocabulary_of_something_else_than_a_table_is_refused(copy):
    model = find_model('T-32', str(copy))
    write_entry(model, 'places', 'yes')
    with pytest.raises(ModelError, match='malformed'):
        open_vocabulary(find_model('T-32', str(copy)))


def test_centres_are_the_same_from_the_same_descriptors():
    rows = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
    first, again = train_centres(rows, 8), train_centres(rows, 8)
    np.testing.assert_array_equal(first, again)
    with pytest.raises(EdgePoint2Error, match='expected at least 16 keypoints to learn a vocabulary from, got 3'):
        train_centres(rows[:3])


def test_what_was_written_to_the_card_since_the_model_was_opened_stays(copy):
    model, same = find_model('T-32', str(copy)), find_model('T-32', str(copy))
    write_entry(same, 'note', {'by': 'another command'})
    store_vocabulary(model, np.eye(5, 32, dtype=np.float32), {})
    assert find_model('T-32', str(copy)).card['note'] == {'by': 'another command'}


def test_centres_survive_the_card_but_for_a_hundredth(copy):
    model = find_model('T-32', str(copy))
    centres = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    store_vocabulary(model, centres, {'images': 0})
    again = open_vocabulary(find_model('T-32', str(copy)))
    np.testing.assert_allclose(again.centres, centres, atol=np.abs(centres).max() / 250)


def test_the_command_learns_the_vocabulary_of_a_model_again(copy, tmp_path, photographs, capsys):
    images = tmp_path / 'images'
    images.mkdir()
    for number, image in enumerate(photographs):
        cv2.imwrite(str(images / f'{number}.png'), image)
    (images / 'broken.png').write_bytes(b'no image')
    command = ['models', 'vocabulary', 'T-32', '--weights', str(copy), '--images', str(images), '--data', 'some']
    before = json.loads((copy / 'T-32.json').read_text())
    assert main([*command, '--centres', '8']) == 0
    output = capsys.readouterr()
    assert 'T-32: 8 centres from 1800 keypoints of 6 images' in output.out
    assert 'broken.png' in output.err
    card = json.loads((copy / 'T-32.json').read_text())
    assert card['places']['trained'] == {'images': 6, 'keypoints': 1800, 'seed': 0, 'data': 'some'}
    assert {**card, 'places': 0} == {**before, 'places': 0}  # the rest is as it was
    assert main([*command, '--centres', '8']) == 0
    assert json.loads((copy / 'T-32.json').read_text()) == card
    assert main([*command, '--centres', '0']) == 1
    assert '--centres: expected 1 or more, got 0' in capsys.readouterr().err
    assert main(['models', 'vocabulary', 'T-32', '--images', str(tmp_path / 'nowhere')]) == 1
    assert 'no such folder or image: ' in capsys.readouterr().err
