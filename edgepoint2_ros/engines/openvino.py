"""OpenVINO on the CPU: the fastest where it is installed, and the one with bf16 and int8."""

import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.engines.base import Backend, CpuEngine, Report, Shape
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.models import Model, part_path, read_part

_NEEDS = {'fp32': 'nothing', 'bf16': 'AVX-512 BF16 or AMX', 'int8': 'x86 with VNNI'}  # of the CPU, by precision
BACKEND = Backend('openvino', 'OpenVINO', 'openvino', tuple(_NEEDS), 'the fastest on x86 CPUs')
_SIZES_KEPT = 8  # compiled image sizes; each takes some 20 MB


def import_openvino() -> Any:
    """Import OpenVINO, here and nowhere else: without its telemetry, unless the user has opted in.

    As soon as it is imported, it starts a process that calls Google Analytics, and writes into the user's home.
    """
    with _without_telemetry():
        import openvino
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    # `opt_in_out --opt_out` would write into the home, too, and call home to say so. Where openvino_telemetry cannot be
    # imported, OpenVINO takes a stub of its own.
    name = 'openvino_telemetry'
    if name in sys.modules or _has_opted_in():
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # which makes its import fail
    try:
        yield
    finally:
        del sys.modules[name]


def _has_opted_in() -> bool:
    """Tell whether the user has run `opt_in_out --opt_in`."""
    try:
        consent = Path(os.path.expanduser('~/intel/openvino_telemetry')).read_text(encoding='ascii', errors='replace')
    except OSError:
        return False
    return consent.strip() == '1'


class OpenVinoEngine(CpuEngine):
    """Compiles the model for each image size (0.1 to 0.2 s): fixed shapes run a quarter faster than dynamic ones."""

    runtime = BACKEND

    def __init__(self, core: Any, network: Any, settings: dict[str, Any], *description: Any):
        super().__init__(*description)
        self._core = core
        self._network = network
        self._settings = settings
        self._requests: OrderedDict[Shape, Any] = OrderedDict()  # by image shape, the latest used last

    def prepare(self, image_shape: Shape) -> None:
        self._request(image_shape)

    def maps(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        request = self._request(image.shape)
        request.infer({'image': image}, share_inputs=True)
        return request.get_tensor('cells').data[0], request.get_tensor('descriptors').data[0]

    def _request(self, image_shape: Shape) -> Any:
        if image_shape not in self._requests:
            height, width, channels = image_shape
            with BACKEND.errors(f'compile the network for images of {width} x {height} x {channels}'):
                network = self._network.clone()
                network.reshape({'image': list(image_shape)})
                compiled = self._core.compile_model(network, 'CPU', self._settings)
                self._requests[image_shape] = compiled.create_infer_request()
            if len(self._requests) > _SIZES_KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(image_shape)
        return self._requests[image_shape]


def open_engine(model: Model, precision: str, threads: int, report: Report) -> OpenVinoEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    openvino = import_openvino()
    with BACKEND.errors('start'):
        core = openvino.Core()
        has = capabilities(core)
    choice = ''
    if precision == 'auto':
        precision = _fast(has, model)[-1]
        choice = ' (auto: the fastest on this CPU)'
    if precision not in has:
        raise EngineError(f'this CPU does not accelerate {precision} (needs {_NEEDS[precision]}): use auto or fp32')
    settings = settings_of(precision, has, threads)
    source = read_part(model, 'int8') if precision == 'int8' else str(model.path)
    with BACKEND.errors(f'open {model.path}'):
        network = core.read_model(source)
    if precision == 'int8':
        precision = f'int8 and {"bf16" if "bf16" in has else "fp32"}'
    version = openvino.__version__.split('-')[0]
    return OpenVinoEngine(core, network, settings, version, precision, threads, model.subpixel, choice)


def fast_precisions(model: Model) -> list[str]:
    """Return the precisions of which one is the fastest for a model on this CPU, the most accurate first."""
    return _fast(capabilities(import_openvino().Core()), model)


def _fast(has: set[str], model: Model) -> list[str]:
    """Return those of a CPU's precisions that may be the fastest for a model, the most accurate first."""
    lacks = set() if part_path(model.path, 'int8').is_file() else {'int8'}
    if 'bf16' in has:
        lacks.add('fp32')  # bf16 is twice as fast
    return [name for name in ('fp32', 'bf16', 'int8') if name in has - lacks]


def settings_of(precision: str, has: set[str], threads: int) -> dict[str, Any]:
    """Return OpenVINO's settings for a precision; what does not compute in int8 takes bf16 where the CPU has it."""
    return {
        'INFERENCE_PRECISION_HINT': 'bf16' if precision != 'fp32' and 'bf16' in has else 'f32',
        'INFERENCE_NUM_THREADS': threads,
        'PERFORMANCE_HINT': 'LATENCY',
    }


def capabilities(core: Any) -> set[str]:
    """Return the precisions in which this CPU is fast.

    int8 only on x86 with VNNI: without VNNI, its products would overflow 16 bits; on ARM, OpenVINO's int8 gives wrong
    keypoints or crashes.
    """
    has = {'fp32'}
    if 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        has.add('bf16')
    if {'avx512_vnni', 'avx_vnni'} & find_cpu().flags:
        has.add('int8')
    return has
