"""Camera messages become arrays."""

import contextlib
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgepoint2_ros.engines.check import draw_scene
from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.images import ENCODINGS, MASK_ENCODINGS, to_array, to_mask

HEIGHT, WIDTH = 6, 8
CHANNELS = {'mono': 1, 'rgb': 3, 'bgr': 3, 'rgba': 4, 'bgra': 4}
TO_BGR = {'rgb': [2, 1, 0], 'bgr': [0, 1, 2], 'rgba': [2, 1, 0], 'bgra': [0, 1, 2]}
BAYER = {'rggb': 'RGGB', 'bggr': 'BGGR', 'gbrg': 'GBRG', 'grbg': 'GRBG'}


def message(pixels, encoding, padding=0, wrap=bytes, is_bigendian=0):
    """Return all fields of a sensor_msgs/Image that count; pixels (rows, W) or (rows, W, C)."""
    rows = np.pad(pixels.reshape(len(pixels), -1).view(np.uint8), ((0, 0), (0, padding)), constant_values=7)
    return SimpleNamespace(
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=is_bigendian,
        step=rows.shape[1],
        data=wrap(rows.tobytes()),
    )


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def smooth(height=HEIGHT, width=WIDTH):
    """A colour image (H, W, 3) BGR uint8 whose colours change so slowly that chroma sub-sampling loses little."""
    y, x = np.mgrid[:height, :width]
    return np.stack([100 + x, 60 + 2 * y, 200 - x - y], axis=2).astype(np.uint8)


@pytest.mark.parametrize('padding', [0, 1, 9])
@pytest.mark.parametrize('name', CHANNELS)
def test_eight_bits_become_gray_or_bgr_and_padding_is_skipped(name, padding):
    pixels = noise(HEIGHT, WIDTH, CHANNELS[name])
    expected = pixels[:, :, 0] if name == 'mono' else pixels[:, :, TO_BGR[name]]
    result = to_array(message(pixels, f'{name}8', padding))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('is_bigendian', [0, 1])
@pytest.mark.parametrize('name', CHANNELS)
def test_sixteen_bits_are_stretched_by_their_content_in_either_byte_order(name, is_bigendian):
    # A thermal camera: a narrow range far from zero.
    pixels = (7000 + noise(HEIGHT, WIDTH, CHANNELS[name]).astype(int)).astype('>u2' if is_bigendian else '<u2')
    result = to_array(message(pixels, f'{name}16', padding=4, is_bigendian=is_bigendian))
    expected = pixels[:, :, 0] if name == 'mono' else pixels[:, :, TO_BGR[name]]
    assert result.dtype == np.uint8
    assert result.shape == expected.shape
    assert (result.min(), result.max()) == (0, 255)
    low, high = np.percentile(expected[::4, ::4], [0.5, 99.5])
    np.testing.assert_allclose(result, np.clip((expected - low) * 255 / (high - low), 0, 255), atol=0.51)


def test_a_hot_pixel_does_not_darken_the_rest():
    pixels = 7000 + noise(200, 200).astype(np.uint16)
    pixels[8, 8] = 65535
    image = SimpleNamespace(height=200, width=200, encoding='16UC1', is_bigendian=0, step=400, data=pixels.tobytes())
    assert to_array(image).std() > 60


@pytest.mark.parametrize('value', [0, 40000, 65535])
def test_sixteen_bits_without_contrast_stay_without(value):
    assert to_array(message(np.full((HEIGHT, WIDTH), value, np.uint16), 'mono16')).std() == 0


