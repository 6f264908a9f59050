"""The bridge to RTAB-Map's messages: their content, the format of descriptors, and what RTAB-Map would end at."""

import array
import struct
import sys
import zlib
from copy import deepcopy

import cv2
import numpy as np
import pytest

from edgepoint2_ros.bridges.rtabmap import pack_descriptors, to_responses, to_rtabmap
from edgepoint2_ros.errors import EdgePoint2Error, ImageError, MessageError
from edgepoint2_ros.features import Features
from edgepoint2_ros.messages import decode
from edgepoint2_ros.places import Vocabulary


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


def test_responses_rank_keypoints_as_scores_do_and_are_not_negative():
    responses = to_responses(np.array([-5, -1, 0, 3, 40], np.float32))
    assert responses.dtype == np.float32
    assert (np.diff(responses) > 0).all() and responses[0] > 0
    np.testing.assert_allclose(responses, np.log1p(np.exp([-5.0, -1, 0, 3, 40])), rtol=1e-6)


class Frame:
    """The messages of one moment: keypoints, image, depth, right image and calibrations."""

    def __init__(self):
        from sensor_msgs.msg import CameraInfo
        from std_msgs.msg import Header

        from edgepoint2_ros.messages import encode

        header = Header(frame_id='camera')
        header.stamp.sec = 5
        self.header = header
        xy = np.array([[1.5, 2.5], [100, 200], [639, 479]], np.float32)
        scores, rows = np.array([3, 2, -1], np.float32), np.eye(3, 32, dtype=np.float32)
        self.keypoints = encode(Features(xy, scores, rows, (640, 480), 'T-32', 'a'), deepcopy(header), 'int8')
        self.rgb = self.image('mono8', np.zeros((480, 640), np.uint8))
        self.depth = self.image('16UC1', np.ones((480, 640), np.uint16))
        self.right = self.image('mono8', np.zeros((480, 640), np.uint8))
        self.info = CameraInfo(header=deepcopy(header), width=640, height=480, distortion_model='plumb_bob')
        self.info.d = array.array('d', [0.0] * 5)
        self.info.k[:] = [500, 0, 320, 0, 500, 240, 0, 0, 1]
        self.info.p[:] = [500, 0, 320, 0, 0, 500, 240, 0, 0, 0, 1, 0]
        self.right_info = deepcopy(self.info)
        self.right_info.p[3] = -60.0

    def image(self, encoding: str, pixels: np.ndarray):
        from sensor_msgs.msg import Image

        height, width = pixels.shape[:2]
        step = pixels.nbytes // height if height else 0
        data = array.array('B', pixels.tobytes())
        return Image(header=deepcopy(self.header), width=width, height=height, encoding=encoding, step=step, data=data)

    def compressed(self, suffix: str, format: str, pixels: np.ndarray, before: bytes = b''):
        from sensor_msgs.msg import CompressedImage

        data = array.array('B', before + cv2.imencode(suffix, pixels)[1].tobytes())
        return CompressedImage(header=deepcopy(self.header), format=format, data=data)


def set_descriptors(frame: Frame, rows: np.ndarray) -> None:
    """Set the descriptors of the keypoints to rows (N, D), as float32."""
    frame.keypoints.descriptor_encoding, frame.keypoints.descriptor_size = 0, rows.shape[1]
    frame.keypoints.descriptors = array.array('B', rows.astype(np.float32).tobytes())


@pytest.fixture
def frame():
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    return Frame()


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
def test_an_rgbd_image_holds_the_image_its_depth_and_its_keypoints(frame):
    result = to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth)
    assert (result.header, result.rgb, result.depth) == (frame.rgb.header, frame.rgb, frame.depth)
    assert result.rgb_camera_info is result.depth_camera_info is frame.info
    assert [(point.pt.x, point.pt.y) for point in result.key_points] == [(1.5, 2.5), (100.0, 200.0), (639.0, 479.0)]
    assert [point.response for point in result.key_points] == to_responses([3, 2, -1]).tolist()
    packed = bytes(result.descriptors)
    assert struct.unpack('<iii', packed[-12:]) == (3, 32, 5)
    assert len(result.global_descriptor.data) == 0
    np.testing.assert_array_equal(np.frombuffer(zlib.decompress(packed[:-12]), '<f4').reshape(3, 32), np.eye(3, 32))


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
class TestTheGlobalDescriptor:
    @pytest.fixture
    def vocabulary(self):
        return Vocabulary('T-32', 'a', np.eye(2, 32, dtype=np.float32))

    def unpack(self, result):
        packed = bytes(result.global_descriptor.data)
        assert struct.unpack('<iii', packed[-12:]) == (1, 64, 5)  # rows, columns, CV_32FC1
        return np.frombuffer(zlib.decompress(packed[:-12]), '<f4')

    def test_is_the_place_of_the_image(self, frame, vocabulary):
        result = to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth, vocabulary=vocabulary)
        assert result.global_descriptor.type == 1
        np.testing.assert_array_equal(self.unpack(result), vocabulary.describe(decode(frame.keypoints)))

    def test_is_as_long_for_an_image_without_keypoints(self, frame, vocabulary):
        for name in ('x', 'y', 'score', 'descriptors'):
            del getattr(frame.keypoints, name)[:]
        result = to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth, vocabulary=vocabulary)
        assert not self.unpack(result).any()

    def test_is_refused_for_other_weights(self, frame, vocabulary):
        frame.keypoints.digest = 'b'
        with pytest.raises(EdgePoint2Error, match='places of different weights'):
            to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth, vocabulary=vocabulary)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
