"""Picking keypoints from maps, on maps small enough to be seen through."""

import numpy as np
import pytest

from edgepoint2_ros.keypoints import best_keypoints
from edgepoint2_ros.models import BORDER

NO_MASK = np.ones((1, 1), np.uint8)
SIZE = (64, 96)


def cells_of(score_map):
    """Return a score map (H, W) as the model gives it: (H/2, W/2, 4)."""
    height, width = score_map.shape
    cells = score_map.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(cells, np.float32).reshape(height // 2, width // 2, 4)


def ramp():
    """Return a descriptor map whose vectors are (place along x, place along y, 1), in the score map's pixels."""
    x, y = (np.arange(side // 4) * 4 + 1.5 for side in (SIZE[1], SIZE[0]))
    return np.stack([*np.meshgrid(x, y), np.ones((SIZE[0] // 4, SIZE[1] // 4))], axis=2).astype(np.float32)


def find(score_map, mask=NO_MASK, count=100, threshold=-5.0, subpixel=True, image_shape=SIZE):
    return best_keypoints(cells_of(score_map), ramp(), image_shape, mask, count, threshold, subpixel)


@pytest.fixture
def score_map():
    return np.full(SIZE, -9.0, np.float32)


def test_a_peak_is_found_where_it_is(score_map):
    score_map[20, 33] = 2.0
    xy, scores, descriptors = find(score_map)
    assert xy.tolist() == [[33.0, 20.0]]
    assert scores.tolist() == [2.0]
    assert descriptors.shape == (1, 3)


@pytest.mark.parametrize(('column', 'row'), [(4, 4), (5, 6), (6, 5), (7, 59), (91, 59), (40, 30), (41, 31)])
def test_its_descriptor_is_the_map_interpolated_at_its_place(score_map, column, row):
    score_map[row, column] = 1.0
    score_map[row, column + 1], score_map[row + 1, column] = 0.0, -0.5
    score_map[row, column - 1], score_map[row - 1, column] = -1.0, -1.5
    xy, _, descriptors = find(score_map)
    assert xy[0] == pytest.approx([column + 1 / 6, row + 0.125], abs=1e-5)  # the parabolas' vertices
    x, y, one = descriptors[0] / descriptors[0, 2]
    assert [x, y] == pytest.approx(list(xy[0]), abs=1e-3)
    assert np.linalg.norm(descriptors[0]) == pytest.approx(1.0, abs=1e-6)


def test_without_refinement_places_are_whole_numbers(score_map):
    score_map[20, 33], score_map[20, 34] = 2.0, 1.9
    assert find(score_map, subpixel=False)[0].tolist() == [[33.0, 20.0]]


def test_the_lower_of_two_within_two_pixels_goes(score_map):
    score_map[20, 33], score_map[22, 35] = 2.0, 1.0
    score_map[20, 36] = 1.5  # three pixels from the first, but two from the second
    assert find(score_map)[1].tolist() == [2.0, 1.5]


def test_the_best_come_first_and_no_more_than_asked_for(score_map):
    random = np.random.default_rng(0)
    peaks = random.permutation(150).astype(np.float32)
    score_map[6:56:5, 6:80:5] = peaks.reshape(10, 15)
    assert find(score_map)[1].tolist() == sorted(peaks, reverse=True)[:100]
    assert find(score_map, count=7)[1].tolist() == sorted(peaks, reverse=True)[:7]


def test_keypoints_score_above_the_threshold(score_map):
    score_map[20, 33], score_map[20, 50], score_map[40, 50] = -5.0, -4.999, 3.0
    assert find(score_map, threshold=-5.0)[1].tolist() == [3.0, np.float32(-4.999)]
    assert len(find(score_map, threshold=3.0)[1]) == 0


def test_nothing_above_the_threshold_gives_empty_arrays_of_the_right_shapes(score_map):
    xy, scores, descriptors = find(score_map)
    assert xy.shape == (0, 2)
    assert scores.shape == (0,)
    assert descriptors.shape == (0, 3)
    assert {array.dtype for array in (xy, scores, descriptors)} == {np.dtype(np.float32)}


def test_the_border_holds_no_keypoints(score_map):
    score_map[:] = -8.0
    score_map[BORDER - 1, 40] = score_map[40, BORDER - 1] = score_map[-BORDER, 60] = score_map[50, -BORDER] = 5.0
    assert len(find(score_map)[0]) == 0
    score_map[BORDER, 20] = 1.0
    assert find(score_map, subpixel=False)[0].tolist() == [[20.0, BORDER]]


def test_masked_places_take_no_slot(score_map):
    score_map[20, 33], score_map[40, 50], score_map[40, 70] = 3.0, 2.0, 1.0
    mask = np.full(SIZE, 7, np.uint8)  # any nonzero number allows
    mask[20, 33] = 0
    assert find(score_map, mask, count=1)[1].tolist() == [2.0]
    assert len(find(score_map, np.zeros(SIZE, np.uint8))[0]) == 0


def test_a_flat_map_takes_no_harm():
    xy, scores, descriptors = find(np.zeros(SIZE, np.float32), count=50)
    assert len(xy) == 50
    assert np.isfinite(descriptors).all()


def test_places_are_in_pixels_of_the_image_that_the_grid_was_stretched_over(score_map):
    score_map[20, 33] = 2.0
    assert find(score_map, image_shape=(80, 120))[0][0] == pytest.approx([33 * 120 / 96, 20 * 80 / 64])
