import logging
import os
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from exif import store

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.pairs import (
    LIGHTS,
    VIEWS,
    fit,
    make_rooms,
    make_synthetic,
    orbit_homography,
    read_hpatches,
    read_pose_pairs,
)
from edgepoint2_ros.image_files import find_images


def blobs(width, height, seed=0):
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8), (width, height))
    return cv2.GaussianBlur(image, None, 2)


def correlation(pair):
    """How alike the details of the first image and the second, brought back by the homography, are."""

    def details(image):  # without the lamp's light
        return image.astype(np.float32) - cv2.GaussianBlur(image.astype(np.float32), None, 10)

    height, width = pair.image_a.shape[:2]
    back = np.linalg.inv(pair.homography)
    returned = cv2.warpPerspective(pair.image_b, back, (width, height))
    shown = cv2.warpPerspective(np.full(pair.image_b.shape[:2], 255, np.uint8), back, (width, height)) == 255
    return np.corrcoef(details(pair.image_a)[shown].ravel(), details(returned)[shown].ravel())[0, 1]


class TestFit:
    def test_shrinks_and_says_where_pixels_go(self):
        image = np.zeros((480, 640, 3), np.uint8)
        image[200:204, 100:104] = 255  # a square with its middle at (101.5, 201.5)
        smaller, matrix = fit(image, 320)
        assert smaller.shape == (240, 320, 3)
        y, x = np.nonzero(smaller[..., 0] > 128)
        np.testing.assert_allclose(metrics.transform(np.array([[101.5, 201.5]]), matrix), [[x.mean(), y.mean()]])

    def test_never_enlarges(self):
        image = np.zeros((48, 64), np.uint8)
        for long_side in (0, 64, 1000):
            same, matrix = fit(image, long_side)
            assert same is image
            np.testing.assert_array_equal(matrix, np.eye(3))


class TestOrbit:
    def test_straight_ahead_at_the_same_distance_changes_nothing(self):
        np.testing.assert_allclose(orbit_homography(640, 480, 0, 1.0, 0, 1), np.eye(3), atol=1e-9)

    def test_twice_as_far_away_halves_the_picture(self):
        corner, middle = metrics.transform(np.array([[0, 0], [319.5, 239.5]]), orbit_homography(640, 480, 0, 0, 0, 2))
        np.testing.assert_allclose(middle, [319.5, 239.5], atol=1e-9)
        np.testing.assert_allclose(corner, [319.5 / 2, 239.5 / 2], atol=1e-9)

    def test_roll_turns_about_the_middle(self):
        right = np.array([[419.5, 239.5]])
        turned = metrics.transform(right, orbit_homography(640, 480, 0, 0, np.pi / 2, 1))
        np.testing.assert_allclose(np.linalg.norm(turned - [[319.5, 239.5]]), 100)
        np.testing.assert_allclose(turned[0, 0], 319.5, atol=1e-9)

    def test_from_the_side_the_picture_is_foreshortened(self):
        ends = np.array([[318.5, 239.5], [320.5, 239.5], [319.5, 238.5], [319.5, 240.5]])
        left, right, top, bottom = metrics.transform(ends, orbit_homography(640, 480, np.radians(60), 0, 0, 1))
        assert np.linalg.norm(right - left) == pytest.approx(1.0, rel=1e-3)  # 2 pixels times cos 60 degrees
        assert np.linalg.norm(bottom - top) == pytest.approx(2.0, rel=1e-3)