@pytest.mark.parametrize('is_bigendian', [0, 1])
def test_signed_and_float_images_are_stretched_as_well(is_bigendian):
    order = '>' if is_bigendian else '<'
    celsius = noise(HEIGHT, WIDTH) * 0.01 - 1.5
    for encoding, pixels in (
        ('16SC1', np.rint(celsius * 100).astype(f'{order}i2')),
        ('32FC1', celsius.astype(f'{order}f4')),
    ):
        result = to_array(message(pixels, encoding, padding=8, is_bigendian=is_bigendian))
        assert result.dtype == np.uint8
        low, high = np.percentile(pixels[::4, ::4].astype(float), [0.5, 99.5])
        expected = np.clip((pixels.astype(float) - low) * 255 / (high - low), 0, 255)
        np.testing.assert_allclose(result, expected, atol=0.51)


def test_signed_values_have_the_contrast_of_unsigned_ones():
    unsigned = 7000 + noise(HEIGHT, WIDTH).astype(np.uint16)
    signed = (unsigned.astype(int) - 7100).astype(np.int16)
    np.testing.assert_array_equal(to_array(message(signed, '16SC1')), to_array(message(unsigned, 'mono16')))


def test_what_is_no_number_is_black_and_what_is_infinite_black_or_white():
    pixels = noise(HEIGHT, WIDTH).astype(np.float32) * 0.1 + 20
    expected = to_array(message(pixels, '32FC1'))
    pixels[1, 1:4] = np.nan, np.inf, -np.inf  # none of them is in the sample of which the stretch is taken
    expected[1, 1:4] = 0, 255, 0
    np.testing.assert_array_equal(to_array(message(pixels, '32FC1')), expected)
    pixels[::4, ::4] = np.nan
    assert to_array(message(pixels, '32FC1')).max() == 0  # nothing is left to stretch by


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    'values', [(3.4e38, -3.4e38), (1e-45, 0), (5e-39, 1e-39), (np.inf, 1), (np.inf, -np.inf), (np.nan, 3.4e38), (0, 0)]
)
def test_floats_at_their_limits_give_an_image(values):
    pixels = np.tile(np.array(values, np.float32), (HEIGHT, WIDTH // 2))
    assert to_array(message(pixels, '32FC1')).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize('value', [0, -40, 36.6, 1e9])
def test_floats_without_contrast_stay_without(value):
    assert to_array(message(np.full((HEIGHT, WIDTH), value, np.float32), '32FC1')).std() == 0


def test_names_by_type_are_gray_bgr_and_bgra():
    for channels, name in {1: 'mono8', 3: 'bgr8', 4: 'bgra8'}.items():
        pixels = noise(HEIGHT, WIDTH, channels)
        np.testing.assert_array_equal(to_array(message(pixels, f'8UC{channels}')), to_array(message(pixels, name)))
    pixels = noise(HEIGHT, WIDTH, 2)
    np.testing.assert_array_equal(to_array(message(pixels, '8UC2')), pixels.mean(axis=2).round())


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', BAYER)
def test_bayer_patterns_give_the_colours_under_their_filters(pattern, bits):
    colour = {'B': 40, 'G': 120, 'R': 220}
    tile = np.array([colour[letter] for letter in BAYER[pattern]]).reshape(2, 2)
    mosaic = np.tile(tile, (HEIGHT // 2, WIDTH // 2)).astype(np.uint8 if bits == 8 else np.uint16)
    result = to_array(message(mosaic, f'bayer_{pattern}{bits}'))
    assert result.shape == (HEIGHT, WIDTH, 3)
    expected = [40, 120, 220] if bits == 8 else [0, round(80 / 180 * 255), 255]
    assert (abs(result.astype(int) - expected) <= 1).all()


def yuv(encoding):
    """Return `smooth` as the rows of a YUV encoding, made by OpenCV's planar I420."""
    planar = cv2.cvtColor(smooth(), cv2.COLOR_BGR2YUV_I420)
    y = planar[:HEIGHT]
    u, v = planar[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    if encoding in ('nv12', 'nv21'):
        order = (u, v) if encoding == 'nv12' else (v, u)
        return np.concatenate([y, np.stack(order, axis=2).reshape(HEIGHT // 2, WIDTH)])
    u, v = (np.repeat(plane, 2, axis=0) for plane in (u, v))
    if encoding == 'nv24':
        both = np.stack([np.repeat(plane, 2, axis=1) for plane in (u, v)], axis=2)
        return np.concatenate([y, both.reshape(HEIGHT * 2, WIDTH)])
    chroma = np.stack([u, v], axis=2).reshape(HEIGHT, WIDTH)
    return np.stack([chroma, y] if encoding in ('uyvy', 'yuv422') else [y, chroma], axis=2)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24'])
def test_yuv_gives_the_colours_back(encoding, padding):
    result = to_array(message(yuv(encoding), encoding, padding))
    assert result.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(result, smooth(), atol=4)


@pytest.mark.parametrize('padding', [0, 1, 6])
@pytest.mark.parametrize('width', [1, 3, 7])
@pytest.mark.parametrize('encoding', ['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2'])
def test_yuv_of_odd_width_gives_the_colours_back(encoding, width, padding):
    """OpenCV 4.5 and 4.6 read and write past the end of such an image, as cv_bridge lets them; later ones refuse it."""
    pixels = np.ascontiguousarray(yuv(encoding)[:, :width])
    image = message(pixels, encoding, padding)
    image.width = width
    result = to_array(image)
    assert result.shape == (HEIGHT, width, 3)
    np.testing.assert_array_equal(result[:, :-1], to_array(message(yuv(encoding), encoding))[:, : width - 1])
    # The last pixel misses one of its colours: that of the pixels before it stands in.
    np.testing.assert_allclose(result[:, -1], smooth()[:, width - 1], atol=6 if width > 1 else 255)


@pytest.mark.parametrize('encoding', ['mono8', '8UC1', 'bgr8', '8UC3'])
def test_what_needs_no_conversion_is_not_copied(encoding):
    pixels = noise(HEIGHT, WIDTH, 1 if encoding in ('mono8', '8UC1') else 3)
    image = message(pixels, encoding, padding=3, wrap=lambda data: array('B', data))
    assert np.shares_memory(to_array(image), np.frombuffer(image.data, np.uint8))


@pytest.mark.parametrize(
    'wrap', [bytes, bytearray, lambda data: array('B', data), lambda data: np.frombuffer(data, 'B')]
)
def test_data_may_be_any_buffer(wrap):
    pixels = noise(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(to_array(message(pixels, 'rgb8', wrap=wrap)), pixels[:, :, ::-1])


def test_a_real_message_is_understood():
    sensor_msgs = pytest.importorskip('sensor_msgs.msg', reason='ROS 2 is not installed')
    pixels = noise(HEIGHT, WIDTH, 4)
    image = sensor_msgs.Image(**vars(message(pixels, 'bgra8', 2, wrap=lambda data: array('B', data))))
    np.testing.assert_array_equal(to_array(image), pixels[:, :, :3])


@pytest.mark.parametrize('encoding', [name for name in ENCODINGS if name not in ('8UC2', 'nv12', 'nv21', 'nv24')])
def test_cv_bridge_sees_the_same(encoding):
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge is not installed: it comes with a full ROS 2 only')
    sensor_msgs = pytest.importorskip('sensor_msgs.msg')
    channels = 2 if 'yu' in encoding else CHANNELS.get(encoding.rstrip('0123456789'), 1)
    if encoding.startswith('8UC'):
        channels = int(encoding[3])
    sixteen = '8' not in encoding and 'yu' not in encoding
    pixels = noise(HEIGHT, WIDTH, channels, dtype=np.uint16 if sixteen else np.uint8)
    if encoding in ('16SC1', '32FC1'):
        pixels = pixels.astype(np.int16 if encoding == '16SC1' else np.float32)
    image = sensor_msgs.Image(**vars(message(pixels, encoding, wrap=lambda data: array('B', data))))
    gray = channels == 1 and 'bayer' not in encoding
    wanted = 'passthrough' if gray or encoding.startswith('8UC') else 'bgr16' if sixteen else 'bgr8'
    expected = cv_bridge.CvBridge().imgmsg_to_cv2(image, wanted)
    if sixteen:
        low, high = np.percentile(expected[::4, ::4], [0.5, 99.5])
        expected = np.clip((expected.astype(float) - low) * 255 / (high - low), 0, 255)
    np.testing.assert_allclose(to_array(image), expected.squeeze()[..., :3] if not gray else expected, atol=1)


@pytest.mark.parametrize(
    ('format', 'suffix', 'pixels', 'expected'),
    [
        ('jpeg', '.jpg', smooth(64, 64), smooth(64, 64)),
        ('rgb8; jpeg compressed bgr8', '.jpg', smooth(64, 64), smooth(64, 64)),
        ('mono8; jpeg compressed mono8', '.jpg', smooth(64, 64)[:, :, 0], smooth(64, 64)[:, :, 0]),
        ('png', '.png', noise(5, 9, 3), noise(5, 9, 3)),
        ('bgra8; png compressed bgra8', '.png', noise(5, 9, 4), noise(5, 9, 4)[:, :, :3]),
        ('mono8; png compressed mono8', '.png', noise(5, 9), noise(5, 9)),
        ('16UC1; png compressed 16UC1', '.png', 9000 + smooth(64, 64)[:, :, 0].astype(np.uint16), None),
        ('', '.png', noise(5, 9), noise(5, 9)),
    ],
)
def test_compressed_images_are_read_whatever_their_format_is_called(format, suffix, pixels, expected):
    data = cv2.imencode(suffix, pixels)[1].tobytes()
    result = to_array(SimpleNamespace(format=format, data=array('B', data)))
    assert result.dtype == np.uint8
    if expected is None:
        assert (result.min(), result.max()) == (0, 255)
    else:
        np.testing.assert_allclose(result, expected, atol=6 if suffix == '.jpg' else 0)


JPEG = cv2.imencode('.jpg', smooth(64, 64))[1].tobytes()
PNG = cv2.imencode('.png', noise(64, 64))[1].tobytes()


@pytest.mark.parametrize(
    ('format', 'data', 'complaint'),
    [
        ('jpeg', b'', "format 'jpeg': expected jpeg or png, got 0 other bytes"),
        ('jpeg', b'no picture', 'got 10 other bytes'),
        ('', b'no picture', "format 'no format'"),
        ('jpeg', JPEG[:-40], "format 'jpeg': the jpeg of .* bytes is truncated"),
        ('png', PNG[: len(PNG) // 2], 'the png of .* bytes is damaged or truncated'),
        ('jpeg', PNG[:30] + bytes(100) + PNG[-12:], 'the png of 142 bytes is damaged or truncated'),
        ('tiff', cv2.imencode('.tiff', noise(64, 64))[1].tobytes(), 'expected jpeg or png, got'),
        ('16UC1; compressedDepth png', bytes(12) + PNG, 'depth has no keypoints'),
    ],
    ids=['empty', 'text', 'no format', 'cut jpeg', 'cut png', 'damaged', 'tiff', 'depth'],
)
def test_compressed_images_that_cannot_be_read_are_named(format, data, complaint):
    with pytest.raises(ImageError, match=complaint):
        to_array(SimpleNamespace(format=format, data=data))


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', BAYER)
def test_a_compressed_mosaic_gives_the_pixels_of_the_raw_one(pattern, bits):
    mosaic = draw_scene(96, 128, 1)[:, :, 0]
    mosaic = mosaic if bits == 8 else mosaic.astype(np.uint16) * 100
    encoding = f'bayer_{pattern}{bits}'
    expected = to_array(
        SimpleNamespace(height=96, width=128, encoding=encoding, is_bigendian=0, step=16 * bits, data=mosaic.tobytes())
    )
    data = cv2.imencode('.png', mosaic)[1].tobytes()
    for format in (f'{encoding}; png compressed ', f'{encoding}; png compressed {encoding}'):
        result = to_array(SimpleNamespace(format=format, data=data))
        assert result.shape == (96, 128, 3)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(('target', 'pixels'), [('mono8', smooth(64, 64)[:, :, 0]), ('bgr8', smooth(64, 64))])
def test_a_mosaic_that_was_converted_before_its_compression_is_taken_as_it_is(target, pixels):
    data = cv2.imencode('.png', pixels)[1].tobytes()
    result = to_array(SimpleNamespace(format=f'bayer_rggb8; png compressed {target}', data=data))
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize('encoding', MASK_ENCODINGS)
def test_a_mask_allows_what_is_not_zero(encoding):
    wide = '16' in encoding
    values = noise(HEIGHT, WIDTH).astype(np.uint16 if wide else np.uint8) % 3 * (256 if wide else 1)
    np.testing.assert_array_equal(to_mask(message(values, encoding, padding=2)), (values > 0) * np.uint8(255))


def test_a_mask_has_one_channel():
    with pytest.raises(ImageError, match="'bgr8' is unknown: expected one of mono8, 8UC1, mono16, 16UC1"):
        to_mask(message(noise(HEIGHT, WIDTH, 3), 'bgr8'))


@pytest.mark.parametrize(
    ('changes', 'complaint'),
    [
        ({'encoding': '64FC1'}, "image encoding '64FC1' is unknown: expected one of mono8, bgr8, rgb8"),
        ({'encoding': ''}, "image encoding '' is unknown"),
        ({'width': 0}, 'image of 0 x 6 pixels is empty'),
        ({'height': 0, 'data': b''}, 'image of 8 x 0 pixels is empty'),
        ({'step': 7}, 'image step is 7 bytes: expected at least 8 for 8 pixels of mono8'),
        ({'step': 0}, 'image step is 0 bytes'),
        ({'encoding': 'rgb8'}, 'image step is 8 bytes: expected at least 24 for 8 pixels of rgb8'),
        ({'encoding': 'mono16'}, 'image step is 8 bytes: expected at least 16 for 8 pixels of mono16'),
        ({'encoding': 'nv12'}, 'image has 48 bytes: expected 72 for 9 rows of 8 bytes'),
        ({'encoding': '32FC1'}, 'image step is 8 bytes: expected at least 32 for 8 pixels of 32FC1'),
        ({'encoding': 'nv12', 'width': 7, 'height': 4}, 'image of 7 x 4 pixels: nv12 needs multiples of 2 x 2'),
        ({'data': bytes(34)}, 'image has 34 bytes: expected 48 for 6 rows of 8 bytes'),
        ({'data': b''}, 'image has 0 bytes: expected 48'),
        ({'step': 9}, 'image has 48 bytes: expected 54 for 6 rows of 9 bytes'),
        ({'width': 2**32 - 1, 'height': 2**32 - 1, 'step': 2**32 - 1}, 'image has 48 bytes: expected 18446744065'),
    ],
)
def test_fields_that_contradict_each_other_are_named(changes, complaint):
    image = message(noise(HEIGHT, WIDTH), 'mono8')
    vars(image).update(changes)
    with pytest.raises(ImageError, match=complaint):
        to_array(image)


@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('size', [(1, 1), (2, 2), (1, 64), (64, 1)])
def test_the_smallest_sizes_give_an_array_or_an_error_of_ours(encoding, size):
    width, height = size
    step = width * 8
    for rows in (height, height * 3 // 2, height * 3):
        image = SimpleNamespace(
            height=height, width=width, encoding=encoding, is_bigendian=0, step=step, data=bytes(step * rows)
        )
        with contextlib.suppress(ImageError):
            assert to_array(image).shape[:2] == (height, width)
