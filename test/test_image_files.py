"""Image files become arrays, whole or not at all, and the right way up."""

import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from exif import STORED, add_exif, exif

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.image_files import SUFFIXES, decode, find_images, read_orientation
from edgepoint2_ros.images import read_image, to_array

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / 'shared' / 'images' / 'photos'
HEIGHT, WIDTH = 75, 109  # neither is a multiple of the 8 or 16 pixels that JPEG takes at a time
GRAY = 128  # what libjpeg paints where it has no data


@pytest.fixture(scope='module')
def crop(photograph) -> np.ndarray:
    return np.ascontiguousarray(photograph[60 : 60 + HEIGHT, 100 : 100 + WIDTH])


@pytest.fixture(scope='module')
def jpegs(crop) -> dict[str, bytes]:
    """The kinds of JPEG that cameras, phones and programs make."""

    def encode(image, *settings) -> bytes:
        return cv2.imencode('.jpg', image, settings)[1].tobytes()

    colour = encode(crop)
    return {
        'baseline': colour,
        'gray': encode(crop[:, :, 1]),
        'optimised': encode(crop, cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        'coarse': encode(crop, cv2.IMWRITE_JPEG_QUALITY, 10),
        'fine': encode(crop, cv2.IMWRITE_JPEG_QUALITY, 100),
        'restarts': encode(crop, cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
        'progressive': encode(crop, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        'progressive gray': encode(crop[:, :, 1], cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        'progressive with restarts': encode(crop, cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
        'with a thumbnail': add_exif(colour, 6, encode(crop[::4, ::4])),
        'a gray wall': encode(np.full((HEIGHT, WIDTH, 3), GRAY, np.uint8)),
    }


KINDS = (
    'baseline', 'gray', 'optimised', 'coarse', 'fine', 'restarts', 'progressive', 'progressive gray',
    'progressive with restarts', 'with a thumbnail', 'a gray wall',
)  # fmt: skip


def read(data: bytes) -> np.ndarray:
    """Return what the node makes of a compressed image."""
    return to_array(SimpleNamespace(format='jpeg', data=data))


@pytest.mark.parametrize('kind', KINDS)
def test_a_whole_jpeg_is_read_whatever_follows_it(kind, jpegs):
    jpeg = jpegs[kind]
    expected = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
    older = jpegs['fine']
    rests = [b'', b'x', b'\r\n', bytes(1), bytes(5000), b'\xff' * 7, b'\xff\xd9', older[len(older) // 2 :], older]
    for rest in rests:
        np.testing.assert_array_equal(read(jpeg + rest), expected)


@pytest.mark.parametrize('kind', KINDS)
def test_a_jpeg_may_lack_the_marker_of_its_end(kind, jpegs):
    jpeg = jpegs[kind]
    expected = read(jpeg)
    for rest in (b'', b'\xff', bytes(1), bytes(5000), b'\xff' * 7, b'\xff' * 3 + bytes(9), b'\r\n', jpegs['fine']):
        np.testing.assert_array_equal(read(jpeg[:-2] + rest), expected)


@pytest.mark.parametrize('rest', [b'', b'\xff' * 7], ids=['nothing', 'padding'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_jpeg_that_was_cut_off_anywhere_is_refused_or_lacks_nothing(kind, rest, jpegs):
    jpeg = jpegs[kind]
    expected = read(jpeg)
    refused = 0
    for length in {*range(0, len(jpeg) - 2, 23), *range(len(jpeg) - 40, len(jpeg) - 2)}:
        try:
            result = read(jpeg[:length] + rest)
        except ImageError:
            refused += 1
        else:
            np.testing.assert_array_equal(result, expected)
    assert refused > 30
    with pytest.raises(ImageError, match=r'the jpeg of \d+ bytes is truncated'):
        read(jpeg[: len(jpeg) - 40 if 'progressive' in kind else len(jpeg) * 3 // 4] + rest)


@pytest.mark.parametrize('kind', [kind for kind in KINDS if 'progressive' not in kind])
def test_a_jpeg_whose_data_run_out_before_the_marker_of_its_end_is_refused(kind, jpegs):
    """What a camera sends when a packet went missing: libjpeg paints the rest gray and says nothing."""
    jpeg = jpegs[kind]
    expected = read(jpeg)
    start = jpeg.rindex(b'\xff\xda') + 14
    refused = 0
    for length in range(start, len(jpeg) - 3, 17):
        try:
            result = read(jpeg[:length] + b'\xff\xd9')
        except ImageError:
            refused += 1
        else:
            np.testing.assert_array_equal(result[:-27], expected[:-27])  # at most the last block and its neighbours
    assert refused or kind == 'a gray wall'


def test_a_progressive_jpeg_without_its_last_scans_is_refused(jpegs):
    jpeg = jpegs['progressive']
    scans = [match.start() for match in re.finditer(b'\xff\xda', jpeg)]
    assert len(scans) > 5
    for start in scans[1:]:
        with pytest.raises(ImageError, match='is truncated'):
            read(jpeg[:start])


def test_two_jpegs_in_a_row_of_which_the_first_was_cut_off_are_refused(jpegs):
    jpeg = jpegs['baseline']
    with pytest.raises(ImageError, match='is truncated'):
        read(jpeg[: len(jpeg) // 2] + jpeg)


def test_what_truncated_files_of_other_kinds_hold_is_refused(crop, tmp_path):
    for suffix in SUFFIXES:
        image = crop[:, :, 1] if suffix == '.pgm' else crop
        data = cv2.imencode(suffix, image)[1].tobytes()
        (tmp_path / f'whole{suffix}').write_bytes(data + b'junk' * 20)
        assert read_image(tmp_path / f'whole{suffix}').shape == (HEIGHT, WIDTH, 3)
        for share in (0.1, 0.5, 0.99):
            file = tmp_path / f'cut{suffix}'
            file.write_bytes(data[: int(len(data) * share)])
            with pytest.raises(ImageError, match=f'expected an image, but {file} cannot be read as one: '):
                read_image(file)


def test_what_is_no_image_is_named_with_the_reason(tmp_path):
    # A PNG of few bytes that says it has 2.5 gigapixels.
    huge = bytearray(cv2.imencode('.png', np.zeros((4, 6), np.uint8))[1].tobytes())
    huge[16:24] = struct.pack('>II', 50_000, 50_000)
    huge[29:33] = struct.pack('>I', zlib.crc32(huge[12:29]))
    for name, data, reason in (
        ('text.png', b'text', 'OpenCV does not support this format'),
        ('empty.jpg', b'', 'OpenCV does not support this format'),
        ('half.jpg', b'\xff\xd8', 'the jpeg of 2 bytes is truncated'),
        ('huge.png', bytes(huge), r'OpenCV refuses the png of \d+ bytes: pixels'),
        ('missing.png', None, 'No such file or directory'),
        ('a' * 300 + '.png', None, 'File name too long'),
        ('nul\0.png', None, 'null'),
        ('.', None, 'Is a directory'),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f'expected an image, but .* cannot be read as one: .*{reason}'):
            read_image(tmp_path / name)


def png(pixels: np.ndarray, orientation: int) -> bytes:
    data = cv2.imencode('.png', pixels)[1].tobytes()
    chunk = b'eXIf' + exif(orientation)
    return data[:33] + struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk)) + data[33:]


def webp(pixels: np.ndarray, orientation: int) -> bytes:
    """An extended WebP: a head that announces EXIF, the picture as it was, and EXIF."""
    data = cv2.imencode('.webp', pixels, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    height, width = pixels.shape[:2]
    head = struct.pack('<I', 8) + (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    chunks = b'WEBP'
    for name, contents in ((b'VP8X', head), (None, data[12:]), (b'EXIF', exif(orientation, order='>'))):
        chunks += contents if name is None else name + struct.pack('<I', len(contents)) + contents
    return b'RIFF' + struct.pack('<I', len(chunks)) + chunks


def tiff(pixels: np.ndarray, orientation: int = 1, sample_format: int = 1) -> bytes:
    """A TIFF without compression, in one strip; colours in the order RGB."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else 3
    data = pixels.tobytes()
    bits, behind = 8 * pixels.itemsize, 8 + len(data)  # three numbers of a kind stand behind the pixels
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, bits if samples == 1 else behind), (259, 3, 1, 1),
        (262, 3, 1, 1 if samples == 1 else 2), (273, 4, 1, 8), (274, 3, 1, orientation), (277, 3, 1, samples),
        (278, 4, 1, height), (279, 4, 1, len(data)),
        (339, 3, samples, sample_format if samples == 1 else behind + 6),
    ]  # fmt: skip
    extra = struct.pack('<6H', *[bits] * 3, *[sample_format] * 3)
    directory = struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *tag) for tag in tags) + bytes(4)
    return b'II*\0' + struct.pack('<I', 8 + len(data) + len(extra)) + data + extra + directory


@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('order', ['<', '>'])
def test_a_jpeg_is_upright_as_exif_says_or_as_it_is_stored(orientation, order, crop, tmp_path):
    stored = np.ascontiguousarray(STORED[orientation](crop))
    jpeg = cv2.imencode('.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    path = tmp_path / 'photo.jpg'
    path.write_bytes(add_exif(jpeg, orientation, jpeg, order))
    assert read_orientation(path) == orientation
    np.testing.assert_allclose(read_image(path), crop, atol=60)
    assert abs(read_image(path).astype(int) - crop).mean() < 3
    np.testing.assert_array_equal(read_image(path, upright=False), cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1))
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))  # which OpenCV turns


@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('write', [png, webp, tiff])
def test_other_files_are_turned_as_well_whatever_the_version_of_opencv_does(write, orientation, crop, tmp_path):
    stored = np.ascontiguousarray(STORED[orientation](crop))
    path = tmp_path / f'photo.{write.__name__}'
    path.write_bytes(write(stored[:, :, ::-1] if write is tiff else stored, orientation))
    assert read_orientation(path) == orientation
    np.testing.assert_array_equal(read_image(path), crop)
    np.testing.assert_array_equal(read_image(path, upright=False), stored)


@pytest.mark.parametrize('value', [0, 9, 65535])
def test_an_orientation_that_is_none_leaves_the_image_as_it_is(value, crop, tmp_path):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(add_exif(cv2.imencode('.jpg', crop)[1].tobytes(), value))
    assert read_orientation(path) == 1
    np.testing.assert_array_equal(read_image(path), read_image(path, upright=False))


def test_malformed_exif_is_no_exif(crop, jpegs):
    jpeg, whole = jpegs['baseline'], add_exif(jpegs['baseline'], 6)
    start = whole.index(b'Exif') + 6
    for at in range(start, start + 26):
        for value in (0, 1, 127, 255):
            damaged = bytearray(whole)
            damaged[at] = value
            picture = decode(bytes(damaged))
            np.testing.assert_array_equal(picture.pixels, read(jpeg))
            assert 1 <= picture.orientation <= 8


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values[::4, ::4], [0.5, 99.5])
    return np.clip((values - low) * 255 / (high - low), 0, 255)


@pytest.mark.parametrize('dtype', [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_a_tiff_of_any_depth_has_the_contrast_of_its_contents(dtype, crop, tmp_path):
    values = (crop[:, :, 1].astype(dtype) - dtype(100 if np.dtype(dtype).kind != 'u' else 0)) * dtype(3)
    format = {'u': 1, 'i': 2, 'f': 3}[np.dtype(dtype).kind]
    (tmp_path / 'thermal.tiff').write_bytes(tiff(values, sample_format=format))
    image = read_image(tmp_path / 'thermal.tiff')
    assert (image.dtype, image.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    np.testing.assert_allclose(image[:, :, 0], stretched(values.astype(float)), atol=0.6)


def test_a_file_looks_to_the_extractor_as_the_message_of_its_camera_does(crop, tmp_path):
    for name, pixels, encoding in (
        ('gray.png', crop[:, :, 1], 'mono8'),
        ('colour.png', crop, 'bgr8'),
        ('alpha.png', np.dstack([crop, crop[:, :, :1]]), 'bgra8'),
        ('thermal.png', 7000 + crop[:, :, 1].astype(np.uint16) // 3, 'mono16'),
        ('wide.png', crop.astype(np.uint16) * 50, 'bgr16'),
        ('thermal.pgm', 7000 + crop[:, :, 1].astype(np.uint16) // 3, 'mono16'),
    ):
        cv2.imwrite(str(tmp_path / name), pixels)
        expected = to_array(
            SimpleNamespace(
                height=HEIGHT,
                width=WIDTH,
                encoding=encoding,
                is_bigendian=0,
                step=pixels[0].nbytes,
                data=pixels.tobytes(),
            )
        )
        image = read_image(tmp_path / name)
        for channel in range(3):
            np.testing.assert_array_equal(
                image[:, :, channel], expected if expected.ndim == 2 else expected[:, :, channel]
            )


def test_a_picture_says_whether_its_values_are_exactly_those_that_were_saved(crop):
    for suffix, settings, expected in (
        ('.png', (), True),
        ('.bmp', (), True),
        ('.ppm', (), True),
        ('.tiff', (), True),
        ('.jpg', (), False),
        ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 80), False),
        ('.webp', (cv2.IMWRITE_WEBP_QUALITY, 101), True),
    ):
        assert decode(cv2.imencode(suffix, crop, settings)[1].tobytes()).is_lossless == expected
    assert decode(webp(crop, 1)).is_lossless


def test_photographs_are_read_as_opencv_reads_them():
    photos = sorted(PHOTOS.glob('*'))[:6]
    if not photos:
        pytest.skip(f'no photographs in {PHOTOS}')
    for photo in photos:
        np.testing.assert_array_equal(read_image(photo), cv2.imread(str(photo)))


def test_images_are_found_below_folders_in_a_fixed_order_and_once(tmp_path):
    (tmp_path / 'b').mkdir()
    for name in ('b/2.JPG', 'a.png', 'notes.txt'):
        (tmp_path / name).touch()
    found = [tmp_path / 'a.png', tmp_path / 'b' / '2.JPG']
    assert find_images([tmp_path, tmp_path / 'b', tmp_path / 'a.png']) == found
    assert find_images([tmp_path / 'notes.txt']) == [tmp_path / 'notes.txt']  # a file is taken as it is


def test_a_folder_without_images_is_named_and_one_that_is_not_there(tmp_path):
    with pytest.raises(ImageError, match=f'no images found in {tmp_path}: expected .bmp'):
        find_images([tmp_path])
    with pytest.raises(ImageError, match='no such folder or image: .*nowhere'):
        find_images([tmp_path / 'nowhere'])


def test_no_image_file_is_read_in_another_way():
    """OpenCV's own reading cuts 16 bits down to 8, turns some files and not others, and fills up what is missing."""
    others = {'image_files.py', 'pairs.py'}  # the second compresses and decompresses views, as a training does
    for path in [*(ROOT / 'edgepoint2_ros').rglob('*.py'), *(ROOT / 'examples').glob('*.py')]:
        text = path.read_text()
        assert 'imread' not in text, path
        assert 'imdecode' not in text or path.name in others, path
