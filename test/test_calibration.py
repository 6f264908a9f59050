"""The cosine from which on matches are right, from matches of known probability, and by the command on photographs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgepoint2_ros.cli import main
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation.calibration import MIN_MATCHES, Judged, find_min_cosine, judge
from edgepoint2_ros.evaluation.pairs import HomographyPair, PosePair
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match
from edgepoint2_ros.models import SHIPPED, min_cosine, open_model, write_min_cosine


def draw(middle: float, count: int = 50_000, seed: int = 0) -> Judged:
    """Return matches that are right with a probability of 1/2 at a cosine."""
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(0.3, 1, count)
    probability = 1 / (1 + np.exp(-(cosines - middle) * 30))
    return Judged(100, cosines, (rng.random(count) < probability).astype(float))


@pytest.mark.parametrize('middle', [0.6, 0.85])
def test_the_cosine_of_even_odds_is_found(middle):
    assert find_min_cosine([draw(middle)]) == pytest.approx(middle, abs=0.01)


def test_both_kinds_of_pairs_count_the_same_however_many_matches_they_have():
    found = find_min_cosine([draw(0.7, 100_000), draw(0.8, 20_000, 1)])
    assert found == pytest.approx(0.75, abs=0.01)


def test_too_few_matches_or_such_as_tell_nothing_are_refused():
    with pytest.raises(EdgePoint2Error, match=f'expected at least {MIN_MATCHES} matches, got 999 on 100 pairs'):
        find_min_cosine([draw(0.8, 999)])
    everywhere = Judged(100, np.linspace(0, 1, 5000), np.ones(5000))
    with pytest.raises(EdgePoint2Error, match='wrong more often at low cosines'):
        find_min_cosine([everywhere])


class Known:
    """A method whose matches are known: rows of b are those of a, some of them elsewhere."""

    name = 'known'

    def __init__(self, xy_a, xy_b):
        rows = np.eye(len(xy_a), dtype=np.float32)
        self._features = [
            Features(np.float32(xy), np.zeros(len(xy)), rows, (640, 480), 'T-32', 'a') for xy in (xy_a, xy_b)
        ]

    def extract(self, image):
        return self._features[int(image[0, 0])]

    def match(self, a, b):
        return match(a, b)


IMAGES = np.zeros((480, 640), np.uint8), np.ones((480, 640), np.uint8)


def test_a_match_of_a_plane_is_right_within_three_pixels():
    shift = np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]])
    method = Known([[100, 100], [200, 100], [300, 100]], [[110, 100], [212, 102], [310, 104]])
    [judged] = judge([HomographyPair('x', 'x', *IMAGES, shift)], [method])
    assert judged.right.tolist() == [1, 1, 0]
    np.testing.assert_allclose(judged.cosines, 1)


def test_of_wrong_matches_on_epipolar_lines_by_chance_nothing_is_left_in_the_mean():
    rng = np.random.default_rng(0)
    matrix = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    pose = np.eye(4)
    pose[0, 3] = -1  # rows are the epipolar lines
    xy = rng.uniform(0, (640, 40), (400, 2))  # close together, so that a tenth is near any row
    pair = PosePair('x', 'x', *IMAGES, matrix, matrix, pose, ('a', 'b'))
    [wrong] = judge([pair], [Known(xy, rng.permutation(xy))])
    assert wrong.right.mean() == pytest.approx(0, abs=0.05)
    [right] = judge([pair], [Known(xy, xy - [20, 0])])
    assert right.right.mean() == pytest.approx(1)


@pytest.fixture
def model(tmp_path):
    """A model of the package, copied."""
    for file in SHIPPED.glob('T-32.*'):
        shutil.copy(file, tmp_path)
    return open_model(tmp_path / 'T-32.onnx')


def test_what_is_written_to_a_card_is_the_cosine_of_its_features(model):
    card = json.loads(model.path.with_suffix('.json').read_text())
    write_min_cosine(model, 0.61234, '3 pairs')
    after = json.loads(model.path.with_suffix('.json').read_text())
    assert after.pop('min_cosine') == {'value': 0.612, 'digest': model.digest, 'measured_on': '3 pairs'}
    card.pop('min_cosine', None)
    assert after == card
    try:
        assert min_cosine('T-32', model.digest) == 0.612
    finally:
        open_model(SHIPPED / 'T-32.onnx')


def test_a_value_of_other_weights_does_not_count(model):
    write_min_cosine(model, 0.5, '')
    path = model.path.with_suffix('.json')
    card = json.loads(path.read_text())
    card['min_cosine']['digest'] = 'other'
    path.write_text(json.dumps(card))
    try:
        open_model(model.path)
        assert min_cosine('T-32', model.digest) is None
    finally:
        open_model(SHIPPED / 'T-32.onnx')


def test_a_model_that_nobody_calibrated_has_none():
    assert min_cosine('T-32', 'nobody') is None
    assert min_cosine('../T-32', 'nobody') is None


def test_every_model_that_ships_is_calibrated():
    for path in SHIPPED.glob('*.json'):
        model = open_model(path.with_suffix('.onnx'))
        assert 0.5 < min_cosine(model.variant.name, model.digest) < 1, path.name


def test_the_cpp_header_has_the_values_of_the_cards_and_no_others():
    header = (Path(__file__).parents[1] / 'include' / 'edgepoint2_ros' / 'keypoint_array.hpp').read_text()
    rows = {(name, digest): float(value) for name, digest, value in re.findall(r'\{"(.+)", "(.+)", (.+)f\},', header)}
    models = [open_model(path.with_suffix('.onnx')) for path in SHIPPED.glob('*.json')]
    expected = {(model.variant.name, model.digest): min_cosine(model.variant.name, model.digest) for model in models}
    assert rows == expected


@pytest.mark.slow
def test_the_command_calibrates_a_model_on_photographs(model, tmp_path, capsys):
    from skimage import data, io

    photographs = tmp_path / 'photographs'
    photographs.mkdir()
    for name in ('astronaut', 'coffee', 'chelsea'):
        io.imsave(photographs / f'{name}.png', getattr(data, name)())
    try:
        spec = f'T-32@{model.path}'
        assert main(['models', 'calibrate', spec, '--synthetic', str(photographs)]) == 0
        assert 'synthetic alone 0.' in capsys.readouterr().out
        entry = json.loads(model.path.with_suffix('.json').read_text())['min_cosine']
        assert 0.6 < entry['value'] < 0.95
        assert entry['measured_on'].startswith('15 synthetic pairs')
    finally:
        open_model(SHIPPED / 'T-32.onnx')


def test_without_anything_to_calibrate_on_the_command_says_so(capsys):
    assert main(['models', 'calibrate', 'T-32']) != 0
    assert 'give --synthetic DIR and --pairs FILE' in capsys.readouterr().err