def test_a_message_without_keypoints_has_no_descriptors(frame):
    for name in ('x', 'y', 'score', 'descriptors'):
        del getattr(frame.keypoints, name)[:]
    result = to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth)
    assert (len(result.key_points), len(result.descriptors)) == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
def test_a_stereo_pair_has_two_calibrations(frame):
    result = to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.right, frame.right_info)
    assert (result.rgb, result.depth) == (frame.rgb, frame.right)
    assert (result.rgb_camera_info, result.depth_camera_info) == (frame.info, frame.right_info)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
@pytest.mark.parametrize('encoding', ['16UC1', 'mono16', '32FC1'])
@pytest.mark.parametrize('shape', [(480, 640), (240, 320), (60, 80)])
def test_depth_may_be_a_whole_part_of_the_image(encoding, shape, frame):
    depth = frame.image(encoding, np.ones(shape, np.float32 if encoding == '32FC1' else np.uint16))
    assert to_rtabmap(frame.keypoints, frame.rgb, frame.info, depth).depth is depth


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
@pytest.mark.parametrize(('suffix', 'format'), [('.jpg', 'bgr8; jpeg compressed bgr8'), ('.png', 'png')])
def test_compressed_images_travel_on_as_they_are(suffix, format, frame):
    colour = frame.compressed(suffix, format, np.zeros((480, 640, 3), np.uint8))
    depth = frame.compressed('.png', '16UC1; png compressed', np.full((480, 640), 1500, np.uint16))
    result = to_rtabmap(frame.keypoints, colour, frame.info, depth)
    assert (result.rgb_compressed, result.depth_compressed) == (colour, depth)
    assert (len(result.rgb.data), len(result.depth.data), len(result.key_points)) == (0, 0, 3)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
