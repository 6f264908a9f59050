"""The example that measures how well places are found again: its parts, on what can be told by hand."""

import cv2
import numpy as np
import pytest

pytest.importorskip('pycolmap', reason='pycolmap is not installed')

from edgepoint2_ros.errors import EdgePoint2Error  # noqa: E402


@pytest.fixture
def example(import_example):
    """The example, as a module."""
    return import_example('places')


def test_descriptors_that_differ_little_are_one_word(example):
    rng = np.random.default_rng(0)
    kinds = rng.choice([-1, 1], (20, 256)).astype(np.float32)
    rows = np.repeat(kinds, 30, axis=0)
    noisy = np.where(rng.random(rows.shape) < 0.03, -rows, rows)
    words = example.Tree(noisy, 2, rng).words(kinds)
    assert len(set(words)) >= 15
    tree = example.Tree(noisy, 2, np.random.default_rng(1))
    agreement = [np.mean(tree.words(noisy[30 * k : 30 * k + 30]) == tree.words(kinds[k : k + 1])) for k in range(20)]
    assert np.mean(agreement) > 0.8
    assert tree.words(noisy).max() < tree.leaves


def test_an_image_is_like_itself_and_unlike_noise(example, photograph):
    gray = photograph[:, :, 1]
    noise = np.random.default_rng(0).integers(0, 255, gray.shape, np.uint8)
    likeness = example.shrunk_images([gray, gray // 2, noise])(0)
    assert likeness[0] == pytest.approx(1)
    assert likeness[1] > 0.99  # darker is the same
    assert likeness[2] < 0.5


def test_recall_counts_the_best_and_the_five_best_but_for_neighbours(example):
    rows = np.array([[0, 9, 8, 1, 1, 1, 1, 1], [9, 0, 8, 7, 6, 5, 4, 3]])
    queries = {0: ({2}, {0, 1}), 1: ({7}, {1})}
    # The first is found at once, its neighbour left out; the second would be sixth.
    assert example.recall(lambda query: rows[query], queries) == (0.5, 0.5)
    assert example.recall(lambda query: rows[query], {1: ({5}, {1})}) == (0.0, 1.0)


def test_images_left_out_and_in_folders_keep_their_places(example, photograph, tmp_path, monkeypatch):
    (tmp_path / 'walk' / 'b').mkdir(parents=True)
    numbers = {tmp_path / 'walk' / name: k for k, name in enumerate(('a10.png', 'a9.png', 'b/1.png'))}
    for path in numbers:
        cv2.imwrite(str(path), photograph[:100, :100])
    (tmp_path / 'walk' / 'a5.png').write_bytes(b'damaged')  # so it has no number
    asked = []
    monkeypatch.setattr(example, 'reconstruct', lambda folder, kept, names: asked.append(names))
    monkeypatch.setattr(example, 'find_pairs', lambda model: [])
    assert example.find_revisits([tmp_path / 'walk'], numbers, tmp_path / 'out', 1) == [{}]
    assert asked == [['a9.png', 'a10.png', 'b/1.png']]


def test_a_folder_without_a_finished_reconstruction_is_named(example, tmp_path):
    (tmp_path / 'walk').mkdir()
    (tmp_path / 'out' / 'walk').mkdir(parents=True)
    with pytest.raises(EdgePoint2Error, match='out/walk holds no finished reconstruction'):
        example.find_revisits([tmp_path / 'walk'], {}, tmp_path / 'out', 1)
