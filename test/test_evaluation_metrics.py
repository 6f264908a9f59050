import sys

import numpy as np
import pytest

pytest.importorskip('poselib', reason='poselib is not installed')

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import metrics

SIZE = (640, 480)
SHIFT = np.array([[1, 0, 10], [0, 1, -5], [0, 0, 1.0]])


def scattered(count, seed=0):
    return np.random.default_rng(seed).uniform((20, 20), (600, 440), (count, 2))


def rotation_about_y(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def pose_of(rotation, translation):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, translation
    return pose


class TestTransform:
    def test_maps_points(self):
        np.testing.assert_allclose(metrics.transform(np.array([[1.0, 2]]), SHIFT), [[11, -3]])

    def test_points_behind_the_camera_have_no_place(self):
        homography = np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1]])
        moved = metrics.transform(np.array([[50.0, 0], [200, 0]]), homography)
        np.testing.assert_allclose(moved[0], [100, 0])
        assert np.isnan(moved[1]).all()


class TestRepeatability:
    def test_is_one_when_every_keypoint_is_found_again(self):
        xy = scattered(50)
        found = metrics.repeatability(xy, metrics.transform(xy, SHIFT), SHIFT, SIZE, SIZE)
        assert found == 1

    def test_counts_only_the_area_that_both_images_show(self):
        xy = np.array([[100.0, 100], [635, 100]])  # the second leaves the image to the right
        assert metrics.repeatability(xy, xy[:1] + [10, -5], SHIFT, SIZE, SIZE) == 1

    def test_counts_both_images(self):
        a = np.array([[100.0, 100], [300, 300]])
        b = np.array([[100.0, 102], [400, 400], [500, 400], [200, 300]])  # one of 2 and one of 4 repeat
        assert metrics.repeatability(a, b, np.eye(3), SIZE, SIZE) == pytest.approx(2 / 6)

    def test_without_keypoints_is_zero(self):
        assert metrics.repeatability(np.zeros((0, 2)), np.zeros((0, 2)), SHIFT, SIZE, SIZE) == 0
        assert metrics.repeatability(scattered(3), np.zeros((0, 2)), SHIFT, SIZE, SIZE) == 0


class TestMatching:
    def test_errors_are_distances_from_the_true_place(self):
        a = scattered(3)
        b = metrics.transform(a, SHIFT) + [[0, 0], [3, 4], [0, 1]]
        np.testing.assert_allclose(metrics.matching_errors(a, b, SHIFT), [0, 5, 1], atol=1e-9)

    def test_shares_within_thresholds(self):
        np.testing.assert_allclose(metrics.share_within(np.array([0.5, 1, 2, 9, np.inf]), (1, 3, 10)), [0.4, 0.6, 0.8])
        np.testing.assert_array_equal(metrics.share_within(np.array([]), (1, 3)), [0, 0])


class TestHomography:
    def test_is_found_among_wrong_matches(self):
        homography = np.array([[0.9, 0.1, 30], [-0.05, 1.1, -20], [1e-4, -5e-5, 1]])
        a = scattered(200)
        b = metrics.transform(a, homography)
        b[:80] = scattered(80, seed=1)
        estimated = metrics.estimate_homography(a, b)
        assert metrics.corner_error(estimated, homography, SIZE) < 0.5

    def test_has_the_same_sign_from_every_sample(self):
        """Points before the camera stay there; the sign that an estimation happens to have is of no account."""
        homography = np.array([[0.9, 0.1, 30], [-0.05, 1.1, -20], [1e-3, -5e-4, 1]])
        a = scattered(50)
        for seed in range(10):
            estimated = metrics.estimate_homography(a, metrics.transform(a, homography), seed)
            np.testing.assert_allclose(metrics.transform(a, estimated), metrics.transform(a, homography), atol=0.01)

    def test_does_not_depend_on_the_seed_where_half_of_the_matches_are_wrong(self):
        """USAC_MAGSAC, which estimated them before, was off by up to a pixel from one seed to another."""
        homography = np.array([[0.9, 0.1, 30], [-0.05, 1.1, -20], [1e-4, -5e-5, 1]])
        a = scattered(200)
        b = metrics.transform(a, homography) + np.random.default_rng(2).normal(0, 1, (200, 2))
        b[:100] = scattered(100, seed=1)
        errors = [metrics.corner_error(metrics.estimate_homography(a, b, k), homography, SIZE) for k in range(5)]
        assert np.ptp(errors) < 0.05

    def test_too_few_matches_give_none_and_an_infinite_error(self):
        assert metrics.estimate_homography(scattered(3), scattered(3)) is None
        assert metrics.corner_error(None, SHIFT, SIZE) == np.inf

    def test_corner_error_of_a_shift_is_its_length(self):
        assert metrics.corner_error(np.eye(3), SHIFT, SIZE) == pytest.approx(np.hypot(10, 5))


