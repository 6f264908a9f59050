"""Camera messages and image files as arrays for the extractor."""

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.image_files import decode, format_of, load, turn_upright

# Images of more than 8 bits: these percentiles of the pixels become black and white, so a few hot or dead pixels do no
# harm.
STRETCH = (0.5, 99.5)


class _Encoding(NamedTuple):
    """The memory layout of an encoding, and OpenCV's conversion to BGR (None: it is gray or BGR already)."""

    channels: int
    conversion: int | None = None
    dtype: type = np.uint8
    even: bool = False  # width and height are multiples of 2
    rows: float = 1  # rows of data per image row: the chroma planes follow the luma plane


def _encodings() -> dict[str, _Encoding]:
    found = {
        'mono8': _Encoding(1),
        'bgr8': _Encoding(3),
        'rgb8': _Encoding(3, cv2.COLOR_RGB2BGR),
        'bgra8': _Encoding(4, cv2.COLOR_BGRA2BGR),
        'rgba8': _Encoding(4, cv2.COLOR_RGBA2BGR),
        '8UC1': _Encoding(1),
        '8UC2': _Encoding(2),
        '8UC3': _Encoding(3),
        '8UC4': _Encoding(4, cv2.COLOR_BGRA2BGR),
        # ROS names the four pixels from the corner, OpenCV the two of the second row from its second column.
        'bayer_rggb8': _Encoding(1, cv2.COLOR_BayerBG2BGR),
        'bayer_bggr8': _Encoding(1, cv2.COLOR_BayerRG2BGR),
        'bayer_gbrg8': _Encoding(1, cv2.COLOR_BayerGR2BGR),
        'bayer_grbg8': _Encoding(1, cv2.COLOR_BayerGB2BGR),
    }
    for name in ('mono', 'bgr', 'rgb', 'bgra', 'rgba', 'bayer_rggb', 'bayer_bggr', 'bayer_gbrg', 'bayer_grbg'):
        found[f'{name}16'] = found[f'{name}8']._replace(dtype=np.uint16)
    found['16UC1'] = found['mono16']
    found['16SC1'] = _Encoding(1, dtype=np.int16)
    found['32FC1'] = _Encoding(1, dtype=np.float32)
    found['uyvy'] = found['yuv422'] = _Encoding(2, cv2.COLOR_YUV2BGR_UYVY)
    found['yuyv'] = found['yuv422_yuy2'] = _Encoding(2, cv2.COLOR_YUV2BGR_YUY2)
    found['nv12'] = _Encoding(1, cv2.COLOR_YUV2BGR_NV12, even=True, rows=1.5)
    found['nv21'] = _Encoding(1, cv2.COLOR_YUV2BGR_NV21, even=True, rows=1.5)
    found['nv24'] = _Encoding(1, cv2.COLOR_YUV2BGR_NV12, even=True, rows=3)
    return found


_ENCODINGS = _encodings()
_YUV422 = (cv2.COLOR_YUV2BGR_UYVY, cv2.COLOR_YUV2BGR_YUY2)
ENCODINGS = tuple(_ENCODINGS)
MASK_ENCODINGS = ('mono8', '8UC1', 'mono16', '16UC1')


def to_array(message: Any) -> np.ndarray:
    """Return the pixels of a sensor_msgs/Image or sensor_msgs/CompressedImage as an array.

    Args:
        message: either, or any object with its fields (height, width, encoding, is_bigendian, step and data, or format
            and data); data is anything with the buffer protocol (array.array, bytes, ...). Padding at the end of rows
            is skipped.

    Returns:
        (H, W) uint8 for one channel or the mean of two, else (H, W, 3) uint8 in BGR order. Images of
        more bits are stretched: the STRETCH percentiles of their finite pixels become 0 and 255, NaN 0. 8-bit gray and
        BGR are views of the message's data.

    Raises:
        ImageError: the encoding or compression is not supported, the image has no pixels, or step or data does not
            fit its size.
    """
    if hasattr(message, 'format'):
        return _decompress(message)
    pixels = _pixels(message, ENCODINGS)
    encoding = _ENCODINGS[message.encoding]
    width, height = message.width, message.height
    if encoding.even and (width % 2 or height % 2):
        raise ImageError(f'image of {width} x {height} pixels: {message.encoding} needs multiples of 2 x 2')
    if message.encoding == 'nv24':
        pixels = _halve_colour(pixels, height, width)
    if width % 2 and encoding.conversion in _YUV422:
        pixels = _complete_last_pair(pixels)
    return _to_uint8(_to_bgr(pixels, message.encoding, width, height)[:, :width])


def to_mask(message: Any) -> np.ndarray:
    """Return a sensor_msgs/Image with one of the MASK_ENCODINGS as a mask (H, W) uint8, 255 where it is not zero.

    Raises:
        ImageError: as for `to_array`.
    """
    return (_pixels(message, MASK_ENCODINGS) != 0).astype(np.uint8) * 255


