"""Where models live, and what their cards say.

A model is an ONNX file for CPUs with a JSON card beside it (``T-32.onnx``, ``T-32.json``), the same in int8
(``T-32.int8.onnx``), and in fp16 for TensorRT (``T-32.fp16.onnx``). The card names the variant, the digest of the
weights and the SHA-256 of each ONNX file, which is checked whenever that is opened, and holds the features of a drawn
scene that an engine must find again.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.variants import VARIANTS, Variant, find_variant

STRIDE = 32  # the network works on sizes that are multiples of this; other images are resampled inside the model
MIN_SIZE = 64  # smallest image side in pixels
PAD_SCORE = -65504.0  # score of rows past the last keypoint: the lowest number of float16, far below any logit
NMS_RADIUS = 2  # keypoints are maxima of a window of 2 * NMS_RADIUS + 1 pixels
BORDER = 4  # pixels along the image's edge that hold no keypoints
MIN_CURVATURE = 1e-6  # of a parabola through three scores; keeps plateaus from dividing by zero
MOST_KEYPOINTS = 3840  # that one model can return: TensorRT's TopK picks no more
CARD_FORMAT = 2  # 1: T-32.onnx held the whole way to the keypoints

SHIPPED = Path(__file__).with_name('shipped')  # the folder of the models that come with the package
WEIGHTS = ('auto', 'shipped', 'official')  # the names of weights that need no path


@dataclass(frozen=True)
class Model:
    """An ONNX model on disk; ``card`` holds every entry of its card."""

    path: Path
    variant: Variant
    digest: str
    max_keypoints: int
    subpixel: bool
    card: dict = field(repr=False)


def user_directory(variable: str, default: str) -> Path:
    """Return a directory of this package by the XDG base directory rules: in $variable, else in ~/``default``."""
    base = os.environ.get(variable, '')
    if os.path.isabs(base):  # the rules ask to ignore relative paths
        return Path(base) / 'edgepoint2'
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without a name
        home = Path('/nonexistent')  # as Debian calls the home of users who have none
    return home / default / 'edgepoint2'


def data_directory() -> Path:
    """Return the user's data directory of this package."""
    return user_directory('XDG_DATA_HOME', '.local/share')


def models_directory(weights: str) -> Path:
    """Return the folder that holds the models made from ``weights``: ``shipped``, ``official`` or ``custom``."""
    return SHIPPED if weights == 'shipped' else data_directory() / 'models' / weights


def is_shipped(variant: Variant) -> bool:
    """Tell whether the package brings a model of a variant with it."""
    return (models_directory('shipped') / f'{variant}.onnx').is_file()


def card_path(model: Path) -> Path:
    """Return the file of a model's card."""
    return Path(model).with_suffix('.json')


def part_path(model: Path, precision: str) -> Path:
    """Return the file of a model in another precision, ``int8`` or ``fp16``."""
    return Path(model).with_suffix(f'.{precision}.onnx')


def read_part(model: Model, precision: str) -> bytes:
    """Return the model in another precision, ``int8`` or ``fp16``, as ONNX.

    Raises:
        ModelError: it is missing or corrupt.
    """
    path = part_path(model.path, precision)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f'{path} cannot be read ({error.strerror}): make the model again') from None
    actual, expected = hashlib.sha256(data).hexdigest(), model.card.get(f'{precision}_sha256', 'nothing')
    if actual != expected:
        raise ModelError(
            f'{path} is corrupt: its SHA-256 is {actual[:16]}..., its card says {expected[:16]}...: make it again'
        )
    return data


def find_model(name: str, weights: str = 'auto') -> Model:
    """Return the model that serves a variant.

    Args:
        name: the variant, for example ``T-32``.
        weights: ``shipped`` with the package, ``official``, ``auto`` (shipped where the package has the variant, else
            official), or a path: an ONNX model with its card beside it, or a folder of such models.

    Raises:
        ModelError: no such variant, no such model, or one that is corrupt or of another variant.
    """
    variant = find_variant(name)
    if weights == 'auto':
        weights = 'shipped' if is_shipped(variant) else 'official'
    if weights == 'shipped' and not is_shipped(variant):
        shipped = ', '.join(variant.name for variant in VARIANTS if is_shipped(variant))
        raise ModelError(
            f'{variant} does not ship with the package, {shipped} do: choose one of these, or other weights'
        )
    if weights in WEIGHTS:
        path = models_directory(weights) / f'{variant}.onnx'
        if not os.path.isfile(path):  # Path.is_file raises in a home that belongs to somebody else
            raise ModelError(
                f'no {weights} model of {variant} in {path.parent}: get it with `edgepoint2 models download {variant}`'
                f', or make it from a file with `edgepoint2 models import {variant.size}{variant.descriptor_size}.pth`'
            )
        return open_model(path, variant)
    path = Path(os.path.expanduser(weights))  # which leaves a ~ where there is no home; Path.expanduser would raise
    if os.path.isdir(path):
        path = path / f'{variant}.onnx'
    if path.suffix in ('.pth', '.pt'):
        raise ModelError(f'{path} holds weights, not a model: make one with `edgepoint2 models import {path}`')
    if not os.path.isfile(path):
        raise ModelError(f'weights {weights!r}: expected {" or ".join(WEIGHTS)} or a path, and there is no file {path}')
    return open_model(path, variant)


def open_model(path: Path, variant: Variant | None = None) -> Model:
    """Read a model's card and check it against the ONNX file and, where given, the variant that was asked for."""
    card_file = card_path(path)
    try:
        card = json.loads(card_file.read_text(encoding='utf-8'))
        if card['format'] != CARD_FORMAT:
            raise ModelError(
                f'{card_file}: expected card format {CARD_FORMAT}, got {card["format"]}: the model was made by another '
                f'version of edgepoint2_ros; make it again'
            )
        model = Model(
            Path(path),
            find_variant(card['model']),
            card['digest'],
            int(card['max_keypoints']),
            bool(card['subpixel']),
            card,
        )
        expected = card['sha256']
    except FileNotFoundError:
        raise ModelError(f'{path} has no card: expected {card_file.name} beside it, as the export writes it') from None
    except OSError as error:
        raise ModelError(f'{card_file} cannot be read: {error}') from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{card_file} is not a model card: {type(error).__name__}: {error}') from None
    if variant is not None and model.variant != variant:
        raise ModelError(f'{path} is a model of {model.variant}, but {variant} was asked for')
    try:
        actual = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f'{path} cannot be read: {error}') from None
    if actual != expected:
        raise ModelError(
            f'{path} is corrupt: its SHA-256 is {actual[:16]}..., its card says {expected[:16]}...: make it again'
        )
    return model


def list_models() -> list[Model | ModelError]:
    """Return the models of the package, then those of the user's data directory; a broken one as its error."""
    order = {variant.name: place for place, variant in enumerate(VARIANTS)}
    found = []
    paths = [*models_directory('shipped').glob('*.onnx'), *(data_directory() / 'models').glob('*/*.onnx')]
    paths = [path for path in paths if not path.name.endswith(('.int8.onnx', '.fp16.onnx'))]
    for path in sorted(paths, key=lambda p: (p.parent != SHIPPED, p.parent, order.get(p.stem, len(order)))):
        try:
            found.append(open_model(path))
        except ModelError as error:
            found.append(error)
    return found
