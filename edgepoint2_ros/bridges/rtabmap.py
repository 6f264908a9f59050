"""A bridge to RTAB-Map: keypoints and descriptors as rtabmap_msgs/RGBDImage carries them.

RTAB-Map matches descriptors of one byte a number by Hamming distance, so they travel as float32, whatever encoding they
came in. It compresses them by zlib and appends rows, columns and OpenCV's type (rtabmap/core/Compression.h).
"""

import array
import zlib
from importlib import import_module

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error, MessageError
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import decode

CV_32FC1 = 5  # OpenCV's number of the type
SIZE = 8.0  # pixels across what a keypoint describes; EdgePoint2 knows one scale only


def to_rtabmap(keypoints, rgb, camera_info, depth=None, depth_camera_info=None, messages=None):
    """Return the rtabmap_msgs/RGBDImage of one image and its keypoints.

    Args:
        keypoints: the KeypointArray of the image.
        rgb: the sensor_msgs/Image, or the sensor_msgs/CompressedImage, which travels on as it is.
        camera_info: its sensor_msgs/CameraInfo.
        depth: sensor_msgs/Image registered to it, or the right image of a stereo pair; none for one camera alone. Depth
            may also come as a CompressedImage that holds a PNG of 16 bits.
        depth_camera_info: of ``depth``, by default ``camera_info``.
        messages: what holds RGBDImage, KeyPoint and Point2f; by default the module rtabmap_msgs.msg.

    Raises:
        EdgePoint2Error: rtabmap_msgs is not installed.
        MessageError: keypoints and image do not belong together, the keypoints contradict themselves, or the depth is
            compressed in a way that RTAB-Map does not read.
        ImageError: a compressed image cannot be read.
    """
    if messages is None:
        try:
            messages = import_module('rtabmap_msgs.msg')
        except ImportError:
            raise EdgePoint2Error(
                'rtabmap_msgs is not installed: sudo apt install ros-$ROS_DISTRO-rtabmap-msgs'
            ) from None
    for name, theirs, ours in (
        ('stamp', rgb.header.stamp, keypoints.header.stamp),
        ('size', _size(rgb), (keypoints.image_width, keypoints.image_height)),
    ):
        if theirs != ours:
            raise MessageError(f'image and keypoints differ in their {name}: {theirs} and {ours}')
    features = decode(keypoints)
    result = messages.RGBDImage()
    result.header = rgb.header
    result.rgb_camera_info = camera_info
    setattr(result, 'rgb_compressed' if _is_compressed(rgb) else 'rgb', rgb)
    if depth is not None:
        if _is_compressed(depth):
            _check_depth(depth)
        result.depth_camera_info = depth_camera_info or camera_info
        setattr(result, 'depth_compressed' if _is_compressed(depth) else 'depth', depth)
    result.key_points = [
        messages.KeyPoint(
            pt=messages.Point2f(x=x, y=y), size=SIZE, angle=-1.0, response=response, octave=0, class_id=-1
        )
        for (x, y), response in zip(features.xy.tolist(), to_responses(features.scores).tolist())
    ]
    result.descriptors = array.array('B', pack_descriptors(features.descriptors))
    return result


def _is_compressed(image) -> bool:
    return hasattr(image, 'format')


def _size(image) -> tuple[int, int]:
    """Return width and height; a compressed image does not say them."""
    return to_array(image).shape[1::-1] if _is_compressed(image) else (image.width, image.height)


def _check_depth(depth) -> None:
    """Refuse what RTAB-Map would stop at: it takes a whole PNG of 16 bits (rtabmap_conversions/MsgConversion.cpp)."""
    head = bytes(depth.data[:26])
    # A PNG's first chunk says bits and kind of colour; gray is 0. compressedDepth puts a header of its own before it.
    if not head.startswith(b'\x89PNG\r\n\x1a\n') or tuple(head[24:26]) != (16, 0):
        raise MessageError(
            f'depth of format {depth.format!r}: expected a gray PNG of 16 bits, or a sensor_msgs/Image as '
            f'`ros2 run image_transport republish` makes it'
        )


def to_responses(scores: np.ndarray) -> np.ndarray:
    """Return scores (N,) as responses (N,) float32 in the same order, none of them negative.

    Scores are logits and may be negative; RTAB-Map keeps the keypoints whose response is the largest in absolute value
    (Feature2D::limitKeypoints).
    """
    return np.logaddexp(0, scores, dtype=np.float32)


def pack_descriptors(descriptors: np.ndarray) -> bytes:
    """Return descriptors (N, D) float32 as RTAB-Map compresses a matrix; nothing for none."""
    if len(descriptors) == 0:
        return b''
    rows = np.ascontiguousarray(descriptors, '<f4')
    return zlib.compress(rows.tobytes()) + np.array([*rows.shape, CV_32FC1], '<i4').tobytes()
