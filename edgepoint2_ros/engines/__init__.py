"""Engines: a runtime holding one model, ready to run. One file a runtime, one small interface.

A runtime's module declares its BACKEND and offers ``open_engine(model, precision, threads, report) -> Engine``, which
imports the runtime, here and nowhere else, and raises EngineError where it cannot do what was asked. A runtime on the
CPU derives its engine from CpuEngine. To add one, write its module and name it in RUNTIMES.
"""

import os
from collections.abc import Callable

import numpy as np

from edgepoint2_ros.engines import onnxruntime, openvino, tensorrt
from edgepoint2_ros.engines.base import LOG, Engine, Report, Shape
from edgepoint2_ros.errors import EdgePoint2Error, EngineError, ModelError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import MAX_KEYPOINTS, Model

# In the order in which `auto` tries them.
RUNTIMES = {runtime.BACKEND.name: runtime for runtime in (tensorrt, openvino, onnxruntime)}
BACKENDS = {name: runtime.BACKEND for name, runtime in RUNTIMES.items()}
_KNOWN = dict.fromkeys(precision for backend in BACKENDS.values() for precision in backend.precisions)
PRECISIONS = ('auto', *sorted(_KNOWN, key=lambda name: -int(name.lstrip('bfpint'))))  # the widest first


def open_engine(
    model: Model,
    backend: str = 'auto',
    precision: str = 'auto',
    threads: int = 0,
    report: Report = LOG,
) -> Engine:
    """Return an engine that holds ``model``.

    Args:
        model: the model to run.
        backend: ``auto`` or one of BACKENDS.
        precision: one that the backend declares. ``auto`` is the fastest that keeps the accuracy: fp16 on TensorRT;
            int8, bf16 or fp32 on OpenVINO, by what the CPU has; fp32 on ONNX Runtime.
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
        reasons = [*self._refusals, BACKENDS[self.backend].reason]
        return f'{self._engine.description} (auto: {"; ".join(reasons)})'

    def prepare(self, image_shape: Shape) -> None:
        self._try(lambda engine: engine.prepare(image_shape))

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
                self._report(f'falling back from {failed} to {self._engine.description}: {error}')

    def _next(self) -> Engine:
        while self._candidates:
            try:
                return self._open(self._candidates.pop(0))
            except EngineError as error:
                self._refusals.append(str(error))
        raise EngineError(f'no backend can run {self._what}: {"; ".join(self._refusals)}')


def _open(name: str, model: Model, precision: str, threads: int, report: Report) -> Engine:
    backend = BACKENDS[name]
    if precision not in ('auto', *backend.precisions):
        raise EngineError(f'{backend.title} runs {", ".join(backend.precisions)}, not {precision}')
    try:
        return RUNTIMES[name].open_engine(model, precision, threads, report)
    except ModelError as error:  # another backend may not need that file
        raise EngineError(f'{backend.title}: {error}') from None
    except EdgePoint2Error:
        raise
    except ImportError as error:
        raise EngineError(f'{backend.title} is not installed ({error}): pip install {backend.package}') from None
    except Exception as error:  # whatever a runtime does when it is imported or started, another one may work
        raise EngineError(f'{backend.title} cannot be started: {type(error).__name__}: {error}') from error
