"""The self-check of an engine: its features of a drawn scene against a reference.

The reference is ONNX Runtime in fp32, at the size of the images to come; or, to check ONNX Runtime itself, the model's
card: the features that it found in fp32 when the model was made.
"""

import base64
import os
from collections.abc import Callable

import cv2
import numpy as np

from edgepoint2_ros.engines import onnxruntime
from edgepoint2_ros.engines.base import LOG, Shape
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import Model

Run = Callable[[np.ndarray, np.ndarray], Rows]  # of an image and a mask, as `Engine.run`

BEST = 1000  # keypoints of the reference that are compared
SCORE_THRESHOLD = -5.0
CARD_SHAPE = (480, 640, 3)  # of the scene of a card's features
CARD_BEST = 200  # keypoints on a card
CARD_STEPS = 64  # per pixel: the resolution of their positions
MAX_DISTANCE = 1.0  # pixels between two keypoints that count as the same
MIN_SHARE = 0.97  # of the keypoints that must be found again
MIN_COSINE = 0.999  # median over their descriptors
MIN_COSINE_OF_CPU = 0.995  # the same on a CPU, where the fastest precision may be int8


def draw_scene(height: int, width: int, channels: int) -> np.ndarray:
    """Return the test image, uint8 (height, width, channels), channels 1 or 3: overlapping shapes with grain.

    It is the same on every machine: RandomState guarantees the same numbers forever.
    """
    random = np.random.RandomState(0)  # noqa: NPY002
    scene = np.full((480, 640, 3), 128, np.uint8)
    for size in np.geomspace(250, 12, 250):
        corners = random.uniform((0, 0), (640, 480)) + size * random.uniform(-0.5, 0.5, (random.randint(3, 7), 2))
        cv2.fillConvexPoly(scene, cv2.convexHull(corners.astype(np.int32)), random.randint(20, 236, 3).tolist())
    grain = cv2.GaussianBlur(random.normal(0, 12, (480, 640)).astype(np.float32), (0, 0), 1)
    scene = np.clip(cv2.GaussianBlur(scene, (0, 0), 0.8) + grain[..., None], 0, 255).astype(np.uint8)
    if channels == 1:
        scene = cv2.cvtColor(scene, cv2.COLOR_BGR2GRAY)
    return cv2.resize(scene, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


def compare(found: Rows, expected: Rows) -> tuple[float, float]:
    """Return the share of the expected keypoints that were found within a pixel, and the median cosine of those.

    Args:
        found: xy (K, 2), scores (K,), descriptors (K, D) of the engine under test.
        expected: the same of the reference; its best keypoints count.
    """
    real = found[1] > SCORE_THRESHOLD
    wanted = np.flatnonzero(expected[1] > SCORE_THRESHOLD)[:BEST]
    if not len(wanted) or not real.any() or not all(np.isfinite(array[real]).all() for array in found):
        return 0.0, 0.0
    distance = np.linalg.norm(expected[0][wanted, None] - found[0][None, real], axis=2)
    nearest = distance.argmin(axis=1)
    same = distance.min(axis=1) <= MAX_DISTANCE
    cosines = np.einsum('nd,nd->n', expected[2][wanted][same], found[2][real][nearest[same]])
    return float(same.mean()), float(np.median(cosines)) if same.any() else 0.0


def check(run: Run, model: Model, image_shape: Shape) -> str:
    """Compare an engine with ONNX Runtime in fp32 on the scene; return the result in words.

    Args:
        run: the engine's ``run``.
        model: the model that it runs.
        image_shape: (height, width, channels) of the image to check with.

    Raises:
        EngineError: too few keypoints are found, descriptors differ, or ONNX Runtime is missing.
    """
    reference = onnxruntime.open_engine(model, 'fp32', len(os.sched_getaffinity(0)), LOG)
    expected = _run(lambda image, mask: reference.run(image, mask, model.max_keypoints), image_shape)
    return _judge(compare(_run(run, image_shape), expected), 'fp32 on the CPU', MIN_COSINE)


def check_against_card(run: Run, model: Model) -> str:
    """Compare an engine on a CPU with the features on the model's card; return the result in words.

    Raises:
        EngineError: too few keypoints are found, descriptors differ, or the card has no features.
    """
    if 'expected' not in model.card:
        raise EngineError(f'{model.path} has no expected features on its card: export it again')
    expected = unpack(model.card['expected'], model.variant.descriptor_size)
    return _judge(compare(_run(run, CARD_SHAPE), expected), "the model's card", MIN_COSINE_OF_CPU)


def pack(features: Rows) -> dict[str, str]:
    """Return the best features of the scene, CARD_SHAPE in size, as text for a card."""
    xy, scores, descriptors = (array[:CARD_BEST] for array in features)
    real = scores > SCORE_THRESHOLD
    rows = {
        'xy': np.rint(xy[real] * CARD_STEPS).astype('<u2'),
        'descriptors': np.rint(descriptors[real] * 127).astype(np.int8),
    }
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in rows.items()}


def unpack(card: dict[str, str], descriptor_size: int) -> Rows:
    """Return the features written by ``pack``, without their scores."""
    xy = np.frombuffer(base64.b64decode(card['xy']), '<u2').reshape(-1, 2).astype(np.float32) / CARD_STEPS
    descriptors = np.frombuffer(base64.b64decode(card['descriptors']), np.int8).reshape(-1, descriptor_size)
    descriptors = descriptors / np.linalg.norm(descriptors.astype(np.float32), axis=1, keepdims=True)
    return xy, np.zeros(len(xy), np.float32), descriptors


def _run(run: Run, image_shape: Shape) -> Rows:
    return run(draw_scene(*image_shape), np.ones((1, 1), np.uint8))


def _judge(result: tuple[float, float], reference: str, min_cosine: float) -> str:
    share, cosine = result
    words = f'{share:.1%} of the keypoints within {MAX_DISTANCE:g} px, median descriptor cosine {cosine:.5f}'
    if share < MIN_SHARE or cosine < min_cosine:
        raise EngineError(
            f'failed the self-check against {reference}: {words}; expected {MIN_SHARE:.0%} and {min_cosine}'
        )
    return words
