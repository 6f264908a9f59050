"""The node tracker: keypoints and calibration of a camera or a stereo pair in, tracks out.

edgepoint2_ros.tracking does the work. docs/nodes/tracker.md describes topics and parameters.
"""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Point32
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import ChannelFloat32, PointCloud
from std_msgs.msg import Header

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.messages import decode, name_weights, to_nanoseconds
from edgepoint2_ros.msg import KeypointArray
from edgepoint2_ros.msg import Tracks as TracksMessage
from edgepoint2_ros.node.camera_info import Calibration, read_stereo
from edgepoint2_ros.node.diagnostics import LOG_PERIOD, every_second, to_diagnostics, to_status
from edgepoint2_ros.node.health import OK, SILENCE, WARN
from edgepoint2_ros.node.losses import Losses, subscribe
from edgepoint2_ros.node.parameters import TRACKER, AcceptsUnchanged, declare
from edgepoint2_ros.node.stamps import Pairs, Stamps
from edgepoint2_ros.node.survival import Failures
from edgepoint2_ros.tracking import Tracker, Tracks

CHANNELS = ('id', 'camera_id', 'u', 'v', 'velocity_x', 'velocity_y', 'gx', 'gy', 'gz')  # as VINS-Fusion reads them
VINS_IDS = 2**24  # integers that a float32 represents exactly
REASONS = ('no calibration', 'other size', 'bad', 'out of order')  # why keypoints can be dropped


