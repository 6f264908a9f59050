"""Masks: which one counts at which moment, and how several become one."""

from importlib.util import find_spec
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from exif import store

from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.masks import KEPT, Masks, combine, read_mask_file

MS = 1_000_000


def message(value: int, encoding: str = 'mono8'):
    pixels = np.full((4, 6), value, np.uint8)
    return SimpleNamespace(height=4, width=6, step=6, encoding=encoding, is_bigendian=0, data=pixels.tobytes())


def test_the_newest_at_or_before_the_stamp_counts():
    masks = Masks()
    assert masks.at(100) is None
    masks.put(100, message(0))
    masks.put(200, message(9))
    assert masks.at(99) is None
    assert masks.at(100).max() == masks.at(199).max() == 0
    assert masks.at(200).min() == masks.at(10**18).min() == 255


def test_when_time_is_set_back_the_masks_of_before_are_forgotten():
    masks = Masks()
    masks.put(1000 * MS, message(0))
    masks.put(9000 * MS, message(0))
    masks.put(8000 * MS, message(1))
    assert masks.at(7999 * MS) is None
    assert masks.at(10_000 * MS).min() == 255


def test_a_mask_that_comes_late_takes_its_place_among_the_others():
    masks = Masks()
    for stamp, value in ((1000, 0), (1200, 1), (700, 1), (1100, 0)):
        masks.put(stamp * MS, message(value))
    assert masks.at(699 * MS) is None
    assert [masks.at(stamp * MS).max() for stamp in (700, 1000, 1100, 1199, 1200)] == [255, 0, 0, 0, 255]


def test_the_last_mask_of_stamp_0_counts_before_all_others_whatever_comes():
    masks = Masks()
    masks.put(0, message(1))
    masks.put(0, message(0))
    for stamp in range(1000, 1000 + 100 * KEPT, 100):
        masks.put(stamp * MS, message(1))
    masks.put(500 * MS, message(1))  # time is set back
    assert masks.at(0).max() == masks.at(499 * MS).max() == 0
    assert masks.at(500 * MS).min() == 255
    assert masks.lead(0) == 0
    masks.put(0, message(1, 'bgr8'))
    assert masks.at(500 * MS).min() == 255
    with pytest.raises(ImageError, match="'bgr8' is unknown"):
        masks.at(0)
    assert masks.at(0) is None
    assert masks.lead(0) == 500 * MS


def test_a_mask_that_cannot_be_read_is_forgotten_and_the_one_before_it_counts():
    masks = Masks()
    masks.put(100, message(1))
    masks.put(200, message(1, 'bgr8'))
    with pytest.raises(ImageError, match="'bgr8' is unknown"):
        masks.at(300)
    assert masks.at(300).min() == 255


def test_a_mask_that_fails_in_any_way_is_forgotten(monkeypatch):
    masks = Masks()
    masks.put(100, message(1))
    with monkeypatch.context() as patch:
        patch.setattr('edgepoint2_ros.masks.to_mask', lambda mask: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            masks.at(300)
    assert masks.at(300) is None


def test_memory_stays_bounded():
    masks = Masks()
    for stamp in range(1, 1001):
        masks.put(stamp, message(1))
    assert masks.at(1000 - KEPT) is None
    assert masks.at(1001 - KEPT) is not None


def test_everything_allowed_is_no_mask():
    assert combine([], 0, 640, 480) is None


def test_what_all_allow_is_allowed():
    left, top = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8)
    left[:, :4] = 255
    top[:2] = 1
    allowed = combine([left, top], 1, 8, 4)
    expected = np.zeros((4, 8), np.uint8)
    expected[1:2, 1:4] = 1
    np.testing.assert_array_equal(allowed, expected)


