"""OpenVINO on the CPU: the fastest where it is installed, and the one with bf16."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows, best_keypoints
from edgepoint2_ros.models import Model

_PRECISIONS = {'fp32': 'f32', 'bf16': 'bf16'}
_SIZES_KEPT = 8  # compiled image sizes; each takes some 20 MB


class OpenVinoEngine:
    """Compiles the model for each image size (0.1 to 0.2 s): fixed shapes run a quarter faster than dynamic ones."""

    backend = 'openvino'

    def __init__(self, core, network, settings: dict, model: Model, description: str):
        self._core = core
        self._network = network
        self._settings = settings
        self._model = model
        self._requests: OrderedDict[tuple, object] = OrderedDict()  # by the image's shape, the latest used last
        self.description = description

    def prepare(self, height: int, width: int, channels: int) -> None:
        self._request((height, width, channels))

    def run(self, image: np.ndarray, mask: np.ndarray, count: int | None = None, threshold: float = -np.inf) -> Rows:
        request = self._request(image.shape)
        request.infer({'image': image}, share_inputs=True)
        cells, descriptors = (request.get_tensor(name).data[0] for name in ('cells', 'descriptors'))
        count = self._model.max_keypoints if count is None else count
        return best_keypoints(cells, descriptors, image.shape[:2], mask, count, threshold, self._model.subpixel)

    def _request(self, image_shape: tuple):
        if image_shape not in self._requests:
            network = self._network.clone()
            network.reshape({'image': list(image_shape)})
            self._requests[image_shape] = self._core.compile_model(
                network, 'CPU', self._settings
            ).create_infer_request()
            if len(self._requests) > _SIZES_KEPT:
                self._requests.popitem(last=False)
        self._requests.move_to_end(image_shape)
        return self._requests[image_shape]


def open_engine(model: Model, precision: str, threads: int, report: Callable[[str], None]) -> OpenVinoEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f'OpenVINO is not installed ({error}): pip install openvino') from None
    core = openvino.Core()
    has_bf16 = 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    choice = ''
    if precision == 'auto':
        precision = 'bf16' if has_bf16 else 'fp32'
        choice = f' (auto: this CPU has {"bf16" if has_bf16 else "no bf16"})'
    if precision not in _PRECISIONS:
        raise EngineError(f'OpenVINO runs {" or ".join(_PRECISIONS)} on the CPU, not {precision}')
    if precision == 'bf16' and not has_bf16:
        raise EngineError('this CPU has no bf16 (it takes AVX-512 BF16 or AMX): use fp32')
    settings = {
        'INFERENCE_PRECISION_HINT': _PRECISIONS[precision],
        'INFERENCE_NUM_THREADS': threads,
        'PERFORMANCE_HINT': 'LATENCY',
    }
    try:
        network = core.read_model(str(model.path))
    except RuntimeError as error:
        raise EngineError(f'OpenVINO cannot open {model.path}: {error}') from None
    version = openvino.__version__.split('-')[0]
    return OpenVinoEngine(core, network, settings, model, f'OpenVINO {version}, {precision}{choice}, threads {threads}')
