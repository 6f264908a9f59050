import argparse
import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgepoint2_ros.cli.arguments import add_extractor_arguments
from edgepoint2_ros.errors import EdgePoint2Error, ImageError, ModelError
from edgepoint2_ros.extractor import DEFAULTS, MAX_PIXELS, Extractor, ExtractorSettings, extract_shrunk, match_pair
from edgepoint2_ros.matching import match


@pytest.fixture(scope='module', params=['onnxruntime', 'openvino'])
def extractor(request, official_model) -> Extractor:
    official_model('T-32')
    return Extractor('T-32', backend=request.param)


def test_features_are_of_the_promised_types_and_lie_in_the_image(extractor, photograph):
    features = extractor.extract(photograph)
    assert len(features) > 500
    assert features.xy.dtype == features.scores.dtype == features.descriptors.dtype == np.float32
    assert features.xy.shape == (len(features), 2)
    assert features.descriptors.shape == (len(features), 32)
    assert features.image_size == (640, 480)
    assert (features.model, features.digest) == ('T-32', extractor.digest)
    assert np.all(features.xy >= 3.5)
    assert np.all(features.xy <= np.array([640, 480]) - 4.5)
    assert np.all(np.diff(features.scores) <= 0)
    np.testing.assert_allclose(np.linalg.norm(features.descriptors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize('size', [(2560, 1920), (1700, 1275)])
def test_keypoints_of_a_shrunk_image_are_in_its_own_pixels(extractor, photograph, size):
    small, (width, height) = extractor.extract(photograph), size
    large = cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC)
    found = extract_shrunk(extractor, large, 640)
    assert found.image_size == size
    assert found.xy.dtype == np.float32
    # The corner of an image, which scaling leaves where it is, is at -0.5.
    scale = np.array(size) / (640, 480)
    pairs = match(small, found, min_cosine=0.95)
    assert len(pairs) > 0.7 * len(small)
    off = (found.xy[pairs[:, 1]] + 0.5) / scale - (small.xy[pairs[:, 0]] + 0.5)
    assert np.abs(np.median(off, axis=0)).max() < 0.03
    assert np.median(np.linalg.norm(off, axis=1)) < 0.2

    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    assert extract_shrunk(extractor, large, 640, mask).xy[:, 0].max() <= width / 2 + scale[0]
    with pytest.raises(ImageError, match='mask: expected uint8'):
        extract_shrunk(extractor, large, 640, mask[1:])


@pytest.mark.parametrize('long_side', [0, 640, 2000])
def test_an_image_that_is_small_enough_is_left_as_it_is(extractor, photograph, long_side):
    expected, found = extractor.extract(photograph), extract_shrunk(extractor, photograph, long_side)
    np.testing.assert_array_equal(found.xy, expected.xy)
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)


@pytest.mark.parametrize('size', [(64, 64), (65, 95), (97, 640), (333, 517), (720, 1280)])
def test_images_of_any_size_keep_their_own_coordinates(extractor, photograph, size):
    height, width = size
    image = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)
    features = extractor.extract(image)
    assert features.image_size == (width, height)
    assert len(features) > 0
    assert np.all(features.xy.max(axis=0) < [width, height])
    assert features.xy[:, 0].max() > width * 0.7
    assert features.xy[:, 1].max() > height * 0.7


def test_gray_two_and_three_dimensional_and_colour_of_equal_channels_are_the_same(extractor, photograph):
    gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
    plain, deep, colour = (extractor.extract(image) for image in (gray, gray[..., None], np.dstack([gray] * 3)))
    np.testing.assert_array_equal(plain.xy, deep.xy)
    assert len(match(plain, colour)) > 0.99 * len(plain)


def test_the_order_of_channels_does_not_matter(extractor, photograph):
    bgr, rgb = extractor.extract(photograph), extractor.extract(np.ascontiguousarray(photograph[..., ::-1]))
    assert len(match(bgr, rgb, min_cosine=0.999)) > 0.99 * len(bgr)


