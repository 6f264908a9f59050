"""The parameters of the nodes: one table for each, which declares and checks them and writes their documentation.

``python -m edgepoint2_ros.node.parameters``, run in a checkout, writes the parameter files in config/ and the tables in
docs/nodes/.
"""

import difflib
import math
import re
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from edgepoint2_ros import messages, odometry, tracking
from edgepoint2_ros.engines import BACKENDS, MAX_THREADS, PRECISIONS
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import DEFAULTS
from edgepoint2_ros.models.variants import NAMES

if TYPE_CHECKING:
    from rcl_interfaces.msg import SetParametersResult
    from rclpy.node import Node
    from rclpy.parameter import Parameter as NodeParameter
else:
    Node = object  # rclpy is not needed to read the table

TOPICS = ('image', 'mask', 'keypoints')  # that a parameter can rename

_TYPE_NAMES = {str: 'string', int: 'integer', float: 'number', bool: 'true or false', list: 'list of strings'}
_NAMES = "unique names of letters, digits, _ and /, which begin with no digit; or ['']"
_CAMERA = re.compile(messages.NAME, re.ASCII)
_TOPIC = re.compile(rf'(~?/)?{messages.NAME}', re.ASCII)
_TABLE = re.compile('(?<=<!-- parameters -->\n).*?(?=<!-- /parameters -->)', re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """One parameter; the type of the default is its type.

    ``live`` parameters may change at any time, the others only while the node is unconfigured.
    """

    name: str
    default: str | int | float | bool | tuple[str, ...] | tuple[float, ...]
    description: str
    choices: tuple[str, ...] = ()
    minimum: int | float | None = None
    maximum: int | float | None = None  # None if there is only a minimum
    live: bool = False
    allowed: str = ''  # in words, if the rest does not say it
    test: Callable[[Any], bool] = lambda value: True

    @property
    def type(self) -> type:
        return list if isinstance(self.default, tuple) else type(self.default)

    @property
    def expected(self) -> str:
        """What values are allowed, in words."""
        if self.allowed:
            return self.allowed
        if self.choices:
            return 'one of ' + ', '.join(self.choices)
        if self.minimum is not None:
            return f'{_TYPE_NAMES[self.type]} from {self.minimum}' + (f' to {self.maximum}' if self.maximum else '')
        return _TYPE_NAMES[self.type]

    def check(self, value: Any) -> Any:
        """Return ``value`` as the parameter's type: an integer is accepted for a number.

        Raises:
            EdgePoint2Error: wrong type or out of range.
        """
        if self.type is float and type(value) is int:
            value = float(value)
        if self.type is list and isinstance(value, (tuple, array)):
            value = list(value)
        if type(value) is not self.type or not self._allows(value):
            raise EdgePoint2Error(f'parameter {self.name}: expected {self.expected}, got {value!r}')
        return value

    def _allows(self, value: Any) -> bool:
        return (
            (not self.choices or value in self.choices)
            and (self.minimum is None or self.minimum <= value <= (self.maximum or value))
            and self.test(value)
        )

    def parse(self, text: str) -> Any:
        """Return the value of ``text``, written as in a parameter file; needs PyYAML.

        Raises:
            EdgePoint2Error: as `check` does.
        """
        import yaml

        if self.type is str:
            return self.check(text)
        if self.type in (int, float):
            return self.check(_to_number(text))
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError):  # PyYAML raises all of these
            value = text
        if isinstance(value, list) and isinstance(self.default, tuple) and type(self.default[0]) is float:
            value = [_to_number(part) if isinstance(part, str) else part for part in value]
            value = [float(part) if type(part) is int else part for part in value]
        return self.check(value)


def _to_number(text: str) -> int | float | str:
    """Return a number as rcl reads it; PyYAML takes 1e-2 for a string, and 1:30 for a number."""
    for kind in (partial(int, base=0), float):
        with suppress(ValueError):
            return kind(text)
    return text


def _are_variances(values: list[Any]) -> bool:
    return len(values) == 6 and all(type(value) in (int, float) and 0 < value < math.inf for value in values)


def _are_one_or_two(names: list[Any]) -> bool:
    return len(names) <= 2 and _are_cameras(names)


