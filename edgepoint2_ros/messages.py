"""Features as KeypointArray messages and back, in three descriptor encodings."""

import array
from typing import Any

import numpy as np

from edgepoint2_ros.errors import MessageError
from edgepoint2_ros.features import Features

# Index in this tuple = the message's constant: FLOAT32, FLOAT16, INT8. On the wire numbers are little-endian.
ENCODINGS = ('float32', 'float16', 'int8')
NAME = r'[A-Za-z_]\w*(/[A-Za-z_]\w*)*'  # of a topic or a namespace, as ROS accepts it; with re.ASCII
REORDERED = 500_000_000  # ns; a stamp may be this much before the last one; beyond that, time itself has jumped back
_DTYPES = (np.dtype('<f4'), np.dtype('<f2'), np.dtype('i1'))


def encode(features: Features, header: Any, encoding: str = 'float32') -> Any:
    """Return the KeypointArray message of ``features``.

    Args:
        features: what the extractor returned.
        header: std_msgs/Header of the image, passed on unchanged.
        encoding: of the descriptors: ``float32``, ``float16`` or ``int8`` (a quarter of the bytes).

    Raises:
        MessageError: the encoding is not one of the three.
    """
    from edgepoint2_ros.msg import KeypointArray

    fields = to_fields(features, encoding)
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            # Message setters take an array.array without checking each number.
            fields[name] = array.array('B' if value.dtype == np.uint8 else 'f', value.tobytes())
    return KeypointArray(header=header, **fields)


def encode_place(descriptor: np.ndarray, features: Features, header: Any) -> Any:
    """Return the Place message of an image.

    Args:
        descriptor: (S,) float32, as Vocabulary.describe returns it.
        features: those it was made from.
        header: std_msgs/Header of the image, passed on unchanged.
    """
    from edgepoint2_ros.msg import Place

    rows = array.array('f', np.ascontiguousarray(descriptor, np.float32).tobytes())
    return Place(header=header, model=features.model, digest=features.digest, descriptor=rows)


def to_fields(features: Features, encoding: str = 'float32') -> dict[str, Any]:
    """Return the fields of a KeypointArray by name, all but the header; its arrays as numpy arrays.

    Raises:
        MessageError: the encoding is not one of the three.
    """
    rows = quantise(features.descriptors, encoding)
    width, height = features.image_size
    return {
        'model': features.model,
        'digest': features.digest,
        'image_width': width,
        'image_height': height,
        'x': np.ascontiguousarray(features.xy[:, 0], np.float32),
        'y': np.ascontiguousarray(features.xy[:, 1], np.float32),
        'score': np.ascontiguousarray(features.scores, np.float32),
        'descriptor_size': features.descriptors.shape[1],
        'descriptor_encoding': ENCODINGS.index(encoding),
        'descriptors': rows.reshape(-1).view(np.uint8),
    }


def decode(message: Any) -> Features:
    """Return the features that a KeypointArray carries, descriptors as float32.

    float16 and int8 rows are brought to unit length; float32 rows stay as they are. Scores and float32 descriptors are
    views of the message's memory.

    Raises:
        MessageError: lengths contradict each other, or the descriptor encoding is unknown.
    """
    count, size = len(message.x), message.descriptor_size
    if not count == len(message.y) == len(message.score):
        raise MessageError(
            f'x, y and score differ in length: {count}, {len(message.y)} and {len(message.score)} numbers'
        )
    if message.descriptor_encoding >= len(_DTYPES):
        raise MessageError(
            f'descriptor encoding {message.descriptor_encoding}: expected 0 (float32), 1 (float16) or 2 (int8)'
        )
    dtype = _DTYPES[message.descriptor_encoding]
    expected = count * size * dtype.itemsize
    if len(message.descriptors) != expected:
        raise MessageError(
            f'descriptors have {len(message.descriptors)} bytes: expected {expected} '
            f'for {count} keypoints of {size} numbers as {ENCODINGS[message.descriptor_encoding]}'
        )
    rows = np.asarray(message.descriptors, np.uint8).view(dtype).reshape(count, size)
    return Features(
        xy=np.stack([np.asarray(message.x, np.float32), np.asarray(message.y, np.float32)], axis=1),
        scores=np.asarray(message.score, np.float32),
        descriptors=dequantise(rows),
        image_size=(message.image_width, message.image_height),
        model=message.model,
        digest=message.digest,
    )


def name_weights(features: Features) -> str:
    """Return in words which features theirs can be compared with: model, digest and size of the descriptors."""
    return f'{features.model} [{features.digest}] of {features.descriptors.shape[1]} numbers'


def to_nanoseconds(stamp: Any) -> int:
    """Return a builtin_interfaces/Time as nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def quantise(descriptors: np.ndarray, encoding: str) -> np.ndarray:
    """Return descriptors (N, D) float32 in the encoding of a message.

    Returns:
        (N, D) of little-endian float32, float16 or int8. For int8 each row is scaled so that its largest absolute value
        is 127, and rounded; the scale is not kept, since rows have unit length.

    Raises:
        MessageError: the encoding is not one of the three.
    """
    if encoding not in ENCODINGS:
        raise MessageError(f'descriptor encoding {encoding!r} is unknown: expected one of {", ".join(ENCODINGS)}')
    if encoding == 'int8':
        largest = np.abs(descriptors).max(axis=1, keepdims=True, initial=1e-30)  # a row of zeros stays one
        descriptors = np.rint(descriptors * (127 / largest))
    return np.ascontiguousarray(descriptors, _DTYPES[ENCODINGS.index(encoding)])


def dequantise(rows: np.ndarray) -> np.ndarray:
    """Return (N, D) rows made by `quantise` as float32 of unit length; float32 rows come back exactly."""
    if rows.dtype == _DTYPES[0]:
        return rows.astype(np.float32, copy=False)
    rows = rows.astype(np.float32)
    length = np.sqrt(np.einsum('nd,nd->n', rows, rows))
    return rows / np.maximum(length, 1e-30)[:, None]  # a row of zeros stays one
