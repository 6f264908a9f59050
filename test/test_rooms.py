"""Rooms hung with photographs: two views that agree with the pose between them."""

import cv2
import numpy as np

from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.methods import OpenCVMethod
from edgepoint2_ros.scenes.rooms import INTRINSICS, render_rooms


def test_views_agree_with_the_pose_and_have_parallax(photograph):
    sift = OpenCVMethod('SIFT', 1000)
    for first, second, pose in render_rooms([photograph, photograph[:240], photograph[:, 320:]], 3):
        assert first.shape == second.shape == (480, 640, 3)
        a, b = sift.extract(first), sift.extract(second)
        rows = sift.match(a, b)
        matched_a, matched_b = a.xy[rows[:, 0]], b.xy[rows[:, 1]]
        right = metrics.epipolar_errors(matched_a, matched_b, INTRINSICS, INTRINSICS, pose) < 2
        assert right.mean() > 0.3
        # Parallax: one homography must not explain what the epipolar geometry does.
        homography, _ = cv2.findHomography(matched_a[right], matched_b[right], cv2.RANSAC, 3)
        errors = metrics.matching_errors(matched_a[right], matched_b[right], homography)
        assert np.mean(errors > 5) > 0.1


def test_views_follow_from_the_seed(photograph):
    one, same, other = (next(render_rooms([photograph], 1, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[1], same[1])
    assert not np.array_equal(one[2], other[2])
