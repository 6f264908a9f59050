import logging

import cv2
import numpy as np
import pytest
from exif import store

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')

from edgepoint2_ros.distillation.pairs import (  # noqa: E402
    HEIGHT,
    MAX_PIECES,
    OUTSIDE,
    WIDTH,
    PairDataset,
    change_light,
    correspond,
    make_pair,
    random_homography,
    sharpen,
)
from edgepoint2_ros.distillation.photos import Photos, load_photos  # noqa: E402
from edgepoint2_ros.errors import ImageError  # noqa: E402
from edgepoint2_ros.image_files import find_images  # noqa: E402


def textured(width, height, seed=0):
    """An image whose every place looks different at any scale."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for cell in (128, 32, 8):
        noise = rng.random((height // cell + 2, width // cell + 2), np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    for seed, size in enumerate([(900, 700), (640, 480), (500, 800)]):
        cv2.imwrite(str(folder / f'{seed}.png'), textured(*size, seed))
    return load_photos(find_images([folder]), folder / 'cache')


class TestLoadPhotos:
    def test_makes_pyramids_of_the_plain_mean_of_the_colours(self, tmp_path):
        image = np.dstack([textured(640, 480, seed) for seed in range(3)])
        cv2.imwrite(str(tmp_path / 'a.png'), image)
        pyramid = load_photos([tmp_path / 'a.png'], tmp_path / 'cache')[0]
        assert [level.shape for level in pyramid] == [(480, 640), (240, 320), (120, 160)]
        np.testing.assert_allclose(pyramid[0], image.mean(axis=2), atol=1)
        quarters = pyramid[0].reshape(240, 2, 320, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(pyramid[1], quarters, atol=1)

    def test_names_and_skips_images_that_cannot_be_read_or_are_too_small(self, tmp_path, caplog):
        cv2.imwrite(str(tmp_path / 'good.png'), textured(640, 480))
        cv2.imwrite(str(tmp_path / 'small.png'), textured(100, 480))
        (tmp_path / 'broken.jpg').write_bytes(b'not an image')
        with caplog.at_level(logging.WARNING):
            photos = load_photos(find_images([tmp_path]), tmp_path / 'cache')
        assert [name.rsplit('/', 1)[1] for name in photos.names] == ['good.png']
        assert 'broken.jpg cannot be read' in caplog.text
        assert 'small.png: 100x480 is too small: expected at least 200' in caplog.text

    def test_takes_photographs_whole_upright_and_with_the_contrast_of_their_contents(self, tmp_path, caplog):
        image = textured(640, 480)
        cv2.imwrite(str(tmp_path / 'thermal.png'), 7000 + image.astype(np.uint16) // 3)
        store(tmp_path / 'phone.jpg', np.dstack([image] * 3), 6)
        jpeg = cv2.imencode('.jpg', image)[1].tobytes()
        (tmp_path / 'cut.jpg').write_bytes(jpeg[: len(jpeg) // 2])
        with caplog.at_level(logging.WARNING):
            photos = load_photos(find_images([tmp_path]), tmp_path / 'cache')
        assert [name.rsplit('/', 1)[1] for name in photos.names] == ['phone.jpg', 'thermal.png']
        assert 'cut.jpg cannot be read as one: the jpeg of' in caplog.text
        for pyramid in photos:
            assert pyramid[0].shape == (480, 640)
            assert np.corrcoef(pyramid[0].ravel(), image.ravel())[0, 1] > 0.99
            assert pyramid[0].std() > 0.9 * image.std()

    def test_without_any_usable_image_it_names_the_first(self, tmp_path):
        (tmp_path / 'broken.jpg').write_bytes(b'not an image')
        with pytest.raises(ImageError, match=r'none of 1 images is usable; the first: .*broken\.jpg'):
            load_photos(find_images([tmp_path]), tmp_path / 'cache')

    def test_decodes_once_and_again_when_a_file_changes(self, tmp_path):
        path = tmp_path / 'a.png'
        cv2.imwrite(str(path), textured(640, 480, 1))
        decoded = []

        def count(paths):
            decoded.extend(paths)
            return iter(paths)

        first = load_photos([path], tmp_path / 'cache', count)[0][0].copy()
        np.testing.assert_array_equal(load_photos([path], tmp_path / 'cache', count)[0][0], first)
        assert len(decoded) == 1
        cv2.imwrite(str(path), textured(640, 490, 2))
        assert load_photos([path], tmp_path / 'cache', count)[0][0].shape == (490, 640)
        assert len(decoded) == 2

    def test_a_cache_that_was_cut_off_while_writing_is_made_again(self, tmp_path):
        path = tmp_path / 'a.png'
        cv2.imwrite(str(path), textured(640, 480))
        cache = tmp_path / 'cache'
        expected = load_photos([path], cache)[0][0].copy()
        next(cache.glob('*.json')).unlink()
        next(cache.glob('*.u8')).write_bytes(b'half')
        np.testing.assert_array_equal(load_photos([path], cache)[0][0], expected)


class TestPairs:
    def test_have_the_promised_shapes_and_types(self, photos):
        pair = make_pair(photos, np.random.default_rng(0))
        assert pair.views.shape == pair.clean.shape == pair.labels.shape == (2, HEIGHT, WIDTH)
        assert pair.views.dtype == pair.labels.dtype == torch.uint8
        assert pair.homographies.shape == (MAX_PIECES + 1, 3, 3)
        assert pair.photos.shape == (MAX_PIECES + 1,)
        assert pair.layout.shape == ()

    def test_follow_from_the_seed_and_their_number(self, photos):
        one, same = PairDataset(photos, 5, 10)[3], PairDataset(photos, 5, 100)[3]
        other_number, other_seed = PairDataset(photos, 5, 10)[4], PairDataset(photos, 6, 10)[3]
        assert torch.equal(one.views, same.views)
        assert not torch.equal(one.views, other_number.views)
        assert not torch.equal(one.views, other_seed.views)

    def test_of_one_layout_differ_in_their_light_alone(self, photos):
        dataset = PairDataset(photos, 5, 10, layouts=4)
        first, again, other = dataset[1], dataset[5], dataset[2]
        assert first.layout == again.layout != other.layout
        for name in ('clean', 'labels', 'homographies', 'photos'):
            assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert not torch.equal(first.views, again.views)
        assert not torch.equal(first.clean, other.clean)

    def test_without_a_number_of_layouts_are_all_different(self, photos):
        dataset = PairDataset(photos, 5, 3)
        assert [int(dataset[number].layout) for number in range(3)] == [0, 1, 2]

    def test_clean_views_differ_by_the_light_alone(self, photos, monkeypatch):
        pair = make_pair(photos, np.random.default_rng(0))
        assert not torch.equal(pair.views, pair.clean)
        monkeypatch.setattr('edgepoint2_ros.distillation.pairs.change_light', lambda view, rng: view)
        same = make_pair(photos, np.random.default_rng(0))
        assert torch.equal(same.views, pair.clean)
        assert torch.equal(same.clean, pair.clean)

    def test_corresponding_places_look_alike(self, photos, monkeypatch):
        monkeypatch.setattr('edgepoint2_ros.distillation.pairs.change_light', lambda view, rng: view)
        grid = torch.stack(torch.meshgrid(torch.arange(8.0, WIDTH, 8), torch.arange(8.0, HEIGHT, 8), indexing='xy'), -1)
        grid = grid.reshape(-1, 2)
        correlations, shares = [], []
        for seed in range(12):
            pair = make_pair(photos, np.random.default_rng(seed))
            moved, visible = correspond(grid, pair)
            shares.append(visible.float().mean())
            a, b = grid[visible].numpy(), moved[visible].numpy()
            looks_a = cv2.remap(pair.views[0].numpy(), a[:, :1], a[:, 1:], cv2.INTER_LINEAR)[:, 0]
            looks_b = cv2.remap(pair.views[1].numpy(), b[:, :1], b[:, 1:], cv2.INTER_LINEAR)[:, 0]
            correlations.append(np.corrcoef(looks_a, looks_b)[0, 1])
        assert np.median(correlations) > 0.97
        assert min(correlations) > 0.9
        assert np.mean(shares) > 0.4

    def test_a_place_behind_a_piece_or_outside_has_no_counterpart(self, photos):
        pair = make_pair(photos, np.random.default_rng(0))
        labels = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
        labels[1, :, 100:200] = 1  # a piece that only view b shows
        labels[0, :, 400:] = OUTSIDE
        identity = torch.eye(3).repeat(MAX_PIECES + 1, 1, 1)
        pair = pair._replace(labels=labels, homographies=identity)
        places = torch.tensor([[50.0, 50], [150, 50], [450, 50]])
        moved, visible = correspond(places, pair)
        assert visible.tolist() == [True, False, False]
        torch.testing.assert_close(moved, places)

    def test_homographies_keep_the_view_in_front_of_the_camera(self):
        corners = np.array([[0, 0, 1], [WIDTH, 0, 1], [WIDTH, HEIGHT, 1], [0, HEIGHT, 1]], float)
        for seed in range(300):
            homography = random_homography(np.random.default_rng(seed))
            assert (corners @ homography.T)[:, 2].min() > 0
            assert np.linalg.det(homography) > 0

    def test_most_are_sharpened_both_views_alike(self):
        plain = cv2.GaussianBlur(textured(WIDTH, HEIGHT), (0, 0), 1)
        gains = []
        for seed in range(40):
            views = np.stack([plain, plain[:, ::-1]])
            sharpen(views, np.random.default_rng(seed))
            assert (views[1] == views[0][:, ::-1]).all()
            gains.append(cv2.Laplacian(views[0], cv2.CV_32F).std() / cv2.Laplacian(plain, cv2.CV_32F).std())
        assert min(gains) == 1
        assert 0.4 < np.mean(np.array(gains) > 1) < 0.8
        assert max(gains) > 1.5

    def test_most_views_keep_their_light(self, photos):
        pairs = PairDataset(photos, 5, 40)
        kept = [torch.equal(a, b) for number in range(40) for a, b in zip(pairs[number].views, pairs[number].clean)]
        assert 0.55 < np.mean(kept) < 0.85

    def test_changed_light_keeps_size_and_type(self):
        view = textured(WIDTH, HEIGHT)
        for seed in range(20):
            changed = change_light(view, np.random.default_rng(seed))
            assert changed.shape == view.shape
            assert changed.dtype == np.uint8
            assert not np.array_equal(changed, view)


def test_photos_without_a_file_behind_them():
    level = textured(640, 480)
    photos = Photos(['a'], [[level.shape]], level.ravel())
    np.testing.assert_array_equal(photos[0][0], level)
