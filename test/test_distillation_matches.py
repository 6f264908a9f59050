"""Matched photographs: what a COLMAP database says of them, in the pixels of the views that a training shows."""

import logging
import sqlite3
from contextlib import closing

import cv2
import numpy as np
import pytest
from exif import store

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')
pytest.importorskip('pycolmap', reason='pycolmap is not installed')

from test_distillation_pairs import textured  # noqa: E402

from edgepoint2_ros.bridges.colmap import exhaustive_pairs, write_colmap  # noqa: E402
from edgepoint2_ros.distillation import pairs as views  # noqa: E402
from edgepoint2_ros.distillation.matches import (  # noqa: E402
    MIN_MATCHES,
    MatchedPhotos,
    MatchesError,
    load_matched_photos,
    read_matches,
)
from edgepoint2_ros.distillation.pairs import HEIGHT, WIDTH, PairDataset, make_matched_pair  # noqa: E402
from edgepoint2_ros.distillation.photos import Photos  # noqa: E402
from edgepoint2_ros.distillation.train import MIN_COMMON_MATCHES  # noqa: E402
from edgepoint2_ros.extractor import Extractor  # noqa: E402
from edgepoint2_ros.images import read_image  # noqa: E402

MOVED = np.array([60, 20])  # pixels, from a.png to b.png


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with a.png, b.png, which is a.png seen from elsewhere, and matches.db."""
    place = tmp_path_factory.mktemp('place')
    x, y = MOVED
    scene = textured(640 + x, 480 + y, 1)
    cv2.imwrite(str(place / 'a.png'), scene[y:, x:])
    cv2.imwrite(str(place / 'b.png'), scene[:480, :640])
    write_database(place / 'matches.db', place, ['a.png', 'b.png'])
    return place


def write_database(path, folder, names):
    extractor = Extractor('T-32', max_keypoints=400)
    images = {name: extractor.extract(read_image(folder / name, upright=False)) for name in names}
    write_colmap(path, images, exhaustive_pairs(names))


@pytest.fixture
def database(place, tmp_path):
    """A copy of the database."""
    path = tmp_path / 'matches.db'
    path.write_bytes((place / 'matches.db').read_bytes())
    return path


def looks_alike(views, xy):
    """Return the correlation of two views at matches (M, 2, 2)."""
    looks = [cv2.remap(view, *xy[:, k].T, cv2.INTER_LINEAR).ravel() for k, view in enumerate(views)]
    return np.corrcoef(looks)[0, 1]


def change(database, statement, *values):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement, values)


class TestMatches:
    def test_are_those_of_the_database(self, place):
        (match,), sizes = read_matches(place / 'matches.db')
        assert (match.a, match.b) == ('a.png', 'b.png')
        assert sizes == {'a.png': (640, 480), 'b.png': (640, 480)}
        assert match.xy.dtype == np.float32
        assert len(match.xy) > 100
        np.testing.assert_allclose(np.median(match.xy[:, 1] - match.xy[:, 0], axis=0), MOVED, atol=0.1)

    def test_follow_photographs_that_were_shrunk(self, place, tmp_path, monkeypatch):
        for name in ('a.png', 'b.png'):
            # Shrunk to 320 x 143.97 pixels, which become 320 x 144.
            cv2.imwrite(str(tmp_path / name), cv2.imread(str(place / name))[:288, :])
        write_database(tmp_path / 'matches.db', tmp_path, ['a.png', 'b.png'])
        (match,), _ = read_matches(tmp_path / 'matches.db')
        monkeypatch.setattr('edgepoint2_ros.distillation.photos.MAX_SIDE', 321)
        matched = load_matched_photos(tmp_path / 'matches.db', tmp_path, tmp_path / 'cache')
        ((_, _, xy),) = matched.pairs
        assert matched.photos[0][0].shape == (144, 321)
        np.testing.assert_allclose(xy, (match.xy + 0.5) * 321 / 640 - 0.5, atol=1e-3)

    @pytest.mark.parametrize('orientation', range(1, 9))
    def test_are_of_the_photographs_upright(self, place, tmp_path, orientation):
        for name in 'ab':
            store(tmp_path / f'{name}.jpg', cv2.imread(str(place / f'{name}.png')), orientation)
        write_database(tmp_path / 'matches.db', tmp_path, ['a.jpg', 'b.jpg'])
        matched = load_matched_photos(tmp_path / 'matches.db', tmp_path, tmp_path / 'cache')
        ((a, b, xy),) = matched.pairs
        assert matched.photos[a][0].shape == (480, 640)
        moved = np.median(xy[:, 1] - xy[:, 0], axis=0)
        np.testing.assert_allclose(moved, MOVED, atol=0.2)
        assert looks_alike([matched.photos[a][0], matched.photos[b][0]], xy) > 0.9

    def test_leave_the_database_as_it_is(self, database):
        before = database.read_bytes()
        database.chmod(0o400)
        read_matches(database)
        assert database.read_bytes() == before
        assert [path.name for path in database.parent.iterdir()] == ['matches.db']

    @pytest.mark.parametrize('link', [False, True])
    def test_of_a_database_that_is_being_written_are_complete(self, database, link):
        named = database.with_name('link.db') if link else database
        if link:
            named.symlink_to(database)
        with closing(sqlite3.connect(database)) as connection:
            # In the log beside the file, not yet in the file.
            with connection:
                connection.execute('UPDATE two_view_geometries SET rows = 50, data = substr(data, 1, 50 * 8)')
            assert [len(match.xy) for match in read_matches(named)[0]] == [50]

    def test_of_images_without_keypoints_and_of_watermarks_there_are_none(self, place, tmp_path):
        for name in 'abc':
            (tmp_path / f'{name}.png').write_bytes((place / f'{"b" if name == "c" else name}.png').read_bytes())
        cv2.imwrite(str(tmp_path / 'black.png'), np.zeros((480, 640), np.uint8))
        database = tmp_path / 'matches.db'
        write_database(database, tmp_path, ['a.png', 'b.png', 'black.png', 'c.png'])
        change(database, 'UPDATE two_view_geometries SET config = 7 WHERE pair_id = (SELECT MIN(pair_id) FROM matches)')
        matches, sizes = read_matches(database)
        assert 'black.png' in sizes
        assert len(matches) == 2

    def test_any_file_name_will_do(self, database):
        odd = database.rename(database.with_name('my matches?mode=rw#1%20.db'))
        assert len(read_matches(odd)[0]) == 1

    def test_pairs_with_an_unusable_image_are_left_out(self, place, tmp_path, caplog):
        for name in 'abc':
            (tmp_path / f'{name}.png').write_bytes((place / f'{"b" if name == "c" else name}.png').read_bytes())
        write_database(tmp_path / 'matches.db', tmp_path, ['a.png', 'b.png', 'c.png'])
        (tmp_path / 'a.png').write_bytes(b'no image any more')
        with caplog.at_level(logging.WARNING):
            matched = load_matched_photos(tmp_path / 'matches.db', tmp_path, tmp_path / 'cache')
        assert [name.rsplit('/', 1)[1] for name in matched.photos.names] == ['b.png', 'c.png']
        assert [pair[:2] for pair in matched.pairs] == [(0, 1)]
        assert 'a.png cannot be read' in caplog.text

    def test_of_other_matches_the_digest_is_another(self, place, database, tmp_path):
        change(database, 'UPDATE two_view_geometries SET rows = rows - 1, data = substr(data, 1, length(data) - 8)')
        one, other = (load_matched_photos(path, place, tmp_path) for path in (place / 'matches.db', database))
        assert one.digest() != other.digest()


class TestBadDatabases:
    def test_one_that_is_not_there(self, tmp_path):
        with pytest.raises(MatchesError, match=r'no file .*matches\.db: expected the database of a COLMAP'):
            read_matches(tmp_path / 'matches.db')
        assert not (tmp_path / 'matches.db').exists()

    @pytest.mark.parametrize('content', [b'', b'no database' * 100])
    def test_one_that_is_none(self, tmp_path, content):
        (tmp_path / 'matches.db').write_bytes(content)
        with pytest.raises(MatchesError, match=r'matches\.db cannot be read as the database of a COLMAP'):
            read_matches(tmp_path / 'matches.db')

    @pytest.mark.parametrize(
        'damage',
        [
            'UPDATE keypoints SET data = substr(data, 1, 100)',
            'UPDATE keypoints SET data = NULL',
            'UPDATE keypoints SET rows = 3, data = substr(data, 1, 4 * 3 * cols)',
            'UPDATE two_view_geometries SET data = substr(data, 1, 99)',
            'UPDATE two_view_geometries SET pair_id = pair_id + 40',
            'UPDATE cameras SET width = 0',
            "UPDATE cameras SET height = 'tall'",
            'DROP TABLE two_view_geometries',
        ],
    )
    def test_damaged_ones(self, database, damage):
        change(database, damage)
        with pytest.raises(MatchesError, match=r'matches\.db cannot be read as the database of a COLMAP'):
            read_matches(database)

    def test_one_without_enough_matches(self, database):
        change(database, 'UPDATE two_view_geometries SET rows = 39, data = substr(data, 1, 39 * 8)')
        with pytest.raises(MatchesError, match=f'no pair of images has {MIN_MATCHES} verified matches'):
            read_matches(database)

    def test_one_of_other_images(self, place, database, tmp_path):
        with pytest.raises(MatchesError, match=r'2 of 2 matched images of .* are not in .*, for example a\.png'):
            load_matched_photos(database, tmp_path, tmp_path)
        change(database, 'UPDATE cameras SET width = 641, height = 480')
        with pytest.raises(MatchesError, match=r'a\.png was read as 640x480 pixels; .* it would be 641x480'):
            load_matched_photos(database, place, tmp_path)

    def test_one_without_a_usable_pair(self, place, tmp_path):
        (tmp_path / 'a.png').write_bytes((place / 'a.png').read_bytes())
        (tmp_path / 'b.png').write_bytes(b'no image')
        with pytest.raises(MatchesError, match=r'matches\.db: no pair has two usable images'):
            load_matched_photos(place / 'matches.db', tmp_path, tmp_path / 'cache')


@pytest.fixture(scope='module')
def matched(place, tmp_path_factory):
    return load_matched_photos(place / 'matches.db', place, tmp_path_factory.mktemp('cache'))


class TestViews:
    def test_look_alike_where_they_match(self, matched, monkeypatch):
        monkeypatch.setattr(views, 'change_light', lambda view, rng: view)
        for seed in range(10):
            pair = make_matched_pair(matched, np.random.default_rng(seed))
            xy = pair.matches[pair.matches[:, 0, 0].isfinite()].numpy()
            assert len(xy) >= 30
            assert (xy >= 0).all()
            assert (xy <= (WIDTH - 1, HEIGHT - 1)).all()
            assert looks_alike(pair.views.numpy(), xy) > 0.9, seed

    @pytest.mark.parametrize('size', [(480, 640), (640, 480), (1242, 375), (1600, 300), (330, 1200)])
    def test_of_photographs_of_any_shape_have_matches_in_common(self, size):
        level = textured(*size)
        rng = np.random.default_rng(0)
        xy = np.repeat(rng.uniform(0, np.array(size) - 1, (200, 1, 2)), 2, axis=1).astype(np.float32)
        photos = Photos(['a', 'b'], [[level.shape], [level.shape]], np.tile(level.ravel(), 2))
        matched = MatchedPhotos(photos, [(0, 1, xy)])
        common = [
            int(make_matched_pair(matched, np.random.default_rng(seed)).matches[:, 0, 0].isfinite().sum())
            for seed in range(30)
        ]
        assert min(common) >= MIN_COMMON_MATCHES

    def test_have_no_other_correspondences(self, matched):
        pair = make_matched_pair(matched, np.random.default_rng(0))
        grid = torch.stack(torch.meshgrid(torch.arange(0.0, WIDTH), torch.arange(0.0, HEIGHT), indexing='xy'), -1)
        assert not views.correspond(grid.reshape(-1, 2), pair)[1].any()

    def test_are_every_second_layout(self, matched):
        level = textured(640, 480)
        photos = Photos(['other'], [[level.shape]], level.ravel())
        dataset = PairDataset(photos, 5, 12, layouts=6, matched=matched)
        pairs = [dataset[number] for number in range(12)]
        assert [bool(pair.matches.isfinite().any()) for pair in pairs] == [False, True] * 6
        for number, pair in enumerate(pairs):
            shown = set(pair.photos[pair.photos >= 0].tolist())
            assert shown <= ({1, 2} if number % 2 else {0})
        for first, again in zip(pairs[:6], pairs[6:]):
            for name in ('clean', 'labels', 'photos', 'layout'):
                assert torch.equal(getattr(first, name), getattr(again, name)), name
            torch.testing.assert_close(first.matches, again.matches, equal_nan=True)
