"""TensorRT on NVIDIA GPUs, in fp16: 8.6, 10 and 11, and TensorRT-RTX, which has the same interface.

Each image size has a plan of its own: built once, checked against the CPU, and kept (see plan_cache). A run uploads the
image as it is, replays one CUDA graph and fetches K rows; all memory is allocated when the plan is opened.
"""

import collections
import contextlib
import ctypes
import functools
import hashlib
import re
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np

from edgepoint2_ros.engines.base import Backend, Report
from edgepoint2_ros.engines.check import check
from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.engines.tensorrt.gpu import Gpu, find_gpu
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import MAX_KEYPOINTS, STRIDE, Model, read_part

Shape = tuple[int, ...]
Tensors = dict[str, tuple[Shape, type]]

BACKEND = Backend('tensorrt', 'TensorRT', 'tensorrt', ('fp16',), 'the fastest on NVIDIA GPUs')

INPUTS = ('image', 'mask')
OUTPUTS = ('xy', 'scores', 'descriptors')


class PlanRefused(EngineError):
    """A plan that TensorRT does not open, or that is not what was asked for."""


class TensorRtEngine:
    """A model on the GPU, with a plan for each image size that it has met."""

    backend = BACKEND.name
    precision = 'fp16'

    def __init__(self, tensorrt, cudart, gpu: Gpu, model: Model, onnx: bytes, report: Report):
        self._tensorrt = tensorrt
        self._cudart = cudart
        self._gpu = gpu
        self._model = model
        self._onnx = onnx
        self._report = report
        self.max_keypoints = model.max_keypoints
        self._plans: dict[Shape, _Plan | EngineError] = {}  # by the image's shape
        self.description = f'{version_of(tensorrt)}, {self.precision}, {gpu.name}'

    def prepare(self, height: int, width: int, channels: int) -> None:
        self._plan((height, width, channels))

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        return self._plan(image.shape).run(image, mask)

    def _plan(self, image_shape: Shape) -> '_Plan':
        if image_shape not in self._plans:
            try:
                self._plans[image_shape] = self._open_plan(image_shape)
            except EngineError as error:
                # Kept, so that the next image does not wait for the same failure.
                self._plans[image_shape] = EngineError(f'{version_of(self._tensorrt)}: {error}')
        plan = self._plans[image_shape]
        if isinstance(plan, EngineError):
            raise plan
        return plan

    def _open_plan(self, image_shape: Shape) -> '_Plan':
        tensors = tensors_of(self._model, image_shape)
        opened = None

        def build_and_check() -> bytes:
            nonlocal opened
            data = self._build(image_shape, tensors)
            opened = _Plan(self._tensorrt, self._cudart, data, tensors)
            self._report(f'the plan passed its self-check: {check(opened.run, self._model, image_shape)}')
            return data

        key = plan_key(self._model, self._onnx, image_shape, version_of(self._tensorrt), self._gpu)
        path = plan_path(key)
        data = plan_cache.provide(path, key, build_and_check, self._report)
        if opened is None:
            try:
                return _Plan(self._tensorrt, self._cudart, data, tensors)
            except PlanRefused as error:
                self._report(f'{path.name}: {error}: building it again')
                plan_cache.discard(path)
                plan_cache.provide(path, key, build_and_check, self._report)
        return opened

    def _build(self, image_shape: Shape, tensors: Tensors) -> bytes:
        key = {'runtime': version_of(self._tensorrt), **vars(self._gpu)}
        timing_path = plan_cache.cache_directory() / f'{_file_name(*key.values())}.timing'
        timing, _ = plan_cache.load(timing_path, key)
        logger = logger_of(self._tensorrt)
        what = f'building {self._model.variant} for {size_in_words(image_shape)} images on {self._gpu.name}'
        data, timing = _report_while(
            lambda: build_plan(self._tensorrt, self._onnx, {name: tensors[name][0] for name in INPUTS}, timing or b''),
            lambda seconds: f'not ready: {what}, {seconds:.0f} s so far; TensorRT says: {logger.latest}',
            self._report,
        )
        # Only the next build would be slower, and a cache that cannot be written is reported with the plan.
        with contextlib.suppress(OSError):
            plan_cache.store(timing_path, key, timing)
        return data


