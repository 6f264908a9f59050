"""Camera messages as arrays: what the extractor eats, from what a camera driver publishes."""

from typing import NamedTuple

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError

# 16-bit images: these percentiles of the pixels become black and white. A few hot or dead pixels then spoil nothing.
STRETCH = (0.5, 99.5)


class _Encoding(NamedTuple):
    """How an encoding lies in memory, and how OpenCV brings it to BGR (None: it is gray or BGR already)."""

    channels: int
    conversion: int | None = None
    dtype: type = np.uint8
    even: tuple[int, int] = (1, 1)  # width and height are multiples of this
    rows: float = 1  # rows of data for each row of the image: the planes of colour come below that of brightness


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
    found['uyvy'] = found['yuv422'] = _Encoding(2, cv2.COLOR_YUV2BGR_UYVY, even=(2, 1))
    found['yuyv'] = found['yuv422_yuy2'] = _Encoding(2, cv2.COLOR_YUV2BGR_YUY2, even=(2, 1))
    found['nv12'] = _Encoding(1, cv2.COLOR_YUV2BGR_NV12, even=(2, 2), rows=1.5)
    found['nv21'] = _Encoding(1, cv2.COLOR_YUV2BGR_NV21, even=(2, 2), rows=1.5)
    found['nv24'] = _Encoding(1, cv2.COLOR_YUV2BGR_NV12, even=(2, 2), rows=3)
    return found


_ENCODINGS = _encodings()
ENCODINGS = tuple(_ENCODINGS)
MASK_ENCODINGS = ('mono8', '8UC1', 'mono16', '16UC1')


def to_array(message) -> np.ndarray:
    """Return the pixels of a sensor_msgs/Image or sensor_msgs/CompressedImage as an array.

    Args:
        message: either, or any object with its fields (height, width, encoding, is_bigendian, step and data, or format
            and data); data is anything with the buffer protocol (array.array, bytes, ...). Padding at the end of rows
            is skipped.

    Returns:
        (H, W) uint8 for one or two channels (of which it takes the mean), else (H, W, 3) uint8 in BGR order. Images of
        16 bits are stretched: the STRETCH percentiles of their pixels become 0 and 255. 8-bit gray and BGR are views
        of the message's data.

    Raises:
        ImageError: the encoding or compression is not supported, the image has no pixels, or step or data does not
            fit its size.
    """
    if hasattr(message, 'format'):
        return _decompress(message)
    pixels = _pixels(message, ENCODINGS)
    encoding = _ENCODINGS[message.encoding]
    width, height = message.width, message.height
    if width % encoding.even[0] or height % encoding.even[1]:
        raise ImageError(
            f'image of {width} x {height} pixels: {message.encoding} needs multiples of {encoding.even[0]} x '
            f'{encoding.even[1]}'
        )
    if message.encoding == 'nv24':
        pixels = _halve_colour(pixels, height, width)
    return _to_uint8(_to_bgr(pixels, message.encoding, width, height))


def to_mask(message) -> np.ndarray:
    """Return a sensor_msgs/Image with one of the MASK_ENCODINGS as a mask (H, W) uint8, 255 where it is not zero.

    Raises:
        ImageError: as for `to_array`.
    """
    return (_pixels(message, MASK_ENCODINGS) != 0).astype(np.uint8) * 255


def _pixels(message, allowed: tuple[str, ...]) -> np.ndarray:
    """Return a view of the data: (rows, W) or (rows, W, C), uint8 or uint16, in the encoding's own order."""
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
    if encoding.dtype == np.uint16:
        order = '>' if message.is_bigendian else '<'
        pixels = np.ascontiguousarray(pixels).view(f'{order}u2').astype(np.uint16, copy=False)
    return pixels if encoding.channels == 1 else pixels.reshape(rows, width, encoding.channels)


def _halve_colour(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return nv24 (3 H, W) as nv12 (1.5 H, W): OpenCV knows no nv24."""
    colour = np.ascontiguousarray(pixels[height:]).reshape(height, width, 2)[::2, ::2]
    return np.concatenate([pixels[:height], colour.reshape(height // 2, width)])


def _to_bgr(pixels: np.ndarray, encoding: str, width: int, height: int) -> np.ndarray:
    conversion = _ENCODINGS[encoding].conversion
    if conversion is None:
        return pixels
    try:
        return cv2.cvtColor(pixels, conversion)
    except cv2.error as error:
        raise ImageError(f'image of {width} x {height} pixels cannot be read as {encoding}: {error.err}') from None


def _decompress(message) -> np.ndarray:
    data = np.frombuffer(message.data, np.uint8)
    kind = message.format or 'no format'
    if 'compressedDepth' in kind:
        raise ImageError(f'compressed image of format {kind!r}: expected jpeg or png; depth has no keypoints')
    begins, ends = data[:8].tobytes(), _end(data)
    # Only these two: OpenCV reads a dozen more, which no camera sends.
    if begins.startswith(b'\xff\xd8'):
        compression, is_whole = 'jpeg', ends.endswith(b'\xff\xd9')
    elif begins == b'\x89PNG\r\n\x1a\n':
        compression, is_whole = 'png', b'IEND' in ends
    else:
        raise ImageError(f'compressed image of format {kind!r}: expected jpeg or png, got {len(data)} other bytes')
    # OpenCV fills up what is missing of a truncated picture in gray; keypoints there would be inventions.
    if not is_whole:
        raise ImageError(f'compressed image of format {kind!r}: the {compression} of {len(data)} bytes has no end')
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # more pixels than OpenCV takes
        pixels = None
    if pixels is None:
        raise ImageError(f'compressed image of format {kind!r}: the {compression} of {len(data)} bytes is damaged')
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]
    encoding = _encoding_of(kind)
    if encoding.startswith('bayer_') and encoding in _ENCODINGS and pixels.ndim == 2:
        pixels = _to_bgr(pixels, encoding, pixels.shape[1], pixels.shape[0])
    return _to_uint8(np.ascontiguousarray(pixels))


def _end(data: np.ndarray) -> bytes:
    """Return the last bytes, at least a dozen, before the zeros with which some cameras fill up what they send."""
    length = 64
    while length < len(data) and not data[-length:].any():
        length *= 2
    return data[-2 * length :].tobytes().rstrip(b'\0')


def _encoding_of(format: str) -> str:
    """Return the encoding of what was compressed, or ''; image_transport leaves it out where it compressed as it was.

    A format is such as ``rgb8; jpeg compressed bgr8``, or ``bayer_rggb8; png compressed `` for a mosaic.
    """
    original, _, rest = format.partition(';')
    return rest.partition('compressed')[2].strip() or original.strip()


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        # The network subtracts the mean and divides by the deviation: any linear scale is the same to it.
        low, high = np.percentile(pixels[::4, ::4], STRETCH)
        levels = (np.arange(2**16) - low) * (255 / max(high - low, 1))
        pixels = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)[pixels]
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels.mean(axis=2).round().astype(np.uint8)
    return pixels