class TestPose:
    intrinsics = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    truth = pose_of(rotation_about_y(8), [0.5, 0.1, 0.05])

    def matches(self, count=200, wrong=0):
        rng = np.random.default_rng(0)
        points = rng.uniform((-2, -1.5, 3), (2, 1.5, 8), (count, 3))
        in_b = points @ self.truth[:3, :3].T + self.truth[:3, 3]
        a, b = ((p @ self.intrinsics.T)[:, :2] / p[:, 2:] for p in (points, in_b))
        b[:wrong] = rng.uniform((0, 0), SIZE, (wrong, 2))
        return a, b

    def test_is_found_among_wrong_matches(self):
        pose = metrics.estimate_pose(*self.matches(wrong=60), self.intrinsics, self.intrinsics)
        assert metrics.pose_error(pose, self.truth) < 1

    def test_follows_from_the_seed(self):
        a, b = self.matches(wrong=150)
        b += np.random.default_rng(1).normal(0, 1, b.shape)
        cameras = self.intrinsics, self.intrinsics
        one, same, other = (metrics.estimate_pose(a, b, *cameras, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one[0], same[0])
        assert not np.array_equal(one[0], other[0])

    def test_pixels_count_from_the_centre_of_the_first(self):
        """A principal point that is off by half a pixel would turn the camera by 0.06 degrees."""
        pose = metrics.estimate_pose(*self.matches(), self.intrinsics, self.intrinsics)
        assert metrics.pose_error(pose, self.truth) < 0.01

    def test_without_poselib_names_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'poselib', None)
        with pytest.raises(EdgePoint2Error, match=r'poselib .*: pip install "edgepoint2_ros\[evaluation\]"'):
            metrics.estimate_pose(*self.matches(), self.intrinsics, self.intrinsics)
        with pytest.raises(EdgePoint2Error, match='poselib'):
            metrics.estimate_homography(*self.matches())

    def test_too_few_matches_give_no_pose_and_the_largest_error(self):
        assert metrics.estimate_pose(*self.matches(4), self.intrinsics, self.intrinsics) is None
        assert metrics.pose_error(None, self.truth) == 180

    def test_error_is_the_larger_of_rotation_and_translation(self):
        turned = (rotation_about_y(8 + 3), self.truth[:3, 3])
        assert metrics.pose_error(turned, self.truth) == pytest.approx(3)
        aside = (self.truth[:3, :3], rotation_about_y(7) @ self.truth[:3, 3])
        assert 3 < metrics.pose_error(aside, self.truth) <= 7

    def test_length_and_sign_of_the_translation_do_not_count(self):
        pose = (self.truth[:3, :3], -20 * self.truth[:3, 3])
        assert metrics.pose_error(pose, self.truth) == pytest.approx(0, abs=1e-3)

    def test_epipolar_errors_of_true_matches_are_zero(self):
        a, b = self.matches()
        errors = metrics.epipolar_errors(a, b, self.intrinsics, self.intrinsics, self.truth)
        np.testing.assert_allclose(errors, 0, atol=1e-6)
        off = metrics.epipolar_errors(a, b + [0, 3], self.intrinsics, self.intrinsics, self.truth)
        assert 2 < np.median(off) <= 3


class TestAreaUnderCurve:
    def test_of_perfect_poses_is_one_and_of_failures_zero(self):
        np.testing.assert_allclose(metrics.area_under_curve([0, 0, 0], (5, 20)), [1, 1])
        np.testing.assert_allclose(metrics.area_under_curve([180, 90], (5, 20)), [0, 0])
        np.testing.assert_allclose(metrics.area_under_curve([], (5,)), [0])

    def test_has_its_closed_form(self):
        # A straight line from (0, 0) to (4, 1/2), level up to 10: (4 * 1/4 + 6 * 1/2) / 10.
        np.testing.assert_allclose(metrics.area_under_curve([4, 100], (10,)), [0.4])


class TestStandardError:
    values = np.random.default_rng(0).normal(size=(200, 2)) * [1, 5]

    def test_of_independent_rows_is_that_of_a_mean(self):
        found = metrics.standard_error(self.values, [(str(k),) for k in range(200)])
        np.testing.assert_allclose(found, self.values.std(axis=0, ddof=1) / np.sqrt(200))

    def test_rows_of_one_source_tell_no_more_than_one(self):
        once = metrics.standard_error(self.values, [(str(k),) for k in range(200)])
        sources = [(str(k),) for k in range(200)] * 4
        found = metrics.standard_error(np.tile(self.values, (4, 1)), sources)
        np.testing.assert_allclose(found, once, rtol=0.01)

    def test_pairs_share_either_image(self):
        """What an image adds to all of its pairs does not average out over the pairs, only over the images."""
        images = np.random.default_rng(1).normal(size=20)
        pairs = [(a, b) for a in range(20) for b in range(a)]
        values = np.array([[images[a] + images[b]] for a, b in pairs])
        (found,) = metrics.standard_error(values, [(f'{a}.png', f'{b}.png') for a, b in pairs])
        assert found == pytest.approx(2 * images.std() / np.sqrt(20), rel=0.2)

    def test_of_a_single_row_is_unknown(self):
        assert np.isnan(metrics.standard_error(np.ones((1, 2)), [('a',)])).all()

    def test_is_never_below_that_of_independent_rows(self):
        values = np.array([[1.0], [-1.0], [1.0], [-1.0]])  # rows of one source that cancel
        (found,) = metrics.standard_error(values, [('a',), ('a',), ('b',), ('b',)])
        assert found == pytest.approx(values.std(ddof=1) / 2)