def _are_cameras(names: list[Any]) -> bool:
    return names == [''] or (
        all(type(name) is str and _CAMERA.fullmatch(name) for name in names) and 0 < len(names) == len(set(names))
    )


def _is_topic(name: str) -> bool:
    return not name or bool(_TOPIC.fullmatch(name.replace('{camera}', 'camera')))


_RECTIFIED = Parameter(
    'rectified', False, 'The images are rectified: P of camera_info is the camera matrix, without distortion.'
)


def _topic(name: str, default: str, what: str) -> Parameter:
    return Parameter(name, default, f'Topic of {what}.', allowed='a topic', test=bool)


_WEIGHTS = Parameter(
    'weights',
    DEFAULTS.weights,
    '`shipped` with the package, `official`, `auto` (shipped where the package has the model, else official), or '
    'the path of a model (.onnx) or of a folder of models.',
)
EXTRACTOR = (
    Parameter('model', DEFAULTS.model, f'The variant, one of {", ".join(NAMES)}.'),
    _WEIGHTS,
    Parameter(
        'backend', DEFAULTS.backend, 'The runtime; `auto` takes the best that is installed.', ('auto', *BACKENDS)
    ),
    Parameter(
        'precision',
        DEFAULTS.precision,
        'Arithmetic of the network: `auto` is fp16 on TensorRT; on a CPU the fastest of int8, bf16, fp16 and fp32.',
        PRECISIONS,
    ),
    Parameter(
        'threads',
        DEFAULTS.threads,
        'Threads of the runtime; 0 uses every core or, from four on, half of them if that is faster.',
        minimum=0,
        maximum=MAX_THREADS,
    ),
    Parameter(
        'max_keypoints',
        DEFAULTS.max_keypoints,
        'Maximum number of keypoints per image. CPUs return any number, TensorRT at most that of the model: 2048 for '
        'all that ship; for up to 3840 `edgepoint2 models download T-32 --max-keypoints 3840` and `weights: official`.',
        minimum=1,
        live=True,
    ),
    Parameter(
        'score_threshold',
        DEFAULTS.score_threshold,
        'Minimum score of a keypoint, a raw logit. Lower values return weaker keypoints where a scene has few.',
        minimum=-1000.0,
        maximum=1000.0,
        live=True,
    ),
    Parameter(
        'descriptor_encoding',
        'float32',
        'Encoding of the descriptors in messages; `int8` takes a quarter of the bytes.',
        messages.ENCODINGS,
        live=True,
    ),
    Parameter(
        'cameras',
        ('',),
        'The cameras that share the model; `left` has the topics `left/image`, `left/keypoints` and so on. One empty '
        'name is one camera with the topics `image`, `keypoints` and so on.',
        allowed=f'a list like [left, right] of {_NAMES}',
        test=_are_cameras,
    ),
    *(
        Parameter(
            topic,
            '',
            f'Topic instead of `{topic}`; `{{camera}}` in it stands for the name of each camera.',
            allowed='a topic, or nothing',
            test=_is_topic,
        )
        for topic in TOPICS
    ),
    Parameter(
        'transport',
        'raw',
        '`compressed` takes sensor_msgs/CompressedImage (jpeg, png) on the topic `image/compressed`.',
        ('raw', 'compressed'),
    ),
    Parameter(
        'queue_policy',
        'newest',
        'Which images of a camera are kept while others are processed: only the `newest`, or `all`, in a queue.',
        ('newest', 'all'),
        live=True,
    ),
    Parameter(
        'queue_size',
        100,
        'Maximum number of images of a camera that wait under queue_policy `all`; a full queue drops the oldest.',
        minimum=1,
        maximum=10000,
        live=True,
    ),
    Parameter(
        'mask_file',
        '',
        'An image that is neither black nor transparent where keypoints are allowed, scaled to the size of the images; '
        'a path, `file://` or `package://`; `{camera}` in it stands for the name of each camera. Empty: everywhere.',
        live=True,
    ),
    Parameter('border', 0, 'Pixels along the edges without keypoints.', minimum=0, maximum=10000, live=True),
    Parameter(
        'place',
        False,
        'Publish a global descriptor of each image on the topic `place`, for place recognition, while subscribed.',
    ),
    Parameter('overlay', True, 'Draw keypoints on the topic `overlay` while subscribed.', live=True),
    Parameter(
        'image_reliability',
        'auto',
        'Reliability of the image subscriptions: `auto` requests what the publishers offer, and adapts within a '
        'second; `best_effort` matches every publisher; `reliable` only reliable ones, but loses few of the images '
        'that exceed the buffers of Fast DDS (0.5 MB).',
        ('auto', 'best_effort', 'reliable'),
    ),
    Parameter(
        'image_depth',
        5,
        'Minimum history depth of the image subscriptions; under queue_policy `all` it is at least queue_size.',
        minimum=1,
        maximum=1000,
    ),
    Parameter(
        'lazy',
        False,
        'Take images only while `keypoints`, `place` or `overlay` has a subscriber; checked once a second.',
        live=True,
    ),
    Parameter('autostart', True, 'Configure and activate at start; false leaves both to a lifecycle manager.'),
)
VISUAL_ODOMETRY = (
    Parameter(
        'start_depth',
        1.0,
        'Median depth of the scene at the start in metres: a single camera cannot measure its scale. A map begun after '
        'a loss takes the depth of the points seen last.',
        allowed='a positive number',
        test=lambda value: 0 < value < math.inf,
    ),
    Parameter(
        'odom_frame',
        'odom',
        'Frame of the odometry: where `base_frame` was at the start.',
        allowed='the name of a frame',
        test=bool,
    ),
    Parameter(
        'base_frame',
        '',
        'Frame of the robot that is tracked, for example `base_link`. Empty: the optical frame of the camera; '
        '`odom_frame` then starts at the camera, with x forward, y left and z up as seen by it.',
    ),
    Parameter('publish_tf', False, 'Publish the transform from `odom_frame` to `base_frame` on `/tf` (REP 105).'),
    Parameter(
        'pose_covariance_diagonal',
        (1.0, 1.0, 1.0, 0.05, 0.05, 0.05),
        'Variances of x, y, z in m² and of the rotations about x, y, z in rad².',
        allowed='6 positive numbers',
        test=_are_variances,
    ),
    Parameter(
        'twist_covariance_diagonal',
        (0.25, 0.25, 0.25, 0.01, 0.01, 0.01),
        'Variances of the linear velocity in (m/s)² and of the angular velocity in (rad/s)².',
        allowed='6 positive numbers',
        test=_are_variances,
    ),
    _RECTIFIED,
    Parameter(
        'min_cosine',
        odometry.MIN_COSINE,
        'Minimum cosine similarity of two descriptors that match.',
        minimum=-1.0,
        maximum=1.0,
    ),
    Parameter(
        'ratio',
        1.0,
        'Maximum ratio of the distances to the nearest and the second nearest descriptor; 1 disables the test.',
        allowed='a number above 0, at most 1',
        test=lambda value: 0 < value <= 1,
    ),
    Parameter(
        'path_length', 1000, 'Maximum number of poses on `path`; 0 keeps it empty.', minimum=0, maximum=1_000_000
    ),
)
TRACKER = (
    Parameter(
        'cameras',
        ('',),
        'Name of the camera, or of the left and the right one of a stereo pair; `left` has the topics `left/keypoints` '
        'and `left/camera_info`. One empty name is one camera with the topics `keypoints` and `camera_info`.',
        allowed=f'one or two like [left, right]: {_NAMES}',
        test=_are_one_or_two,
    ),
    _RECTIFIED,
    Parameter(
        'max_tracks',
        tracking.MAX_TRACKS,
        'Maximum number of tracks per image. The tracker of VINS-Fusion takes 150.',
        minimum=1,
        maximum=10000,
    ),
    Parameter(
        'max_lost',
        tracking.MAX_LOST,
        'Maximum number of consecutive images in which a track may be missing before it ends.',
        minimum=0,
        maximum=1000,
    ),
    Parameter(
        'min_cosine',
        tracking.MIN_COSINE,
        "Minimum cosine similarity between a keypoint's descriptor and the mean descriptor of its track. Lower than "
        'for matches across whole images: near the predicted position, matches are correct at lower values, too. With '
        '0.9 tracks are 4 % shorter, and no more of them correct.',
        minimum=-1.0,
        maximum=1.0,
    ),
    Parameter('vins', False, 'Publish `feature_tracker/feature` for the estimator of VINS-Fusion, too.'),
)
TO_RTABMAP = (
    _topic('keypoints', 'keypoints', 'the keypoints'),
    _topic('image', 'image', 'the images in which they were found'),
    _topic('camera_info', 'camera_info', 'the calibration of the images'),
    _topic('depth', 'depth', 'the depth images, registered to the images'),
    Parameter('stereo', False, 'Take the right images of a rectified stereo pair instead of depth.'),
    _topic('right_image', 'right/image', 'the right images'),
    _topic('right_camera_info', 'right/camera_info', 'the calibration of the right images'),
    Parameter(
        'transport', 'raw', 'Transport of the images; `compressed` takes `image/compressed`.', ('raw', 'compressed')
    ),
    Parameter(
        'depth_transport',
        'raw',
        'Transport of the depth images; `compressed` takes `depth/compressed`, 16-bit PNG.',
        ('raw', 'compressed'),
    ),
    Parameter(
        'max_interval',
        0.02,
        'Maximum interval in seconds between the stamps of an image and its depth or right image. The nearest counts; '
        'it is known once a later one has arrived.',
        minimum=0.0,
        maximum=10.0,
    ),
    Parameter(
        'queue_size',
        30,
        'Maximum number of images, of depth images and of keypoint messages that wait for each other.',
        minimum=1,
        maximum=1000,
    ),
    Parameter(
        'place',
        False,
        'Add a global descriptor of each image, for `Mem/GlobalDescriptorStrategy 1` of RTAB-Map.',
    ),
    replace(_WEIGHTS, description=f'For `place`, the weights of the extractor: {_WEIGHTS.description}'),
)
TABLES = {'extractor': EXTRACTOR, 'visual_odometry': VISUAL_ODOMETRY, 'tracker': TRACKER, 'to_rtabmap': TO_RTABMAP}
_BY_NAME = {parameter.name: parameter for parameter in EXTRACTOR}


