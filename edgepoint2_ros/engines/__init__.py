"""Engines: a runtime with one model loaded, ready to run. One file per runtime, one small interface.

A runtime's module declares its BACKEND and provides ``open_engine(model, precision, threads, report) -> Engine``, which
imports the runtime, here and nowhere else, and raises EngineError if it cannot do what was asked. A runtime on the CPU
derives its engine from CpuEngine, and provides ``fast_precisions(model)``, of which `auto` takes the fastest. To add
one, write its module and add it to RUNTIMES.
"""

import os

from edgepoint2_ros.engines import onnxruntime, openvino, tensorrt
from edgepoint2_ros.engines.auto import AutoEngine
from edgepoint2_ros.engines.base import ACCURACY, LOG, Engine
from edgepoint2_ros.errors import EdgePoint2Error, EngineError, ModelError
from edgepoint2_ros.models import Model
from edgepoint2_ros.progress import Report

# In the order in which `auto` tries them.
RUNTIMES = {runtime.BACKEND.name: runtime for runtime in (tensorrt, openvino, onnxruntime)}
BACKENDS = {name: runtime.BACKEND for name, runtime in RUNTIMES.items()}
PRECISIONS = ('auto', *ACCURACY)
MAX_THREADS = 256


def open_engine(
    model: Model,
    backend: str = 'auto',
    precision: str = 'auto',
    threads: int = 0,
    report: Report = LOG,
) -> Engine:
    """Return an engine with ``model`` loaded.

    Args:
        model: the model to run.
        backend: ``auto`` or one of BACKENDS.
        precision: one that the backend declares, or ``auto``: fp16 on TensorRT, fp32 on ONNX Runtime, on OpenVINO
            int8, bf16, fp16 or fp32, depending on the CPU. The backend ``auto`` measures which is fastest here.
        threads: threads of the runtime, MAX_THREADS at most; 0 takes every core that this process may use, or with the
            backend ``auto`` half of them if that is faster.
        report: called with lines about slow steps and failures, now and during later runs; a line that begins with
            ``not ready: `` says what the engine waits for.

    Raises:
        EngineError: no such backend or precision, or the runtime is missing or fails to open the model.
    """
    if precision not in PRECISIONS:
        raise EngineError(f'unknown precision {precision!r}: expected one of {", ".join(PRECISIONS)}')
    if not 0 <= threads <= MAX_THREADS:
        raise EngineError(f'threads: expected 0 (all cores) to {MAX_THREADS}, got {threads}')
    if backend in BACKENDS:
        return _open(backend, model, precision, threads or len(os.sched_getaffinity(0)), report)
    if backend != 'auto':
        raise EngineError(f'unknown backend {backend!r}: expected auto or one of {", ".join(BACKENDS)}')
    return AutoEngine(
        model,
        precision,
        threads,
        report,
        RUNTIMES,
        lambda choice: _open(choice.backend, model, choice.precision, choice.threads, report),
    )


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
    except Exception as error:  # whatever a runtime raises when it is imported or started, another one may work
        raise EngineError(f'{backend.title} cannot be started: {type(error).__name__}: {error}') from error
