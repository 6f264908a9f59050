"""A bridge to RTAB-Map: keypoints and descriptors in rtabmap_msgs/RGBDImage.

RTAB-Map matches 8-bit descriptors by Hamming distance, so they are sent as float32, whatever encoding they came in. It
compresses them with zlib and appends rows, columns and OpenCV's type (rtabmap/core/Compression.h).
"""

import array
import struct
import zlib
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error, MessageError
from edgepoint2_ros.features import Features
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import decode
from edgepoint2_ros.places import Vocabulary

CV_32FC1 = 5  # OpenCV's number of the type
# The encodings that it reads, and their bytes per pixel (rtabmap_conversions/MsgConversion.cpp).
IMAGES = {'8UC1': 1, 'mono8': 1, 'mono16': 2, 'bgr8': 3, 'rgb8': 3, 'bgra8': 4, 'rgba8': 4, 'bayer_grbg8': 1}
# Of a right image it does not read all of these, and may take mono16 for depth.
RIGHT_IMAGES = {name: size for name, size in IMAGES.items() if name not in ('mono16', 'bayer_grbg8')}
DEPTHS = {'16UC1': 2, 'mono16': 2, '32FC1': 4}
COEFFICIENTS = 0, 4, 5, 6, 8, 12, 14  # allowed numbers of distortion coefficients (CameraModel.cpp)
GLOBAL_DESCRIPTOR = 1  # its type, as RTAB-Map numbers that of a descriptor written in Python
SIZE = 8.0  # diameter of a keypoint in pixels; EdgePoint2 has only one scale


def import_messages() -> ModuleType:
    """Return the module rtabmap_msgs.msg.

    Raises:
        EdgePoint2Error: it is not installed.
    """
    try:
        return import_module('rtabmap_msgs.msg')
    except ImportError as error:
        raise EdgePoint2Error(
            f'rtabmap_msgs is not installed ({error}): sudo apt install ros-$ROS_DISTRO-rtabmap-msgs'
        ) from None


def to_rtabmap(
    keypoints: Any,
    rgb: Any,
    camera_info: Any,
    depth: Any,
    depth_camera_info: Any = None,
    messages: Any = None,
    vocabulary: Vocabulary | None = None,
) -> Any:
    """Return the rtabmap_msgs/RGBDImage of one image, its keypoints and its depth or right image.

    Input that would crash RTAB-Map is refused.

    Args:
        keypoints: the KeypointArray of the image.
        rgb: the sensor_msgs/Image, or the sensor_msgs/CompressedImage, which is passed on unchanged.
        camera_info: its sensor_msgs/CameraInfo.
        depth: sensor_msgs/Image registered to it, of the same size or an integer fraction of it, or the right image of
            a rectified stereo pair. Depth may also be a CompressedImage with a 16-bit PNG.
        depth_camera_info: of the right image; None means that ``depth`` is depth.
        messages: where RGBDImage, KeyPoint and Point2f are; by default the module rtabmap_msgs.msg.
        vocabulary: of the keypoints' weights, for a global descriptor; None for none. RTAB-Map aborts if one node of
            its map has one and another has none, or one of another length.

    Raises:
        EdgePoint2Error: rtabmap_msgs is not installed, or the vocabulary is from other weights.
        MessageError: keypoints, images and calibrations do not belong together, or one contradicts itself or is of a
            kind that RTAB-Map does not read.
        ImageError: a compressed image cannot be read.
    """
    messages = messages or import_messages()
    size = _size(rgb, IMAGES, 'image')
    for name, theirs, ours in (
        ('stamp', rgb.header.stamp, keypoints.header.stamp),
        ('size', size, (keypoints.image_width, keypoints.image_height)),
    ):
        if theirs != ours:
            raise MessageError(f'image and keypoints differ in their {name}: {theirs} and {ours}')
    check_camera_info(camera_info, size, 'camera_info')
    if depth_camera_info is None:
        width, height = _size(depth, DEPTHS, 'depth')
        # RTAB-Map compares the integer quotients of widths and of heights.
        if not min(width, height) or size[0] % width or size[1] % height or size[0] // width != size[1] // height:
            raise MessageError(f'depth: expected {size[0]}x{size[1]} pixels or a whole part, got {width}x{height}')
    else:
        if _is_compressed(depth):
            raise MessageError(f'right image: expected a sensor_msgs/Image, got a compressed one of {depth.format!r}')
        if _size(depth, RIGHT_IMAGES, 'right image') != size:
            raise MessageError(f'right image: expected {size[0]}x{size[1]}, got {depth.width}x{depth.height}')
        check_camera_info(depth_camera_info, size, 'camera_info of the right image')
        if not depth_camera_info.p[3] < 0:
            raise MessageError(
                f'camera_info of the right image: expected P[3] below 0, which is -fx times the baseline, got '
                f'{depth_camera_info.p[3]}'
            )
    features = decode(keypoints)
    check_keypoints(features)
    result = messages.RGBDImage()
    result.header = rgb.header
    result.rgb_camera_info = camera_info
    result.depth_camera_info = depth_camera_info or camera_info
    setattr(result, 'rgb_compressed' if _is_compressed(rgb) else 'rgb', rgb)
    setattr(result, 'depth_compressed' if _is_compressed(depth) else 'depth', depth)
    result.key_points = [
        messages.KeyPoint(
            pt=messages.Point2f(x=x, y=y), size=SIZE, angle=-1.0, response=response, octave=0, class_id=-1
        )
        for (x, y), response in zip(features.xy.tolist(), to_responses(features.scores).tolist())
    ]
    result.descriptors = array.array('B', pack_descriptors(features.descriptors))
    if vocabulary is not None:
        result.global_descriptor.header = rgb.header
        result.global_descriptor.type = GLOBAL_DESCRIPTOR
        result.global_descriptor.data = array.array('B', pack_descriptors(vocabulary.describe(features)[None]))
    return result