def declare(node: Node, table: Sequence[Parameter]) -> dict[str, Any]:
    """Declare every parameter of a table on an rclpy node and return the values by name.

    They come from the command line, a parameter file or the default. An unknown parameter given there is logged.
    Without live parameters all are read-only.

    Raises:
        EdgePoint2Error: a value has the wrong type or is out of range.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    values = {}
    read_only = not any(parameter.live for parameter in table)
    for parameter in table:
        # Typed only by our own check: rclpy would refuse the integer 3 for a number.
        default = parameter.check(parameter.default)
        value = node.declare_parameter(parameter.name, default, ParameterDescriptor(dynamic_typing=True)).value
        values[parameter.name] = parameter.check(value)
        descriptor = ParameterDescriptor(dynamic_typing=True, read_only=read_only)
        descriptor.description = parameter.description
        descriptor.additional_constraints = parameter.expected
        if parameter.minimum is not None:
            limits = {'from_value': parameter.minimum, 'to_value': parameter.maximum or 2**63 - 1}
            if parameter.type is int:
                descriptor.integer_range = [IntegerRange(**limits)]
            else:
                descriptor.floating_point_range = [FloatingPointRange(**limits)]
        node.set_descriptor(parameter.name, descriptor)
    _warn_of_unknown(node, list(values))
    return values


def _warn_of_unknown(node: Node, names: list[str]) -> None:
    """Log each value that the command line or a parameter file gives to a parameter that does not exist."""
    import rclpy.parameter

    with node.handle:
        given = node.handle.get_parameters(rclpy.parameter.Parameter)
    for name in given:
        if not node.has_parameter(name):
            similar = difflib.get_close_matches(name, names, 1)
            hint = f'; did you mean {similar[0]}?' if similar else ''
            node.get_logger().warning(f'parameter {name} does not exist, its value is not used{hint}')


class AcceptsUnchanged(Node):
    """For an rclpy node: a parameter may be set to its current value, whether or not it may change now.

    So `ros2 param load` can load what `ros2 param dump` wrote. Parameters that may change at any time are set
    nevertheless: the content of a mask file may have changed.

    Attributes:
        live: the names of those.
    """

    live: frozenset[str] = frozenset()

    def set_parameters_atomically(self, parameter_list: 'list[NodeParameter[Any]]') -> 'SetParametersResult':
        from rcl_interfaces.msg import SetParametersResult

        changes = [parameter for parameter in parameter_list if not self._is_unchanged(parameter)]
        if parameter_list and not changes:
            return SetParametersResult(successful=True)
        return super().set_parameters_atomically(changes)

    def _is_unchanged(self, parameter: 'NodeParameter[Any]') -> bool:
        if parameter.name in self.live or not self.has_parameter(parameter.name):
            return False
        present = self.get_parameter(parameter.name)
        # Messages, so that a tuple and an array of the same numbers are equal.
        return parameter.to_parameter_msg().value == present.to_parameter_msg().value


def read(node: Node) -> SimpleNamespace:
    """Return the values of all parameters of the extractor as attributes."""
    return SimpleNamespace(**{p.name: p.check(node.get_parameter(p.name).value) for p in EXTRACTOR})


def name_topics(settings: SimpleNamespace, camera: str) -> dict[str, str]:
    """Return the names of a camera's topics, before remapping, by what they carry: image, mask, keypoints and so on.

    Raises:
        EdgePoint2Error: a parameter gives several cameras the same topic, or names cameras that have no name.
    """
    prefix = f'{camera}/' if camera else ''
    topics = {topic: f'{prefix}{topic}' for topic in (*TOPICS, 'place', 'overlay', 'stats')}
    for topic in TOPICS:
        pattern = getattr(settings, topic)
        if not pattern:
            continue
        if '{camera}' not in pattern and len(settings.cameras) > 1:
            expected = f'{{camera}} in it, one topic for each of {settings.cameras}'
            raise EdgePoint2Error(f'parameter {topic}: expected {expected}, got {pattern!r}')
        if '{camera}' in pattern and not camera:
            expected = 'no {camera} in it, because cameras gives no names'
            raise EdgePoint2Error(f'parameter {topic}: expected {expected}, got {pattern!r}')
        topics[topic] = pattern.replace('{camera}', camera)
    return topics


def check_changes(changes: dict[str, Any], configured: bool) -> dict[str, Any]:
    """Return those of the changes that concern the table of the extractor, checked.

    Args:
        changes: new values by name; names that are not in the table (``use_sim_time``) are left out.
        configured: whether the node is configured, so that only live parameters may change.

    Raises:
        EdgePoint2Error: a value has the wrong type or is out of range, or the parameter cannot change now.
    """
    checked = {name: _BY_NAME[name].check(value) for name, value in changes.items() if name in _BY_NAME}
    for name in checked:
        if configured and not _BY_NAME[name].live:
            raise EdgePoint2Error(f'parameter {name} can change only while the node is unconfigured: clean it up first')
    return checked


def to_markdown(table: Sequence[Parameter]) -> str:
    """Return a table as in docs/nodes/, with a column on when parameters may change if any is live."""
    rows: list[tuple[str, ...]] = [('Parameter', 'Default', 'Allowed', 'Changes', 'Description'), ('---',) * 5]
    for parameter in table:
        name, default = f'`{parameter.name}`', f'`{_to_text(parameter.default)}`'
        changes = 'any time' if parameter.live else 'unconfigured'
        rows.append((name, default, parameter.expected, changes, parameter.description))
    if not any(parameter.live for parameter in table):
        rows = [(*row[:3], row[4]) for row in rows]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def to_yaml(node: str) -> str:
    """Return the parameter file of a node in config/: every parameter with its default."""
    lines = [f'# Parameters of the node {node}, all at their defaults.', '/**:', '  ros__parameters:']
    for parameter in TABLES[node]:
        lines += [f'    # {parameter.description}', f'    # Allowed: {parameter.expected}.']
        lines += [f'    {parameter.name}: {_to_text(parameter.default)}', '']
    return '\n'.join(lines[:-1]) + '\n'


def _to_text(value: Any) -> str:
    """Return a value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f'[{", ".join(map(repr, value))}]'
    return str(value) or "''"


def _write_documentation(checkout: Path) -> None:
    for node, table in TABLES.items():
        page = checkout / 'docs' / 'nodes' / f'{node}.md'
        page.write_text(to_markdown(table).join(_TABLE.split(page.read_text(encoding='utf-8'))), encoding='utf-8')
        (checkout / 'config' / f'{node}.yaml').write_text(to_yaml(node), encoding='utf-8')


if __name__ == '__main__':
    _write_documentation(Path(__file__).parents[2])
