"""ONNX Runtime on the CPU: the embedded default."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows, best_keypoints
from edgepoint2_ros.models import Model


def import_onnxruntime():
    """Import ONNX Runtime, here and nowhere else: without its telemetry, unless the environment asks for that.

    From 1.29 on it looks a host of Microsoft up and writes into the user's cache as soon as it is imported.
    """
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
    import onnxruntime

    return onnxruntime


class OnnxRuntimeEngine:
    """A session of ONNX Runtime; it takes images of any size."""

    backend = 'onnxruntime'
    precision = 'fp32'

    def __init__(self, model: bytes | Path, threads: int, max_keypoints: int, subpixel: bool):
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores from the rest of the robot, and slow this very network down
        # threefold as soon as anything else wants one of them.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        options.log_severity_level = 3  # errors; they come back as exceptions
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
        self._max_keypoints = max_keypoints
        self._subpixel = subpixel
        self.description = f'ONNX Runtime {onnxruntime.__version__}, {self.precision}, threads {threads}'

    def prepare(self, height: int, width: int, channels: int) -> None:
        """Nothing: one session takes every size."""

    def run(self, image: np.ndarray, mask: np.ndarray, count: int | None = None, threshold: float = -np.inf) -> Rows:
        cells, descriptors = self._session.run(['cells', 'descriptors'], {'image': image})
        count = self._max_keypoints if count is None else count
        return best_keypoints(cells[0], descriptors[0], image.shape[:2], mask, count, threshold, self._subpixel)


def open_engine(model: Model, precision: str, threads: int, report: Callable[[str], None]) -> OnnxRuntimeEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    if precision not in ('auto', 'fp32'):
        raise EngineError(f'ONNX Runtime runs fp32 on the CPU, not {precision}')
    try:
        return OnnxRuntimeEngine(model.path, threads, model.max_keypoints, model.subpixel)
    except ImportError as error:
        raise EngineError(f'ONNX Runtime is not installed ({error}): pip install onnxruntime') from None
    except Exception as error:  # the runtime's own exception classes have no common public base
        raise EngineError(f'ONNX Runtime cannot open {model.path}: {error}') from None
