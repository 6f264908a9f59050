"""What the runtimes share: their declaration, the interface, and the base class of those on the CPU."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar, Protocol

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error, EngineError
from edgepoint2_ros.keypoints import Rows, best_keypoints
from edgepoint2_ros.models import MAX_KEYPOINTS

LOG = logging.getLogger('edgepoint2_ros').warning  # shown on stderr if logging is not configured

ACCURACY = ('fp32', 'fp16', 'bf16', 'int8')  # every precision, the most accurate first
Shape = tuple[int, ...]  # of an image: height, width, channels


@dataclass(frozen=True)
class Backend:
    """A runtime, as its module declares it.

    Attributes:
        name: of the module, and of the setting ``backend``.
        title: the runtime's own name.
        package: to install with pip.
        precisions: of ACCURACY, that it runs.
        reason: why `auto` tries it in this order.
    """

    name: str
    title: str
    package: str
    precisions: tuple[str, ...]
    reason: str

    def version(self) -> str:
        """Return title and version, without importing the runtime; only the title if pip does not know it."""
        try:
            return f'{self.title} {metadata.version(self.package)}'
        except metadata.PackageNotFoundError:
            return self.title

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Turn whatever the runtime raises into a one-line EngineError: each has its own exception classes."""
        try:
            yield
        except EdgePoint2Error:
            raise
        except Exception as error:
            raise EngineError(f'{self.title} cannot {doing}: {" ".join(str(error).split())}') from error


class Engine(Protocol):
    """A model that is ready to run.

    Attributes:
        backend: its name in BACKENDS.
        precision: what it computes in, such as ``fp16`` or ``int8 and bf16``; never ``auto``.
        max_keypoints: maximum number of rows that it can return; None if there is no limit.
        description: runtime, version, precision and threads, for a log.
    """

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def max_keypoints(self) -> int | None: ...

    @property
    def description(self) -> str: ...

    def prepare(self, image_shape: Shape) -> None:
        """Warm up for an image size, so that its first image need not wait: building a TensorRT plan can take minutes.

        Args:
            image_shape: (H, W, C) of the images to come.

        Raises:
            EngineError: the runtime does not support that size.
        """
        ...

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        """Return xy (N, 2), scores (N,) and descriptors (N, D), float32, best score first.

        Args:
            image: uint8 (H, W, C), C = 1 or 3, contiguous.
            mask: uint8 (h, w) on the network's grid, which is the image floored to multiples of 32; nonzero where
                keypoints are allowed. Or (1, 1) for no mask.
            count, threshold: rows past the best ``count``, and rows that score ``threshold`` or less, are not needed.
                An engine may omit them, which saves work on a CPU; TensorRT always returns max_keypoints rows.

        The arrays belong to the caller: a later run does not change them.

        Raises:
            EngineError: the runtime does not support that size, or fails.
        """
        ...


class CpuEngine(ABC):
    """An engine on the CPU: the runtime computes the network's maps, NumPy selects the keypoints.

    A subclass sets ``runtime`` and implements `maps`.
    """

    runtime: ClassVar[Backend]
    max_keypoints = None

    def __init__(self, version: str, precision: str, threads: int, subpixel: bool, choice: str = ''):
        """Store what every CPU runtime has.

        Args:
            version: of the runtime.
            precision: what it computes in.
            threads: of the runtime.
            subpixel: refine keypoints by a parabola through the score map.
            choice: why this precision was chosen, for the description.
        """
        self.precision = precision
        self.description = f'{self.runtime.title} {version}, {precision}{choice}, threads {threads}'
        self._subpixel = subpixel

    @property
    def backend(self) -> str:
        return self.runtime.name

    def prepare(self, image_shape: Shape) -> None:  # noqa: B027
        """Do nothing: the runtime accepts any size."""

    @abstractmethod
    def maps(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the network's maps of an image, float32 and contiguous; the next call may overwrite them.

        Args:
            image: uint8 (H, W, C), C = 1 or 3, contiguous.

        Returns:
            The scores in cells of 2x2 pixels (h/2, w/2, 4) and the descriptors (h/4, w/4, D); h and w are H and W
            floored to multiples of 32.
        """

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        with self.runtime.errors('run the network'):
            cells, descriptors = self.maps(image)
        return best_keypoints(cells, descriptors, image.shape[:2], mask, count, threshold, self._subpixel)
