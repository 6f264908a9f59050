"""OpenVINO on the CPU: the fastest where it is installed, and the one with bf16 and int8."""

import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgepoint2_ros.errors import EngineError, ModelError
from edgepoint2_ros.keypoints import Rows, best_keypoints
from edgepoint2_ros.models import Model, part_path, read_part

_NEEDS = {'fp32': 'nothing', 'bf16': 'AVX-512 BF16 or AMX', 'int8': 'VNNI'}  # of the CPU, by precision
_SIZES_KEPT = 8  # compiled image sizes; each takes some 20 MB


def import_openvino():
    """Import OpenVINO, here and nowhere else: without its telemetry, unless the user has opted in.

    As soon as it is imported, it starts a process that calls Google Analytics, and writes into the user's home.
    """
    with _without_telemetry():
        import openvino
    return openvino


@contextmanager
def _without_telemetry():
    # `opt_in_out --opt_out` would write into the home, too, and call home to say so. Where openvino_telemetry cannot be
    # imported, OpenVINO takes a stub of its own.
    name = 'openvino_telemetry'
    if name in sys.modules or _has_opted_in():
        yield
        return
    sys.modules[name] = None
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


class OpenVinoEngine:
    """Compiles the model for each image size (0.1 to 0.2 s): fixed shapes run a quarter faster than dynamic ones."""

    backend = 'openvino'

    def __init__(self, core, network, settings: dict, model: Model, precision: str, description: str):
        self._core = core
        self._network = network
        self._settings = settings
        self._model = model
        self._requests: OrderedDict[tuple, object] = OrderedDict()  # by the image's shape, the latest used last
        self.precision = precision
        self.description = description

    def prepare(self, height: int, width: int, channels: int) -> None:
        self._request((height, width, channels))

    def run(self, image: np.ndarray, mask: np.ndarray, count: int | None = None, threshold: float = -np.inf) -> Rows:
        request = self._request(image.shape)
        with _named_errors('run the network'):
            request.infer({'image': image}, share_inputs=True)
        cells, descriptors = (request.get_tensor(name).data[0] for name in ('cells', 'descriptors'))
        count = self._model.max_keypoints if count is None else count
        return best_keypoints(cells, descriptors, image.shape[:2], mask, count, threshold, self._model.subpixel)

    def _request(self, image_shape: tuple):
        if image_shape not in self._requests:
            height, width, channels = image_shape
            with _named_errors(f'compile the network for images of {width} x {height} x {channels}'):
                network = self._network.clone()
                network.reshape({'image': list(image_shape)})
                compiled = self._core.compile_model(network, 'CPU', self._settings)
                self._requests[image_shape] = compiled.create_infer_request()
            if len(self._requests) > _SIZES_KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(image_shape)
        return self._requests[image_shape]


def open_engine(model: Model, precision: str, threads: int, report: Callable[[str], None]) -> OpenVinoEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise EngineError(f'OpenVINO is not installed ({error}): pip install openvino') from None
    with _named_errors('start'):
        core = openvino.Core()
        has = capabilities(core)
    choice = ''
    if precision == 'auto':
        if not part_path(model.path, 'int8').is_file():
            has.discard('int8')
        precision = next(name for name in ('int8', 'bf16', 'fp32') if name in has)
        choice = ' (auto: the fastest of this CPU)'
    if precision not in _NEEDS:
        raise EngineError(f'OpenVINO runs {", ".join(_NEEDS)} on the CPU, not {precision}')
    if precision not in has:
        raise EngineError(f'this CPU has no fast {precision} (it takes {_NEEDS[precision]}): use auto or fp32')
    settings = settings_of(precision, has, threads)
    try:
        source = read_part(model, 'int8') if precision == 'int8' else str(model.path)
    except ModelError as error:
        raise EngineError(f'OpenVINO: {error}') from None
    with _named_errors(f'open {model.path}'):
        network = core.read_model(source)
    version = openvino.__version__.split('-')[0]
    if precision == 'int8':
        precision = f'int8 and {"bf16" if "bf16" in has else "fp32"}'
    description = f'OpenVINO {version}, {precision}{choice}, threads {threads}'
    return OpenVinoEngine(core, network, settings, model, precision, description)


@contextmanager
def _named_errors(doing: str):
    """Turn what OpenVINO raises into an EngineError of one line; its own classes are Python's RuntimeError and kin."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise EngineError(f'OpenVINO cannot {doing}: {" ".join(str(error).split())}') from None


def settings_of(precision: str, has: set[str], threads: int) -> dict:
    """Return OpenVINO's settings for a precision; what does not compute in int8 takes bf16 where the CPU has it."""
    return {
        'INFERENCE_PRECISION_HINT': 'bf16' if precision != 'fp32' and 'bf16' in has else 'f32',
        'INFERENCE_NUM_THREADS': threads,
        'PERFORMANCE_HINT': 'LATENCY',
    }


def capabilities(core) -> set[str]:
    """Return the precisions in which this CPU is fast. Without VNNI, int8 products would overflow 16 bits, too."""
    has = {'fp32'}
    if 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        has.add('bf16')
    try:
        flags = Path('/proc/cpuinfo').read_text(encoding='ascii', errors='replace').split()
    except OSError:
        flags = []
    if {'avx512_vnni', 'avx_vnni'} & set(flags):
        has.add('int8')
    return has
