from dataclasses import replace

import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import check_usable, match, match_guided, transfer_error, verify


def features(descriptors, digest='a', size=2) -> Features:
    rows = np.asarray(descriptors, np.float32).reshape(-1, size)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if len(rows) else rows
    return Features(
        np.zeros((len(rows), 2), np.float32), np.zeros(len(rows), np.float32), rows, (640, 480), 'T-32', digest
    )


def test_only_mutual_nearest_neighbours_match():
    first = features([[1, 0], [1, 0.3], [0, 1]])
    second = features([[0, 1], [1, 0.1]])  # the second lies nearest to row 0; row 1 likes it, but not in return
    np.testing.assert_array_equal(match(first, second), [[0, 1], [2, 0]])


def test_pairs_below_the_least_cosine_are_left_out():
    first, second = features([[1, 0], [0, 1]]), features([[1, 0.01], [1, 2]])
    assert len(match(first, second)) == 2
    np.testing.assert_array_equal(match(first, second, min_cosine=0.9), [[0, 0]])


def test_nothing_matches_nothing():
    some, none = features([[1, 0]]), features([])
    assert match(some, none).shape == match(none, some).shape == match(none, none).shape == (0, 2)


def test_features_of_different_weights_are_refused():
    with pytest.raises(EdgePoint2Error, match=r'T-32 \[a\] cannot be matched with features of T-32 \[b\]'):
        match(features([[1, 0]], 'a'), features([[1, 0]], 'b'))


def test_transfer_error_is_the_distance_after_the_homography():
    homography = np.array([[2, 0, 1], [0, 2, 0], [0, 0, 1]])
    np.testing.assert_allclose(transfer_error(homography, np.array([[1, 1]]), np.array([[6, 6]])), [5.0])


def test_the_ratio_test_leaves_out_what_has_two_good_answers():
    first = features([[1, 0], [0, 1]])
    second = features([[1, 0.02], [1, -0.03], [0.1, 1]])  # two answers for row 0, one for row 1
    assert match(first, second).tolist() == [[0, 0], [1, 2]]
    assert match(first, second, ratio=0.5).tolist() == [[1, 2]]


def test_a_single_candidate_passes_the_ratio_test():
    assert match(features([[1, 0]]), features([[1, 0.5]]), ratio=0.8).tolist() == [[0, 0]]


def test_equal_descriptors_match_once():
    assert match(features([[1, 0], [1, 0]]), features([[1, 0]])).tolist() == [[0, 0]]
    assert match(features([[1, 0]]), features([[1, 0], [1, 0]])).tolist() == [[0, 0]]


def test_descriptors_that_are_not_finite_are_refused():
    broken = features([[1, 0], [0, 1]])
    broken.descriptors[1] = np.nan
    for pair in ((broken, features([[1, 0]])), (features([[1, 0]]), broken)):
        with pytest.raises(EdgePoint2Error, match='not finite'):
            match(*pair)


LIMITS = [({'ratio': value}, 'ratio: expected more than 0 and at most 1') for value in (0, -0.9, 1.1, float('nan'))]
LIMITS.append(({'min_cosine': float('nan')}, 'min_cosine: expected a number, got nan'))


@pytest.mark.parametrize(('limits', 'words'), LIMITS)
def test_limits_that_mean_nothing_are_refused(limits, words):
    some = features([[1, 0]])
    with pytest.raises(EdgePoint2Error, match=words):
        match(some, some, **limits)
    with pytest.raises(EdgePoint2Error, match=words):
        match_guided(some, some, predicted=np.zeros((1, 2)), radius=1, **limits)


@pytest.mark.parametrize('dtype', [np.float16, np.float64, np.longdouble])
def test_descriptors_of_any_floats_match_as_those_of_float32_do(dtype):
    rows = np.random.default_rng(0).normal(size=(40, 32))
    first, second = features(rows, size=32), features(rows[::-1], size=32)
    expected = np.stack([np.arange(40), np.arange(40)[::-1]], axis=1)
    first, second = (replace(some, descriptors=some.descriptors.astype(dtype)) for some in (first, second))
    np.testing.assert_array_equal(match(first, second), expected)
    np.testing.assert_array_equal(match_guided(first, second, predicted=np.zeros((40, 2)), radius=1), expected)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int64, bool])
