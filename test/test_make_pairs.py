"""Pairs from a walk through a rendered hall, whose true poses are known."""

import os
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('pycolmap', reason='pycolmap is not installed')

from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.pairs import read_pose_pairs
from edgepoint2_ros.scenes.walk import FOCAL, HEIGHT, WIDTH, Walk

ROOT = Path(__file__).parents[1]
STEP = 9  # frames of the walk from one image to the next


@pytest.fixture(scope='module')
def make_pairs(import_example):
    return import_example('make_pairs')


@pytest.fixture(scope='module')
def hall(tmp_path_factory):
    """A walk, and a folder with its images 1.png to 12.png."""
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    walk = Walk([data.astronaut()[..., ::-1], data.coffee()[..., ::-1], data.rocket()[..., ::-1], data.camera()])
    folder = tmp_path_factory.mktemp('hall')
    for number in range(1, 13):
        cv2.imwrite(str(folder / f'{number}.png'), walk.image(STEP * number))
    return walk, folder


def run(make_pairs, monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, 'argv', ['make_pairs.py', *map(str, arguments)])
    return make_pairs.main()


@pytest.mark.slow
def test_the_same_images_give_the_same_pairs(make_pairs, hall, tmp_path, monkeypatch):
    folder = tmp_path / 'images'
    folder.mkdir()
    for number in range(1, 7):
        shutil.copy(hall[1] / f'{number}.png', folder)
    made = [tmp_path / name for name in ('once', 'again')]
    for output in made:
        assert run(make_pairs, monkeypatch, folder, output, '--overlap', 0.1, 0.9) == 0
    once, again = ((output / 'pairs.txt').read_text() for output in made)
    assert once == again
    assert len(once.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize('known', [False, True], ids=['camera found out', 'camera given'])
def test_the_poses_are_the_true_ones(make_pairs, hall, tmp_path, monkeypatch, capsys, known):
    walk, folder = hall
    camera = ('--camera', FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, 0, 0, 0, 0) if known else ()
    output = tmp_path / 'hall'
    assert (
        run(make_pairs, monkeypatch, folder, output, '--window', 4, '--pairs', 10, '--overlap', 0.1, 0.9, *camera) == 0
    )
    assert re.match(r'1[0-2] images, \d+ points, error 0\.\d\d px; \d+ of \d+ pairs', capsys.readouterr().out)
    pairs = list(read_pose_pairs(output / 'pairs.txt', output, 0))
    assert 5 <= len(pairs) <= 10
    errors = []
    for pair in pairs:
        numbers = [int(Path(name).stem) for name in pair.sources]
        world = [walk.pose(STEP * number) for number in numbers]
        true = np.linalg.inv(world[1]) @ world[0]
        errors.append(metrics.pose_error((pair.pose[:3, :3], pair.pose[:3, 3]), true))
        assert pair.group == 'hall'
        if known:
            np.testing.assert_allclose(pair.intrinsics_a[:2, 2], [(WIDTH - 1) / 2, (HEIGHT - 1) / 2], atol=0.5)
        assert pair.intrinsics_a[0, 0] == pytest.approx(FOCAL, rel=0.05)
    assert np.median(errors) < (0.5 if known else 1.5)

    # What is drawn again from the same reconstruction follows from the seed.
    drawn = []
    for seed in (0, 0, 1):
        assert run(make_pairs, monkeypatch, folder, output, '--pairs', 3, '--overlap', 0.1, 0.9, '--seed', seed) == 0
        drawn.append((output / 'pairs.txt').read_text())
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0].splitlines()) == 1 + 3
    assert run(make_pairs, monkeypatch, folder, output, '--min-angle', 170) == 1
    assert 'no pair of images overlaps as wanted' in capsys.readouterr().err

    # Other images are not taken for these.
    (tmp_path / 'other').mkdir()
    cv2.imwrite(str(tmp_path / 'other' / '99.png'), np.zeros((240, 320, 3), np.uint8))
    for photos, complaint in (('anywhere', 'no such folder or image'), ('other', 'holds other images than')):
        assert run(make_pairs, monkeypatch, tmp_path / photos, output) == 1
        assert complaint in capsys.readouterr().err


