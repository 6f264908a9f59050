"""The bridge to RTAB-Map: its format byte by byte, and its messages by their definitions."""

import array
import struct
import zlib
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgepoint2_ros.bridges.rtabmap import pack_descriptors, to_responses, to_rtabmap
from edgepoint2_ros.errors import EdgePoint2Error, ImageError, MessageError
from edgepoint2_ros.features import Features

# The fields of rtabmap_msgs, for a machine without it.
DEFINITIONS = {
    'Point2f': 'float32 x\nfloat32 y',
    'Point3f': 'float32 x\nfloat32 y\nfloat32 z',
    'KeyPoint': 'Point2f pt\nfloat32 size\nfloat32 angle\nfloat32 response\nint32 octave\nint32 class_id',
    'GlobalDescriptor': 'std_msgs/Header header\nint32 type\nuint8[] info\nuint8[] data',
    'RGBDImage': 'std_msgs/Header header\nsensor_msgs/CameraInfo rgb_camera_info\n'
    'sensor_msgs/CameraInfo depth_camera_info\nsensor_msgs/Image rgb\nsensor_msgs/Image depth\n'
    'sensor_msgs/CompressedImage rgb_compressed\nsensor_msgs/CompressedImage depth_compressed\n'
    'KeyPoint[] key_points\nPoint3f[] points\nuint8[] descriptors\nGlobalDescriptor global_descriptor',
}


def test_descriptors_are_compressed_as_rtabmap_expects_them():
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    packed = pack_descriptors(rows)
    assert struct.unpack('<iii', packed[-12:]) == (2, 3, 5)  # rows, columns, CV_32FC1
    assert zlib.decompress(packed[:-12]) == struct.pack('<6f', 0, 1, 2, 3, 4, 5)


def test_int8_descriptors_become_rows_of_float32():
    packed = pack_descriptors(np.ones((4, 32), np.int8))
    assert len(zlib.decompress(packed[:-12])) == 4 * 32 * 4


def test_no_descriptors_are_no_bytes():
    assert pack_descriptors(np.zeros((0, 32), np.float32)) == b''


@pytest.fixture
def image():
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    from sensor_msgs.msg import Image

    image = Image(width=640, height=480, encoding='mono8', step=640)
    image.header.frame_id, image.header.stamp.sec = 'camera', 5
    return image


@pytest.fixture
def keypoints(image):
    from edgepoint2_ros.messages import encode

    rows = np.eye(3, 32, dtype=np.float32)
    xy = np.array([[1.5, 2.5], [100, 200], [639, 479]], np.float32)
    features = Features(xy, np.array([3, 2, 1], np.float32), rows, (640, 480), 'T-32', 'a')
    return encode(features, deepcopy(image.header), 'int8')


def definitions():
    """Return RTAB-Map's messages as classes that rosbags makes from their definitions."""
    pytest.importorskip('rosbags', reason='rosbags is not installed')
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in DEFINITIONS.items():
        store.register(get_types_from_msg(text, f'rtabmap_msgs/msg/{name}'))
    classes = {name: store.types[f'rtabmap_msgs/msg/{name}'] for name in DEFINITIONS}
    fields = [line.split()[1] for line in DEFINITIONS['RGBDImage'].splitlines()]
    # Unlike rosidl's, these classes want every field at once.
    classes['RGBDImage'] = partial(classes['RGBDImage'], **dict.fromkeys(fields))
    return SimpleNamespace(**classes)


def test_an_rgbd_image_holds_the_image_and_its_keypoints(image, keypoints):
    from sensor_msgs.msg import CameraInfo

    info = CameraInfo(width=640, height=480)
    result = to_rtabmap(keypoints, image, info, depth=image, messages=definitions())
    assert (result.header, result.rgb, result.depth) == (image.header, image, image)
    assert result.rgb_camera_info is result.depth_camera_info is info
    assert [(point.pt.x, point.pt.y) for point in result.key_points] == [(1.5, 2.5), (100.0, 200.0), (639.0, 479.0)]
    assert [point.response for point in result.key_points] == to_responses([3, 2, 1]).tolist()
    packed = bytes(result.descriptors)
    assert struct.unpack('<iii', packed[-12:]) == (3, 32, 5)
    np.testing.assert_array_equal(np.frombuffer(zlib.decompress(packed[:-12]), '<f4').reshape(3, 32), np.eye(3, 32))


