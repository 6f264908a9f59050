"""The extractor: an image goes in, its features come out."""

import threading
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros.engines import open_engine
from edgepoint2_ros.engines.base import LOG
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match
from edgepoint2_ros.models import MAX_KEYPOINTS, MIN_SIZE, STRIDE, find_model
from edgepoint2_ros.progress import Report

MAX_PIXELS = 2**24  # the runtimes need about 120 bytes for each, 2 GB in all
_NO_MASK = np.ones((1, 1), np.uint8)


@dataclass(frozen=True)
class ExtractorSettings:
    """The settings of an extractor, with the defaults of the library, the commands and the node.

    Attributes:
        model: name of the variant.
        weights: ``auto``, ``shipped``, ``official``, or a path to an ONNX model or a folder of them.
        backend: ``auto``, or the name of a runtime as in edgepoint2_ros.engines.BACKENDS.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, or ``auto``: the fastest that keeps the accuracy.
        threads: threads of the runtime, 256 at most; 0 takes every core.
        max_keypoints: maximum number of keypoints per image. CPUs take any, TensorRT at most what the model was
            exported for: 2048 for all that ship.
        score_threshold: keypoints score above it (raw logits).
    """

    model: str = 'T-32'
    weights: str = 'auto'
    backend: str = 'auto'
    precision: str = 'auto'
    threads: int = 0
    max_keypoints: int = MAX_KEYPOINTS
    score_threshold: float = -8.0

    @classmethod
    def of(cls, source: object) -> 'ExtractorSettings':
        """Return the settings that ``source`` has as attributes: parsed arguments, or the parameters of the node."""
        return cls(**{field.name: getattr(source, field.name) for field in fields(cls)})


DEFAULTS = ExtractorSettings()


class Extractor:
    """One variant of EdgePoint2 with its weights, loaded in a runtime. Threads may share it; they take turns.

    Attributes:
        model: the Model in use.
        variant: the Variant.
        digest: identity of the weights, 16 hex digits.
        backend: name of the runtime in use; `auto` may change it when the one chosen first fails.
        description: model, weights, runtime and the reason for it, in one line.
    """

    def __init__(self, model: str | ExtractorSettings = DEFAULTS, *, report: Report = LOG, **settings: Any):
        """Find the model and open an engine for it.

        Args:
            model: name of the variant, for example ``T-32``, or all settings at once.
            report: called with lines about slow steps, such as building a plan, and about failures.
            settings: further settings, named as in ExtractorSettings, such as ``max_keypoints``.

        Raises:
            ModelError: no such variant or model, or a corrupt one.
            EngineError: the backend is missing or fails to open.
            EdgePoint2Error: max_keypoints or score_threshold out of range.
        """
        if not isinstance(model, ExtractorSettings):
            model = ExtractorSettings(model)
        chosen = replace(model, **settings)
        self.model = find_model(chosen.model, chosen.weights)
        self.variant = self.model.variant
        self.digest = self.model.digest
        self._engine = open_engine(self.model, chosen.backend, chosen.precision, chosen.threads, report)
        self.max_keypoints = chosen.max_keypoints
        self.score_threshold = chosen.score_threshold
        self._lock = threading.Lock()

    @property
    def backend(self) -> str:
        return self._engine.backend

    @property
    def precision(self) -> str:
        return self._engine.precision

    @property
    def description(self) -> str:
        return f'{self.variant} {self.model.path} [{self.digest}] on {self._engine.description}'

    @property
    def max_keypoints(self) -> int:
        return self._max_keypoints

    @max_keypoints.setter
    def max_keypoints(self, value: int) -> None:
        most = self._engine.max_keypoints
        if value < 1 or (most and value > most):
            advice = '; for more, export the model again with `edgepoint2 models import --max-keypoints`, or use a CPU'
            limits = f'1 to {most} on TensorRT, got {value}{advice}' if most else f'1 or more, got {value}'
            raise EdgePoint2Error(f'max_keypoints: expected {limits}')
        self._max_keypoints = int(value)

    @property
    def score_threshold(self) -> float:
        return self._score_threshold

    @score_threshold.setter
    def score_threshold(self, value: float) -> None:
        if not -1000.0 <= value <= 1000.0:  # also refuses NaN
            raise EdgePoint2Error(f'score_threshold: expected -1000 to 1000, got {value}')
        self._score_threshold = float(value)

    def prepare(self, width: int, height: int, channels: int = 3) -> None:
        """Warm up for an image size, so that its first image need not wait: building a TensorRT plan can take minutes.

        Args:
            width, height: of the images to come, in pixels.
            channels: 1 for gray images, 3 for colour.

        Raises:
            EngineError: the backend refuses that size.
            ImageError: too small or too large.
        """
        check_size(width, height)
        with self._lock:
            self._engine.prepare((height, width, channels))

    def extract(self, image: np.ndarray, mask: np.ndarray | None = None) -> Features:
        """Return the features of one image.

        Args:
            image: uint8 (H, W) gray, or (H, W, 3) colour in any channel order; H and W from 64.
            mask: uint8 (H, W), nonzero where keypoints are allowed. Masked pixels take no slot of the top K.

        Returns:
            At most max_keypoints features, best score first; none if nothing scores above the threshold.

        Raises:
            ImageError: wrong type or shape, too small or too large.
        """
        _check(image, mask)
        height, width = image.shape[:2]
        image, mask = np.ascontiguousarray(image).reshape(height, width, -1), _on_grid(mask, width, height)
        most, threshold = self._max_keypoints, self._score_threshold
        with self._lock:
            xy, scores, descriptors = self._engine.run(image, mask, most, threshold)
        count = min(int(np.count_nonzero(scores > threshold)), most)
        return Features(
            xy[:count], scores[:count], descriptors[:count], (width, height), self.variant.name, self.digest
        )


