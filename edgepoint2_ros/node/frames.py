"""Coordinate frames of a robot: its rigid mounts from /tf_static, and its pose for /tf.

tf2_ros does this and more, but it is compiled code, which a ROS 2 from pip lacks; for a rigidly mounted camera a walk
up the tree is enough.
"""

from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import Pose, Transform, TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header

from edgepoint2_ros.errors import EdgePoint2Error


class Frames:
    """The frames that /tf_static describes, and a publisher on /tf."""

    def __init__(self, node: Node) -> None:
        """Subscribe to /tf_static and publish /tf, with the QoS of tf2_ros.

        Raises:
            EdgePoint2Error: tf2_msgs is not installed.
        """
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError as error:
            raise EdgePoint2Error(
                f'base_frame and publish_tf need tf2_msgs: sudo apt install ros-$ROS_DISTRO-tf2-msgs ({error})'
            ) from error
        self._type = TFMessage
        self._logger = node.get_logger()
        self._parents: dict[str, tuple[str, np.ndarray]] = {}  # by frame: its parent, and its pose in it
        self._publisher = node.create_publisher(TFMessage, '/tf', 100)
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(TFMessage, '/tf_static', self.take, latched)

    def take(self, message: Any) -> None:
        """Take the static transforms of a TFMessage; one that is not rigid is logged and left out."""
        for each in message.transforms:
            try:
                self._parents[each.child_frame_id] = each.header.frame_id, to_matrix(each.transform)
            except EdgePoint2Error as error:
                self._logger.error(f'/tf_static: {each.header.frame_id} -> {each.child_frame_id} ignored: {error}')

    def root(self, frame: str) -> tuple[str, np.ndarray]:
        """Return the root of a frame's tree, and the frame's pose in it: (4, 4)."""
        pose = np.eye(4)
        for _ in range(len(self._parents)):  # ends even if transforms form a cycle
            if frame not in self._parents:
                break
            frame, step = self._parents[frame]
            pose = step @ pose
        return frame, pose

    def find(self, target: str, source: str) -> np.ndarray | None:
        """Return the pose of frame ``source`` in frame ``target``, (4, 4), or None if no static transforms give it."""
        (target_root, target_pose), (source_root, source_pose) = self.root(target), self.root(source)
        return np.linalg.inv(target_pose) @ source_pose if target_root == source_root else None

    def send(self, header: Header, child: str, pose: Pose) -> None:
        """Publish the transform from the header's frame to a child frame whose pose in it is known."""
        transform = TransformStamped(header=header, child_frame_id=child)
        place, shift = pose.position, transform.transform.translation
        shift.x, shift.y, shift.z = place.x, place.y, place.z
        transform.transform.rotation = pose.orientation
        self._publisher.publish(self._type(transforms=[transform]))


def to_matrix(transform: Transform) -> np.ndarray:
    """Return a transform as a matrix (4, 4).

    Raises:
        EdgePoint2Error: its numbers are not finite, or its quaternion is not of unit length.
    """
    shift, turn = transform.translation, transform.rotation
    vector, w = np.array([turn.x, turn.y, turn.z]), turn.w
    matrix = np.eye(4)
    matrix[:3, 3] = shift.x, shift.y, shift.z
    # tf2 has the same tolerance.
    if not np.isfinite(matrix).all() or not abs(vector @ vector + w * w - 1) <= 0.01:
        raise EdgePoint2Error(f'expected finite numbers and a unit quaternion, got {matrix[:3, 3]} and {[*vector, w]}')
    sine = np.linalg.norm(vector)
    matrix[:3, :3] = cv2.Rodrigues(vector * 2 * np.arctan2(sine, w) / max(sine, 1e-12))[0]
    return matrix


def to_quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Return the unit quaternion (x, y, z, w), w not negative, of a rotation matrix (3, 3)."""
    # The eigenvector of this matrix with the largest eigenvalue; Bar-Itzhack, "New method for extracting the quaternion
    # from a rotation matrix", 2000.
    r = rotation
    matrix = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    quaternion = np.linalg.eigh(matrix)[1][:, -1]
    return tuple((quaternion if quaternion[3] >= 0 else -quaternion).tolist())