@pytest.mark.slow
def test_images_that_do_not_hold_together(make_pairs, tmp_path, monkeypatch, capsys):
    (tmp_path / 'photos').mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (240, 320, 3), np.uint8)
        cv2.imwrite(str(tmp_path / 'photos' / f'{number}.png'), noise)
    assert run(make_pairs, monkeypatch, tmp_path / 'photos', tmp_path / 'out') == 1
    assert 'the images cannot be connected' in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(make_pairs, hall, tmp_path, monkeypatch, capsys):
    (tmp_path / 'thesis.txt').write_text('precious')
    assert run(make_pairs, monkeypatch, hall[1], tmp_path) == 1
    assert 'already exists' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['thesis.txt']


def test_no_photographs(make_pairs, tmp_path, monkeypatch, capsys):
    assert run(make_pairs, monkeypatch, tmp_path, tmp_path / 'out') == 1
    assert 'no images found' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_names_with_spaces_are_refused(make_pairs, tmp_path, monkeypatch, capsys):
    (tmp_path / 'photos').mkdir()
    cv2.imwrite(str(tmp_path / 'photos' / 'IMG 0.png'), np.zeros((240, 320, 3), np.uint8))
    assert run(make_pairs, monkeypatch, tmp_path / 'photos', tmp_path / 'out') == 1
    assert "'IMG 0.png': expected file names without spaces" in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_numbers_in_names_are_in_order(make_pairs):
    names = ['frame10.png', 'frame9.png', 'a/2.png', 'frame100.png', '7.png']
    assert make_pairs.in_order(names) == ['7.png', 'a/2.png', 'frame9.png', 'frame10.png', 'frame100.png']


@pytest.fixture
def drive(hall, tmp_path):
    """The walk as a drive of KITTI, twenty times as large: its steps are too short for a car."""
    walk, folder = hall
    numbers = range(1, 13)
    (tmp_path / 'drive' / 'image_0').mkdir(parents=True)
    poses = [walk.pose(STEP * number) for number in numbers]
    for number, pose in zip(numbers, poses, strict=True):
        shutil.copy(folder / f'{number}.png', tmp_path / 'drive' / 'image_0' / f'{number:06}.png')
        pose[:3, 3] *= 20
    np.savetxt(tmp_path / 'drive' / 'poses.txt', [(np.linalg.inv(poses[0]) @ pose)[:3].ravel() for pose in poses])
    projection = f'{FOCAL} 0 {(WIDTH - 1) / 2} 0 0 {FOCAL} {(HEIGHT - 1) / 2} 0 0 0 1 0'
    (tmp_path / 'drive' / 'calib.txt').write_text(f'P0: {projection}\nP1: {projection}\n')
    return walk, tmp_path / 'drive'


def test_the_recorded_poses_of_a_drive_are_taken(make_pairs, drive, tmp_path, monkeypatch, capsys):
    walk, folder = drive
    assert run(make_pairs, monkeypatch, folder, tmp_path / 'out', '--kitti', '--pairs', 10) == 0
    assert re.match(r'12 images; 10 of \d+ pairs', capsys.readouterr().out)
    pairs = list(read_pose_pairs(tmp_path / 'out' / 'pairs.txt', tmp_path / 'out', 0))
    assert len(pairs) == 10
    for pair in pairs:
        a, b = (int(Path(name).stem) for name in pair.sources)
        assert 2 <= b - a <= 12
        true = np.linalg.inv(walk.pose(STEP * b)) @ walk.pose(STEP * a)
        assert metrics.pose_error((pair.pose[:3, :3], pair.pose[:3, 3]), true) < 0.01
        np.testing.assert_allclose(
            pair.intrinsics_a, [[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]]
        )


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('poses.txt', None, r'expected poses\.txt and calib\.txt as KITTI writes them'),
        ('poses.txt', '1 2 3\n', r'expected poses\.txt and calib\.txt as KITTI writes them'),
        ('poses.txt', '1 0 0 0 0 1 0 0 0 0 1 0\n' * 12, r'the camera never moves by 0\.5 m'),
        ('calib.txt', '', r'expected poses\.txt and calib\.txt as KITTI writes them'),
        ('image_0', None, r'expected the images of a KITTI drive in image_0/'),
    ],
)
def test_a_drive_that_is_not_whole(make_pairs, drive, tmp_path, monkeypatch, capsys, name, text, message):
    _, folder = drive
    path = folder / name
    if text is not None:
        path.write_text(text)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert run(make_pairs, monkeypatch, folder, tmp_path / 'out', '--kitti') == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()
