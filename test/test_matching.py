import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match, transfer_error, verify


def features(descriptors, digest='a') -> Features:
    rows = np.asarray(descriptors, np.float32).reshape(-1, 2)
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