def test_descriptors_that_are_no_floats_are_refused(dtype):
    some = features([[1, 0], [0, 1]])
    whole = replace(some, descriptors=(some.descriptors * 127).astype(dtype))
    for pair in ((whole, some), (some, whole)):
        with pytest.raises(EdgePoint2Error, match=f'expected float32, as messages.decode.*got {np.dtype(dtype)}'):
            match(*pair)
        with pytest.raises(EdgePoint2Error, match=f'got {np.dtype(dtype)}'):
            match_guided(*pair, predicted=np.zeros((2, 2)), radius=1)
    with pytest.raises(EdgePoint2Error, match=f'to be tracked: expected float32.*got {np.dtype(dtype)}'):
        check_usable(whole)


def test_matching_many_features_is_what_a_loop_over_all_pairs_finds():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 200, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    first, second = (
        Features(np.zeros((200, 2), np.float32), np.zeros(200, np.float32), r, (640, 480), 'T-32', 'a') for r in rows
    )
    cosine = [[float(a @ b) for b in second.descriptors] for a in first.descriptors]
    expected = []
    for i in range(200):
        j = max(range(200), key=lambda j: cosine[i][j])
        if max(range(200), key=lambda i: cosine[i][j]) == i:
            expected.append([i, j])
    assert match(first, second).tolist() == expected


def test_descriptors_far_more_than_fit_into_one_block_are_matched_as_few_are():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(300, 8)), rng.normal(size=(9000, 8))
    pairs = match(features(first, size=8), features(second, size=8), ratio=0.999)
    for i, j in pairs:
        alone = match(features(first[i], size=8), features(second, size=8), ratio=0.999)
        assert alone.tolist() == [[0, j]]
    assert len(pairs) > 20


SCENE = np.array([[0, -0.002, 0.4], [0.002, 0, -0.9], [-0.4, 0.9, 0]])  # a fundamental matrix
RADII = np.random.default_rng(2).uniform(0, 90, 150)