def open_engine(model: Model, precision: str, threads: int, report: Report) -> TensorRtEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    gpu = find_gpu()  # before anything of TensorRT is touched
    tensorrt, cudart = import_tensorrt(), import_cudart(gpu)
    return TensorRtEngine(tensorrt, cudart, gpu, model, read_part(model, 'tensorrt'), report)


def import_tensorrt():
    """Return the module of TensorRT, or of TensorRT-RTX where only that is installed.

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
        except Exception as error:  # a broken installation raises whatever it likes
            reasons.append(f'{name} is installed, but broken: {error}')
    raise EngineError('; '.join(reasons) or 'TensorRT is not installed: it comes with JetPack, or pip install tensorrt')


def import_cudart(gpu: Gpu):
    """Return the CUDA runtime of cuda-python.

    Raises:
        EngineError: cuda-python is not installed, or does not fit the driver.
    """
    advice = f'pip install "cuda-python=={gpu.cuda.split(".")[0]}.*"'
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


def version_of(tensorrt) -> str:
    """Return name and version of a module of TensorRT."""
    return f'{"TensorRT-RTX" if tensorrt.__name__.endswith("rtx") else "TensorRT"} {tensorrt.__version__}'


def tensors_of(model: Model, image_shape: Shape) -> Tensors:
    """Return shape and dtype of every input and output of the plan for images (H, W, C)."""
    height, width, _ = image_shape
    count = model.max_keypoints
    return {
        'image': (image_shape, np.uint8),
        'mask': ((height // STRIDE * STRIDE, width // STRIDE * STRIDE), np.uint8),
        'xy': ((count, 2), np.float32),
        'scores': ((count,), np.float32),
        'descriptors': ((count, model.variant.descriptor_size), np.float32),
    }


def plan_key(model: Model, onnx: bytes, image_shape: Shape, version: str, gpu: Gpu) -> plan_cache.Key:
    """Return everything that a plan depends on."""
    height, width, channels = image_shape
    return {
        'model': model.variant.name,
        'onnx': hashlib.sha256(onnx).hexdigest(),
        'precision': 'fp16',
        'image': f'{width}x{height}x{channels}',
        'keypoints': str(model.max_keypoints),
        'runtime': version,
        'gpu': gpu.name,
        'compute capability': gpu.compute_capability,
        'cuda': gpu.cuda,
    }


def plan_path(key: plan_cache.Key) -> Path:
    """Return where a plan is kept; what is not in the name takes the place of what was built before."""
    name = _file_name(key['model'], key['image'], key['keypoints'], key['onnx'][:8], key['gpu'])
    return plan_cache.cache_directory() / f'{name}.plan'


def size_in_words(image_shape: Shape) -> str:
    height, width, channels = image_shape
    return f'{width}x{height} {"gray" if channels == 1 else "colour"}'


def _file_name(*parts: str) -> str:
    return '-'.join(re.sub(r'[^\w.-]+', '_', part) for part in parts)


def build_plan(tensorrt, onnx: bytes, inputs: dict[str, Shape], timing: bytes = b'') -> tuple[bytes, bytes]:
    """Build a plan and return it with the timings of the build, which make the next one quicker.

    Args:
        tensorrt: the module tensorrt or tensorrt_rtx.
        onnx: the model for TensorRT.
        inputs: the shape of each input.
        timing: timings of an earlier build by the same TensorRT on the same GPU.

    Raises:
        EngineError: TensorRT refuses; its own words are in the message.
    """
    logger = logger_of(tensorrt)
    logger.forget()
    builder = tensorrt.Builder(logger)
    network = parse(tensorrt, builder, onnx, inputs)
    config = builder.create_builder_config()
    if not hasattr(tensorrt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED'):
        _allow_half_8(tensorrt, network, config)
    cache = config.create_timing_cache(timing)
    config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f'the plan cannot be built: {logger.reasons()}')
    return bytes(plan), bytes(config.get_timing_cache().serialize())


def parse(tensorrt, builder, onnx: bytes, inputs: dict[str, Shape]):
    """Return the network of a model for fixed shapes of its inputs, with the types that the model gives to each tensor.

    Raises:
        EngineError: TensorRT cannot read the model.
    """
    flags = tensorrt.NetworkDefinitionCreationFlag
    # 8.6 has no strongly typed networks, and has to be told that the batch is a dimension like any other.
    flag = flags.STRONGLY_TYPED if hasattr(flags, 'STRONGLY_TYPED') else flags.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = tensorrt.OnnxParser(network, logger_of(tensorrt))
    if not parser.parse(onnx):
        reasons = '; '.join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f'the model cannot be read: {reasons}')
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        tensor.shape = inputs[tensor.name]
    return network


def fp32_layers(tensorrt, network) -> list:
    """Return the layers that compute in fp32: those with an fp32 output, but for constants and casts."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [
        layer
        for layer in layers
        if layer.type not in (tensorrt.LayerType.CONSTANT, tensorrt.LayerType.CAST)
        and any(layer.get_output(i).dtype == tensorrt.DataType.FLOAT for i in range(layer.num_outputs))
    ]