class TrackerNode(AcceptsUnchanged, Node):
    """Tracks the keypoints that arrive."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('tracker', **kwargs)
        self.failures = Failures(self)
        values = declare(self, TRACKER)
        self._cameras, self._rectified = list(values['cameras']), values['rectified']
        self._settings = {name: values[name] for name in ('max_tracks', 'max_lost', 'min_cosine')}
        self._tracker: Tracker | None = None
        self._next_id = 0
        self._stamps, self._pairs = Stamps(), Pairs()
        self._begin: int | None = None  # stamp that times are counted from: seconds since 1970 would leave few digits
        self._weights = ''  # of the keypoints followed
        self._received = self._published = self._tracks = 0
        self._dropped = dict.fromkeys(REASONS, 0)
        self._right_out_of_order = 0
        self._last_error, self._silent, self._told = '', 0.0, (0, 0, 0)
        self._publisher = self.create_publisher(TracksMessage, 'tracks', 10)
        self._vins = self.create_publisher(PointCloud, 'feature_tracker/feature', 10) if values['vins'] else None
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        every_second(self, self.report)
        prefixes = [f'{name}/' if name else '' for name in self._cameras]
        self.calibrations = [
            Calibration(self, f'{prefix}camera_info', self._rectified, self._calibrate) for prefix in prefixes
        ]
        receivers: tuple[Callable[[Any], None], ...] = self.take, self.take_right
        self._losses = [Losses() for _ in prefixes]
        # Reliable, because the middleware loses best-effort messages that exceed its buffers (0.5 MB).
        for prefix, receive, losses in zip(prefixes, receivers, self._losses):
            subscribe(self, KeypointArray, f'{prefix}keypoints', receive, QoSProfile(depth=10), losses)

    def _calibrate(self) -> None:
        """Reset, with the cameras that are described now, once they all are."""
        self._reset()
        if self._tracker is not None:
            width, height = self.calibrations[0].image_size
            self.get_logger().info(f'camera of {width}x{height} pixels')

    def _reset(self) -> None:
        """Start with new tracks, whose ids continue."""
        self._begin = None
        if self._tracker is not None:
            self._next_id = self._tracker.next_id
        self._tracker = None
        cameras = [calibration.camera for calibration in self.calibrations if calibration.camera is not None]
        if len(cameras) < len(self.calibrations):
            return
        right, motion = None, None
        if len(cameras) == 2:
            right = cameras[1]
            left_info, right_info = (calibration.info for calibration in self.calibrations)
            try:
                motion = read_stereo(left_info, right_info, self._rectified)
            except EdgePoint2Error as error:
                self.get_logger().error(f'camera_info cannot be used: {error}')
                return
        self._tracker = Tracker(cameras[0], right, motion, **self._settings, first_id=self._next_id)

    def take(self, message: KeypointArray) -> None:
        """Track the keypoints of the camera, or of the left one of a stereo pair."""
        self._received += 1
        self._silent = 0.0
        if len(self._cameras) == 1:
            self._follow(message, None)
        else:
            try:
                self._pair(self._pairs.add_left, message)
            except EdgePoint2Error as error:
                self._drop('out of order', error)

    def take_right(self, message: KeypointArray) -> None:
        """Take the keypoints of the right camera."""
        try:
            self._pair(self._pairs.add_right, message)
        except EdgePoint2Error as error:
            self._right_out_of_order += 1
            self.get_logger().warning(f'right keypoints dropped: {error}', throttle_duration_sec=LOG_PERIOD)

    def _pair(self, add: Callable[[int, Any], list[tuple[Any, Any]]], message: KeypointArray) -> None:
        """Take the keypoints of one side and follow the pairs that are ready.

        Raises:
            EdgePoint2Error: they are out of order.
        """
        forgotten = self._pairs.forgotten
        ready = add(to_nanoseconds(message.header.stamp), message)
        for _ in range(self._pairs.forgotten - forgotten):
            self._drop('out of order', 'time jumped back while they waited for those of the right camera')
        for left, right in ready:
            if right is None:
                self.get_logger().warning(
                    f'no keypoints of {self._cameras[1]} within 3 ms of those of {self._cameras[0]}: tracked alone '
                    f'({self._pairs.alone} so far); both cameras must be triggered together',
                    throttle_duration_sec=LOG_PERIOD,
                )
            self._follow(left, right)

    def _drop(self, reason: str, error: Exception | str) -> None:
        self._dropped[reason] += 1
        self._last_error = str(error)
        self.get_logger().warning(f'keypoints dropped: {error}', throttle_duration_sec=LOG_PERIOD)

    def _follow(self, left: KeypointArray, right: KeypointArray | None) -> None:
        if self._tracker is None:
            self._drop('no calibration', 'waiting for a usable camera_info')
            return
        messages = [message for message in (left, right) if message is not None]
        try:
            for calibration, message in zip(self.calibrations, messages):
                calibration.check_size(message)
        except EdgePoint2Error as error:
            self._drop('other size', error)
            return
        try:
            features = [decode(message) for message in messages]
        except EdgePoint2Error as error:
            self._drop('bad', error)
            return
        stamp = to_nanoseconds(left.header.stamp)
        try:
            older = self._stamps.take(stamp)
        except EdgePoint2Error as error:
            self._drop('out of order', error)
            return
        if older:
            self.get_logger().warning(f'time jumps back by {older:.3f} s: resetting the tracks')
            self._reset()
        if self._begin is None:
            self._begin = stamp
        try:
            tracks = self._tracker.track(features[0], (stamp - self._begin) * 1e-9, *features[1:])
        except EdgePoint2Error as error:
            self._drop('bad', error)
            return
        except Exception as error:  # halfway, which leaves the tracks inconsistent
            self.failures.add(error)
            self._drop('bad', error)
            self._reset()
            return
        self._follow_weights(features[0])
        self._published += 1
        self._tracks = len(tracks)
        self._publisher.publish(to_message(tracks, left.header, self._cameras, features[0]))
        if self._vins is not None:
            self._vins.publish(to_vins(tracks, left.header))

    def _follow_weights(self, features: Features) -> None:
        last, self._weights = self._weights, name_weights(features)
        if last not in ('', self._weights):
            self.get_logger().warning(
                f'keypoints of {self._weights} follow those of {last}: resetting the tracks',
                throttle_duration_sec=LOG_PERIOD,
            )

    def report(self) -> None:
        """Publish diagnostics of the last second."""
        dropped = sum(self._dropped.values())
        failures = self.failures.count
        level, reason = OK, f'{self._tracks} tracks'
        self._silent += 1.0
        if failures > self._told[1]:
            level, reason = WARN, self.failures.last
        elif dropped > self._told[0]:
            level, reason = WARN, f'{dropped - self._told[0]} images dropped: {self._last_error}'
        elif self._silent > SILENCE:
            level, reason = WARN, 'no keypoints'
        elif self._pairs.alone > self._told[2]:
            level = WARN
            reason = f'{self._pairs.alone - self._told[2]} images tracked without their right ones: {self._cameras[1]}'
        self._told = dropped, failures, self._pairs.alone
        values = {
            'images': self._received,
            'published': self._published,
            'tracks': self._tracks,
            'lost by the middleware': sum(losses.count for losses in self._losses),
            **{f'dropped: {name}': count for name, count in self._dropped.items()},
        }
        if len(self._cameras) == 2:
            values['without a right image'] = self._pairs.alone
            values['waiting for a right image'] = self._pairs.waiting
            values['right images without a left one'] = self._pairs.forgotten_right
            values['right images out of order'] = self._right_out_of_order
        self._diagnostics.publish(to_diagnostics(self, [to_status(self, 'tracks', level, reason, values)]))


def to_message(tracks: Tracks, header: Header, cameras: list[str], features: Features) -> TracksMessage:
    """Return the Tracks message of an image's tracks.

    Args:
        tracks: the tracks.
        header: of the image.
        cameras: one name, or those of the left and the right camera.
        features: those of the image.
    """
    columns = {
        'x': tracks.xy[:, 0],
        'y': tracks.xy[:, 1],
        'bearing_x': tracks.rays[:, 0],
        'bearing_y': tracks.rays[:, 1],
        'velocity_x': tracks.velocities[:, 0],
        'velocity_y': tracks.velocities[:, 1],
        'score': tracks.scores,
    }
    integers = {'id': ('Q', tracks.ids), 'age': ('I', tracks.ages), 'keypoint': ('I', tracks.keypoints)}
    if len(cameras) == 2:
        columns['right_x'], columns['right_y'] = tracks.right_xy.T
        columns['right_bearing_x'], columns['right_bearing_y'] = tracks.right_rays.T
        columns['right_velocity_x'], columns['right_velocity_y'] = tracks.right_velocities.T
        integers['right_keypoint'] = 'i', tracks.right_keypoints
    arrays = {name: array('f', values.astype(np.float32).tobytes()) for name, values in columns.items()}
    arrays |= {name: array(code, values.astype(code).tobytes()) for name, (code, values) in integers.items()}
    return TracksMessage(header=header, cameras=cameras, model=features.model, digest=features.digest, **arrays)


def to_vins(tracks: Tracks, header: Header) -> PointCloud:
    """Return tracks in the format of VINS-Fusion's estimator: the left camera's, then the right one's.

    Ids are modulo 2^24, as they are sent as float32; tracks without a finite bearing are left out.
    """
    sides = []
    for camera, (rays, xy, velocities) in enumerate(
        (
            (tracks.rays, tracks.xy, tracks.velocities),
            (tracks.right_rays, tracks.right_xy, tracks.right_velocities),
        )
    ):
        seen = np.isfinite(rays).all(axis=1) & np.isfinite(velocities).all(axis=1)
        # A right observation belongs to a left one.
        seen &= np.isfinite(tracks.rays).all(axis=1)
        ids = (tracks.ids[seen] % VINS_IDS).astype(np.float32)
        columns = [ids, np.full(len(ids), camera), *xy[seen].T, *velocities[seen].T, *np.zeros((3, len(ids)))]
        sides.append((rays[seen], np.array(columns, np.float32)))
    rays, channels = (np.concatenate(parts, axis=axis) for parts, axis in zip(zip(*sides), (0, 1)))
    return PointCloud(
        header=header,
        points=[Point32(x=x, y=y, z=1.0) for x, y in rays.tolist()],
        channels=[
            ChannelFloat32(name=name, values=array('f', np.ascontiguousarray(values).tobytes()))
            for name, values in zip(CHANNELS, channels)
        ],
    )
