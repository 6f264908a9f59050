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

import cv2
import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.messages import decode
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.node.parameters import Parameter
from edgepoint2_ros.node.survival import Failures, provide_log_folder, spin
from edgepoint2_ros.odometry import MIN_COSINE, Camera, VisualOdometry

REPORT_PERIOD = 2.0  # seconds between two reports of the same kind
# The path begins level and looking along x, as REP 103 has it, where the camera looks along z.
AHEAD = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)
PARAMETERS = (
    Parameter('odom_frame', 'odom', 'Frame of the odometry.'),
    Parameter('rectified', False, 'The images are rectified.'),
    Parameter(
        'start_depth',
        1.0,
        'Median distance of the scene at the start, metres.',
        allowed='a positive number',
        test=lambda value: value > 0,
    ),
    Parameter('min_cosine', MIN_COSINE, 'Least cosine of two descriptors that match.'),
    Parameter('ratio', 1.0, 'Ratio test; 1 leaves it out.'),
    Parameter('path_length', 1000, 'Most poses of the path.', minimum=0, maximum=1_000_000),
)


class VisualOdometryNode(Node):
    """Follows the camera whose keypoints arrive."""

    def __init__(self):
        super().__init__('visual_odometry')
        self.failures = Failures(self)
        # Typed by our own check alone: rclpy would refuse the integer 3 for a number.
        descriptor = ParameterDescriptor(dynamic_typing=True, read_only=True)
        values = {p.name: p.check(self.declare_parameter(p.name, p.default, descriptor).value) for p in PARAMETERS}
        self._frame, self._rectified = values['odom_frame'], values['rectified']
        self._settings = {name: values[name] for name in ('start_depth', 'min_cosine', 'ratio')}
        self._path_length = values['path_length']
        self._path = Path()
        self._camera_info: CameraInfo | None = None
        self._odometry: VisualOdometry | None = None
        self._weights: tuple[str, str] | None = None  # model and digest of the keypoints followed
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
            self._start_anew(Camera(*camera))
            self.get_logger().info(f'camera of {info.width}x{info.height} pixels: move it sideways to start')
        except EdgePoint2Error as error:
            self._odometry = None
            self.get_logger().error(f'camera_info cannot be used: {error}')

    def _start_anew(self, camera: Camera) -> None:
        self._odometry = VisualOdometry(camera, **self._settings)
        self._path.poses.clear()

    def _take(self, message: KeypointArray) -> None:
        if self._odometry is None:
            self.get_logger().warning('waiting for a usable camera_info', throttle_duration_sec=REPORT_PERIOD)
            return
        info = self._camera_info
        if (message.image_width, message.image_height) != (info.width, info.height):
            self.get_logger().error(
                f'keypoints of an image of {message.image_width}x{message.image_height} pixels do not belong to the '
                f'camera_info of {info.width}x{info.height}',
                throttle_duration_sec=REPORT_PERIOD,
            )
            return
        try:
            features = decode(message)
            self._follow_weights(features.model, features.digest)
            odometry = self._odometry
            before = odometry.state
            pose = odometry.track(features)
        except (EdgePoint2Error, cv2.error, np.linalg.LinAlgError) as error:  # whatever one does, the next is taken
            self.get_logger().warning(f'keypoints dropped: {error}', throttle_duration_sec=REPORT_PERIOD)
            return
        if odometry.state != before:
            self.get_logger().info(f'{before} -> {odometry.state}: {odometry.tracked} points')
        if pose is not None:
            self._publish(message.header, AHEAD @ pose)

    def _follow_weights(self, model: str, digest: str) -> None:
        """Start anew where the extractor has another model: its descriptors have nothing in common with the map's."""
        last, self._weights = self._weights, (model, digest)
        if last in (None, self._weights):
            return
        self._start_anew(self._odometry.camera)
        self.get_logger().warning(
            f'keypoints of {model} [{digest}] follow those of {last[0]} [{last[1]}]: the map starts anew',
            throttle_duration_sec=REPORT_PERIOD,
        )

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
        del self._path.poses[: max(0, len(self._path.poses) - self._path_length)]
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
    provide_log_folder()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    try:
        node = VisualOdometryNode()
        executor.add_node(node)
        spin(executor, node, stop, timeout_sec=0.2)
        node.destroy_node()
    except EdgePoint2Error as error:
        print(f'visual_odometry: {error}', file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
