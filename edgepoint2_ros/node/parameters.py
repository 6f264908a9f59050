"""The parameters of the node: one table that declares and checks them and writes their documentation.

``python -m edgepoint2_ros.node.parameters``, run in a checkout, writes config/extractor.yaml and the tables of
README.md and docs/node.md.
"""

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from edgepoint2_ros import messages
from edgepoint2_ros.engines import BACKENDS, PRECISIONS
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.models import PRECISION
from edgepoint2_ros.variants import NAMES

_TYPE_NAMES = {str: 'string', int: 'integer', float: 'number', bool: 'true or false', list: 'list of strings'}
_CAMERA = re.compile(r'[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)
_TABLE = re.compile('(?<=<!-- parameters -->\n).*?(?=<!-- /parameters -->)', re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """One parameter; the type of the default is its type.

    ``live`` parameters may change at any time, the others only while the node is unconfigured.
    """

    name: str
    default: str | int | float | bool | tuple[str, ...]
    description: str
    choices: tuple[str, ...] = ()
    minimum: int | float | None = None
    maximum: int | float | None = None
    live: bool = False
    allowed: str = ''  # in words, where the rest does not say it
    test: Callable[[object], bool] = lambda value: True

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
            return f'{_TYPE_NAMES[self.type]} from {self.minimum} to {self.maximum}'
        return _TYPE_NAMES[self.type]

    def check(self, value):
        """Return ``value`` as the parameter's type: an integer will do for a number.

        Raises:
            EdgePoint2Error: wrong type or out of range.
        """
        if self.type is float and type(value) is int:
            value = float(value)
        if self.type is list and isinstance(value, (tuple, array)):
            value = list(value)
        if (
            type(value) is not self.type
            or (self.choices and value not in self.choices)
            or (self.minimum is not None and not self.minimum <= value <= self.maximum)
            or not self.test(value)
        ):
            raise EdgePoint2Error(f'parameter {self.name}: expected {self.expected}, got {value!r}')
        return value


def _are_cameras(names: list) -> bool:
    return names == [''] or (
        0 < len(names) == len(set(names)) and all(type(name) is str and _CAMERA.fullmatch(name) for name in names)
    )


PARAMETERS = (
    Parameter('model', 'T-32', f'The variant, one of {", ".join(NAMES)}.'),
    Parameter(
        'weights',
        'auto',
        '`shipped` with the package, `official`, `auto` (shipped where the package has the model, else official), or '
        'the path of a model (.onnx) or of a folder of models.',
    ),
    Parameter('backend', 'auto', 'The runtime; `auto` takes the best that is installed.', ('auto', *BACKENDS)),
    Parameter(
        'precision',
        PRECISION,
        'Arithmetic of the network: `auto` is fp16 on TensorRT; on OpenVINO int8, bf16 or fp32, by the CPU; else fp32.',
        PRECISIONS,
    ),
    Parameter('threads', 0, 'Threads of the runtime; 0 takes every core.', minimum=0, maximum=256),
    Parameter(
        'max_keypoints',
        2048,
        'Most keypoints of an image, at most as many as the model was made for: 2048 for all that ship. For more, '
        '`edgepoint2 models download T-32 --max-keypoints 3840` and `weights: official`.',
        minimum=1,
        maximum=3840,
        live=True,
    ),
    Parameter(
        'score_threshold',
        -5.0,
        'Keypoints score above this raw logit; -5 is a probability of 0.7 %.',
        minimum=-1000.0,
        maximum=1000.0,
        live=True,
    ),
    Parameter(
        'descriptor_encoding',
        'float32',
        'How descriptors travel; `int8` takes a quarter of the bytes.',
        messages.ENCODINGS,
        live=True,
    ),
    Parameter(
        'cameras',
        ('',),
        'The cameras that share the model; `left` has the topics `left/image`, `left/keypoints` and so on. One empty '
        'name is one camera with the topics `image`, `keypoints` and so on.',
        allowed='unique names of letters, digits, _ and /, or one empty name',
        test=_are_cameras,
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
        'Images of a camera that may wait under queue_policy `all`; when the queue is full the oldest is dropped.',
        minimum=1,
        maximum=10000,
        live=True,
    ),
    Parameter(
        'mask_file',
        '',
        'An image that is not black where keypoints are allowed, scaled to the size of the images; `{camera}` in it '
        'stands for the name of each camera. Empty: everywhere.',
        live=True,
    ),
    Parameter('border', 0, 'Pixels along the edges without keypoints.', minimum=0, maximum=10000, live=True),
    Parameter('overlay', True, 'Draw keypoints on the topic `overlay` while somebody subscribes.', live=True),
    Parameter(
        'image_reliability',
        'auto',
        'Reliability of the image subscriptions: `auto` asks for what the publishers offer, and follows them within a '
        'second; `best_effort` hears every publisher; `reliable` only the reliable ones, but loses few of the images '
        'that exceed the buffers of Fast DDS (0.5 MB).',
        ('auto', 'best_effort', 'reliable'),
    ),
    Parameter(
        'image_depth',
        5,
        'History depth of the image subscriptions, at least; under queue_policy `all` it is queue_size.',
        minimum=1,
        maximum=1000,
    ),
    Parameter('autostart', True, 'Configure and activate at start; false leaves both to a lifecycle manager.'),
)
_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def declare(node) -> None:
    """Declare every parameter on an rclpy node; values come from the command line, a parameter file or the default.

    Raises:
        EdgePoint2Error: a value has the wrong type or is out of range.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    for parameter in PARAMETERS:
        # Typed by our own check alone: rclpy would refuse the integer 3 for a number.
        descriptor = ParameterDescriptor(dynamic_typing=True)
        default = parameter.check(parameter.default)
        parameter.check(node.declare_parameter(parameter.name, default, descriptor).value)
        descriptor.description = parameter.description
        descriptor.additional_constraints = parameter.expected
        if parameter.minimum is not None:
            limits = {'from_value': parameter.minimum, 'to_value': parameter.maximum}
            if parameter.type is int:
                descriptor.integer_range = [IntegerRange(**limits)]
            else:
                descriptor.floating_point_range = [FloatingPointRange(**limits)]
        node.set_descriptor(parameter.name, descriptor)


def read(node) -> SimpleNamespace:
    """Return the values of all parameters as attributes."""
    return SimpleNamespace(**{p.name: p.check(node.get_parameter(p.name).value) for p in PARAMETERS})


def check_changes(changes: dict, configured: bool) -> dict:
    """Return those of the changes that concern this table, checked.

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


def to_markdown() -> str:
    """Return the table of README.md and docs/node.md."""
    lines = ['| Parameter | Default | Allowed | Changes | Description |', '|---|---|---|---|---|']
    for parameter in PARAMETERS:
        changes = 'any time' if parameter.live else 'unconfigured'
        cells = (f'`{parameter.name}`', f'`{_to_text(parameter.default)}`', parameter.expected, changes)
        lines.append(f'| {" | ".join(cells)} | {parameter.description} |')
    return '\n'.join(lines) + '\n'


def to_yaml() -> str:
    """Return config/extractor.yaml: every parameter with its default."""
    lines = ['# Parameters of the node extractor, all at their defaults.', '/**:', '  ros__parameters:']
    for parameter in PARAMETERS:
        lines += [f'    # {parameter.description}', f'    # Allowed: {parameter.expected}.']
        lines += [f'    {parameter.name}: {_to_text(parameter.default)}', '']
    return '\n'.join(lines[:-1]) + '\n'


def _to_text(value) -> str:
    """Return a value as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f'[{", ".join(map(repr, value))}]'
    return str(value) or "''"


def _write_documentation(checkout: Path) -> None:
    for page in (checkout / 'README.md', checkout / 'docs' / 'node.md'):
        page.write_text(_TABLE.sub(lambda _: to_markdown(), page.read_text(encoding='utf-8')), encoding='utf-8')
    (checkout / 'config' / 'extractor.yaml').write_text(to_yaml(), encoding='utf-8')


if __name__ == '__main__':
    _write_documentation(Path(__file__).parents[2])