def check_camera_info(info: Any, size: tuple[int, int], name: str) -> None:
    """Refuse a calibration that would crash RTAB-Map, or that it would take for none.

    Args:
        info: a sensor_msgs/CameraInfo.
        size: width and height of the images.
        name: of the calibration, for the error.

    Raises:
        MessageError: what is wrong.
    """
    if (info.width, info.height) != size:
        raise MessageError(f'{name}: expected one of {size[0]}x{size[1]} pixels, got {info.width}x{info.height}')
    if len(info.d) not in COEFFICIENTS:
        raise MessageError(f'{name}: expected {COEFFICIENTS} coefficients D, got {len(info.d)}')
    if not np.isfinite(np.concatenate([info.k, info.d, info.r, info.p])).all():
        raise MessageError(f'{name}: K, D, R or P is not finite')
    if not min(info.p[0], info.p[5]) > 0:
        raise MessageError(
            f'{name}: expected focal lengths P[0] and P[5] above 0, got {info.p[0]} and {info.p[5]}: is it calibrated?'
        )


def check_keypoints(features: Features) -> None:
    """Refuse keypoints that would crash RTAB-Map: outside the image (generateKeypoints3DDepth in util3d_features.cpp).

    Raises:
        MessageError: one is not in the image, or descriptors have no numbers or are not finite.
    """
    width, height = features.image_size
    inside = (features.xy >= -0.5) & (features.xy <= (width - 0.5, height - 0.5))  # NaN is not
    if not inside.all():
        x, y = features.xy[~inside.all(axis=1)][0]
        raise MessageError(f'keypoints: expected positions in the image of {width}x{height} pixels, got ({x:g}, {y:g})')
    rows = features.descriptors
    if len(rows) and not (rows.shape[1] and np.isfinite(rows).all()):
        raise MessageError(f'descriptors: expected finite numbers, at least 1 each, got {rows.shape[1]} each')


def _is_compressed(image: Any) -> bool:
    return hasattr(image, 'format')


def _size(image: Any, encodings: dict[str, int], name: str) -> tuple[int, int]:
    """Return width and height of an image that RTAB-Map can read.

    Args:
        image: sensor_msgs/Image or CompressedImage.
        encodings: those that it reads, and their bytes per pixel.
        name: of the image, for the error.

    Raises:
        MessageError: it does not read that kind, or the fields contradict each other.
        ImageError: a compressed image cannot be read.
    """
    if _is_compressed(image):
        if encodings is DEPTHS:
            return _size_of_png(image)
        height, width = to_array(image).shape[:2]
        return width, height
    if image.encoding not in encodings:
        raise MessageError(f'{name}: expected one of {", ".join(encodings)}, got {image.encoding!r}')
    row = image.width * encodings[image.encoding]
    if image.step < row or len(image.data) < image.step * image.height or not row * image.height:
        raise MessageError(
            f'{name}: {image.width}x{image.height} pixels of {image.encoding} in rows of {image.step} bytes do not fit '
            f'{len(image.data)} bytes'
        )
    return image.width, image.height


def _size_of_png(depth: Any) -> tuple[int, int]:
    """Return width and height, and refuse what would crash RTAB-Map: it accepts only a 16-bit PNG.

    (uncompressImage in rtabmap_conversions/MsgConversion.cpp.)
    """
    head = bytes(depth.data[:26])
    # A PNG's first chunk has size, bit depth and colour type; gray is 0. compressedDepth puts its own header before it.
    if not head.startswith(b'\x89PNG\r\n\x1a\n') or tuple(head[24:26]) != (16, 0):
        raise MessageError(
            f'depth of format {depth.format!r}: expected a gray PNG of 16 bits, or a sensor_msgs/Image as '
            f'`ros2 run image_transport republish` makes it'
        )
    width, height = struct.unpack('>II', head[16:24])
    return width, height


def to_responses(scores: np.ndarray) -> np.ndarray:
    """Return scores (N,) as responses (N,) float32 in the same order, none of them negative.

    Scores are logits and may be negative; RTAB-Map keeps the keypoints whose response is the largest in absolute value
    (Feature2D::limitKeypoints).
    """
    return np.logaddexp(0, scores, dtype=np.float32)


def pack_descriptors(descriptors: np.ndarray) -> bytes:
    """Return descriptors (N, D) float32 in RTAB-Map's format of a compressed matrix; nothing for none."""
    if len(descriptors) == 0:
        return b''
    rows = np.ascontiguousarray(descriptors, '<f4')
    return zlib.compress(rows.tobytes()) + np.array([*rows.shape, CV_32FC1], '<i4').tobytes()
