"""The NVIDIA GPU of this machine, according to its driver: TensorRT crashes the process if it finds none."""

import ctypes
from dataclasses import dataclass

from edgepoint2_ros.errors import EngineError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """A GPU; ``compute_capability`` like 8.7, ``cuda`` the newest CUDA that its driver supports, like 12.6."""

    name: str
    compute_capability: str
    cuda: str


def find_gpu() -> Gpu:
    """Return the first GPU.

    Raises:
        EngineError: there is no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        raise EngineError('no NVIDIA driver is installed (there is no libcuda.so.1)') from None

    def ask(function: str, *arguments: object) -> None:
        code = getattr(driver, function)(*arguments)
        if code:
            raise EngineError(f'the NVIDIA driver finds no GPU to use ({function}: error {code})')

    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    ask('cuInit', 0)
    ask('cuDeviceGet', ctypes.byref(device), 0)
    ask('cuDeviceGetName', name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        ask('cuDeviceGetAttribute', ctypes.byref(number), attribute, device)
        capability.append(str(number.value))
    ask('cuDriverGetVersion', ctypes.byref(number))  # 12060 is 12.6
    return Gpu(name.value.decode(), '.'.join(capability), f'{number.value // 1000}.{number.value % 1000 // 10}')
