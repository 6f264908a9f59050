"""Models: where they are kept, what their cards say, and constants of the network.

A model is an ONNX file for CPUs with a JSON card beside it (``T-32.onnx``, ``T-32.json``), the same in int8
(``T-32.int8.onnx``), and another graph for TensorRT (``T-32.tensorrt.onnx``). The card names the variant and the digest
of the weights, lists the inputs and outputs, the precision and the SHA-256 of each ONNX file by the end of its name,
and holds the features of a drawn scene that an engine must reproduce. A file is checked whenever it is opened.
"""

import contextlib
import glob
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models.variants import VARIANTS, Variant, find_variant
from edgepoint2_ros.storage import data_directory, sha256, write_whole

STRIDE = 32  # the network works on sizes that are multiples of this; other images are resampled inside the model
MIN_SIZE = 64  # smallest image side in pixels
PAD_SCORE = -65504.0  # score of rows past the last keypoint: the lowest number of float16, far below any logit
NMS_RADIUS = 2  # of non-maximum suppression, in a window of 2 * NMS_RADIUS + 1 pixels
BORDER = 4  # pixels along the image's edge that hold no keypoints
MIN_CURVATURE = 1e-6  # of a parabola through three scores; keeps plateaus from dividing by zero
MAX_KEYPOINTS = 2048  # per image, by default

CARD_FORMAT = 3  # 2: T-32.tensorrt.onnx was T-32.fp16.onnx; 1: T-32.onnx held the whole way to the keypoints
SHIPPED = Path(__file__).with_name('shipped')  # the folder of the models that come with the package
_min_cosines: dict[tuple[str, str], float | None] = {}  # by variant and digest, of the models read so far
WEIGHTS = ('auto', 'shipped', 'official')  # the names of weights that need no path


@dataclass(frozen=True)
class Model:
    """An ONNX model on disk; ``card`` holds every entry of its card."""

    path: Path  # of the model for CPUs in fp32
    variant: Variant
    digest: str
    max_keypoints: int  # of the model for TensorRT
    subpixel: bool
    sha256: dict[str, str] = field(repr=False)  # of each file, by the end of its name
    card: dict[str, Any] = field(repr=False)


def models_directory(weights: str) -> Path:
    """Return the folder of the models made from ``weights``: ``shipped``, ``official`` or ``custom``."""
    return SHIPPED if weights == 'shipped' else data_directory() / 'models' / weights


def is_shipped(variant: Variant) -> bool:
    """Tell whether a model of a variant ships with the package."""
    return (models_directory('shipped') / f'{variant}.onnx').is_file()


def card_path(model: Path) -> Path:
    """Return the file of a model's card."""
    return Path(model).with_suffix('.json')


def part_path(model: Path, part: str) -> Path:
    """Return the file of a part of a model: ``int8`` or ``tensorrt``."""
    return Path(model).with_suffix(f'.{part}.onnx')


def read_part(model: Model, part: str = '') -> bytes:
    """Return a part of a model, ``int8`` or ``tensorrt``, or the model for CPUs in fp32, as ONNX.

    Raises:
        ModelError: it is missing or corrupt.
    """
    path = part_path(model.path, part) if part else model.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f'{path} cannot be read ({error.strerror}): export the model again') from None
    actual = sha256(data)
    expected = model.sha256.get(f'.{part}.onnx' if part else '.onnx', 'nothing')
    if actual != expected:
        raise ModelError(
            f'{path} is corrupt: its SHA-256 is {actual[:16]}..., its card says {expected[:16]}...: export it again'
        )
    return data