def test_images_need_not_be_contiguous(extractor, photograph):
    wide = np.zeros((480, 700, 3), np.uint8)
    wide[:, :640] = photograph
    np.testing.assert_array_equal(extractor.extract(wide[:, :640]).xy, extractor.extract(photograph).xy)


@pytest.mark.parametrize('level', [0, 127, 255])
def test_an_image_without_features_gives_none(extractor, level):
    features = extractor.extract(np.full((480, 640), level, np.uint8))
    assert len(features) == 0
    assert features.descriptors.shape == (0, 32)


def test_max_keypoints_keeps_the_best_and_can_change(extractor, photograph):
    everything = extractor.extract(photograph)
    extractor.max_keypoints = 100
    try:
        np.testing.assert_array_equal(extractor.extract(photograph).scores, everything.scores[:100])
    finally:
        extractor.max_keypoints = 2048


def test_a_cpu_gives_any_number_of_keypoints(extractor, photograph):
    large = cv2.resize(photograph, (1280, 960))
    extractor.max_keypoints, extractor.score_threshold = 10**6, -1000
    try:
        everything = extractor.extract(large)
        extractor.max_keypoints = 5000
        best = extractor.extract(large)
    finally:
        extractor.max_keypoints, extractor.score_threshold = 2048, -5.0
    assert len(everything) > 5000 == len(best)
    np.testing.assert_array_equal(best.scores, everything.scores[:5000])
    assert len(extractor.extract(large)) <= 2048


def test_score_threshold_cuts_and_can_change(extractor, photograph):
    everything = extractor.extract(photograph)
    extractor.score_threshold = float(np.median(everything.scores))
    try:
        features = extractor.extract(photograph)
        assert features.scores.min() > extractor.score_threshold
        assert len(features) == np.count_nonzero(everything.scores > extractor.score_threshold)
    finally:
        extractor.score_threshold = -5.0


@pytest.mark.parametrize('shape', [(480, 640), (389, 517)])
def test_a_mask_of_the_images_size_keeps_keypoints_inside(extractor, photograph, shape):
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    mask[:, : width // 3] = 1
    features = extractor.extract(np.ascontiguousarray(photograph[:height, :width]), mask)
    assert len(features) > 50
    assert features.xy[:, 0].max() <= width // 3 + 1
    assert len(extractor.extract(photograph, np.zeros((480, 640), np.uint8))) == 0


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((480, 640), np.float32), 'expected a uint8 array .* got float32'),
        (np.zeros((480, 640), np.uint16), 'got uint16'),
        ([[0]], 'got list'),
        (None, 'got NoneType'),
        (np.zeros((480, 640, 4), np.uint8), r'expected shape \(H, W\) or \(H, W, 3\), got \(480, 640, 4\)'),
        (np.zeros(640, np.uint8), r'got \(640,\)'),
        (np.zeros((0, 0), np.uint8), 'at least 64 x 64 pixels, got 0 x 0'),
        (np.zeros((63, 640), np.uint8), 'at least 64 x 64 pixels, got 640 x 63'),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000)), f'at most {MAX_PIXELS} pixels, got 10000 x 10000'),
    ],
)
def test_a_bad_image_is_refused_in_words_and_the_next_is_served(extractor, photograph, image, message):
    with pytest.raises(ImageError, match=message):
        extractor.extract(image)
    assert len(extractor.extract(photograph)) > 500


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (None, 'got NoneType'),
        (np.zeros((480, 640), bool), 'got bool'),
        (np.zeros((480, 640), np.int64), 'got int64'),
        (np.zeros((480, 640, 5), np.uint8), r'got \(480, 640, 5\)'),
        (np.zeros((0, 640), np.uint8), 'at least 64 x 64 pixels, got 640 x 0'),
        (np.zeros((1, 3000), np.uint8), 'at least 64 x 64 pixels, got 320 x 1'),
    ],
)
def test_a_bad_image_is_refused_in_words_before_it_is_shrunk(extractor, image, message):
    with pytest.raises(ImageError, match=message):
        extract_shrunk(extractor, image, 320)


