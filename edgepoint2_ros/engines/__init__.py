"""Engines: a runtime holding one model, ready to run. One file a runtime, one small interface.

A runtime module offers ``open_engine(model, precision, threads) -> Engine``; it imports its runtime only there, and
raises EngineError with one sentence where the runtime is missing or cannot do what was asked.
"""

import os
from importlib import import_module
from typing import Protocol

import numpy as np

from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.models import Model

# In the order in which `auto` tries them, with the reason for the place.
BACKENDS = {
    'openvino': 'the fastest on x86 CPUs',
    'onnxruntime': 'runs on every CPU',
}
PRECISIONS = ('fp32', 'bf16')


class Engine(Protocol):
    """A model that is ready to run.

    Attributes:
        backend: its name in BACKENDS.
        description: runtime, version, precision and threads, for a log.
    """

    backend: str
    description: str

    def run(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return xy (K, 2), scores (K,) and descriptors (K, D), float32, as the model's outputs say.

        Args:
            image: uint8 (H, W, C), C = 1 or 3, contiguous.
            mask: uint8 (h, w) on the network's grid, or (1, 1).

        The arrays belong to the caller: a later run does not change them.
        """
        ...


def open_engine(model: Model, backend: str = 'auto', precision: str = 'fp32', threads: int = 0) -> Engine:
    """Return an engine that holds ``model``.

    Args:
        model: the model to run.
        backend: ``auto`` or one of BACKENDS.
        precision: ``fp32``, or ``bf16`` where the backend and the CPU have it.
        threads: threads of the runtime; 0 takes every core that this process may use.

    Raises:
        EngineError: no such backend or precision, or the runtime is missing or refuses.
    """
    if precision not in PRECISIONS:
        raise EngineError(f'unknown precision {precision!r}: expected one of {", ".join(PRECISIONS)}')
    if threads < 0:
        raise EngineError(f'threads: expected 0 (all cores) or more, got {threads}')
    threads = threads or len(os.sched_getaffinity(0))
    if backend in BACKENDS:
        return _open(backend, model, precision, threads)
    if backend != 'auto':
        raise EngineError(f'unknown backend {backend!r}: expected auto or one of {", ".join(BACKENDS)}')
    refusals = []
    for candidate, reason in BACKENDS.items():
        try:
            engine = _open(candidate, model, precision, threads)
        except EngineError as error:
            refusals.append(str(error))
            continue
        engine.description += f' (auto: {"; ".join([*refusals, reason])})'
        return engine
    raise EngineError(f'no backend can run {model.variant} in {precision}: {"; ".join(refusals)}')


def _open(backend: str, model: Model, precision: str, threads: int) -> Engine:
    return import_module(f'{__name__}.{backend}').open_engine(model, precision, threads)
