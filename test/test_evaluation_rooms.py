import logging

import cv2
import numpy as np
import pytest

pytest.importorskip('poselib', reason='poselib is not installed')

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.benchmark import run_benchmark
from edgepoint2_ros.evaluation.methods import OpenCVMethod
from edgepoint2_ros.evaluation.rooms import make_rooms


@pytest.fixture
def photographs(tmp_path, photograph):
    paths = [tmp_path / f'{number}.png' for number in range(3)]
    for path, crop in zip(paths, (photograph, photograph[:240], photograph[:, 320:]), strict=True):
        cv2.imwrite(str(path), crop)
    return paths


def test_rooms_are_seen_with_the_pose_they_claim(photographs):
    pairs = list(make_rooms(photographs, 3))
    results, pictures = run_benchmark('rooms', pairs, [OpenCVMethod('SIFT', 1000)], 1)
    assert [result.pair for result in results] == ['room 1', 'room 2', 'room 3']
    assert np.median([result.errors[0] for result in results]) < 3
    for pair, picture in zip(pairs, pictures, strict=True):
        assert pair.image_a.shape == pair.image_b.shape == (480, 640, 3)
        # Parallax: one homography must not explain what the epipolar geometry does.
        homography = metrics.estimate_homography(picture.matched_a[picture.right], picture.matched_b[picture.right])
        errors = metrics.matching_errors(picture.matched_a[picture.right], picture.matched_b[picture.right], homography)
        assert np.mean(errors > 5) > 0.1


def test_rooms_follow_from_the_seed(photographs):
    one, same, other = (next(make_rooms(photographs, 1, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image_b, same.image_b)
    assert not np.array_equal(one.pose, other.pose)


def test_unreadable_photographs_are_named(tmp_path, photographs, caplog):
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no image')
    with caplog.at_level(logging.WARNING):
        next(make_rooms([broken, *photographs], 1))
    assert 'skipped broken.png' in caplog.text
    with pytest.raises(ImageError, match='none of 1 photographs can be read'):
        next(make_rooms([broken], 1))
