"""How the reference picks places and samples descriptors, on maps small enough to be seen through."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: there is no reference')

from edgepoint2_ros.models.variants import find_variant
from edgepoint2_ros.network import EdgePoint2
from edgepoint2_ros.network.reference import best_places, extract_dense, sample


def test_the_best_places_are_the_highest_maxima_away_from_the_border():
    scores = torch.full((40, 50), -9.0)
    scores[10, 20], scores[30, 40], scores[31, 41], scores[1, 1] = 3.0, 2.0, 1.0, 9.0
    assert best_places(scores, 2).tolist() == [[20, 10], [40, 30]]
    assert best_places(scores, 9, threshold=2.0).tolist() == [[20, 10]]


def test_samples_follow_the_half_pixel_rule():
    # A map at 1/4 holds, at pixel i, the place 4 i + 1.5 of the image.
    ramp = torch.arange(12.0).repeat(8, 1)[None] * 4 + 1.5
    places = torch.tensor([[1.5, 3.0], [10.0, 20.0], [40.25, 7.0]])
    torch.testing.assert_close(sample(ramp, places, (48, 32))[:, 0], places[:, 0])


def test_features_are_of_the_image_that_the_grid_was_stretched_over():
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), np.uint8)
    xy, scores, descriptors = extract_dense(EdgePoint2(find_variant('T-32')).eval(), image, 50)
    assert xy.shape == (50, 2)
    pixels = xy * [128 / 140, 96 / 100]
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)
    assert np.all(np.diff(scores) <= 0)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-5)
