"""ONNX Runtime on the CPU: the embedded default."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.engines.base import Backend, CpuEngine
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.models import Model
from edgepoint2_ros.progress import Report

BACKEND = Backend('onnxruntime', 'ONNX Runtime', 'onnxruntime', ('fp32',), 'runs on every CPU')


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, here and nowhere else: without its telemetry, unless the environment asks for it.

    Since 1.29 it looks up a Microsoft host and writes to the user's cache as soon as it is imported.

    Raises:
        EngineError: it would crash the process here.
    """
    if find_cpu().foreign:
        raise EngineError('ONNX Runtime crashes in an emulator that shows the /proc/cpuinfo of its x86 host')
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime

    return onnxruntime


class OnnxRuntimeEngine(CpuEngine):
    """A session of ONNX Runtime; it takes images of any size."""

    runtime = BACKEND

    def __init__(self, model: bytes | Path, threads: int, subpixel: bool):
        onnxruntime = import_onnxruntime()
        super().__init__(onnxruntime.__version__, 'fp32', threads, subpixel)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while waiting take cores from the rest of the robot, and slow this network down threefold as
        # soon as anything else needs one of them.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3  # errors; they come back as exceptions
        source = model if isinstance(model, bytes) else str(model)
        with BACKEND.errors(f'open {model if isinstance(model, Path) else "the model"}'):
            self._session = onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])

    def maps(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells, descriptors = self._session.run(['cells', 'descriptors'], {'image': image})
        return cells[0], descriptors[0]


def open_engine(model: Model, precision: str, threads: int, report: Report) -> OnnxRuntimeEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    return OnnxRuntimeEngine(model.path, threads, model.subpixel)


def fast_precisions(model: Model) -> list[str]:
    """Return the precisions that may be the fastest for a model on this CPU."""
    return ['fp32']
