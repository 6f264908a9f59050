"""ONNX Runtime on the CPU: the embedded default."""

from collections.abc import Callable

import numpy as np

from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.models import Model


class OnnxRuntimeEngine:
    """A session of ONNX Runtime; it takes images of any size."""

    backend = 'onnxruntime'

    def __init__(self, session, description: str):
        self._session = session
        self.description = description

    def prepare(self, height: int, width: int, channels: int) -> None:
        """Nothing: one session takes every size."""

    def run(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return tuple(self._session.run(['xy', 'scores', 'descriptors'], {'image': image, 'mask': mask}))


def open_engine(model: Model, precision: str, threads: int, report: Callable[[str], None]) -> OnnxRuntimeEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f'ONNX Runtime is not installed ({error}): pip install onnxruntime') from None
    if precision not in ('auto', 'fp32'):
        raise EngineError(f'ONNX Runtime runs fp32 on the CPU, not {precision}')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin while they wait take the cores from the rest of the robot, and slow this very network down
    # threefold as soon as anything else wants one of them.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 3  # errors; they come back as exceptions
    try:
        session = onnxruntime.InferenceSession(str(model.path), options, providers=['CPUExecutionProvider'])
    except Exception as error:  # the runtime's own exception classes have no common public base
        raise EngineError(f'ONNX Runtime cannot open {model.path}: {error}') from None
    return OnnxRuntimeEngine(session, f'ONNX Runtime {onnxruntime.__version__}, fp32, threads {threads}')
