"""Features in the tools of structure from motion: real databases, read by their own libraries."""

import resource
from dataclasses import replace

import numpy as np
import pytest
from exif import STORED

from edgepoint2_ros.bridges.colmap import (
    as_stored,
    exhaustive_pairs,
    match_pairs,
    sequential_pairs,
    write_colmap,
    write_features,
    write_hloc,
)
from edgepoint2_ros.cli import main
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features


@pytest.fixture
def views() -> dict[str, Features]:
    """A box of 300 points seen by three cameras in a row; the third sees hardly any of them."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -2, 4), (2, 2, 8), (300, 3))
    rows = rng.normal(size=(300, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    images = {}
    for number, name in enumerate(('a.png', 'b.png', 'c.png')):
        seen = points - [0.4 * number, 0, 0]
        xy = (500 * seen[:, :2] / seen[:, 2:] + [319.5, 239.5]).astype(np.float32)
        count = 10 if number == 2 else 300
        images[name] = Features(xy[:count], np.zeros(count, np.float32), rows[:count], (640, 480), 'T-32', 'a')
    return images


def test_pairs_lie_within_the_window():
    assert sequential_pairs('abcd', 2) == [('a', 'b'), ('a', 'c'), ('b', 'c'), ('b', 'd'), ('c', 'd')]
    assert len(exhaustive_pairs('abcd')) == 6


def test_the_database_holds_what_colmap_needs(views, tmp_path):
    pycolmap = pytest.importorskip('pycolmap', reason='pycolmap is not installed')
    path = tmp_path / 'database.db'
    assert write_colmap(path, views, exhaustive_pairs(list(views)), focal=500) == 1
    with pycolmap.Database.open(path) as database:
        assert (database.num_cameras(), database.num_images(), database.num_rigs(), database.num_frames()) == (
            1,
            3,
            1,
            3,
        )
        camera = database.read_all_cameras()[0]
        assert (camera.width, camera.height, camera.focal_length) == (640, 480, 500)
        a, b = (database.read_image_with_name(name).image_id for name in ('a.png', 'b.png'))
        # The centre of the first pixel is (0.5, 0.5) to COLMAP and (0, 0) to us.
        np.testing.assert_allclose(database.read_keypoints(a)[:, :2], views['a.png'].xy + 0.5)
        geometry = database.read_two_view_geometry(a, b)
        assert len(geometry.inlier_matches) > 290
        assert (geometry.inlier_matches[:, 0] == geometry.inlier_matches[:, 1]).all()


def test_photographs_of_different_cameras_have_a_camera_each(views, tmp_path):
    pycolmap = pytest.importorskip('pycolmap', reason='pycolmap is not installed')
    write_colmap(tmp_path / 'database.db', views, [], one_camera=False)
    with pycolmap.Database.open(tmp_path / 'database.db') as database:
        assert [camera.focal_length for camera in database.read_all_cameras()] == [768.0] * 3


def test_hloc_finds_its_layout(views, tmp_path):
    h5py = pytest.importorskip('h5py', reason='h5py is not installed')
    write_hloc(tmp_path / 'features.h5', views)
    with h5py.File(tmp_path / 'features.h5') as file:
        assert sorted(file) == sorted(views)
        group = file['a.png']
        assert {name: group[name].shape for name in group} == {
            'keypoints': (300, 2),
            'scores': (300,),
            'descriptors': (32, 300),
            'image_size': (2,),
        }
        np.testing.assert_array_equal(group['descriptors'][:, 7], views['a.png'].descriptors[7])
        assert group['image_size'][()].tolist() == [640, 480]


@pytest.mark.parametrize('orientation', STORED)
def test_features_of_an_upright_image_lie_at_the_same_places_of_its_file(orientation):
    upright = np.arange(5 * 7).reshape(5, 7)
    stored = STORED[orientation](upright)
    y, x = np.mgrid[:5, :7].reshape(2, -1)
    xy = np.stack([x, y], axis=1).astype(np.float32)
    features = as_stored(Features(xy, None, None, (7, 5), 'T-32', 'a'), orientation)
    assert features.image_size == stored.shape[::-1]
    assert features.xy.dtype == np.float32
    x, y = features.xy.astype(int).T
    np.testing.assert_array_equal(stored[y, x], upright.ravel())


@pytest.mark.parametrize(('write', 'extra'), [(write_colmap, ([],)), (write_hloc, ())], ids=['colmap', 'hloc'])
def test_existing_files_are_left_alone(write, extra, views, tmp_path):
    if write is write_hloc:
        pytest.importorskip('h5py', reason='h5py is not installed')
    path = tmp_path / 'thesis'
    path.write_text('precious')
    with pytest.raises(EdgePoint2Error, match='already exists'):
        write(path, views, *extra)
    assert path.read_text() == 'precious'


def test_a_bag_is_exported_to_both(official_model, photograph, tmp_path, capsys):
    for module in ('rosbags', 'h5py'):
        pytest.importorskip(module, reason=f'{module} is not installed')
    official_model('T-32')
    from test_bags import record

    frames = [np.ascontiguousarray(photograph[100:340, 40 + 4 * i : 360 + 4 * i, 1]) for i in range(6)]
    record(tmp_path / 'office', frames)
    assert main(['bag', 'extract', str(tmp_path / 'office'), str(tmp_path / 'keypoints')]) == 0
    for name in ('features.h5', 'database.db'):
        assert main(['bag', 'export', str(tmp_path / 'keypoints'), str(tmp_path / name), '--every', '2']) == 0
    output = capsys.readouterr().out
    assert 'features of 3 images' in output
    assert '3 images, 3 of 3 pairs match' in output
    assert main(['bag', 'export', str(tmp_path / 'keypoints'), str(tmp_path / 'features.txt')]) == 1
    assert 'expected a name that ends in .db (COLMAP) or .h5 (hloc)' in capsys.readouterr().err


@pytest.mark.parametrize('suffix', ['.db', '.h5'])
def test_what_is_not_whole_is_not_left_behind(views, tmp_path, suffix):
    if suffix == '.h5':
        pytest.importorskip('h5py', reason='h5py is not installed')
    path = tmp_path / 'new' / f'export{suffix}'
    broken = {**views, 'd.png': None}
    with pytest.raises(AttributeError):
        write_hloc(path, broken) if suffix == '.h5' else write_colmap(path, broken, [])
    assert list(path.parent.glob('*')) == []
    write_hloc(path, views) if suffix == '.h5' else write_colmap(path, views, [])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('suffix', ['.db', '.h5'])
def test_a_full_disk_is_an_error_of_ours(views, tmp_path, suffix):
    if suffix == '.h5':
        pytest.importorskip('h5py', reason='h5py is not installed')
    path = tmp_path / f'export{suffix}'
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(EdgePoint2Error, match=rf'export\{suffix} cannot be written'):
            write_hloc(path, views) if suffix == '.h5' else write_colmap(path, views, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('focal', ['0', '-100', 'nan', 'inf'])
def test_a_focal_length_out_of_range_is_refused(focal, tmp_path, capsys):
    assert main(['bag', 'export', str(tmp_path / 'bag'), str(tmp_path / 'a.db'), '--focal', focal]) == 1
    assert '--focal: expected a length in pixels, more than 0, got' in capsys.readouterr().err


def test_an_interrupted_matching_goes_on_where_it_was(views, tmp_path):
    pytest.importorskip('pycolmap', reason='pycolmap is not installed')
    path = tmp_path / 'database.db'
    write_features(path, views, {})
    pairs = exhaustive_pairs(list(views))
    begun = match_pairs(path, views, pairs)
    first = next(begun)
    begun.close()
    # What is in the database already is not matched again: here nothing would match any more.
    blank = {
        name: replace(features, descriptors=np.zeros_like(features.descriptors)) for name, features in views.items()
    }
    assert list(match_pairs(path, blank, pairs)) == [first, 0, 0]
    assert list(match_pairs(path, views, pairs)) == [first, 0, 0]
    assert first > 290


def test_matches_that_agree_by_chance_alone_are_no_pair(views, tmp_path):
    pytest.importorskip('pycolmap', reason='pycolmap is not installed')
    rng = np.random.default_rng(1)
    astray = replace(views['b.png'], xy=rng.uniform(0, 480, (300, 2)).astype(np.float32))
    assert write_colmap(tmp_path / 'database.db', {'a.png': views['a.png'], 'b.png': astray}, [('a.png', 'b.png')]) == 0
