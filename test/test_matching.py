import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match, transfer_error


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
