"""Camera messages as arrays: what the extractor eats, from what a camera driver publishes."""

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError

# encoding: (channels, how OpenCV brings them to BGR)
_ENCODINGS = {
    'mono8': (1, None),
    'bgr8': (3, None),
    'rgb8': (3, cv2.COLOR_RGB2BGR),
    'bgra8': (4, cv2.COLOR_BGRA2BGR),
    'rgba8': (4, cv2.COLOR_RGBA2BGR),
}
ENCODINGS = tuple(_ENCODINGS)


def to_array(message) -> np.ndarray:
    """Return the pixels of a sensor_msgs/Image as an array.

    Args:
        message: a sensor_msgs/Image, or any object with its fields height, width, encoding, step and data; data is
            anything with the buffer protocol (array.array, bytes, ...). Padding at the end of rows is skipped.

    Returns:
        (H, W) uint8 for mono8, else (H, W, 3) uint8 in BGR order. mono8 and bgr8 are views of the message's data.

    Raises:
        ImageError: the encoding is not supported, the image has no pixels, or step or data does not fit its size.
    """
    if message.encoding not in _ENCODINGS:
        raise ImageError(f'image encoding {message.encoding!r} is unknown: expected one of {", ".join(ENCODINGS)}')
    channels, conversion = _ENCODINGS[message.encoding]
    width, height, step = message.width, message.height, message.step
    if width == 0 or height == 0:
        raise ImageError(f'image of {width} x {height} pixels is empty')
    if step < width * channels:
        raise ImageError(
            f'image step is {step} bytes: expected at least {width * channels} for {width} pixels of {message.encoding}'
        )
    data = np.frombuffer(message.data, np.uint8)
    if len(data) != step * height:
        raise ImageError(f'image has {len(data)} bytes: expected {step * height} for {height} rows of {step} bytes')
    rows = data.reshape(height, step)[:, : width * channels]
    if channels == 1:
        return rows
    pixels = rows.reshape(height, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)