def find_model(name: str, weights: str = 'auto') -> Model:
    """Return the model that serves a variant.

    Args:
        name: the variant, for example ``T-32``.
        weights: ``shipped`` with the package, ``official``, ``auto`` (shipped if the package has the variant, else
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
        if not os.path.isfile(path):  # Path.is_file raises in another user's home
            raise ModelError(
                f'no {weights} model of {variant} in {path.parent}: run `edgepoint2 models download {variant}`'
                f', or import its weights with `edgepoint2 models import {variant.size}{variant.descriptor_size}.pth`'
            )
        return open_model(path, variant)
    path = Path(os.path.expanduser(weights))  # which keeps the ~ if there is no home; Path.expanduser would raise
    if os.path.isdir(path):
        path = path / f'{variant}.onnx'
    if path.suffix in ('.pth', '.pt'):
        raise ModelError(f'{path} holds weights, not a model: run `edgepoint2 models import {path}`')
    if not os.path.isfile(path):
        raise ModelError(f'weights {weights!r}: expected {" or ".join(WEIGHTS)} or a path, and there is no file {path}')
    return open_model(path, variant)


def open_model(path: Path, variant: Variant | None = None) -> Model:
    """Read a model's card and check it against the ONNX file and, if given, the requested variant."""
    card_file = card_path(path)
    try:
        card = json.loads(card_file.read_text(encoding='utf-8'))
        if card['format'] != CARD_FORMAT:
            raise ModelError(
                f'{card_file}: expected card format {CARD_FORMAT}, got {card["format"]}: the model was made by another '
                f'version of edgepoint2_ros; make it again from its weights'
            )
        model = Model(
            Path(path),
            find_variant(card['model']),
            card['digest'],
            int(card['files']['.tensorrt.onnx']['max_keypoints']),
            bool(card['subpixel']),
            {suffix: str(entry['sha256']) for suffix, entry in card['files'].items()},
            card,
        )
        _min_cosines[model.variant.name, model.digest] = _read_min_cosine(card)
    except FileNotFoundError:
        raise ModelError(f'{path} has no card: expected {card_file.name} beside it, as the export writes it') from None
    except OSError as error:
        raise ModelError(f'{card_file} cannot be read: {error}') from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f'{card_file} is not a model card: {type(error).__name__}: {error}') from None
    if variant is not None and model.variant != variant:
        raise ModelError(f'{path} is a model of {model.variant}, expected {variant}')
    read_part(model)
    return model


def format_card(card: dict[str, Any]) -> bytes:
    """Return the content of a card's file."""
    return (json.dumps(card, indent=2) + '\n').encode()


def write_entry(model: Model, name: str, entry: Any) -> None:
    """Write an entry to a model's card, replacing any that is there.

    Raises:
        OSError: it cannot be written; the old card is still there.
    """
    path = card_path(model.path)
    card = json.loads(path.read_text(encoding='utf-8'))  # others may have written to it since the model was opened
    write_whole(path, format_card(card | {name: entry}))


def min_cosine(name: str, digest: str) -> float | None:
    """Return the cosine from which a match of a model's descriptors is more likely right than wrong.

    It is on the card of a calibrated model (``edgepoint2 models calibrate``); the cards of the package, of the user's
    data directory and of models opened so far are searched. None if none of them has it.

    Args:
        name, digest: of the model, as in features and messages.
    """
    if (name, digest) not in _min_cosines:
        found = None
        for file in (SHIPPED / f'{name}.json', *(data_directory() / 'models').glob(f'*/{glob.escape(name)}.json')):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                card = json.loads(file.read_text(encoding='utf-8'))
                if card['digest'] == digest:
                    found = _read_min_cosine(card)
                    break
        _min_cosines[name, digest] = found
    return _min_cosines[name, digest]


def _read_min_cosine(card: dict[str, Any]) -> float | None:
    """Return the value on a card; an entry that was measured with other weights is ignored."""
    entry = card.get('min_cosine')
    if not isinstance(entry, dict) or entry.get('digest') != card['digest']:
        return None
    return float(entry['value'])


def write_min_cosine(model: Model, value: float, source: str) -> None:
    """Write a calibrated cosine to a model's card.

    Args:
        model: whose card it is.
        value: the cosine.
        source: description of what it was measured on.
    """
    rounded = round(value, 3)
    write_entry(model, 'min_cosine', {'value': rounded, 'digest': model.digest, 'measured_on': source})
    _min_cosines[model.variant.name, model.digest] = rounded


def list_models() -> list[Model | ModelError]:
    """Return the models of the package, then those in the user's data directory; a broken one as its error."""
    order = {variant.name: place for place, variant in enumerate(VARIANTS)}
    found: list[Model | ModelError] = []
    cards = [*models_directory('shipped').glob('*.json'), *(data_directory() / 'models').glob('*/*.json')]
    for card in sorted(cards, key=lambda p: (p.parent != SHIPPED, p.parent, order.get(p.stem, len(order)))):
        try:
            found.append(open_model(card.with_suffix('.onnx')))
        except ModelError as error:
            found.append(error)
    return found
