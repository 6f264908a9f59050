"""TensorRT and CUDA as Python modules: importing them, TensorRT's logger, and calls that raise EngineError."""

import functools
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

from edgepoint2_ros.engines.tensorrt.gpu import Gpu
from edgepoint2_ros.errors import EngineError


def import_tensorrt() -> Any:
    """Return the module of TensorRT, or of TensorRT-RTX if only that is installed.

    Raises:
        EngineError: neither is installed, or they are broken.
    """
    reasons = []
    for name in ('tensorrt', 'tensorrt_rtx'):
        try:
            module = import_module(name)
            if hasattr(module, 'Builder'):  # a folder of that name imports too
                return module
        except ModuleNotFoundError as error:
            if error.name != name:
                reasons.append(f'{name} is installed, but broken: {error}')
        except Exception as error:  # a broken installation may raise anything
            reasons.append(f'{name} is installed, but broken: {error}')
    raise EngineError(
        '; '.join(reasons)
        or 'TensorRT is not installed: on a Jetson apt install python3-libnvinfer, on a PC pip install tensorrt-cu12 '
        '(or tensorrt-cu13, by the CUDA version that nvidia-smi shows)'
    )


def import_cudart(gpu: Gpu) -> Any:
    """Return the CUDA runtime of cuda-python.

    Raises:
        EngineError: cuda-python is not installed, or does not match the driver.
    """
    advice = advise_cuda_python(gpu.cuda)
    try:
        try:
            from cuda.bindings import runtime as cudart
        except ModuleNotFoundError:  # before cuda-python 12.6
            from cuda import cudart
        code, _ = cudart.cudaGetDeviceCount()
    except Exception as error:  # a library that it loads may be missing or too old
        raise EngineError(f'cuda-python is not installed, or broken ({error}): {advice}') from None
    if int(code):
        raise EngineError(f'cuda-python does not fit the driver, which runs CUDA {gpu.cuda} ({code.name}): {advice}')
    return cudart


def advise_cuda_python(cuda: str) -> str:
    """Say how to get the cuda-python that matches a driver.

    Args:
        cuda: the newest CUDA that the driver supports, like 12.6.
    """
    major, minor = map(int, cuda.split('.'))
    if major < 12:
        return 'this needs a driver of CUDA 12 or later'
    # Not every minor version has a release, and those before 12.2 lack functions that are called here; within a major
    # version, a driver also runs newer ones.
    first = 2 if major == 12 else 0
    return f'pip install "cuda-python>={major}.{first},<{major}.{max(minor, first) + 1}"'


def version_of(tensorrt: Any) -> str:
    """Return name and version of a module of TensorRT."""
    return f'{"TensorRT-RTX" if tensorrt.__name__.endswith("rtx") else "TensorRT"} {tensorrt.__version__}'


@functools.cache
def logger_of(tensorrt: Any) -> Any:
    """Return the logger of a module: TensorRT keeps the first one it is given.

    It holds the last errors, and as ``latest`` the newest progress message.
    """
    severity = tensorrt.ILogger.Severity

    class Logger(tensorrt.ILogger):  # type: ignore[misc]  # TensorRT comes at run time
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=10)
            self.latest = ''

        def forget(self) -> None:
            self.errors.clear()
            self.latest = 'nothing yet'

        def reasons(self) -> str:
            return '; '.join(self.errors) or 'no reason given'

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif level == severity.INFO:
                self.latest = message

    return Logger()


def create(make: Callable[[], Any], what: str, logger: Any) -> Any:
    """Return what ``make`` creates with the logger: a builder or a runtime of TensorRT.

    Raises:
        EngineError: TensorRT refuses the GPU or the driver; only its logger gets the reason.
    """
    logger.forget()
    try:
        return make()
    except Exception as error:  # pybind11 makes a TypeError of the null pointer
        raise EngineError(f'TensorRT cannot make a {what}: {logger.reasons()} ({error})') from None


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its result, or None if it has none.

    Raises:
        EngineError: CUDA returns an error.
    """
    code, *results = function(*arguments)
    if int(code):
        raise EngineError(f'CUDA: {function.__name__}: {code.name}')
    return results[0] if results else None
