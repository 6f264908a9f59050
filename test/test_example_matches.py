"""The example that matches photographs to train on, with the package's features in place of ALIKED and LightGlue."""

import sys

import cv2
import numpy as np
import pytest

pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('pycolmap', reason='pycolmap is not installed')

from test_distillation_pairs import textured  # noqa: E402

from edgepoint2_ros import matching  # noqa: E402
from edgepoint2_ros.distillation.matches import read_matches  # noqa: E402
from edgepoint2_ros.extractor import Extractor  # noqa: E402


class OwnMatcher:
    def __init__(self):
        self.extract = Extractor('T-32', max_keypoints=400).extract
        self.match = matching.match


@pytest.fixture
def run(import_example, monkeypatch):
    example = import_example('make_matches')
    monkeypatch.setattr(example, 'Matcher', OwnMatcher)

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, 'argv', ['make_matches.py', *map(str, arguments)])
        return example.main()

    return run


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Two drives of 3 images that move on by 40 pixels each, and a camera that stands still."""
    root = tmp_path_factory.mktemp('images')
    for folder, seed, step in (('drives/1', 1, 40), ('drives/2', 2, 40), ('still', 1, 0)):
        scene = textured(800, 480, seed)
        (root / folder).mkdir(parents=True)
        for number in (9, 10, 11):
            start = step * (number - 9)
            cv2.imwrite(str(root / folder / f'{number}.png'), scene[:, start : start + 640])
    return root


def test_pairs_of_each_place_that_moved_are_kept(run, images, tmp_path, capsys):
    database = tmp_path / 'matches.db'
    assert run(images, database, 'drives/*', 'still') == 0
    matches, sizes = read_matches(database)
    pairs = {(match.a, match.b) for match in matches}
    places = ('drives/1', 'drives/2')
    assert pairs == {(f'{p}/{a}.png', f'{p}/{b}.png') for p in places for a, b in ((9, 10), (9, 11), (10, 11))}
    assert set(sizes.values()) == {(640, 480)}
    for match in matches:
        moved = np.median(match.xy[:, 1] - match.xy[:, 0], axis=0)
        expected = -80 if '9.png' in match.a and '11.png' in match.b else -40
        assert moved == pytest.approx([expected, 0], abs=0.2)
    said = capsys.readouterr().out.splitlines()
    assert said == [f'{p}/9.png and 2 more: {n} pairs' for p, n in (('drives/1', 3), ('drives/2', 3), ('still', 0))]


def test_a_pattern_of_images_is_one_place_and_the_window_is_in_order(run, images, tmp_path):
    assert run(images, tmp_path / 'matches.db', 'drives/2/*', '--window', 1) == 0
    matches, _ = read_matches(tmp_path / 'matches.db')
    assert {(match.a[9:], match.b[9:]) for match in matches} == {('9.png', '10.png'), ('10.png', '11.png')}


def test_most_pairs_of_a_place(run, images, tmp_path):
    assert run(images, tmp_path / 'matches.db', 'drives/*', '--pairs', 1) == 0
    assert len(read_matches(tmp_path / 'matches.db')[0]) == 2


def test_what_is_there_is_kept_and_what_is_not_is_named(run, images, tmp_path, capsys):
    (tmp_path / 'matches.db').write_text('precious')
    assert run(images, tmp_path / 'matches.db', 'still') == 1
    assert 'already exists' in capsys.readouterr().err
    assert (tmp_path / 'matches.db').read_text() == 'precious'
    assert run(images, tmp_path / 'other.db', 'walks/*') == 1
    assert 'walks/*: no such folder or image' in capsys.readouterr().err
    assert not (tmp_path / 'other.db').exists()


def test_without_kornia_it_says_what_to_install(import_example, images, tmp_path, monkeypatch, capsys):
    example = import_example('make_matches')
    monkeypatch.setitem(sys.modules, 'kornia.feature', None)
    monkeypatch.setattr(sys, 'argv', ['make_matches.py', str(images), str(tmp_path / 'matches.db'), 'still'])
    assert example.main() == 1
    assert 'aliked-n16 needs kornia: pip install kornia' in capsys.readouterr().err
