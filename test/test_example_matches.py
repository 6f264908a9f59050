"""The example that matches photographs to train on, with the package's features in place of ALIKED and LightGlue."""

import sys

import cv2
import numpy as np
import pytest
from exif import store

pytest.importorskip('torch', reason='torch is not installed')
pytest.importorskip('pycolmap', reason='pycolmap is not installed')

from test_distillation_pairs import textured  # noqa: E402

from edgepoint2_ros import matching  # noqa: E402
from edgepoint2_ros.distillation.matches import load_matched_photos, read_matches  # noqa: E402
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
    assert said == [
        f'{p}/9.png and 2 more: {n} pairs kept' for p, n in (('drives/1', 3), ('drives/2', 3), ('still', 0))
    ]


def test_a_pattern_of_images_is_one_place_and_the_window_is_in_order(run, images, tmp_path):
    assert run(images, tmp_path / 'matches.db', 'drives/2/*', '--window', 1) == 0
    matches, _ = read_matches(tmp_path / 'matches.db')
    assert {(match.a[9:], match.b[9:]) for match in matches} == {('9.png', '10.png'), ('10.png', '11.png')}


def test_most_pairs_of_a_place(run, images, tmp_path):
    assert run(images, tmp_path / 'matches.db', 'drives/*', '--pairs', 1) == 0
    assert len(read_matches(tmp_path / 'matches.db')[0]) == 2


def test_other_files_and_unusable_images_are_left_out(run, images, tmp_path, capsys):
    place = tmp_path / 'images' / 'place'
    place.mkdir(parents=True)
    (tmp_path / 'images' / 'plain').mkdir()
    for name in ('9.png', '10.png'):
        (place / name).write_bytes((images / 'drives' / '1' / name).read_bytes())
    (place / 'notes.txt').write_text('no image')
    (place / '11.png').write_bytes((place / '9.png').read_bytes()[:2000])
    assert run(tmp_path / 'images', tmp_path / 'matches.db', 'pla*', 'place/*') == 1
    assert 'has two places' in capsys.readouterr().err
    assert run(tmp_path / 'images', tmp_path / 'matches.db', 'pla*') == 0
    said = capsys.readouterr()
    assert 'skipped ' in said.err
    assert '11.png cannot be read' in said.err
    assert said.out == 'place/9.png and 2 more: 1 pairs kept\n'


def test_images_are_matched_upright(run, images, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for name, orientation in (('9', 1), ('10', 6)):
        store(folder / f'{name}.jpg', cv2.imread(str(images / 'drives' / '1' / f'{name}.png')), orientation)
    assert run(folder, tmp_path / 'matches.db', '*') == 0
    (match,), sizes = read_matches(tmp_path / 'matches.db')
    assert sizes == {'9.jpg': (640, 480), '10.jpg': (480, 640)}
    (pair,) = load_matched_photos(tmp_path / 'matches.db', folder, tmp_path / 'cache').pairs
    xy = pair[2] if match.a == '9.jpg' else pair[2][:, ::-1]
    assert np.median(xy[:, 1] - xy[:, 0], axis=0) == pytest.approx([-40, 0], abs=0.2)


@pytest.mark.parametrize('pattern', ['walks/*', '/drives', '', '..'])
def test_patterns_that_name_nothing(run, images, tmp_path, capsys, pattern):
    (tmp_path / 'root').mkdir()
    assert run(tmp_path / 'root', tmp_path / 'matches.db', pattern) == 1
    assert 'expected a pattern' in (said := capsys.readouterr().err) or 'no such folder' in said
    assert not (tmp_path / 'matches.db').exists()


def test_without_a_pair_there_is_no_database(run, images, tmp_path, capsys):
    assert run(images, tmp_path / 'matches.db', 'still') == 1
    assert 'no pair has 40 verified matches that moved' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_numbers_out_of_range(run, images, tmp_path, capsys):
    assert run(images, tmp_path / 'matches.db', 'still', '--tries', '-1') == 1
    assert '--tries: expected 1 or more, got -1' in capsys.readouterr().err


def test_an_existing_file_is_kept(run, images, tmp_path, capsys):
    (tmp_path / 'matches.db').write_text('precious')
    assert run(images, tmp_path / 'matches.db', 'still') == 1
    assert 'already exists' in capsys.readouterr().err
    assert (tmp_path / 'matches.db').read_text() == 'precious'


def test_without_kornia_it_says_what_to_install(import_example, images, tmp_path, monkeypatch, capsys):
    example = import_example('make_matches')
    monkeypatch.setitem(sys.modules, 'kornia.feature', None)
    monkeypatch.setattr(sys, 'argv', ['make_matches.py', str(images), str(tmp_path / 'matches.db'), 'still'])
    assert example.main() == 1
    assert 'aliked-n16 needs kornia: pip install kornia' in capsys.readouterr().err
