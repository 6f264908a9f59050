"""Engines: a runtime holding one model, ready to run. One file a runtime, one small interface.

A runtime module offers ``open_engine(model, precision, threads, report) -> Engine``; it imports its runtime only there,
and raises EngineError with one sentence where the runtime is missing or cannot do what was asked.
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error, EngineError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import MAX_KEYPOINTS, PRECISION, PRECISIONS, Model

# In the order in which `auto` tries them, with the reason for the place.
BACKENDS = {
    'tensorrt': 'the fastest on NVIDIA GPUs',
    'openvino': 'the fastest on x86 CPUs',
    'onnxruntime': 'runs on every CPU',
}
LOG = logging.getLogger('edgepoint2_ros').warning  # shown on stderr where nobody has set logging up

Report = Callable[[str], None]


class Engine(Protocol):
    """A model that is ready to run.

    Attributes:
        backend: its name in BACKENDS.
        precision: what it computes in, such as ``fp16`` or ``int8 and bf16``; never ``auto``.
        max_keypoints: the most rows that it can return; None where there is no limit.
        description: runtime, version, precision and threads, for a log.
    """

    backend: str
    precision: str
    max_keypoints: int | None
    description: str

    def prepare(self, height: int, width: int, channels: int) -> None:
        """Do now what the first image of a size would wait for: TensorRT builds a plan, which can take minutes.

        Raises:
            EngineError: the runtime refuses that size.
        """
        ...

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        """Return xy (N, 2), scores (N,) and descriptors (N, D), float32, best score first.

        Args:
            image: uint8 (H, W, C), C = 1 or 3, contiguous.
            mask: uint8 (h, w) on the network's grid, which is the image floored to multiples of 32; nonzero where
                keypoints are allowed. Or (1, 1) for no mask.
            count, threshold: rows past the best ``count``, and rows that score ``threshold`` or less, are not wanted.
                An engine may leave them out, which saves CPUs the work; TensorRT returns max_keypoints rows always.

        The arrays belong to the caller: a later run does not change them.

        Raises:
            EngineError: the runtime refuses that size, or fails.
        """
        ...


def open_engine(
    model: Model,
    backend: str = 'auto',
    precision: str = PRECISION,
    threads: int = 0,
    report: Report = LOG,
) -> Engine:
    """Return an engine that holds ``model``.

    Args:
        model: the model to run.
        backend: ``auto`` or one of BACKENDS.
        precision: ``fp32``, ``fp16`` (TensorRT), ``bf16`` or ``int8`` (OpenVINO, where the CPU has it). ``auto`` is the
            fastest that keeps the accuracy: fp16 on TensorRT; int8, bf16 or fp32 on OpenVINO, by what the CPU has; fp32
            on ONNX Runtime.
        threads: threads of the runtime; 0 takes every core that this process may use.
        report: takes lines about what takes long or did not work out, now and at later runs; a line that begins with
            ``not ready: `` says what the engine waits for.

    Raises:
        EngineError: no such backend or precision, or the runtime is missing or refuses.
    """
    if precision not in PRECISIONS:
        raise EngineError(f'unknown precision {precision!r}: expected one of {", ".join(PRECISIONS)}')
    if threads < 0:
        raise EngineError(f'threads: expected 0 (all cores) or more, got {threads}')
    threads = threads or len(os.sched_getaffinity(0))
    if backend in BACKENDS:
        return _open(backend, model, precision, threads, report)
    if backend != 'auto':
        raise EngineError(f'unknown backend {backend!r}: expected auto or one of {", ".join(BACKENDS)}')
    return AutoEngine(model, precision, threads, report)


class AutoEngine:
    """The best backend that can be opened; when it fails later, the next one takes its place for good.

    TensorRT builds its plans for the images that come, so it may refuse as late as that.
    """

    def __init__(self, model: Model, precision: str, threads: int, report: Report):
        self._open = lambda backend: _open(backend, model, precision, threads, report)
        self._what = f'{model.variant} in {precision}'
        self._report = report
        self._candidates = list(BACKENDS)
        self._refusals: list[str] = []
        self._engine = self._next()

    @property
    def backend(self) -> str:
        return self._engine.backend

    @property
    def precision(self) -> str:
        return self._engine.precision

    @property
    def max_keypoints(self) -> int | None:
        return self._engine.max_keypoints

    @property
    def description(self) -> str:
        reasons = [*self._refusals, BACKENDS[self.backend]]
        return f'{self._engine.description} (auto: {"; ".join(reasons)})'

    def prepare(self, height: int, width: int, channels: int) -> None:
        self._try(lambda engine: engine.prepare(height, width, channels))

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        return self._try(lambda engine: engine.run(image, mask, count, threshold))

    def _try(self, use: Callable[[Engine], object]):
        while True:
            try:
                return use(self._engine)
            except EngineError as error:
                if not self._candidates:
                    raise
                failed = self.backend
                self._refusals.append(str(error))
                self._engine = self._next()
                self._report(f'{failed} is given up for {self._engine.description}: {error}')

    def _next(self) -> Engine:
        while self._candidates:
            try:
                return self._open(self._candidates.pop(0))
            except EngineError as error:
                self._refusals.append(str(error))
        raise EngineError(f'no backend can run {self._what}: {"; ".join(self._refusals)}')


def _open(backend: str, model: Model, precision: str, threads: int, report: Report) -> Engine:
    try:
        return import_module(f'{__name__}.{backend}').open_engine(model, precision, threads, report)
    except EdgePoint2Error:
        raise
    except Exception as error:  # whatever a runtime does when it is imported or started, another one may work
        raise EngineError(f'{backend} cannot be started: {type(error).__name__}: {error}') from error
