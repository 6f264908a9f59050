"""The calibration of one camera, from its CameraInfo messages."""

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.diagnostics import every_second
from edgepoint2_ros.node.offers import LatchedToo
from edgepoint2_ros.odometry.camera import Camera, image_window


class Calibration:
    """The camera that a topic of CameraInfo messages describes, whatever their QoS.

    Attributes:
        camera: None until a usable message has come, and after an unusable one.
        image_size: width, height of its images in pixels.
        info: the message they come from.
    """

    def __init__(self, node: Node, topic: str, rectified: bool, on_change: Callable[[], None]):
        """Subscribe.

        Args:
            node: an rclpy node.
            topic: as the node knows it.
            rectified: the images are; then P is their camera matrix, else K with distortion D.
            on_change: called after a message that differs from the last one.
        """
        self.camera: Camera | None = None
        self.image_size = 0, 0
        self.info: CameraInfo | None = None
        self._node, self._topic, self._rectified, self._on_change = node, topic, rectified, on_change
        self._known: tuple[Any, ...] | None = None  # what the latest message says about the images
        every_second(node, LatchedToo(node, CameraInfo, topic, self.take).adapt)

    def take(self, info: CameraInfo) -> None:
        """Take a message; one that describes no valid camera is logged."""
        numbers = np.concatenate([info.r, info.k, info.d, info.p]).tobytes()  # as bytes even NaN equals itself
        sizes = info.width, info.height, info.binning_x, info.binning_y, info.roi
        known = numbers, sizes, info.distortion_model
        if known == self._known:
            return
        self._known, self.info = known, info
        try:
            self.camera, self.image_size = read_camera(info, self._rectified)
        except EdgePoint2Error as error:
            self.camera = None
            self._node.get_logger().error(f'{self._topic} cannot be used: {error}')
        else:
            unused = {'K': info.k, 'D': info.d} if self._rectified else {'P': info.p}
            for name, numbers in unused.items():
                if not np.isfinite(numbers).all():
                    self._node.get_logger().warning(
                        f'{self._topic}: {name} is not finite, but is not needed: {np.array(numbers).tolist()}'
                    )
        self._on_change()

    def check_size(self, message: KeypointArray) -> None:
        """Raise EdgePoint2Error if a KeypointArray comes from an image of another size."""
        width, height = self.image_size
        if (message.image_width, message.image_height) != (width, height):
            raise EdgePoint2Error(
                f'keypoints of an image of {message.image_width}x{message.image_height} pixels do not belong to the '
                f'{self._topic} of {width}x{height}, with its ROI and binning'
            )


def read_camera(info: CameraInfo, rectified: bool) -> tuple[Camera, tuple[int, int]]:
    """Return the camera of the images that a CameraInfo describes, and their size: width, height in pixels.

    K and P refer to the full sensor. ROI and binning are applied as in fromCameraInfo of image_geometry's
    pinhole_camera_model.cpp, which ignores do_rectify: rectified images are the same window of P's image.

    Raises:
        EdgePoint2Error: the camera or the image size is invalid.
    """
    offset, size, binning = image_window(info)
    matrix = np.array(info.p if rectified else info.k).reshape(3, -1)[:, :3]
    matrix[:2, 2] -= offset
    matrix[:2] /= binning[:, None]
    camera = Camera(matrix) if rectified else Camera(matrix, np.array(info.d), info.distortion_model)
    return camera, tuple((size // binning).tolist())


def read_stereo(left: CameraInfo, right: CameraInfo, rectified: bool) -> np.ndarray:
    """Return the transform (4, 4) from the left camera's frame to the right one's.

    R rotates each camera into the rectified pair, whose baseline is P[3] / P[0], as CameraInfo.msg defines them.

    Raises:
        EdgePoint2Error: this is not the calibration of a stereo pair.
    """
    p = np.array(right.p).reshape(3, 4)
    focal = p.diagonal()[:2]
    if not np.isfinite(p).all() or not (focal > 0).all() or not p[:2, 3].any():
        raise EdgePoint2Error(
            'the right camera_info: expected P with -fx * baseline in its fourth column, as stereo calibrations have, '
            f'got {p.tolist()}'
        )
    motion = np.eye(4)
    motion[:2, 3] = p[:2, 3] / focal
    if rectified:
        return motion
    rotations = []
    for side, info in (('left', left), ('right', right)):
        rotation = np.array(info.r).reshape(3, 3)
        if not np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3:
            raise EdgePoint2Error(f'the {side} camera_info: expected a rotation as R, got {rotation.tolist()}')
        rotations.append(rotation)
    motion[:3, :3] = rotations[1].T @ rotations[0]
    motion[:3, 3] = rotations[1].T @ motion[:3, 3]
    return motion
