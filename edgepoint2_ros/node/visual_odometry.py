"""The node visual_odometry: keypoints and a camera's calibration in, the camera's path out.

An example of what uses keypoints; edgepoint2_ros.odometry does the work. docs/slam.md describes topics and parameters.
"""

import os
import signal
import sys
import threading

# Before numpy is loaded: the matrices here are small, and further threads only spin while they wait. One thread is as
# fast, with half the CPU time; beside a busy process with a fifth of it.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.messages import decode
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.odometry import MIN_COSINE, Camera, VisualOdometry

REPORT_PERIOD = 2.0  # seconds between two reports of the same kind
# The path begins level and looking along x, as REP 103 has it, where the camera looks along z.
AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)


class VisualOdometryNode(Node):
    """Follows the camera whose keypoints arrive."""

    def __init__(self):
        super().__init__('visual_odometry')
        self._frame = self.declare_parameter('odom_frame', 'odom').value
        self._rectified = self.declare_parameter('rectified', False).value
        self._settings = {
            'start_depth': self.declare_parameter('start_depth', 1.0).value,
            'min_cosine': self.declare_parameter('min_cosine', MIN_COSINE).value,
            'ratio': self.declare_parameter('ratio', 1.0).value,
        }
        if not self._settings['start_depth'] > 0:
            raise EdgePoint2Error(
                f'parameter start_depth: expected a positive number, got {self._settings["start_depth"]}'
            )
        self._path_length = self.declare_parameter('path_length', 1000).value
        self._path = Path()
        self._camera_info: CameraInfo | None = None
        self._odometry: VisualOdometry | None = None
        self._odometry_publisher = self.create_publisher(Odometry, 'odometry', 10)
        self._path_publisher = self.create_publisher(Path, 'path', 10)
        self.create_subscription(CameraInfo, 'camera_info', self._take_camera, qos_profile_sensor_data)
        # A second of images may wait: a keyframe takes longer than the images between keyframes.
        waiting = QoSProfile(depth=30, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(KeypointArray, 'keypoints', self._take, waiting)

    def _take_camera(self, info: CameraInfo) -> None:
        last = self._camera_info
        if last is not None and (list(last.k), last.d, list(last.p)) == (list(info.k), info.d, list(info.p)):
            return
        self._camera_info = info
        if self._rectified:
            camera = np.reshape(info.p, (3, 4))[:, :3], np.zeros(0), ''
        else:
            camera = np.reshape(info.k, (3, 3)), np.array(info.d), info.distortion_model
        try:
            self._odometry = VisualOdometry(Camera(*camera), **self._settings)
            self._path.poses.clear()
            self.get_logger().info(f'camera of {info.width}x{info.height} pixels: move it sideways to start')
        except EdgePoint2Error as error:
            self._odometry = None
            self.get_logger().error(f'camera_info cannot be used: {error}')

    def _take(self, message: KeypointArray) -> None:
        if self._odometry is None:
            self.get_logger().warning('waiting for a usable camera_info', throttle_duration_sec=REPORT_PERIOD)
            return
        info, odometry = self._camera_info, self._odometry
        if (message.image_width, message.image_height) != (info.width, info.height):
            self.get_logger().error(
                f'keypoints of an image of {message.image_width}x{message.image_height} pixels do not belong to the '
                f'camera_info of {info.width}x{info.height}',
                throttle_duration_sec=REPORT_PERIOD,
            )
            return
        before = odometry.state
        try:
            pose = odometry.track(decode(message))
        except EdgePoint2Error as error:  # a message that contradicts itself, or another model from now on
            self.get_logger().warning(f'keypoints dropped: {error}', throttle_duration_sec=REPORT_PERIOD)
            return
        if odometry.state != before:
            self.get_logger().info(f'{before} -> {odometry.state}: {odometry.tracked} points')
        if pose is not None:
            self._publish(message.header, AHEAD @ pose)

    def _publish(self, header, pose: np.ndarray) -> None:
        odometry = Odometry(child_frame_id=header.frame_id)
        odometry.header.stamp, odometry.header.frame_id = header.stamp, self._frame
        place, turn = odometry.pose.pose.position, odometry.pose.pose.orientation
        place.x, place.y, place.z = pose[:3, 3].tolist()
        turn.x, turn.y, turn.z, turn.w = to_quaternion(pose[:3, :3])
        # One camera tells neither how sure it is nor, by itself, a speed.
        odometry.pose.covariance[0] = odometry.twist.covariance[0] = -1.0
        self._odometry_publisher.publish(odometry)
        self._path.header = odometry.header
        self._path.poses.append(PoseStamped(header=odometry.header, pose=odometry.pose.pose))
        del self._path.poses[: -self._path_length]
        if self._path_publisher.get_subscription_count():
            self._path_publisher.publish(self._path)


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


def main(args=None) -> int:
    """Run the node until Ctrl-C and return the exit code."""
    # rclpy's own handlers leave its executor asleep now and then.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    try:
        node = VisualOdometryNode()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.2)
        node.destroy_node()
    except EdgePoint2Error as error:
        print(f'visual_odometry: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