class TestSynthetic:
    @pytest.fixture
    def photograph(self, tmp_path):
        cv2.imwrite(str(tmp_path / 'wall.png'), blobs(1200, 900))
        return tmp_path / 'wall.png'

    def test_makes_pairs_whose_homography_is_true(self, photograph):
        pairs = list(make_synthetic([photograph], 640))
        assert [pair.group for pair in pairs] == ['viewpoint'] * VIEWS + ['light'] * LIGHTS
        for pair in pairs:
            assert max(pair.image_a.shape) == 640
            assert pair.image_a.shape == pair.image_b.shape
            alike = correlation(pair)
            assert alike > 0.5  # bright lamps saturate
            for x, y in ((2, 0), (-2, 0), (0, 2), (0, -2)):
                shift = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
                assert alike > correlation(replace(pair, homography=pair.homography @ shift))

    def test_follows_from_the_seed(self, photograph):
        one, same, other = (next(make_synthetic([photograph], 320, seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.image_b, same.image_b)
        assert not np.array_equal(one.homography, other.homography)

    def test_names_and_skips_what_cannot_be_used(self, tmp_path, photograph, caplog):
        (tmp_path / 'broken.jpg').write_bytes(b'no image')
        cv2.imwrite(str(tmp_path / 'small.png'), blobs(160, 160))
        with caplog.at_level(logging.WARNING):
            pairs = list(make_synthetic(find_images([tmp_path]), 320))
        assert len(pairs) == VIEWS + LIGHTS
        assert 'skipped broken.jpg' in caplog.text
        assert 'skipped small.png: 160x160: expected at least 200' in caplog.text

    def test_a_panorama_too_flat_for_the_models_is_skipped(self, tmp_path, photograph, caplog):
        cv2.imwrite(str(tmp_path / 'flat.png'), blobs(2400, 220))
        with caplog.at_level(logging.WARNING):
            pairs = list(make_synthetic(find_images([tmp_path]), 640))
        assert len(pairs) == VIEWS + LIGHTS
        assert 'skipped flat.png: image: expected at least 64 x 64 pixels, got 640 x 58' in caplog.text

    def test_without_a_long_side_has_all_pixels_of_the_middle(self, photograph):
        assert next(make_synthetic([photograph], 0)).image_a.shape == (675, 900, 3)


class TestRooms:
    def test_are_pairs_with_a_pose(self, tmp_path):
        cv2.imwrite(str(tmp_path / 'wall.png'), blobs(640, 480))
        pairs = list(make_rooms([tmp_path / 'wall.png'], 2))
        assert [(pair.name, pair.group) for pair in pairs] == [('room 1', 'all'), ('room 2', 'all')]
        for pair in pairs:
            np.testing.assert_array_equal(pair.intrinsics_a, pair.intrinsics_b)
            assert 0 < np.linalg.norm(pair.pose[:3, 3]) < 2  # metres

    def test_unreadable_photographs_are_named(self, tmp_path, caplog):
        cv2.imwrite(str(tmp_path / 'wall.png'), blobs(640, 480))
        (tmp_path / 'broken.jpg').write_bytes(b'no image')
        with caplog.at_level(logging.WARNING):
            next(make_rooms(find_images([tmp_path]), 1))
        assert 'skipped broken.jpg' in caplog.text
        with pytest.raises(ImageError, match='none of 1 photographs can be read'):
            next(make_rooms([tmp_path / 'broken.jpg'], 1))


class TestHPatches:
    @pytest.fixture
    def folder(self, tmp_path):
        homography = np.array([[1, 0, 40], [0, 1, 24], [0, 0, 1.0]])
        wall = blobs(1000, 800)
        for name in ('v_wall', 'i_wall'):
            (tmp_path / name).mkdir()
            cv2.imwrite(str(tmp_path / name / '1.ppm'), wall[:480, :640])
            cv2.imwrite(str(tmp_path / name / '2.ppm'), wall[24:504, 40:680])
            np.savetxt(tmp_path / name / 'H_1_2', np.linalg.inv(homography))
        return tmp_path

    def test_is_read_with_homographies_of_the_shrunk_images(self, folder):
        pairs = list(read_hpatches(folder, 320))
        assert [(pair.name, pair.group) for pair in pairs] == [('i_wall 1-2', 'light'), ('v_wall 1-2', 'viewpoint')]
        for pair in pairs:
            assert pair.image_a.shape == (240, 320, 3)
            np.testing.assert_allclose(pair.homography, [[1, 0, -20], [0, 1, -12], [0, 0, 1]], atol=1e-9)
            assert correlation(pair) > 0.95

    @pytest.mark.parametrize('factor', [-1, 0.1, -7])
    def test_a_homography_may_have_any_factor(self, folder, factor):
        expected = [pair.homography for pair in read_hpatches(folder, 320)]
        for file in folder.glob('*/H_1_2'):
            np.savetxt(file, factor * np.loadtxt(file))
        for pair, homography in zip(read_hpatches(folder, 320), expected, strict=True):
            np.testing.assert_allclose(pair.homography / abs(factor), homography)

    def test_names_and_skips_what_cannot_be_read(self, folder, caplog):
        (folder / 'v_wall' / '2.ppm').unlink()
        (folder / 'i_wall' / 'H_1_2').write_text('1 2 3')
        with caplog.at_level(logging.WARNING):
            assert list(read_hpatches(folder, 320)) == []
        assert 'skipped v_wall 1-2: no image 1 or 2' in caplog.text
        assert 'skipped i_wall 1-2' in caplog.text
        assert 'expected 3x3 numbers' in caplog.text

    @pytest.mark.parametrize(
        ('name', 'content', 'message'),
        [
            ('H_1_2', '0 0 0\n' * 3, 'H_1_2: expected an invertible matrix, got 0 0 0'),
            ('H_1_2', '1 0 nan\n0 1 0\n0 0 1', 'H_1_2: expected an invertible matrix, got 1 0 nan'),
            (
                '2.ppm',
                np.zeros((70, 800, 3), np.uint8),
                r'v_wall/2\.ppm: image: expected at least 64 x 64 pixels, got 320 x 28',
            ),
        ],
    )
    def test_one_that_nothing_can_be_measured_on_is_named_and_skipped(self, folder, caplog, name, content, message):
        path = folder / 'v_wall' / name
        path.write_text(content) if isinstance(content, str) else cv2.imwrite(str(path), content)
        with caplog.at_level(logging.WARNING):
            assert [pair.name for pair in read_hpatches(folder, 320)] == ['i_wall 1-2']
        assert re.search(f'skipped v_wall 1-2: .*{message}', caplog.text)

    def test_another_folder(self, tmp_path):
        with pytest.raises(ImageError, match=r'no sequences in .*: expected folders with 1\.ppm'):
            list(read_hpatches(tmp_path, 320))


class TestPosePairs:
    intrinsics = '500 0 319.5 0 500 239.5 0 0 1'
    pose = '1 0 0 0.1 0 1 0 0.2 0 0 1 0.3 0 0 0 1'

    def listing(self, tmp_path, line):
        cv2.imwrite(str(tmp_path / 'a.png'), blobs(640, 480, 1))
        cv2.imwrite(str(tmp_path / 'b.png'), blobs(640, 480, 2))
        (tmp_path / 'pairs.txt').write_text(f'# a comment\n\n{line}\n')
        return tmp_path / 'pairs.txt'

    def test_are_read_with_intrinsics_of_the_shrunk_images(self, tmp_path):
        listing = self.listing(tmp_path, f'a.png b.png 0 0 {self.intrinsics} {self.intrinsics} {self.pose}')
        (pair,) = read_pose_pairs(listing, tmp_path, 320)
        assert pair.name == 'a.png b.png'
        assert pair.image_a.shape == (240, 320, 3)
        np.testing.assert_allclose(pair.intrinsics_a, [[250, 0, 159.5], [0, 250, 119.5], [0, 0, 1]])
        np.testing.assert_allclose(pair.pose[:3, 3], [0.1, 0.2, 0.3])

    def test_are_taken_as_stored_as_their_intrinsics_are(self, tmp_path):
        listing = self.listing(tmp_path, f'side.jpg b.png 0 0 {self.intrinsics} {self.intrinsics} {self.pose}')
        image = blobs(480, 640)
        store(tmp_path / 'side.jpg', image, 6)
        (pair,) = read_pose_pairs(listing, tmp_path, 0)
        assert pair.image_a.shape == (480, 640, 3)
        assert abs(pair.image_a.astype(int) - np.rot90(image)).mean() < 3

    @pytest.mark.parametrize(
        ('line', 'message'),
        [
            ('a.png b.png 0 0 1 2 3', r'pairs\.txt:3: expected 38 fields .*, got 7'),
            (f'a.png b.png 0 0 {intrinsics} {intrinsics} {pose[:-1]}x', r'pairs\.txt:3: could not convert'),
            (f'a.png b.png 1 0 {intrinsics} {intrinsics} {pose}', r'expected upright images \(rotation 0\), got 1 0'),
        ],
    )
    def test_a_malformed_line_is_named(self, tmp_path, line, message):
        with pytest.raises(ImageError, match=message):
            list(read_pose_pairs(self.listing(tmp_path, line), tmp_path, 320))

    def test_a_missing_image_is_named_and_skipped(self, tmp_path, caplog):
        listing = self.listing(tmp_path, f'a.png none.png 0 0 {self.intrinsics} {self.intrinsics} {self.pose}')
        with caplog.at_level(logging.WARNING):
            assert list(read_pose_pairs(listing, tmp_path, 320)) == []
        assert 'skipped pair 3: expected an image, but' in caplog.text

    @pytest.mark.parametrize(
        ('line', 'message'),
        [
            (f'a.png b.png 0 0 {"0 " * 9} {intrinsics} {pose}', 'K_a: expected an invertible matrix, got 0 0'),
            (f'a.png b.png 0 0 {intrinsics} {"nan " * 9} {pose}', 'K_b: expected an invertible matrix, got nan'),
            (f'a.png b.png 0 0 {intrinsics} {intrinsics} {"inf " * 16}', 'T: expected an invertible matrix, got inf'),
            (f'a.png strip.png 0 0 {intrinsics} {intrinsics} {pose}', 'strip.png: image: expected at least 64 x 64'),
        ],
    )
    def test_one_that_nothing_can_be_measured_on_is_named_and_skipped(self, tmp_path, caplog, line, message):
        cv2.imwrite(str(tmp_path / 'strip.png'), np.zeros((70, 800), np.uint8))
        good = f'a.png b.png 0 0 {self.intrinsics} {self.intrinsics} {self.pose}'
        listing = self.listing(tmp_path, f'{line}\n{good}')
        with caplog.at_level(logging.WARNING):
            assert [pair.name for pair in read_pose_pairs(listing, tmp_path, 320)] == ['a.png b.png']
        assert re.search(f'skipped pair 3: .*{message}', caplog.text)

    def test_names_need_not_be_utf8(self, tmp_path):
        line = f'caf\udce9.png b.png 0 0 {self.intrinsics} {self.intrinsics} {self.pose}'
        listing = self.listing(tmp_path, 'a.png')
        os.rename(tmp_path / 'a.png', os.fsencode(tmp_path) + b'/caf\xe9.png')
        listing.write_bytes(os.fsencode(line))
        assert len(list(read_pose_pairs(listing, tmp_path, 320))) == 1

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ImageError, match='no pairs file'):
            list(read_pose_pairs(tmp_path / 'pairs.txt', tmp_path, 320))
