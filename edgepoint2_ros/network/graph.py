"""An ONNX graph under construction, and the part that all models start with: from the image to the network's input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepoint2_ros.models import STRIDE

OPSET = 17  # the newest that TensorRT 8.6 reads
IR_VERSION = 8


class Graph:
    """Nodes and constants of an ONNX graph under construction; values are named by strings."""

    def __init__(self, scope: str = ''):
        self.scope = scope  # keeps names apart in the branches of an If
        self.prefix = scope  # of the names of operators; a profile distinguishes the network's stages by it
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: Any, outputs: int = 1, name: str = '', **attributes: Any) -> Any:
        """Append an operator and return its output's name; arrays and numbers among the inputs become constants."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        base = name or f'{self.prefix}{kind.lower()}_{len(self.nodes)}'
        results = [base] if outputs == 1 else [f'{base}.{i}' for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, name=base, **attributes))
        return base if outputs == 1 else results

    def constant(self, value: Any, kind: type = np.float32, name: str = '') -> str:
        """Add a constant; integers become int64, as ONNX requires nearly everywhere, and floats ``kind``."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == 'i' and kind is np.float32 else kind)
        name = name or f'{self.scope}c{len(self.initializers)}'
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def choose(self, condition: str, then: Callable[['Graph'], str], otherwise: Callable[['Graph'], str]) -> str:
        """Append an If whose branches are built by ``then`` and ``otherwise``, each in its own graph."""
        branches = []
        for place, build in enumerate((then, otherwise)):
            branch = Graph(f'{self.prefix}branch_{len(self.nodes)}_{place}_')
            result = helper.make_empty_tensor_value_info(build(branch))
            branches.append(helper.make_graph(branch.nodes, branch.prefix, [], [result], branch.initializers))
        condition = self.op('Cast', condition, to=TensorProto.BOOL)
        return self.op('If', condition, then_branch=branches[0], else_branch=branches[1])

    def model(
        self, name: str, inputs: dict[str, tuple[Any, ...]], outputs: dict[str, tuple[Any, ...]]
    ) -> onnx.ModelProto:
        """Return the graph as a checked model; ``inputs`` (uint8) and ``outputs`` (float32) by name, with shapes."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid('', OPSET)],
            ir_version=IR_VERSION,
            producer_name='edgepoint2_ros',
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def gray_image(graph: Graph, branches: bool = True) -> tuple[str, str, str]:
    """Return width and height of the image and of the network's grid, float (2,) each, and the network's input.

    That is the gray image on the grid with mean 0 and variance 1, (1, 1, H, W).

    The two Ifs save CPUs a pass over all pixels in the common cases: gray images, sizes that are multiples of 32.
    TensorRT requires branches of equal shapes and knows the size when it builds, so its graph has none.
    """
    height_width = graph.op('Slice', graph.op('Shape', 'image'), [0], [2], [0])
    grid = graph.op('Mul', graph.op('Div', height_width, STRIDE), STRIDE)

    def average_channels(graph: Graph) -> str:
        return graph.op('ReduceMean', graph.op('Cast', 'image', to=TensorProto.FLOAT), axes=[2], keepdims=0)

    def resample(graph: Graph) -> str:
        size = graph.op('Concat', [1, 1], grid, axis=0)
        pixels = graph.op('Unsqueeze', gray, [0, 1])
        pixels = graph.op('Resize', pixels, '', '', size, mode='linear', coordinate_transformation_mode='align_corners')
        return graph.op('Squeeze', pixels, [0, 1])

    if branches:
        gray = graph.choose(
            graph.op('Equal', graph.op('Slice', graph.op('Shape', 'image'), [2], [3], [0]), [1]),
            lambda branch: branch.op('Cast', branch.op('Reshape', 'image', height_width), to=TensorProto.FLOAT),
            average_channels,
        )
    else:
        gray = average_channels(graph)
    gray = graph.op('Mul', gray, 1 / 255)
    if branches:
        gray = graph.choose(
            graph.op('ReduceMin', graph.op('Cast', graph.op('Equal', grid, height_width), to=TensorProto.INT64)),
            lambda branch: branch.op('Reshape', gray, grid),  # OpenVINO would copy for an Identity
            resample,
        )
    else:
        gray = resample(graph)
    width_height = [
        graph.op('Cast', graph.op('Gather', size, [1, 0]), to=TensorProto.FLOAT) for size in (height_width, grid)
    ]
    return *width_height, graph.op('Unsqueeze', _normalise(graph, gray), [0, 1])


def _normalise(graph: Graph, gray: str) -> str:
    """Return ``gray`` (H, W) with mean 0 and variance 1: InstanceNorm2d(1).

    Means are taken along rows first, which runtimes parallelise; a mean over all pixels at once they do not.
    """

    def mean(x: str) -> str:
        return graph.op('ReduceMean', graph.op('ReduceMean', x, axes=[1]), axes=[0])

    centred = graph.op('Sub', gray, mean(gray))
    variance = mean(graph.op('Mul', centred, centred))
    gain = graph.op('Reciprocal', graph.op('Sqrt', graph.op('Add', variance, 1e-5)))
    return graph.op('Mul', centred, gain)