@pytest.fixture
def scattered():
    """Features of two images at random places, with alike descriptors among them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 8))[rng.integers(40, size=(2, 150))] + rng.normal(0, 0.3, (2, 150, 8))
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    places = rng.uniform(0, (640, 480), (2, 150, 2)).astype(np.float32)
    return [Features(xy, np.zeros(150, np.float32), r, (640, 480), 'T-32', 'a') for xy, r in zip(places, rows)]


def lies_near(radius):
    return lambda a, b, k: np.all(np.abs(b - (a + 7)) <= (radius[k] if np.ndim(radius) else radius))


def lies_on_line(a, b, k):
    line = SCENE @ [*a, 1]
    return abs(line @ [*b, 1]) / np.hypot(*line[:2]) <= 9


def lies_in_row(a, b, k):
    return abs(a[1] - b[1]) <= 9 and -30 <= a[0] - b[0] <= 250


GUIDES = {
    'one radius': (lambda first: {'predicted': first.xy + 7, 'radius': 60}, lies_near(60)),
    'a radius each': (lambda first: {'predicted': first.xy + 7, 'radius': RADII}, lies_near(RADII)),
    'the whole image': (lambda first: {'predicted': first.xy, 'radius': 1000}, lambda a, b, k: True),
    'epipolar lines': (lambda first: {'fundamental': SCENE, 'distance': 9}, lies_on_line),
    'rows': (lambda first: {'disparity': (-30, 250), 'distance': 9}, lies_in_row),
    'places in rows': (
        lambda first: {'predicted': first.xy + 7, 'radius': 60, 'disparity': (-30, 250), 'distance': 9},
        lambda *lie: lies_near(60)(*lie) and lies_in_row(*lie),
    ),
    'places on lines': (
        lambda first: {'predicted': first.xy + 7, 'radius': 90, 'fundamental': SCENE, 'distance': 9},
        lambda *lie: lies_near(90)(*lie) and lies_on_line(*lie),
    ),
}


@pytest.mark.parametrize('ratio', [1.0, 0.9])
@pytest.mark.parametrize(('guide', 'lies'), GUIDES.values(), ids=GUIDES)
def test_guided_matches_are_what_a_loop_over_all_candidates_finds(guide, lies, ratio, scattered):
    first, second = scattered
    candidates = np.array([[lies(a, b, k) for b in second.xy] for k, a in enumerate(first.xy)])
    cosine = np.where(candidates, first.descriptors @ second.descriptors.T, -np.inf)
    expected = []
    for i, j in enumerate(cosine.argmax(axis=1)):
        second_best = np.delete(cosine[i], j).max()
        distinct = ratio == 1 or 1 - cosine[i, j] < ratio**2 * (1 - second_best)
        if cosine[i, j] >= 0.5 and cosine[:, j].argmax() == i and distinct:
            expected.append([i, j])
    assert len(expected) > 3
    assert match_guided(first, second, **guide(first), min_cosine=0.5, ratio=ratio).tolist() == expected


def test_a_search_everywhere_finds_what_match_finds(scattered):
    first, second = scattered
    everywhere = match_guided(first, second, predicted=first.xy, radius=1000, ratio=0.95)
    np.testing.assert_array_equal(everywhere, match(first, second, ratio=0.95))


@pytest.mark.parametrize('radius', [1e10, np.inf])
def test_keypoints_may_lie_and_be_searched_far_away(radius, scattered):
    first, second = scattered
    second.xy[::10] *= 1e7
    np.testing.assert_array_equal(match_guided(first, second, predicted=first.xy, radius=radius), match(first, second))
    near = match_guided(first, second, predicted=first.xy, radius=50)
    assert len(near) > 5
    assert (np.abs(first.xy[near[:, 0]] - second.xy[near[:, 1]]) <= 50).all()


def test_a_place_that_is_not_finite_has_no_candidates(scattered):
    first, second = scattered
    places = first.xy.copy()
    places[:75:2], places[1:75:2] = np.nan, np.inf
    pairs = match_guided(first, second, predicted=places, radius=1000)
    assert len(pairs) > 5
    assert pairs[:, 0].min() >= 75


def test_positions_outside_of_the_image_have_no_candidates(scattered):
    first, second = scattered
    for shift in (-5000, 5000, (0, 5000), (-5000, 0)):
        assert match_guided(first, second, predicted=first.xy + shift, radius=20).shape == (0, 2)


def test_of_equal_descriptors_the_first_gets_the_guided_match():
    one, two = features([[1, 0]]), features([[1, 0], [1, 0]])
    assert match_guided(two, one, predicted=two.xy, radius=1).tolist() == [[0, 0]]
    assert match_guided(one, two, predicted=one.xy, radius=1).tolist() == [[0, 0]]


def test_guided_matching_of_nothing_gives_nothing():
    some, none = features([[1, 0]]), features([])
    for first, second in ((some, none), (none, some), (none, none)):
        for guide in ({'predicted': first.xy, 'radius': 5}, {'fundamental': SCENE}, {'disparity': (0, 9)}):
            assert match_guided(first, second, **guide).shape == (0, 2)


@pytest.mark.parametrize(
    ('guide', 'words'),
    [
        ({}, 'expected predicted and radius, fundamental or disparity'),
        (
            {'predicted': np.zeros((2, 2)), 'radius': 5},
            r'predicted: expected \(1, 2\), a position for each feature, got \(2, 2\)',
        ),
        ({'predicted': np.zeros((1, 2))}, 'radius: expected a number from 0, or 1 of them, got None'),
        ({'predicted': np.zeros((1, 2)), 'radius': -1}, 'radius: expected a number from 0'),
        ({'predicted': np.zeros((1, 2)), 'radius': np.nan}, 'radius: expected a number from 0'),
        (
            {'predicted': np.zeros((1, 2)), 'radius': [1, np.nan]},
            r'radius: expected a number from 0, or 1 of them, got shape \(2,\), 1 of them not$',
        ),
        ({'fundamental': np.eye(4)}, r'fundamental: expected \(3, 3\), got \(4, 4\)'),
        ({'fundamental': SCENE, 'distance': 0}, 'distance: expected a positive number of pixels, got 0'),
        ({'disparity': (9, 3)}, r'disparity: expected minimum and maximum, got \(9, 3\)'),
    ],
)
def test_a_guide_that_says_nothing_is_refused(guide, words):
    with pytest.raises(EdgePoint2Error, match=words):
        match_guided(features([[1, 0]]), features([[1, 0]]), **guide)


def test_guided_matching_refuses_what_match_refuses():
    with pytest.raises(EdgePoint2Error, match=r'T-32 \[a\] cannot be matched'):
        match_guided(features([[1, 0]], 'a'), features([[1, 0]], 'b'), predicted=np.zeros((1, 2)), radius=1)
    broken = features([[1, 0]])
    broken.descriptors[0] = np.nan
    with pytest.raises(EdgePoint2Error, match='not finite'):
        match_guided(broken, features([[1, 0]]), predicted=np.zeros((1, 2)), radius=1)
    nowhere = features([[1, 0]])
    nowhere.xy[0] = np.nan
    with pytest.raises(EdgePoint2Error, match='positions of keypoints to match are not finite'):
        match_guided(features([[1, 0]]), nowhere, predicted=np.zeros((1, 2)), radius=1)


@pytest.fixture
def moved():
    """Features at 100 places and where a camera that turned sees them, but every fifth somewhere else."""
    rng = np.random.default_rng(1)
    homography = np.array([[0.98, -0.1, 30], [0.1, 0.99, -20], [1e-4, 0, 1]])
    xy = rng.uniform(0, 480, (100, 2)).astype(np.float32)
    mapped = np.column_stack([xy, np.ones(100)]) @ homography.T
    seen = (mapped[:, :2] / mapped[:, 2:]).astype(np.float32)
    seen[::5] += 60
    rows, scores = np.eye(100, dtype=np.float32), np.zeros(100, np.float32)
    first, second = (Features(places, scores, rows, (640, 480), 'T-32', 'a') for places in (xy, seen))
    return first, second, homography


@pytest.mark.parametrize('geometry', ['homography', 'epipolar'])
def test_matches_that_do_not_fit_the_geometry_are_left_out(geometry, moved):
    first, second, homography = moved
    pairs, matrix = verify(first, second, match(first, second), geometry)
    right = np.arange(100) % 5 != 0
    assert np.isin(np.flatnonzero(right), pairs[:, 0]).mean() > 0.95
    assert matrix.shape == (3, 3)
    if geometry == 'homography':
        assert right[pairs[:, 0]].all()
        np.testing.assert_allclose(matrix / matrix[2, 2], homography, atol=1e-2)


@pytest.mark.parametrize('geometry', ['homography', 'epipolar'])
def test_too_few_matches_have_no_geometry(geometry, moved):
    first, second, _ = moved
    pairs, matrix = verify(first, second, match(first, second)[:3], geometry)
    assert pairs.shape == (0, 2)
    assert matrix is None


def test_an_unknown_geometry_is_refused(moved):
    with pytest.raises(EdgePoint2Error, match="'affine' is unknown: expected one of epipolar, homography"):
        verify(*moved[:2], np.zeros((0, 2), int), 'affine')


@pytest.mark.parametrize(('geometry', 'name'), [('epipolar', 'findFundamentalMat'), ('homography', 'findHomography')])
def test_verification_goes_on_where_usac_of_opencv_fails(geometry, name, moved, monkeypatch):
    """As it does, by an assertion, on some matches of a camera that hardly moves."""
    import cv2

    find = getattr(cv2, name)

    def fail(first, second, method, *others, **settings):
        if method == cv2.USAC_MAGSAC:
            raise cv2.error('!model.empty()')
        return find(first, second, method, *others, **settings)

    first, second = moved[:2]
    pairs = match(first, second)
    expected, _ = verify(first, second, pairs, geometry)
    monkeypatch.setattr(cv2, name, fail)
    found, matrix = verify(first, second, pairs, geometry)
    assert matrix.shape == (3, 3)
    assert len(found) > 0.9 * len(expected) > 0
