"""Static transforms: matrices and quaternions, and ways through the tree; with the real message of tf2."""

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from geometry_msgs.msg import Quaternion, Transform, TransformStamped, Vector3

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.node.frames import Frames, to_matrix, to_quaternion


def turned(vector, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Return the matrix (4, 4) of a turn by a rotation vector and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = cv2.Rodrigues(np.array(vector, float))[0], shift
    return matrix


def between(parent: str, child: str, matrix: np.ndarray) -> TransformStamped:
    """Return the transform that says where a child frame is in its parent."""
    transform = TransformStamped(child_frame_id=child)
    transform.header.frame_id = parent
    transform.transform.translation = Vector3(**dict(zip('xyz', matrix[:3, 3].tolist())))
    transform.transform.rotation = Quaternion(**dict(zip('xyzw', to_quaternion(matrix[:3, :3]))))
    return transform


def test_quaternions_turn_as_their_matrices():
    rng = np.random.default_rng(0)
    for vector in [*rng.uniform(-3, 3, (50, 3)), np.zeros(3), np.array([np.pi, 0, 0])]:
        x, y, z, w = to_quaternion(cv2.Rodrigues(vector)[0])
        assert x * x + y * y + z * z + w * w == pytest.approx(1)
        angle = 2 * np.arctan2(np.linalg.norm([x, y, z]), w)
        axis = np.array([x, y, z]) / max(np.linalg.norm([x, y, z]), 1e-12)
        np.testing.assert_allclose(cv2.Rodrigues(axis * angle)[0], cv2.Rodrigues(vector)[0], atol=1e-9)
        shift = rng.uniform(-5, 5, 3)
        transform = between('a', 'b', turned(vector, shift)).transform
        np.testing.assert_allclose(to_matrix(transform), turned(vector, shift), atol=1e-9)


@pytest.mark.parametrize(
    ('translation', 'rotation'),
    [((np.nan, 0, 0), (0, 0, 0, 1)), ((0, np.inf, 0), (0, 0, 0, 1)), ((0, 0, 0), (0, 0, 0, 0)),
     ((0, 0, 0), (0, 0, 0, np.nan)), ((0, 0, 0), (1, 0, 0, 1))],
)  # fmt: skip
def test_what_is_no_rigid_motion_is_refused(translation, rotation):
    transform = Transform(
        translation=Vector3(**dict(zip('xyz', map(float, translation)))),
        rotation=Quaternion(**dict(zip('xyzw', map(float, rotation)))),
    )
    with pytest.raises(EdgePoint2Error, match='expected finite numbers and a unit quaternion, got'):
        to_matrix(transform)


@pytest.fixture
def frames(tf2_msgs):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('frames', context=context)
    yield Frames(node)
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.slow
def test_frames_are_found_up_and_down_the_tree_and_only_there(frames):
    from tf2_msgs.msg import TFMessage

    base, head, camera, wheel = (turned((0.1 * k, 0.2, -0.3 * k), (k, 1 - k, 0.5)) for k in range(1, 5))
    frames.take(TFMessage(transforms=[between('camera_link', 'optical', camera), between('base', 'wheel', wheel)]))
    assert frames.find('base', 'optical') is None
    frames.take(TFMessage(transforms=[between('base', 'camera_link', head), between('footprint', 'base', base)]))
    for target, source, expected in (
        ('base', 'optical', head @ camera),
        ('optical', 'base', np.linalg.inv(head @ camera)),
        ('wheel', 'optical', np.linalg.inv(wheel) @ head @ camera),
        ('footprint', 'optical', base @ head @ camera),
        ('base', 'base', np.eye(4)),
    ):
        np.testing.assert_allclose(frames.find(target, source), expected, atol=1e-9)
    assert frames.find('base', 'elsewhere') is None
    assert [frames.root(frame)[0] for frame in ('optical', 'footprint', 'elsewhere')] == ['footprint'] * 2 + [
        'elsewhere'
    ]


@pytest.mark.slow
def test_broken_trees_do_no_harm(frames):
    from tf2_msgs.msg import TFMessage

    broken = between('base', 'optical', np.eye(4))
    broken.transform.rotation.w = np.nan
    circle = [between('a', 'b', np.eye(4)), between('b', 'c', np.eye(4)), between('c', 'a', np.eye(4))]
    frames.take(TFMessage(transforms=[broken, *circle]))
    assert frames.find('base', 'optical') is None
    assert frames.find('base', 'c') is None
    frames.take(TFMessage(transforms=[between('base', 'optical', np.eye(4))]))
    np.testing.assert_array_equal(frames.find('base', 'optical'), np.eye(4))
