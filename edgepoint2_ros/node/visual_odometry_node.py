"""The node visual_odometry: keypoints and a camera's calibration in, the camera's path out.

An example of a keypoint consumer; edgepoint2_ros.odometry does the work. docs/nodes/visual_odometry.md describes topics
and parameters.
"""

import cv2
import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import check_usable
from edgepoint2_ros.messages import decode, name_weights, to_nanoseconds
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.camera_info import Calibration
from edgepoint2_ros.node.diagnostics import LOG_PERIOD
from edgepoint2_ros.node.frames import Frames, to_quaternion
from edgepoint2_ros.node.parameters import VISUAL_ODOMETRY, AcceptsUnchanged, declare
from edgepoint2_ros.node.stamps import Stamps
from edgepoint2_ros.node.survival import Failures
from edgepoint2_ros.odometry import Camera, VisualOdometry

UNKNOWN = 1e6  # variance of unknown quantities
# The path starts level and facing along x, as in REP 103, whereas a camera looks along z.
AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)


class VisualOdometryNode(AcceptsUnchanged, Node):
    """Tracks the camera whose keypoints arrive.

    Attributes:
        failures: unexpected exceptions in its callbacks.
        calibration: of the camera.
        odometry: the VisualOdometry; None without a usable calibration.
    """

    def __init__(self) -> None:
        super().__init__('visual_odometry')
        self.failures = Failures(self)
        values = declare(self, VISUAL_ODOMETRY)
        self._odom_frame, self._base_frame = values['odom_frame'], values['base_frame']
        if self._odom_frame == self._base_frame:
            raise EdgePoint2Error(
                f'parameter base_frame: expected another frame than odom_frame, got {self._base_frame!r}'
            )
        self._publishes_tf = values['publish_tf']
        self._settings = {name: values[name] for name in ('start_depth', 'min_cosine', 'ratio')}
        self._pose_covariance = to_covariance(values['pose_covariance_diagonal'])
        self._twist_covariance = to_covariance(values['twist_covariance_diagonal'])
        self._path_length = values['path_length']
        self._path = Path()
        self.odometry: VisualOdometry | None = None
        self._weights = ''  # of the keypoints followed
        self._stamps = Stamps()
        self._last: tuple[int, np.ndarray] | None = None  # stamp and pose of the image before, if it has one
        self._frames = Frames(self) if self._base_frame or self._publishes_tf else None
        self._odometry_publisher = self.create_publisher(Odometry, 'odometry', 10)
        self._path_publisher = self.create_publisher(Path, 'path', 10)
        self.calibration = Calibration(self, 'camera_info', values['rectified'], self._take_camera)
        # Queues a second of images: a keyframe takes longer than other images. Reliable, because the middleware loses
        # best-effort messages that exceed its buffers (0.5 MB).
        self.create_subscription(KeypointArray, 'keypoints', self.take, QoSProfile(depth=30))

    def _take_camera(self) -> None:
        """Reset, with the camera that camera_info describes now."""
        camera = self.calibration.camera
        if camera is None:
            self.odometry = None
            return
        self._reset(camera)
        width, height = self.calibration.image_size
        self.get_logger().info(f'camera of {width}x{height} pixels: move it sideways to start')

    def _reset(self, camera: Camera) -> None:
        self.odometry = VisualOdometry(camera, **self._settings)
        self._path.poses.clear()
        self._last = None

    def take(self, message: KeypointArray) -> None:
        """Track the camera to the image of these keypoints."""
        if self.odometry is None:
            self.get_logger().warning('waiting for a usable camera_info', throttle_duration_sec=LOG_PERIOD)
            return
        try:
            self.calibration.check_size(message)
        except EdgePoint2Error as error:
            self.get_logger().error(str(error), throttle_duration_sec=LOG_PERIOD)
            return
        try:
            features = decode(message)
            check_usable(features)  # before it resets anything
            self._follow_time(to_nanoseconds(message.header.stamp), self.odometry.camera)
            self._follow_weights(features, self.odometry.camera)
            odometry = self.odometry
            before = odometry.state
            pose = odometry.track(features)
        except EdgePoint2Error as error:
            self.get_logger().warning(f'keypoints dropped: {error}', throttle_duration_sec=LOG_PERIOD)
            return
        except Exception as error:  # halfway: what is left of the map may fail every time
            self.failures.add(error)
            self._reset(self.odometry.camera)
            return
        if odometry.state != before:
            self.get_logger().info(f'{before} -> {odometry.state}: {odometry.tracked} points')
        pose = None if pose is None else self._locate(pose, message.header.frame_id)
        if pose is None:
            self._last = None
        else:
            self._publish(message.header, pose)

    def _follow_time(self, stamp: int, camera: Camera) -> None:
        """Reset if time jumps back: a recording or simulated time restarts.

        Raises:
            EdgePoint2Error: the stamp is only a little older than the last one.
        """
        older = self._stamps.take(stamp)
        if older:
            self._reset(camera)
            self.get_logger().warning(f'time jumps back by {older:.3f} s: resetting the map and the path')

    def _follow_weights(self, features: Features, camera: Camera) -> None:
        """Reset if the extractor changes its model: the descriptors cannot be compared with the map's."""
        last, self._weights = self._weights, name_weights(features)
        if last in ('', self._weights):
            return
        self._reset(camera)
        self.get_logger().warning(
            f'keypoints of {self._weights} follow those of {last}: resetting the map', throttle_duration_sec=LOG_PERIOD
        )

    def _locate(self, pose: np.ndarray, camera: str) -> np.ndarray | None:
        """Return the pose (4, 4) of the tracked frame in odom_frame; None if the camera's mount is unknown.

        Args:
            pose: (4, 4) of the camera, as VisualOdometry.track gives it.
            camera: the camera's optical frame.
        """
        if self._frames is None or self._base_frame in ('', camera):
            return AHEAD @ pose
        mount = self._frames.find(self._base_frame, camera)
        if mount is None:
            self.get_logger().warning(
                f'no odometry: /tf_static does not connect {self._base_frame} with {camera!r}, the frame of the images',
                throttle_duration_sec=LOG_PERIOD,
            )
            return None
        return mount @ pose @ np.linalg.inv(mount)

    def _publish(self, header: Header, pose: np.ndarray) -> None:
        """Publish the pose (4, 4) of the tracked frame in odom_frame."""
        stamp = to_nanoseconds(header.stamp)
        last, self._last = self._last, (stamp, pose)
        odometry = Odometry(child_frame_id=self._base_frame or header.frame_id)
        odometry.header.stamp, odometry.header.frame_id = header.stamp, self._odom_frame
        place, turn = odometry.pose.pose.position, odometry.pose.pose.orientation
        place.x, place.y, place.z = pose[:3, 3].tolist()
        turn.x, turn.y, turn.z, turn.w = to_quaternion(pose[:3, :3])
        odometry.pose.covariance = self._pose_covariance
        if last is None or stamp <= last[0]:
            odometry.twist.covariance = to_covariance([UNKNOWN] * 6)
        else:
            linear, angular = odometry.twist.twist.linear, odometry.twist.twist.angular
            velocity = to_velocity(last[1], pose, (stamp - last[0]) * 1e-9).tolist()
            linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = velocity
            odometry.twist.covariance = self._twist_covariance
        self._odometry_publisher.publish(odometry)
        if self._publishes_tf and self._frames is not None:
            self._publish_tf(self._frames, odometry)
        self._path.header = odometry.header
        self._path.poses.append(PoseStamped(header=odometry.header, pose=odometry.pose.pose))
        del self._path.poses[: max(0, len(self._path.poses) - self._path_length)]
        if self._path_publisher.get_subscription_count():
            self._path_publisher.publish(self._path)

    def _publish_tf(self, frames: Frames, odometry: Odometry) -> None:
        child = odometry.child_frame_id
        root, _ = frames.root(child)
        if child and child == root:
            frames.send(odometry.header, child, odometry.pose.pose)
            return
        reason = f'{child} has a parent in the tree of {root}, and a frame has only one' if child else 'it has no name'
        self.get_logger().error(
            f'no transform to the frame of the odometry: {reason}; set base_frame', throttle_duration_sec=LOG_PERIOD
        )


def to_covariance(diagonal: list[float]) -> np.ndarray:
    """Return the covariance (36,) of a pose or twist message with these 6 variances."""
    return np.diag(np.array(diagonal, float)).ravel()


def to_velocity(before: np.ndarray, now: np.ndarray, seconds: float) -> np.ndarray:
    """Return the mean velocity between two poses (4, 4) of a frame, in the axes of the current one.

    (6,): linear, x, y, z per second; angular, radians per second.
    """
    shift = now[:3, :3].T @ (now[:3, 3] - before[:3, 3])
    turn = cv2.Rodrigues(before[:3, :3].T @ now[:3, :3])[0][:, 0]
    return np.concatenate([shift, turn]) / seconds