def test_a_compressed_image_of_another_size_or_none_at_all_is_refused(frame):
    small = frame.compressed('.jpg', 'jpeg', np.zeros((240, 320), np.uint8))
    with pytest.raises(MessageError, match=r'differ in their size: \(320, 240\) and \(640, 480\)'):
        to_rtabmap(frame.keypoints, small, frame.info, frame.depth)
    half = frame.compressed('.jpg', 'jpeg', np.zeros((480, 640), np.uint8))
    half.data = half.data[: len(half.data) // 2]
    with pytest.raises(ImageError):
        to_rtabmap(frame.keypoints, half, frame.info, frame.depth)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda f: setattr(f.keypoints.header.stamp, 'sec', 6), 'image and keypoints differ in their stamp'),
        (lambda f: setattr(f.keypoints, 'image_width', 320), r'differ in their size: \(640, 480\) and \(320, 480\)'),
        (lambda f: setattr(f.rgb, 'encoding', 'yuv422'), "image: expected one of 8UC1, .*, got 'yuv422'"),
        (lambda f: setattr(f.rgb, 'data', f.rgb.data[:-1]), 'image: 640x480 pixels .* do not fit 307199 bytes'),
        (lambda f: setattr(f.rgb, 'step', 320), 'image: 640x480 pixels of mono8 in rows of 320 bytes'),
        (lambda f: setattr(f.depth, 'data', array.array('B')), 'depth: 640x480 pixels of 16UC1 .* do not fit 0 bytes'),
        (lambda f: setattr(f.depth, 'encoding', '64FC1'), "depth: expected one of 16UC1, mono16, 32FC1, got '64FC1'"),
        (lambda f: setattr(f, 'depth', f.image('16UC1', np.ones((480, 600), np.uint16))), 'whole part, got 600x480'),
        (lambda f: setattr(f, 'depth', f.image('16UC1', np.ones((240, 640), np.uint16))), 'whole part, got 640x240'),
        (lambda f: setattr(f, 'depth', f.image('16UC1', np.ones((960, 1280), np.uint16))), 'whole part, got 1280x960'),
        (lambda f: setattr(f, 'depth', f.image('16UC1', np.ones((0, 0), np.uint16))), 'depth: 0x0 pixels'),
        (lambda f: setattr(f.info, 'width', 320), 'camera_info: expected one of 640x480 pixels, got 320x480'),
        (lambda f: setattr(f.info, 'd', array.array('d', [0.0] * 3)), 'coefficients D, got 3'),
        (lambda f: f.info.k.__setitem__(0, np.nan), 'K, D, R or P is not finite'),
        (lambda f: f.keypoints.x.__setitem__(0, 1e6), r'positions in the image of 640x480 pixels, got \(1e\+06, 2.5\)'),
        (lambda f: f.keypoints.y.__setitem__(1, -5000.0), r'positions in the image of .*, got \(100, -5000\)'),
        (lambda f: f.keypoints.y.__setitem__(2, 479.6), r'positions in the image of .*, got \(639, 479.6\)'),
        (lambda f: f.keypoints.x.__setitem__(0, np.nan), r'positions in the image of .*, got \(nan, 2.5\)'),
        (lambda f: set_descriptors(f, np.full((3, 32), np.nan)), 'expected finite numbers, .*, got 32 each'),
        (lambda f: set_descriptors(f, np.zeros((3, 0))), 'at least 1 each, got 0 each'),
        (lambda f: f.info.p.__setitem__(0, 0.0), r'focal lengths P\[0\] and P\[5\] above 0, got 0.0 and 500.0'),
    ],
)
def test_what_rtabmap_would_end_at_is_refused(change, words, frame):
    change(frame)
    with pytest.raises(MessageError, match=words):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
def test_a_right_image_without_a_baseline_is_refused(frame):
    with pytest.raises(MessageError, match="depth: expected one of 16UC1, mono16, 32FC1, got 'mono8'"):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.right)
    with pytest.raises(MessageError, match=r'expected P\[3\] below 0, .*, got 0.0'):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.right, frame.info)
    smaller = frame.image('mono8', np.zeros((240, 320), np.uint8))
    with pytest.raises(MessageError, match='right image: expected 640x480, got 320x240'):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, smaller, frame.right_info)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
@pytest.mark.parametrize(
    ('encoding', 'pixels'),
    [
        ('mono16', np.zeros((480, 640), np.uint16)),
        ('16UC1', np.zeros((480, 640), np.uint16)),
        ('32FC1', np.zeros((480, 640), np.float32)),
        ('bayer_grbg8', np.zeros((480, 640), np.uint8)),
    ],
)
def test_a_right_image_that_rtabmap_would_take_for_depth_or_not_read_is_refused(encoding, pixels, frame):
    right = frame.image(encoding, pixels)
    words = f"right image: expected one of 8UC1, mono8, bgr8, rgb8, bgra8, rgba8, got '{encoding}'"
    with pytest.raises(MessageError, match=words):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, right, frame.right_info)
    compressed = frame.compressed('.png', 'png', pixels.astype(np.uint16))
    with pytest.raises(MessageError, match="right image: expected a sensor_msgs/Image, got a compressed one of 'png'"):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, compressed, frame.right_info)


@pytest.mark.slow
@pytest.mark.usefixtures('rtabmap_msgs')
@pytest.mark.parametrize(
    ('dtype', 'suffix', 'format', 'before'),
    [
        (np.uint16, '.png', '16UC1; compressedDepth png', bytes(12)),  # the header of image_transport
        (np.uint8, '.png', 'mono8; png compressed', b''),
        (np.uint8, '.jpg', 'mono8; jpeg compressed', b''),
    ],
)
def test_compressed_depth_that_rtabmap_would_end_at_is_refused(dtype, suffix, format, before, frame):
    depth = frame.compressed(suffix, format, np.ones((480, 640), dtype), before)
    with pytest.raises(MessageError, match=f"depth of format '{format}': expected a gray PNG of 16 bits, or"):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, depth)


def test_a_machine_without_rtabmap_is_told_what_is_missing(frame, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rtabmap_msgs.msg', None)
    with pytest.raises(EdgePoint2Error, match='rtabmap_msgs is not installed'):
        to_rtabmap(frame.keypoints, frame.rgb, frame.info, frame.depth)
