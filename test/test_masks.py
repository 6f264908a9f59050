"""Masks: which one counts at which moment, and how several become one."""

import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.node.masks import KEPT, Masks, combine, read_mask_file


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
    masks.put(100, message(0))
    masks.put(900, message(0))
    masks.put(500, message(1))
    assert masks.at(499) is None
    assert masks.at(1000).min() == 255


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
        patch.setattr('edgepoint2_ros.node.masks.to_mask', lambda mask: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            masks.at(300)
    assert masks.at(300) is None


def test_memory_stays_bounded():
    masks = Masks()
    for stamp in range(1000):
        masks.put(stamp, message(1))
    assert masks.at(1000 - KEPT - 1) is None
    assert masks.at(1000 - KEPT) is not None


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


def test_a_mask_file_is_an_image(tmp_path):
    path = tmp_path / 'mask.png'
    cv2.imwrite(str(path), np.full((4, 6, 3), 200, np.uint8))
    assert read_mask_file(str(path)).shape == (4, 6)
    (tmp_path / 'text.png').write_text('text')
    for bad in ('text.png', 'missing.png', '.'):
        with pytest.raises(EdgePoint2Error, match='mask_file: expected an image, but .* cannot be read as one'):
            read_mask_file(str(tmp_path / bad))


def test_a_mask_file_that_fails_in_another_way_is_refused_with_the_reason(tmp_path):
    # A PNG of few bytes that says it has 2.5 gigapixels.
    data = bytearray(cv2.imencode('.png', np.zeros((4, 6), np.uint8))[1].tobytes())
    data[16:24] = struct.pack('>II', 50_000, 50_000)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    (tmp_path / 'huge.png').write_bytes(data)
    for bad, reason in (
        ('~nosuchuser/mask.png', 'home directory'),
        ('a' * 300 + '.png', 'File name too long'),
        (str(tmp_path / 'huge.png'), 'pixels'),
    ):
        with pytest.raises(EdgePoint2Error, match=f'mask_file: .* {bad} cannot be read as one: (?s:.*){reason}'):
            read_mask_file(bad)


@pytest.mark.parametrize(('dtype', 'value'), [(np.uint8, 1), (np.uint8, 200), (np.uint16, 1), (np.uint16, 65535)])
def test_what_is_not_black_in_a_mask_file_is_allowed(dtype, value, tmp_path):
    pixels = np.zeros((4, 6), dtype)
    pixels[:, :3] = value
    cv2.imwrite(str(tmp_path / 'mask.png'), pixels)
    mask = read_mask_file(str(tmp_path / 'mask.png'))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, (pixels > 0) * 255)
