"""A GPU simulated on the CPU, for tests of what the engine asks of CUDA and TensorRT where there is neither.

Memory is host memory with its bounds watched, a stream keeps its work until somebody waits for it, and a graph replays
what was recorded. Plans are built by NVIDIA's real builder; ONNX Runtime then computes what TensorRT would.
"""

import ctypes
import enum
from types import SimpleNamespace

import numpy as np
import tensorrt_rtx

from edgepoint2_ros.engines.onnxruntime import import_onnxruntime


class Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


class SimulatedCuda:
    """The functions of the CUDA runtime that the engine calls, on memory of this process."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self):
        self.device = {}  # address: buffer
        self.host = {}
        self.resources = []  # streams and graphs that are alive
        self.waiting = []  # work of the stream that nobody has waited for
        self.recording = None  # work of the graph that is being recorded
        self.copied = []  # bytes of each copy, in order
        self.memory = 10**9
        self.can_record = True

    def cudaMalloc(self, size):
        if size > self.memory:
            return Code.cudaErrorMemoryAllocation, 0
        return self._allocate(self.device, size)

    def cudaMallocHost(self, size):
        return self._allocate(self.host, size)

    def _allocate(self, kind, size):
        buffer = ctypes.create_string_buffer(size)
        kind[ctypes.addressof(buffer)] = buffer
        return Code.cudaSuccess, ctypes.addressof(buffer)

    def cudaFree(self, address):
        del self.device[address]
        return (Code.cudaSuccess,)

    def cudaFreeHost(self, address):
        del self.host[address]
        return (Code.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):
        self.resources.append(7)
        return Code.cudaSuccess, 7

    def cudaStreamDestroy(self, stream):
        self.resources.remove(stream)
        return (Code.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        to, came_from = (self.device, self.host) if kind == 1 else (self.host, self.device)
        assert len(to[target]) == len(came_from[source]) == size

        def copy():
            self.copied.append(size)
            ctypes.memmove(target, source, size)

        return (self.submit(copy),)

    def submit(self, work):
        (self.waiting if self.recording is None else self.recording).append(work)
        return Code.cudaSuccess

    def cudaStreamSynchronize(self, stream):
        assert self.recording is None
        for work in self.waiting:
            work()
        self.waiting.clear()
        return (Code.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (Code.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph, self.recording = self.recording, None
        return (Code.cudaSuccess, graph) if self.can_record else (Code.cudaErrorStreamCaptureUnsupported, None)

    def cudaGraphInstantiate(self, graph, flags):
        self.resources.append('graph')
        return Code.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph):
        return (Code.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph):
        self.resources.remove('graph')
        return (Code.cudaSuccess,)

    def cudaGraphLaunch(self, graph, stream):
        self.waiting.extend(graph)
        return (Code.cudaSuccess,)


def simulated_tensorrt(cuda: SimulatedCuda, onnx: bytes, spoil=lambda outputs: outputs):
    """Return TensorRT-RTX's module with a runtime that computes the model ``onnx`` by ONNX Runtime.

    Args:
        cuda: the GPU to run on.
        onnx: the model that every plan is taken for.
        spoil: changes the outputs of each run, as a GPU with wrong arithmetic would.
    """
    session = import_onnxruntime().InferenceSession(onnx, providers=['CPUExecutionProvider'])

    class Context:
        def __init__(self, shapes):
            self.shapes = shapes
            self.addresses = {}

        def set_tensor_address(self, name, address):
            assert len(cuda.device[address]) == np.prod(self.shapes[name]) * (1 if name in ('image', 'mask') else 4)
            self.addresses[name] = address

        def execute_async_v3(self, stream):
            assert stream in cuda.resources

            def view(name, kind):
                array = np.frombuffer(cuda.device[self.addresses[name]], kind)
                return array.reshape(self.shapes[name])

            def compute():
                inputs = {name: view(name, np.uint8) for name in ('image', 'mask')}
                names = ['xy', 'scores', 'descriptors']
                for name, output in zip(names, spoil(session.run(names, inputs))):
                    view(name, np.float32)[...] = output

            return cuda.submit(compute) == Code.cudaSuccess

    class Engine:
        num_io_tensors = 5

        def __init__(self, shapes):
            self.shapes = shapes

        def get_tensor_name(self, index):
            return list(self.shapes)[index]

        def get_tensor_shape(self, name):
            return self.shapes[name]

        def get_tensor_dtype(self, name):
            return tensorrt_rtx.DataType.UINT8 if name in ('image', 'mask') else tensorrt_rtx.DataType.FLOAT

        def create_execution_context(self):
            return Context(self.shapes)

    shapes_of = {}  # by plan

    class Builder(tensorrt_rtx.Builder):
        def build_serialized_network(self, network, config):
            module.builds += 1
            plan = super().build_serialized_network(network, config)
            if plan is not None:
                ends = [network.get_input(i) for i in range(2)] + [network.get_output(i) for i in range(3)]
                shapes_of[bytes(plan)] = {end.name: tuple(end.shape) for end in ends}
            return plan

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, plan):
            return Engine(shapes_of[plan]) if plan in shapes_of else None

    module = SimpleNamespace(**vars(tensorrt_rtx))
    module.__dict__.update(Builder=Builder, Runtime=Runtime, builds=0)

    class Module:  # hashable, as modules are
        pass

    result = Module()
    result.__dict__ = module.__dict__
    return result
