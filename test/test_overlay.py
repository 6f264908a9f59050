"""The overlay: keypoints on their image."""

import numpy as np
import pytest

from edgepoint2_ros.features import Features
from edgepoint2_ros.node.overlay import draw_overlay


def features(xy) -> Features:
    xy = np.array(xy, np.float32).reshape(-1, 2)
    scores = np.arange(len(xy), 0, -1, dtype=np.float32)
    return Features(xy, scores, np.zeros((len(xy), 32), np.float32), (200, 100), 'T-32', '0')


@pytest.mark.parametrize('shape', [(100, 200), (100, 200, 3)])
def test_keypoints_are_ringed_the_best_in_red_the_last_in_blue(shape):
    image = np.full(shape, 90, np.uint8)
    image.flags.writeable = False
    picture = draw_overlay(image, features([(50.4, 60), (100, 60), (150, 60)]), '')
    assert picture.shape == (100, 200, 3)
    changed = (picture != 90).any(axis=2)
    ys, xs = np.nonzero(changed)
    for x in (50, 100, 150):
        ring = np.hypot(xs - x, ys - 60) < 5
        assert np.allclose(np.hypot(xs - x, ys - 60)[ring], 3, atol=0.4)
        assert np.count_nonzero(ring) == 16
    best, last = picture[60, 53].astype(int), picture[60, 153].astype(int)
    assert best[2] > best[0]  # BGR
    assert last[0] > last[2]
    assert (image == 90).all()


def test_keypoints_at_the_edge_and_none_at_all_are_fine():
    image = np.full((100, 200), 90, np.uint8)
    draw_overlay(image, features([(0, 0), (199, 99), (199.4, 0)]), '')
    assert (draw_overlay(image, features([]), '') == 90).all()


def test_the_text_is_readable_on_any_ground():
    for ground in (0, 90, 255):
        picture = draw_overlay(np.full((100, 200), ground, np.uint8), features([]), '100 keypoints')
        assert picture.min() < 30
        assert picture.max() > 225