def _allow_half_8(tensorrt, network, config) -> None:
    """Let TensorRT 8.6 use fp16, which it then may anywhere, except where the model says fp32."""
    config.set_flag(tensorrt.BuilderFlag.FP16)
    config.set_flag(tensorrt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in fp32_layers(tensorrt, network):
        layer.precision = tensorrt.DataType.FLOAT
        for i in range(layer.num_outputs):
            if layer.get_output(i).dtype == tensorrt.DataType.FLOAT:
                layer.set_output_type(i, tensorrt.DataType.FLOAT)


@functools.cache
def logger_of(tensorrt):
    """Return the logger of a module: TensorRT keeps the first that it is given for good.

    It holds the last errors, and as ``latest`` the newest message that says what is going on.
    """
    severity = tensorrt.ILogger.Severity

    class Logger(tensorrt.ILogger):
        def __init__(self):
            tensorrt.ILogger.__init__(self)
            self.errors = collections.deque(maxlen=10)
            self.latest = ''

        def forget(self):
            self.errors.clear()
            self.latest = 'nothing yet'

        def reasons(self):
            return '; '.join(self.errors) or 'no reason given'

        def log(self, level, message):
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif level == severity.INFO:
                self.latest = message

    return Logger()


def _report_while(work: Callable, line: Callable[[float], str], report: Report):
    """Return what ``work`` returns; while it runs, report ``line`` of the seconds so far every few seconds.

    It runs in a thread of its own, so that the caller can still be interrupted.
    """
    outcome = []

    def run():
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error if isinstance(error, EngineError) else EngineError(f'{type(error).__name__}: {error}'))

    start = time.monotonic()
    thread = threading.Thread(target=run, name='TensorRT build', daemon=True)
    thread.start()
    report(line(0))
    while thread.is_alive():
        thread.join(plan_cache.REPORT_PERIOD)
        if thread.is_alive():
            report(line(time.monotonic() - start))
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