@pytest.fixture
def compress(image):
    from sensor_msgs.msg import CompressedImage

    def compress(pixels: np.ndarray, suffix: str, format: str, before: bytes = b'') -> CompressedImage:
        data = array.array('B', before + cv2.imencode(suffix, pixels)[1].tobytes())
        return CompressedImage(header=deepcopy(image.header), format=format, data=data)

    return compress


@pytest.mark.parametrize(('suffix', 'format'), [('.jpg', 'bgr8; jpeg compressed bgr8'), ('.png', 'png')])
def test_compressed_images_travel_on_as_they_are(suffix, format, compress, keypoints):
    from sensor_msgs.msg import CameraInfo

    colour = compress(np.zeros((480, 640, 3), np.uint8), suffix, format)
    depth = compress(np.full((480, 640), 1500, np.uint16), '.png', '16UC1; png compressed')
    result = to_rtabmap(keypoints, colour, CameraInfo(), depth, messages=definitions())
    assert (result.rgb, result.rgb_compressed, result.depth, result.depth_compressed) == (None, colour, None, depth)
    assert (result.header, len(result.key_points)) == (colour.header, 3)


def test_a_compressed_image_of_another_size_or_none_at_all_is_refused(compress, keypoints):
    with pytest.raises(MessageError, match=r'differ in their size: \(320, 240\) and \(640, 480\)'):
        to_rtabmap(keypoints, compress(np.zeros((240, 320), np.uint8), '.jpg', 'jpeg'), None, messages=definitions())
    half = compress(np.zeros((480, 640), np.uint8), '.jpg', 'jpeg')
    half.data = half.data[: len(half.data) // 2]
    with pytest.raises(ImageError):
        to_rtabmap(keypoints, half, None, messages=definitions())


@pytest.mark.parametrize(
    ('dtype', 'suffix', 'format', 'before'),
    [
        (np.uint16, '.png', '16UC1; compressedDepth png', bytes(12)),  # the header of image_transport
        (np.uint8, '.png', 'mono8; png compressed', b''),
        (np.uint8, '.jpg', 'mono8; jpeg compressed', b''),
    ],
)
def test_depth_that_rtabmap_would_stop_at_is_refused(dtype, suffix, format, before, image, compress, keypoints):
    depth = compress(np.ones((480, 640), dtype), suffix, format, before)
    with pytest.raises(MessageError, match=f"depth of format '{format}': expected a gray PNG of 16 bits, or"):
        to_rtabmap(keypoints, image, None, depth, messages=definitions())


def test_an_rgbd_image_fits_the_real_messages(image, keypoints):
    messages = pytest.importorskip('rtabmap_msgs.msg', reason='rtabmap_msgs is not installed')
    from sensor_msgs.msg import CameraInfo

    result = to_rtabmap(keypoints, image, CameraInfo(width=640, height=480))
    assert isinstance(result, messages.RGBDImage)
    assert len(result.key_points) == 3


def test_an_image_of_another_moment_or_size_is_refused(image, keypoints):
    keypoints.header.stamp.sec = 6
    with pytest.raises(MessageError, match='differ in their stamp'):
        to_rtabmap(keypoints, image, None, messages=definitions())
    keypoints.header.stamp.sec, keypoints.image_width = 5, 320
    with pytest.raises(MessageError, match=r'differ in their size: \(640, 480\) and \(320, 480\)'):
        to_rtabmap(keypoints, image, None, messages=definitions())


def test_a_machine_without_rtabmap_is_told_what_is_missing(image, keypoints):
    try:
        import rtabmap_msgs.msg  # noqa: F401
    except ImportError:
        with pytest.raises(EdgePoint2Error, match='rtabmap_msgs is not installed'):
            to_rtabmap(keypoints, image, None)
