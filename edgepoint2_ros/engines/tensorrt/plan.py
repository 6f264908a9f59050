"""A running plan: it uploads the image as it is, replays one CUDA graph and downloads K rows.

All memory is allocated when the plan is opened.
"""

import contextlib
import ctypes
from typing import Any

import numpy as np

from edgepoint2_ros.engines.base import Shape
from edgepoint2_ros.engines.tensorrt.bindings import call, create, logger_of
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import STRIDE, Model

Tensors = dict[str, tuple[Shape, type[np.uint8] | type[np.float32]]]

INPUTS = ('image', 'mask')
OUTPUTS = ('xy', 'scores', 'descriptors')


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


class PlanRefused(EngineError):
    """A plan that TensorRT cannot open, or that has unexpected tensors."""


class Plan:
    """A plan on the GPU with its stream, its host and device buffers and the CUDA graph of one run."""

    def __init__(self, tensorrt: Any, cudart: Any, data: bytes, tensors: Tensors):
        self._cudart = cudart
        self._resources = contextlib.ExitStack()  # to be freed, the latest first
        self._logger = logger = logger_of(tensorrt)
        self._runtime = create(lambda: tensorrt.Runtime(logger), 'runtime', logger)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise PlanRefused(f'TensorRT cannot open the plan: {logger.reasons()}')
        self._check_tensors(tensorrt, tensors)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f'TensorRT cannot run the plan: {logger.reasons()}')

        self._stream = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._resources.callback(cudart.cudaStreamDestroy, self._stream)
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, int] = {}
        for name, (shape, dtype) in tensors.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._device[name] = int(call(cudart.cudaMalloc, size))
            self._resources.callback(cudart.cudaFree, self._device[name])
            pinned = int(call(cudart.cudaMallocHost, size))
            self._resources.callback(cudart.cudaFreeHost, pinned)
            memory = memoryview((ctypes.c_uint8 * size).from_address(pinned))
            self._host[name] = np.frombuffer(memory, dtype).reshape(shape)
            self._context.set_tensor_address(name, self._device[name])

        self._host['image'].fill(0)
        self._masked = True
        self._set_mask(np.ones((1, 1), np.uint8))
        self._enqueue()  # on the first run TensorRT allocates memory, which it must not while a graph is captured
        call(cudart.cudaStreamSynchronize, self._stream)
        try:
            self._graph = self._record()
        except EngineError:  # without a graph, each run enqueues every kernel
            self._graph = None

    def __del__(self) -> None:
        self._resources.close()

    def run(self, image: np.ndarray, mask: np.ndarray) -> Rows:
        np.copyto(self._host['image'], image)
        self._set_mask(mask)
        if self._graph is None:
            self._enqueue()
        else:
            call(self._cudart.cudaGraphLaunch, self._graph, self._stream)
        call(self._cudart.cudaStreamSynchronize, self._stream)
        return self._host['xy'].copy(), self._host['scores'].copy(), self._host['descriptors'].copy()

    def _check_tensors(self, tensorrt: Any, tensors: Tensors) -> None:
        """Check that the plan matches the buffers."""
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        types: dict[type, Any] = {np.uint8: tensorrt.DataType.UINT8, np.float32: tensorrt.DataType.FLOAT}
        held = {
            name: (tuple(self._engine.get_tensor_shape(name)), self._engine.get_tensor_dtype(name)) for name in names
        }
        expected = {name: (shape, types[dtype]) for name, (shape, dtype) in tensors.items()}
        if held != expected:
            raise PlanRefused(f'the plan has the tensors {held}, expected {expected}')

    def _set_mask(self, mask: np.ndarray) -> None:
        """Upload a mask; without one, (1, 1), the ones already there stay."""
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
        call(self._cudart.cudaMemcpyAsync, target, source, self._host[name].nbytes, kind, self._stream)

    def _record(self) -> Any:
        """Capture one run as a CUDA graph: one call launches all its kernels, which are too small to launch singly."""
        cudart = self._cudart
        call(cudart.cudaStreamBeginCapture, self._stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self._enqueue()
        finally:
            graph = call(cudart.cudaStreamEndCapture, self._stream)
        executable = call(cudart.cudaGraphInstantiate, graph, 0)
        cudart.cudaGraphDestroy(graph)
        self._resources.callback(cudart.cudaGraphExecDestroy, executable)
        return executable