def match_pair(
    first: np.ndarray, second: np.ndarray, extractor: Extractor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of mutual nearest neighbours in two images: (P, 2) and (P, 2) float32, in pixels.

    Args:
        first, second: images as `Extractor.extract` takes them.
        extractor: the extractor to use; by default one of T-32 with at most 2048 keypoints.

    Raises:
        EdgePoint2Error: an image is of the wrong type or size, or no model or runtime can be opened.
    """
    extractor = extractor or Extractor()
    features = extractor.extract(first), extractor.extract(second)
    pairs = match(*features)
    return features[0].xy[pairs[:, 0]], features[1].xy[pairs[:, 1]]


def extract_shrunk(extractor: Extractor, image: np.ndarray, long_side: int, mask: np.ndarray | None = None) -> Features:
    """Return the features found in an image after shrinking it, in pixels of the original image.

    Args:
        extractor: finds the features.
        image, mask: as for `Extractor.extract`, but of any size.
        long_side: in pixels; a smaller image is not enlarged, and 0 leaves the size unchanged.

    Raises:
        ImageError: as `Extractor.extract` raises it; the mask is not as large as the image.
    """
    _check_type(image)
    if mask is not None:
        _check_mask(mask, *image.shape[:2])
    smaller, scale = fit(image, long_side)
    if mask is not None and smaller is not image:
        mask = cv2.resize(mask, smaller.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    found = extractor.extract(smaller, mask)
    xy = (found.xy - scale[:2, 2]) / scale.diagonal()[:2]
    return replace(found, xy=xy.astype(np.float32), image_size=image.shape[1::-1])


def fit(image: np.ndarray, long_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Shrink an image to ``long_side`` pixels; never enlarge it, and 0 leaves it alone.

    Returns:
        The image and the (3, 3) matrix that maps pixels of the given image to its pixels.
    """
    height, width = image.shape[:2]
    if image.size == 0 or not 0 < long_side < max(height, width):
        return image, np.eye(3)
    shrink = long_side / max(height, width)
    smaller = cv2.resize(
        image, (max(1, round(width * shrink)), max(1, round(height * shrink))), interpolation=cv2.INTER_AREA
    )
    x, y = smaller.shape[1] / width, smaller.shape[0] / height
    # Pixel centres are integers, so the corner of the image, which stays where it is, lies at -0.5.
    return smaller, np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]])


def _check(image: np.ndarray, mask: np.ndarray | None) -> None:
    _check_type(image)
    height, width = image.shape[:2]
    check_size(width, height)
    if mask is not None:
        _check_mask(mask, height, width)


def _check_type(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, 'dtype', type(image).__name__)
        raise ImageError(f'image: expected a uint8 array (H, W) or (H, W, 3), got {kind}')
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ImageError(f'image: expected shape (H, W) or (H, W, 3), got {image.shape}')


def _check_mask(mask: np.ndarray, height: int, width: int) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.shape != (height, width):
        got = f'{mask.dtype} {mask.shape}' if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ImageError(f'mask: expected uint8 {(height, width)} like the image, got {got}')


def check_size(width: int, height: int) -> None:
    if min(height, width) < MIN_SIZE:
        raise ImageError(f'image: expected at least {MIN_SIZE} x {MIN_SIZE} pixels, got {width} x {height}')
    if height * width > MAX_PIXELS:
        raise ImageError(
            f'image: expected at most {MAX_PIXELS} pixels, got {width} x {height}: shrink it (`edgepoint2 extract '
            f'--resize`, or extract_shrunk in Python)'
        )


def _on_grid(mask: np.ndarray | None, width: int, height: int) -> np.ndarray:
    """Return the mask on the network's grid, whose sides are multiples of 32."""
    if mask is None:
        return _NO_MASK
    size = (width // STRIDE * STRIDE, height // STRIDE * STRIDE)
    if size != (width, height):
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(mask)