class _Plan:
    """A plan on the GPU with its stream, its buffers on both sides and the CUDA graph of one run."""

    def __init__(self, tensorrt, cudart, data: bytes, tensors: Tensors):
        self._cudart = cudart
        self._resources = contextlib.ExitStack()  # what is to be freed, the latest first
        self._logger = logger = logger_of(tensorrt)
        logger.forget()
        self._runtime = tensorrt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise PlanRefused(f'TensorRT cannot open the plan: {logger.reasons()}')
        self._check_tensors(tensorrt, tensors)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f'TensorRT cannot run the plan: {logger.reasons()}')

        self._stream = _call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._resources.callback(cudart.cudaStreamDestroy, self._stream)
        self._host = {}
        self._device = {}
        for name, (shape, dtype) in tensors.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._device[name] = int(_call(cudart.cudaMalloc, size))
            self._resources.callback(cudart.cudaFree, self._device[name])
            pinned = int(_call(cudart.cudaMallocHost, size))
            self._resources.callback(cudart.cudaFreeHost, pinned)
            self._host[name] = np.frombuffer((ctypes.c_uint8 * size).from_address(pinned), dtype).reshape(shape)
            self._context.set_tensor_address(name, self._device[name])

        self._host['image'].fill(0)
        self._masked = True
        self._set_mask(np.ones((1, 1), np.uint8))
        self._enqueue()  # TensorRT allocates on the first run what it must not while a graph is recorded
        _call(cudart.cudaStreamSynchronize, self._stream)
        try:
            self._graph = self._record()
        except EngineError:  # then each run enqueues every kernel again
            self._graph = None

    def __del__(self):
        self._resources.close()

    def run(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        np.copyto(self._host['image'], image)
        self._set_mask(mask)
        if self._graph is None:
            self._enqueue()
        else:
            _call(self._cudart.cudaGraphLaunch, self._graph, self._stream)
        _call(self._cudart.cudaStreamSynchronize, self._stream)
        return tuple(self._host[name].copy() for name in OUTPUTS)

    def _check_tensors(self, tensorrt, tensors: Tensors) -> None:
        """Hold the plan against what the buffers are made for."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        types = {np.uint8: tensorrt.DataType.UINT8, np.float32: tensorrt.DataType.FLOAT}
        held = {
            name: (tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)) for name in names
        }
        expected = {name: (shape, types[dtype]) for name, (shape, dtype) in tensors.items()}
        if held != expected:
            raise PlanRefused(f'the plan holds {held}, but {expected} was asked for')

    def _set_mask(self, mask: np.ndarray) -> None:
        """Upload a mask; without one (1, 1) the ones that are there stay."""
        masked = mask.size > 1
        if masked or self._masked:
            np.copyto(self._host['mask'], mask)
            self._copy('mask', self._device['mask'], self._host['mask'].ctypes.data, 'cudaMemcpyHostToDevice')
        self._masked = masked

    def _enqueue(self) -> None:
        self._copy('image', self._device['image'], self._host['image'].ctypes.data, 'cudaMemcpyHostToDevice')
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError(f'TensorRT failed to run the plan: {self._logger.reasons()}')
        for name in OUTPUTS:
            self._copy(name, self._host[name].ctypes.data, self._device[name], 'cudaMemcpyDeviceToHost')

    def _copy(self, name: str, target: int, source: int, kind: str) -> None:
        kind = getattr(self._cudart.cudaMemcpyKind, kind)
        _call(self._cudart.cudaMemcpyAsync, target, source, self._host[name].nbytes, kind, self._stream)

    def _record(self):
        """Record one run as a CUDA graph: one call starts all its kernels, which are too small to be started singly."""
        cudart = self._cudart
        _call(
            cudart.cudaStreamBeginCapture, self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            self._enqueue()
        finally:
            graph = _call(cudart.cudaStreamEndCapture, self._stream)
        executable = _call(cudart.cudaGraphInstantiate, graph, 0)
        cudart.cudaGraphDestroy(graph)
        self._resources.callback(cudart.cudaGraphExecDestroy, executable)
        return executable


def _call(function, *arguments):
    """Call a function of the CUDA runtime and return its result, or None where it has none.

    Raises:
        EngineError: CUDA answers with an error.
    """
    code, *results = function(*arguments)
    if int(code):
        raise EngineError(f'CUDA: {function.__name__}: {code.name}')
    return results[0] if results else None