def test_threads_that_share_an_extractor_get_their_own_features(extractor, photograph):
    images = [np.ascontiguousarray(np.roll(photograph, 16 * number, axis=1)) for number in range(4)] * 4
    expected = [extractor.extract(image) for image in images[:4]] * 4
    with ThreadPoolExecutor(4) as pool:
        for features, own in zip(pool.map(extractor.extract, images), expected, strict=True):
            np.testing.assert_array_equal(features.xy, own.xy)
            np.testing.assert_array_equal(features.descriptors, own.descriptors)


@pytest.mark.parametrize('mask', [np.ones((480, 641), np.uint8), np.ones((480, 640), bool), 'mask'])
def test_a_mask_that_does_not_fit_is_refused(extractor, photograph, mask):
    with pytest.raises(ImageError, match=r'mask: expected uint8 \(480, 640\)'):
        extractor.extract(photograph, mask)


@pytest.mark.parametrize('settings', [{'max_keypoints': 0}, {'score_threshold': float('nan')}])
def test_settings_out_of_range_are_refused(official_model, settings):
    official_model('T-32')
    with pytest.raises(EdgePoint2Error, match=next(iter(settings))):
        Extractor('T-32', **settings)


def test_settings_have_one_default_in_python_for_the_commands_the_bags_and_the_node():
    parser = argparse.ArgumentParser()
    add_extractor_arguments(parser)
    assert ExtractorSettings.of(parser.parse_args([])) == DEFAULTS
    assert inspect.signature(Extractor).parameters['model'].default == DEFAULTS
    parameters = pytest.importorskip('edgepoint2_ros.node.parameters').EXTRACTOR
    assert ExtractorSettings.of(SimpleNamespace(**{each.name: each.default for each in parameters})) == DEFAULTS
    bags = pytest.importorskip('edgepoint2_ros.bridges.bags', reason='rosbags is not installed')
    assert bags.Job(Path(), Path()).extractor == DEFAULTS


def test_settings_come_as_one_or_by_name_and_names_win(official_model):
    official_model('T-32')
    settings = ExtractorSettings('T-32', backend='onnxruntime', precision='fp32', max_keypoints=7, score_threshold=1)
    extractor = Extractor(settings, score_threshold=2)
    assert (extractor.backend, extractor.precision) == ('onnxruntime', 'fp32')
    assert (extractor.max_keypoints, extractor.score_threshold) == (7, 2)
    with pytest.raises(TypeError, match='max_keypoint'):
        Extractor('T-32', max_keypoint=7)


def test_an_unknown_model_is_refused():
    with pytest.raises(ModelError, match='T-64'):
        Extractor('T-64')


@pytest.mark.slow
def test_extraction_imports_neither_torch_nor_onnx_nor_ros(official_model):
    official_model('T-32')
    code = (
        'import sys, numpy; from edgepoint2_ros.extractor import Extractor;'
        'Extractor("T-32").extract(numpy.zeros((480, 640), numpy.uint8));'
        'print([name for name in ("torch", "onnx", "rclpy") if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


class TestMatchPair:
    def test_gives_the_places_that_match(self, photograph):
        moved = np.roll(photograph, 16, axis=1)
        first, second = match_pair(photograph, moved)
        assert first.shape == second.shape
        assert np.median(second - first, axis=0) == pytest.approx([16, 0], abs=0.3)

    def test_is_offered_by_the_package_itself(self):
        import edgepoint2_ros

        assert edgepoint2_ros.match_pair is match_pair
        assert set(edgepoint2_ros.__all__) == {'Extractor', 'Features', 'match', 'match_pair'}
        with pytest.raises(AttributeError, match='no attribute .nonsense'):
            _ = edgepoint2_ros.nonsense