def test_another_size_is_scaled():
    half = np.array([[1, 0]], np.uint8)
    np.testing.assert_array_equal(combine([half], 0, 4, 2), [[1, 1, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize('border', [3, 4, 1000])
def test_a_border_may_leave_nothing(border):
    assert not combine([], border, 6, 6).any()


def test_masks_that_are_all_later_say_by_how_much():
    masks = Masks()
    assert masks.lead(50) == 0
    masks.put(100, message(1))
    masks.put(200, message(1))
    assert [masks.lead(stamp) for stamp in (0, 60, 100, 300)] == [100, 40, 0, 0]


def test_a_mask_file_is_an_image(tmp_path):
    path = tmp_path / 'mask.png'
    cv2.imwrite(str(path), np.full((4, 6, 3), 200, np.uint8))
    assert read_mask_file(str(path)).shape == (4, 6)
    (tmp_path / 'text.png').write_text('text')
    for bad, reason in (
        ('text.png', 'OpenCV does not support this format'),
        ('missing.png', 'No such file or directory'),
        ('.', 'Is a directory'),
    ):
        with pytest.raises(ImageError, match=f'expected an image, but .* cannot be read as one: {reason}'):
            read_mask_file(str(tmp_path / bad))


@pytest.mark.parametrize(
    ('path', 'reason'),
    [
        ('~nosuchuser/mask.png', 'home directory'),
        ('a' * 300 + '.png', 'File name too long'),
        ('file://robot/mask.png', 'robot is another host'),
        ('file://[/mask.png', 'Invalid IPv6 URL'),
        ('file:///no/such/mask.png', 'No such file or directory'),
        ('package://no_such_package/mask.png', 'no_such_package'),
        ('package:///mask.png', 'package name'),
        ('', 'Is a directory'),
    ],
)
def test_a_mask_file_that_cannot_be_found_is_named_with_the_reason(path, reason, monkeypatch, tmp_path):
    if path.startswith('package:'):
        pytest.importorskip('ament_index_python', reason='ROS 2 is not installed')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    with pytest.raises(ImageError, match=f'expected an image, but .* cannot be read as one: .*{reason}'):
        read_mask_file(path)


def test_a_mask_file_may_be_given_by_its_url(tmp_path, monkeypatch):
    mask = np.zeros((4, 6), np.uint8)
    mask[:, :2] = 255
    share = tmp_path / 'share' / 'my_robot'
    (share / 'masks').mkdir(parents=True)
    cv2.imwrite(str(share / 'masks' / 'left arm.png'), mask)
    paths = [str(share / 'masks' / 'left arm.png'), f'file://{share}/masks/left%20arm.png']
    if find_spec('ament_index_python'):
        (tmp_path / 'share' / 'ament_index' / 'resource_index' / 'packages').mkdir(parents=True)
        (tmp_path / 'share' / 'ament_index' / 'resource_index' / 'packages' / 'my_robot').touch()
        monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
        paths.append('package://my_robot/masks/left%20arm.png')
    for path in paths:
        np.testing.assert_array_equal(read_mask_file(path), mask)


@pytest.mark.parametrize(('dtype', 'value'), [(np.uint8, 1), (np.uint8, 200), (np.uint16, 1), (np.uint16, 65535)])
@pytest.mark.parametrize('suffix', ['.png', '.pgm', '.tiff'])
def test_what_is_not_black_in_a_mask_file_is_allowed(dtype, value, suffix, tmp_path):
    pixels = np.zeros((4, 6), dtype)
    pixels[:, :3] = value
    cv2.imwrite(str(tmp_path / f'mask{suffix}'), pixels)
    mask = read_mask_file(str(tmp_path / f'mask{suffix}'))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, (pixels > 0) * 255)


def blobs(height: int = 240, width: int = 320) -> np.ndarray:
    """A mask (H, W) uint8 of 0 and 255 with edges in all directions."""
    mask = np.zeros((height, width), np.uint8)
    for x, y, radius in ((80, 60, 50), (200, 130, 70), (60, 180, 41)):
        cv2.circle(mask, (x, y), radius, 255, -1)
    return mask


@pytest.mark.parametrize('colour', [(255, 255, 255), (0, 0, 255), (0, 255, 0)], ids=['white', 'red', 'green'])
@pytest.mark.parametrize(
    ('suffix', 'settings'),
    [
        ('.jpg', (cv2.IMWRITE_JPEG_QUALITY, 95)),
        ('.jpg', (cv2.IMWRITE_JPEG_QUALITY, 60)),
        ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 60)),
    ],
)
def test_the_traces_of_compression_allow_nothing(suffix, settings, colour, tmp_path):
    mask = blobs()
    picture = mask if colour == (255, 255, 255) else (mask[:, :, None] // 255 * np.array(colour, np.uint8))
    cv2.imwrite(str(tmp_path / f'mask{suffix}'), picture, settings)
    found = read_mask_file(str(tmp_path / f'mask{suffix}'))
    near = cv2.dilate(mask, np.ones((5, 5))) != cv2.erode(mask, np.ones((5, 5)))
    np.testing.assert_array_equal(found[~near], mask[~near])
    assert (found != mask).mean() < (0.001 if picture is mask else 0.01)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_what_is_transparent_in_a_mask_file_is_not_allowed(dtype, tmp_path):
    mask = blobs()
    most = np.iinfo(dtype).max
    alpha = (mask // 255).astype(dtype) * most
    alpha[:4], alpha[4:8] = most // 3, most // 3 * 2  # the middle of a soft edge is where it ends
    picture = np.dstack([np.full((*mask.shape, 3), most, dtype), alpha])
    expected = mask.copy()
    expected[:4], expected[4:8] = 0, 255
    for suffix, settings in (('.png', ()), ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 101))):
        if suffix == '.png' or dtype == np.uint8:
            cv2.imwrite(str(tmp_path / f'mask{suffix}'), picture, settings)
            np.testing.assert_array_equal(read_mask_file(str(tmp_path / f'mask{suffix}')), expected)


def test_what_is_black_stays_forbidden_where_it_is_opaque(tmp_path):
    mask = blobs()
    cv2.imwrite(str(tmp_path / 'mask.png'), np.dstack([mask, mask, mask, np.full_like(mask, 255)]))
    np.testing.assert_array_equal(read_mask_file(str(tmp_path / 'mask.png')), mask)


def test_a_mask_file_is_upright_as_viewers_show_it(tmp_path):
    mask = blobs()
    store(tmp_path / 'mask.jpg', np.dstack([mask] * 3), 6)
    assert (read_mask_file(str(tmp_path / 'mask.jpg')) != mask).mean() < 0.001


def test_a_truncated_mask_file_is_refused(tmp_path):
    data = cv2.imencode('.jpg', blobs())[1].tobytes()
    (tmp_path / 'mask.jpg').write_bytes(data[: len(data) // 2])
    with pytest.raises(EdgePoint2Error, match='is truncated'):
        read_mask_file(str(tmp_path / 'mask.jpg'))


def test_as_many_masks_are_kept_as_images_may_wait():
    masks = Masks(capacity=200)
    for stamp in range(1, 201):
        masks.put(stamp * 10**6, message(stamp % 2))
    assert masks.at(10**6) is not None
