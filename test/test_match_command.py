import cv2
import numpy as np
import pytest

from edgepoint2_ros.cli import main


@pytest.fixture
def pair(photograph, tmp_path):
    """Two files: a photograph, and the same moved by 12 pixels."""
    moved = cv2.warpAffine(photograph, np.float32([[1, 0, 12], [0, 1, 0]]), photograph.shape[1::-1])
    paths = [str(tmp_path / name) for name in ('first.png', 'second.png')]
    for path, image in zip(paths, (photograph, moved)):
        assert cv2.imwrite(path, image)
    return paths


def test_counts_and_draws_the_matches(pair, tmp_path, capsys):
    output = tmp_path / 'drawn.png'
    assert main(['match', *pair, '--max-keypoints', '300', '--geometry', 'homography', '--output', str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f'{pair[0]}: 300 keypoints in ')
    matches, inliers = (int(line.split()[0]) for line in lines[3:5])
    assert 300 >= matches >= inliers > 150
    height, width = cv2.imread(pair[0]).shape[:2]
    assert cv2.imread(str(output)).shape[:2] == (height + 32, 2 * width)


def test_has_a_sample_pair_of_its_own(tmp_path, capsys):
    pytest.importorskip('skimage', reason='scikit-image is not installed')
    assert main(['match', '--output', str(tmp_path / 'drawn.png')]) == 0
    assert 'motorcycle_left.png' in capsys.readouterr().out


@pytest.mark.parametrize('count', [1, 3])
def test_wants_two_images(count, pair, capsys):
    assert main(['match', *(pair * 2)[:count]]) == 1
    assert f'expected two images, got {count}' in capsys.readouterr().err


def test_a_picture_that_cannot_be_written(pair, tmp_path, capsys):
    assert main(['match', *pair, '--output', str(tmp_path / 'missing' / 'drawn.png')]) == 1
    assert 'cannot be written' in capsys.readouterr().err


def test_writes_over_nothing(pair, capsys):
    assert main(['match', *pair, '--output', pair[0]]) == 1
    assert 'already exists' in capsys.readouterr().err
