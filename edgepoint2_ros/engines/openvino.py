"""OpenVINO on the CPU: the fastest on x86, and the one with fp16 on ARM, bf16 and int8."""

import os
import platform
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.engines.base import Backend, CpuEngine, Shape
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.models import Model, part_path, read_part
from edgepoint2_ros.progress import Report


def _on_x86() -> bool:
    return platform.machine() in ('x86_64', 'AMD64')


# What a precision requires of the CPU.
_NEEDS = {
    'fp32': 'nothing',
    'fp16': '64-bit ARM with asimdhp',
    'bf16': 'x86 with AVX-512 BF16 or AMX',
    'int8': 'x86 with AVX2',
}
_HINTS = {'fp32': 'f32', 'fp16': 'f16', 'bf16': 'bf16'}
BACKEND = Backend(
    'openvino',
    'OpenVINO',
    'openvino',
    tuple(_NEEDS),
    'the fastest on x86 CPUs' if _on_x86() else 'has vector code for this CPU',
)
_PROBE = (480, 640, 1)  # of an image, to inspect the kernels on this CPU
_SIZES_KEPT = 8  # compiled image sizes; each takes some 20 MB


def import_openvino() -> Any:
    """Import OpenVINO, here and nowhere else: without its telemetry, unless the user has opted in.

    On import it starts a process that calls Google Analytics, and writes to the user's home.
    """
    with without_telemetry():
        import openvino
    return openvino


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep openvino_telemetry from being imported meanwhile, unless the user has opted in."""
    # `opt_in_out --opt_out` would write to the home, too, and call home to report it. If openvino_telemetry cannot be
    # imported, OpenVINO uses a stub of its own.
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


class Layer(NamedTuple):
    """A layer as compiled by OpenVINO: its type and the kernel that runs it, such as ``gemm_acl_f16``."""

    kind: str
    kernel: str


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

    def layers(self, image_shape: Shape) -> list[Layer]:
        """Return the layers compiled for images of a size."""
        return [
            Layer(*(operation.get_rt_info()[key].astype(str) for key in ('layerType', 'primitiveType')))
            for operation in self._request(image_shape).get_compiled_model().get_runtime_model().get_ops()
        ]

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
        choice = ' (auto: the narrowest that this CPU accelerates)'
    if precision not in has:
        raise EngineError(f'this CPU does not accelerate {precision} (needs {_NEEDS[precision]}): use auto or fp32')
    settings = settings_of(precision, has, threads)
    source = read_part(model, 'int8') if precision == 'int8' else str(model.path)
    with BACKEND.errors(f'open {part_path(model.path, "int8") if precision == "int8" else model.path}'):
        network = core.read_model(source)
    if precision == 'int8':
        if not {'avx512_vnni', 'avx_vnni'} & find_cpu().flags:
            refuse_overflow(network)
        precision = f'int8 and {"bf16" if "bf16" in has else "fp32"}'
    version = openvino.__version__.split('-')[0]
    engine = OpenVinoEngine(core, network, settings, version, precision, threads, model.subpixel, choice)
    if not _on_x86():
        refuse_scalar_code(engine.layers(_PROBE))
    return engine


def refuse_scalar_code(layers: Iterable[Layer]) -> None:
    """Raise an EngineError if a quarter of the convolutions run without vector instructions, as on cores with SVE.

    There oneDNN has no kernel for small convolutions and falls back to its scalar reference.
    """
    kernels = [layer.kernel for layer in layers if layer.kind == 'Convolution']
    scalar = sum(kernel.startswith('ref') for kernel in kernels)
    if scalar > len(kernels) / 4:
        raise EngineError(
            f'OpenVINO runs {scalar} of {len(kernels)} convolutions by scalar reference code on this CPU: '
            'use the backend onnxruntime'
        )


def refuse_overflow(network: Any) -> None:
    """Raise an EngineError if products in int8 may overflow on a CPU without VNNI.

    It adds those of two neighbouring input channels in 16 bits; see network/maps.py.
    """
    for operation in network.get_ops():
        if operation.get_type_name() == 'Constant' and operation.get_element_type().get_type_name() == 'i8':
            weights = np.abs(operation.get_data().astype(int))
            if weights.ndim == 4 and (weights[:, ::2] + weights[:, 1::2]).max() > 128:
                raise EngineError(
                    'the model in int8 is of an earlier version, whose sums overflow on a CPU without VNNI: '
                    'export the model again, or use fp32'
                )


def fast_precisions(model: Model) -> list[str]:
    """Return the precisions that may be the fastest for a model on this CPU, the most accurate first."""
    return _fast(capabilities(import_openvino().Core()), model)


def _fast(has: set[str], model: Model) -> list[str]:
    """Return those of a CPU's precisions that may be the fastest for a model, the most accurate first."""
    lacks = set() if part_path(model.path, 'int8').is_file() else {'int8'}
    if 'bf16' in has:
        lacks.add('fp32')  # bf16 is twice as fast
    return [name for name in _NEEDS if name in has - lacks]


def settings_of(precision: str, has: set[str], threads: int) -> dict[str, Any]:
    """Return OpenVINO's settings for a precision; what is not in int8 uses bf16 if the CPU has it."""
    if precision == 'int8':
        precision = 'bf16' if 'bf16' in has else 'fp32'
    return {
        'INFERENCE_PRECISION_HINT': _HINTS[precision],
        'INFERENCE_NUM_THREADS': threads,
        'PERFORMANCE_HINT': 'LATENCY',
    }


def capabilities(core: Any) -> set[str]:
    """Return the precisions that are fast on this CPU.

    fp16 only on ARM and bf16 only on x86, where they were tested. int8 only on x86 with AVX2: on ARM, OpenVINO's int8
    gives wrong keypoints or crashes. (Without VNNI products are added in 16 bits; see network/maps.py.)
    """
    has = {'fp32'}
    fast = core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    if not _on_x86():
        return has | ({'fp16'} if 'FP16' in fast else set())
    if 'BF16' in fast:
        has.add('bf16')
    if 'avx2' in find_cpu().flags:
        has.add('int8')
    return has