def _pixels(message: Any, allowed: tuple[str, ...]) -> np.ndarray:
    """Return a view of the data: (rows, W) or (rows, W, C), in the encoding's own type and order."""
    if message.encoding not in allowed:
        raise ImageError(f'image encoding {message.encoding!r} is unknown: expected one of {", ".join(allowed)}')
    encoding = _ENCODINGS[message.encoding]
    width, height, step = message.width, message.height, message.step
    if width == 0 or height == 0:
        raise ImageError(f'image of {width} x {height} pixels is empty')
    row_bytes = width * encoding.channels * np.dtype(encoding.dtype).itemsize
    if step < row_bytes:
        raise ImageError(
            f'image step is {step} bytes: expected at least {row_bytes} for {width} pixels of {message.encoding}'
        )
    data = np.frombuffer(message.data, np.uint8)
    rows = int(height * encoding.rows)
    if len(data) != step * rows:
        raise ImageError(f'image has {len(data)} bytes: expected {step * rows} for {rows} rows of {step} bytes')
    pixels = data.reshape(rows, step)[:, :row_bytes]
    if encoding.dtype != np.uint8:
        stored = np.dtype(encoding.dtype).newbyteorder('>' if message.is_bigendian else '<')
        pixels = np.ascontiguousarray(pixels).view(stored).astype(encoding.dtype, copy=False)
    return pixels if encoding.channels == 1 else pixels.reshape(rows, width, encoding.channels)


def _halve_colour(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return nv24 (3 H, W) as nv12 (1.5 H, W): OpenCV does not support nv24."""
    colour = np.ascontiguousarray(pixels[height:]).reshape(height, width, 2)[::2, ::2]
    return np.concatenate([pixels[:height], colour.reshape(height // 2, width)])


def _complete_last_pair(pixels: np.ndarray) -> np.ndarray:
    """Return yuv422 (H, W, 2) of odd width with one more column: OpenCV takes only pairs, or reads past the end.

    The last pixel has one of the two chroma values of a pair; the other comes from the pair before.
    """
    last = pixels[:, -2:-1] if pixels.shape[1] > 1 else np.full_like(pixels, 128)
    return np.concatenate([pixels, last], axis=1)


def _to_bgr(pixels: np.ndarray, encoding: str, width: int, height: int) -> np.ndarray:
    conversion = _ENCODINGS[encoding].conversion
    if conversion is None:
        return pixels
    try:
        return cv2.cvtColor(pixels, conversion)
    except cv2.error as error:
        raise ImageError(f'image of {width} x {height} pixels cannot be read as {encoding}: {error.err}') from None


def _decompress(message: Any) -> np.ndarray:
    data = bytes(message.data)
    name = message.format or 'no format'
    if 'compressedDepth' in name:
        raise ImageError(f'compressed image of format {name!r}: expected jpeg or png; depth has no keypoints')
    # Only these two: OpenCV reads a dozen more, which no camera sends.
    if format_of(data) not in ('jpeg', 'png'):
        raise ImageError(f'compressed image of format {name!r}: expected jpeg or png, got {len(data)} other bytes')
    try:
        pixels = _without_alpha(decode(data).pixels)
    except ImageError as error:
        raise ImageError(f'compressed image of format {name!r}: {error}') from None
    encoding = _encoding_of(name)
    if encoding.startswith('bayer_') and encoding in _ENCODINGS and pixels.ndim == 2:
        pixels = _to_bgr(pixels, encoding, pixels.shape[1], pixels.shape[0])
    return _to_uint8(pixels)


def _encoding_of(format: str) -> str:
    """Return the encoding before compression, or ''; image_transport omits it if it compressed the image unconverted.

    A format reads ``rgb8; jpeg compressed bgr8``, or ``bayer_rggb8; png compressed `` for a mosaic.
    """
    original, _, rest = format.partition(';')
    return rest.partition('compressed')[2].strip() or original.strip()


def read_image(path: str | Path, upright: bool = True) -> np.ndarray:
    """Return an image file as (H, W, 3) uint8 in BGR order, of any depth that OpenCV reads, without alpha.

    More than 8 bits are stretched as by `to_array`.

    Args:
        path: the file.
        upright: apply the EXIF orientation, as viewers do; COLMAP and hloc take the image as stored.

    Raises:
        ImageError: it is missing, not an image, damaged, truncated, or larger than OpenCV takes.
    """
    picture = load(path)
    pixels = turn_upright(picture.pixels, picture.orientation) if upright else picture.pixels
    pixels = _to_uint8(_without_alpha(pixels))
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, :, :3]) if pixels.ndim == 3 else pixels


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8:
        pixels = _stretch(pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels.mean(axis=2).round().astype(np.uint8)
    return pixels


def _stretch(pixels: np.ndarray) -> np.ndarray:
    """Return pixels of any type as uint8: the STRETCH percentiles become 0 and 255, and NaN becomes 0.

    The network subtracts the mean and divides by the deviation, so the scale does not matter.
    """
    sample = pixels[::4, ::4]
    sample = sample[np.isfinite(sample)].astype(np.float64)
    if len(sample) == 0:
        return np.zeros(pixels.shape, np.uint8)
    with np.errstate(over='ignore', invalid='ignore'):  # in floats that span all there is
        low, high = np.percentile(sample, STRETCH)
        span = max(high - low, 1) if pixels.dtype.kind in 'iu' else high - low
        scale = 255 / span if span > 0 else 0
        if pixels.dtype in (np.uint16, np.int16):
            # By a lookup table of all values.
            values = np.arange(2**16, dtype=np.uint16).view(pixels.dtype)
            return _scale(values, low, scale)[pixels.view(np.uint16)]
        return _scale(pixels, low, scale)


def _scale(values: np.ndarray, low: float, scale: float) -> np.ndarray:
    levels = (values.astype(np.float32 if values.dtype == np.float32 else np.float64) - low) * scale
    return np.rint(np.nan_to_num(np.clip(levels, 0, 255))).astype(np.uint8)
