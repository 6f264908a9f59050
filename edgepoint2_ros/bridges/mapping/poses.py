"""The poses of a map's cameras: in a TUM file, and in a bag."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from edgepoint2_ros.bridges.bag_output import VERSION

FRAME = 'map'
TOPIC = '/poses'


class Pose(NamedTuple):
    """The pose of a camera: its stamp in nanoseconds, its position, and its rotation as a quaternion (x, y, z, w).

    They are those of the camera's optical frame (x right, y down, z forward) in the map, whose scale and axes are
    arbitrary.
    """

    stamp: int
    place: np.ndarray
    turn: np.ndarray


def write_tum(path: Path, poses: Sequence[Pose], stamped: bool) -> None:
    """Write poses in the format of TUM's tools and evo: ``stamp x y z qx qy qz qw`` per line.

    Args:
        path: the file.
        poses: in order.
        stamped: stamps are nanoseconds, written in seconds; otherwise numbers, written as they are.
    """
    lines = ['# stamp x y z qx qy qz qw']
    for pose in poses:
        seconds, nanoseconds = divmod(pose.stamp, 1_000_000_000)
        stamp = f'{seconds}.{nanoseconds:09d}' if stamped else str(pose.stamp)
        lines.append(f'{stamp} {" ".join(f"{number:.9g}" for number in (*pose.place, *pose.turn))}')
    path.write_text('\n'.join(lines) + '\n')


def write_bag(folder: Path, poses: Sequence[Pose]) -> None:
    """Write poses as a bag of geometry_msgs/PoseStamped on ``/poses`` in the frame ``map``.

    Args:
        folder: of the new bag.
        poses: in order, with stamps in nanoseconds.
    """
    types = get_typestore(Stores.ROS2_HUMBLE)
    kinds = types.types
    with Writer(folder, version=VERSION, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(TOPIC, 'geometry_msgs/msg/PoseStamped', typestore=types)
        for pose in poses:
            seconds, nanoseconds = divmod(pose.stamp, 1_000_000_000)
            message = kinds['geometry_msgs/msg/PoseStamped'](
                header=kinds['std_msgs/msg/Header'](
                    stamp=kinds['builtin_interfaces/msg/Time'](sec=seconds, nanosec=nanoseconds), frame_id=FRAME
                ),
                pose=kinds['geometry_msgs/msg/Pose'](
                    position=kinds['geometry_msgs/msg/Point'](*map(float, pose.place)),
                    orientation=kinds['geometry_msgs/msg/Quaternion'](*map(float, pose.turn)),
                ),
            )
            writer.write(connection, pose.stamp, types.serialize_cdr(message, connection.msgtype))
