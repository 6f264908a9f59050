"""The model for CPUs: from the image to the network's dense maps, arranged for their wide vector units.

The network has few channels, and few channels waste vectors: a convolution to 8 of them fills half the 16 lanes of
AVX-512. Four rearrangements help; none changes the result by more than rounding.

- A convolution to few channels makes several neighbouring pixels of a row at once, as further channels: its kernel is
  as much wider, with zeros, and steps as much farther. Runtimes keep the channels of a pixel side by side in memory, so
  that turning them into pixels again renames what is there and moves nothing (``unpack``).
- Up-sampling along a row makes its new pixels as channels too, by a convolution, which takes in the 1x1 convolution
  before it. Up-sampling along columns then blends whole rows.
- The descriptor head's first projection and up-sampling commute, so each scale is projected before it, small, and the
  scales are added instead of laid side by side.
- So do the detection head's.

In the model in int8 the convolutions between the first and the last one of the detection head compute in int8, with
one scale for each map and one for each output channel of the weights. The score map needs its resolution: what makes
and ends it, and all that is added up on the way, stays as it is.

Inputs
    image        uint8 (H, W, C): C = 1 (gray) or 3 (colour in any channel order); H and W from 64 pixels.
Outputs, where h and w are H and W floored to multiples of 32
    cells        float32 (1, h/2, w/2, 4): the scores, raw logits, of the four pixels of each 2x2 cell, row by row.
    descriptors  float32 (1, h/4, w/4, D), not normalised.
"""

from typing import NamedTuple

import numpy as np
import onnx
from torch import nn

from edgepoint2_ros.engines.onnxruntime import import_onnxruntime
from edgepoint2_ros.network.edgepoint2 import ConvBlock, EdgePoint2, ResNet
from edgepoint2_ros.network.graph import Graph, fold, gray_image

LANES = 16  # float32 numbers of the widest vectors


class _Map(NamedTuple):
    """A map of the graph: ``pixels`` neighbours of a row lie in it as one, with ``channels`` each."""

    name: str
    channels: int
    pixels: int = 1
    signed: bool = True


class _MapGraph(Graph):
    """A graph in which convolutions may compute in int8.

    Attributes:
        limits: the highest magnitude of each map that is rounded, in the order of ``rounded``; None for fp32.
        rounded: the maps that are rounded to 8 bits, or would be, and what they are called afterwards.
    """

    def __init__(self, limits: list[float] | None):
        super().__init__()
        self.limits = limits
        self.rounded: dict[str, str] = {}

    def round(self, x: _Map) -> _Map:
        """Append the rounding of a map to 8 bits with one scale, where the model is to be in int8."""
        if x.name not in self.rounded:
            result = x.name
            if self.limits is not None:
                scale = self.limits[len(self.rounded)] / (127 if x.signed else 255)
                zero = self.constant(0, np.int8 if x.signed else np.uint8)
                result = self.op('DequantizeLinear', self.op('QuantizeLinear', x.name, scale, zero), scale, zero)
            self.rounded[x.name] = result
        return x._replace(name=self.rounded[x.name])

    def round_weight(self, weight: np.ndarray):
        """Return weights rounded to 8 bits with a scale for each output, where the model is to be in int8."""
        if self.limits is None:
            return weight
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        rounded = self.constant(np.rint(weight / scale[:, None, None, None]), np.int8)
        return self.op('DequantizeLinear', rounded, scale, self.constant(np.zeros(len(scale)), np.int8), axis=0)


def build_maps(network: EdgePoint2, limits: list[float] | None = None) -> onnx.ModelProto:
    """Return the model of ``network`` for CPUs; see the module's description for its input and outputs.

    Args:
        network: the network with its weights; it is not changed.
        limits: what ``calibrate`` returned, for the model in int8; None for fp32.
    """
    return _build(network, limits)[0]


def calibrate(network: EdgePoint2, images: list[np.ndarray]) -> list[float]:
    """Return the highest magnitudes in the maps that are rounded to 8 bits, over ``images``, uint8 (H, W, C)."""
    model, graph = _build(network, None)
    names = list(graph.rounded)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    found = [[float(np.abs(x).max()) for x in session.run(names, {'image': image})] for image in images]
    return np.max(found, axis=0).tolist()


def _build(network: EdgePoint2, limits: list[float] | None) -> tuple[onnx.ModelProto, _MapGraph]:
    graph = _MapGraph(limits)
    graph.prefix = 'input/'  # prefixes name the stages in a profile
    _, _, gray = gray_image(graph)
    graph.prefix = 'block1/'
    x1 = _block(graph, _block(graph, _Map(gray, 1), network.block1[0], exact=True), network.block1[1])
    x1 = _residual(graph, x1, network.block1[2])  # H/2
    half_x1 = _halve(graph, x1)  # H/4
    graph.prefix = 'block2/'
    x2 = _residual(graph, _pool(graph, half_x1, 2), network.block2)  # H/8
    graph.prefix = 'block3/'
    x3 = _residual(graph, _pool(graph, x2, 4), network.block3)  # H/32
    graph.prefix = 'detection/'
    cells = _detect(graph, network, x1, x2, x3)
    graph.op('Reshape', graph.op('Transpose', cells.name, perm=[0, 2, 3, 1]), [0, 0, -1, 4], name='cells')
    graph.prefix = 'description/'
    descriptors = _describe(graph, network, half_x1, x2, x3)
    graph.op('Transpose', descriptors.name, name='descriptors', perm=[0, 2, 3, 1])
    model = graph.model(
        network,
        {'image': ('height', 'width', 'channels')},
        {
            'cells': (1, 'cell_rows', 'cell_columns', 4),
            'descriptors': (1, 'map_height', 'map_width', network.variant.descriptor_size),
        },
    )
    return model, graph


def _detect(graph: _MapGraph, network: EdgePoint2, x1: _Map, x2: _Map, x3: _Map) -> _Map:
    """Return the scores of 2x2 cells, as four channels at H/2."""
    x = _project(graph, x1, network.conv1)
    for coarse, projection, factor in ((x2, network.conv2, 4), (x3, network.conv3, 16)):
        rows = _enlarge(graph, coarse, *fold(projection), factor)
        x = x._replace(name=graph.op('Add', x.name, _regroup(graph, rows, -1, x.channels * x.pixels)))
    for place in (0, 2):
        x = _relu(graph, _conv(graph, x, *fold(network.score_head[place]), network.score_head[place]))
    return _conv(graph, x, *fold(network.score_head[4]), network.score_head[4], exact=True)


def _describe(graph: _MapGraph, network: EdgePoint2, half_x1: _Map, x2: _Map, x3: _Map) -> _Map:
    """Return the descriptor map at H/4, not normalised."""
    mix, grouped, projection = network.desc_head
    weight, offset = fold(mix)
    of_x1, of_x2, of_x3 = np.split(weight, np.cumsum([half_x1.channels, x2.channels]), axis=1)
    x = graph.convolve(half_x1.name, of_x1, offset)
    for coarse, part, factor in ((x2, of_x2, 2), (x3, of_x3, 8)):
        rows = _enlarge(graph, coarse, part, np.zeros_like(offset), factor)
        x = graph.op('Add', x, _regroup(graph, rows, -1, len(offset)))
    x = _block(graph, _Map(x, len(offset)), grouped)
    return _conv(graph, x, *fold(projection), projection)


def _block(graph: _MapGraph, x: _Map, block: ConvBlock, exact: bool = False) -> _Map:
    conv, norm, _ = block.layer
    x = _conv(graph, x, *fold(conv, norm), conv, exact)
    if exact and graph.limits is not None:
        # As Relu, OpenVINO would fold the rounding that follows into this convolution, which cannot do it, and add a
        # slow pass that can: 1.2 ms.
        return x._replace(name=graph.op('Max', x.name, 0.0), signed=False)
    return _relu(graph, x)


def _residual(graph: _MapGraph, x: _Map, block: ResNet) -> _Map:
    first, first_norm, _, second, second_norm = block.layer
    inner = _relu(graph, _conv(graph, x, *fold(first, first_norm), first))
    inner = _conv(graph, inner, *fold(second, second_norm), second)
    skip = x if isinstance(block.skip, nn.Identity) else _conv(graph, x, *fold(block.skip), block.skip, exact=True)
    assert (skip.channels, skip.pixels) == (inner.channels, inner.pixels)
    return _relu(graph, inner._replace(name=graph.op('Add', inner.name, skip.name)))


def _conv(
    graph: _MapGraph, x: _Map, weight: np.ndarray, offset: np.ndarray, like: nn.Conv2d, exact: bool = False
) -> _Map:
    """Append a convolution shaped like ``like``, of as many pixels at once as fill the lanes.

    It is one that computes in int8 where the model does, unless ``exact``.
    """
    outputs, inputs, height, width = weight.shape
    pixels = max(1, LANES // outputs)
    down, right = like.stride
    wide = np.zeros((pixels, outputs, inputs, height, width + right * (pixels - 1)))
    for pixel in range(pixels):
        wide[pixel, ..., right * pixel : right * pixel + width] = weight
    wide = wide.reshape(pixels * outputs, *wide.shape[2:])
    offset = np.tile(offset, pixels)
    if not exact:
        x, wide = graph.round(x), graph.round_weight(wide)
    size = (height, width + right * (pixels - 1))
    stride = (down, right * pixels)
    result = graph.convolve(_unpack(graph, x), wide, offset, size, stride, like.padding, like.groups)
    return _Map(result, outputs, pixels)


def _project(graph: _MapGraph, x: _Map, conv: nn.Conv2d) -> _Map:
    """Append a 1x1 convolution; where its input is packed as its output will be, the pixels stay packed."""
    weight, offset = fold(conv)
    if x.pixels != max(1, LANES // len(offset)):
        return _conv(graph, x, weight, offset, conv, exact=True)
    weight = np.kron(np.eye(x.pixels), weight[:, :, 0, 0])[:, :, None, None]
    return _Map(graph.convolve(x.name, weight, np.tile(offset, x.pixels)), len(offset), x.pixels)


def _relu(graph: _MapGraph, x: _Map) -> _Map:
    return x._replace(name=graph.op('Relu', x.name), signed=False)


def _pool(graph: _MapGraph, x: _Map, size: int) -> _Map:
    return x._replace(name=graph.average_pool(x.name, size))


def _halve(graph: _MapGraph, x: _Map) -> _Map:
    """Append an average over 2x2 pixels; of packed ones it is a convolution, which needs no unpacking."""
    if x.pixels == 1:
        return _pool(graph, x, 2)
    assert x.pixels == 2
    weight = np.tile(np.eye(x.channels) / 4, x.pixels)[:, :, None, None].repeat(2, axis=2)
    return _Map(graph.convolve(x.name, weight, np.zeros(x.channels), (2, 1), (2, 1)), x.channels, signed=False)


def _enlarge(graph: _MapGraph, x: _Map, weight: np.ndarray, offset: np.ndarray, factor: int) -> str:
    """Append a 1x1 convolution and a bilinear up-sampling, corners not aligned; return rows (1, w channels, h, 1).

    New pixel p of ``factor`` lies (p + 1/2) / factor - 1/2 to the right of the old one: between that and a neighbour.
    """
    outputs, inputs = weight.shape[:2]
    shift = (np.arange(factor) + 0.5) / factor - 0.5
    blend = np.stack([np.maximum(-shift, 0), 1 - np.abs(shift), np.maximum(shift, 0)], axis=1)  # left, same, right
    # Multiplied out when the model is opened: the file would be five times as large.
    phases = graph.op('Mul', blend[:, None, None, None], weight[None])
    phases = graph.op('Reshape', phases, [factor * outputs, inputs, 1, 3])
    padded = graph.op('Pad', x.name, [0, 0, 0, 1, 0, 0, 0, 1], mode='edge')
    rows = graph.convolve(padded, phases, np.tile(offset, factor), (1, 3))
    rows = _regroup(graph, rows, 1, -1)
    scales = [1.0, 1.0, factor, 1.0]
    return graph.op('Resize', rows, '', scales, mode='linear', coordinate_transformation_mode='half_pixel')


def _unpack(graph: _MapGraph, x: _Map) -> str:
    return x.name if x.pixels == 1 else _regroup(graph, x.name, -1, x.channels)


def _regroup(graph: _MapGraph, x: str, width: int, channels: int) -> str:
    """Append another division of each row's numbers into pixels and channels; one of the two may be -1: the rest."""
    x = graph.op('Reshape', graph.op('Transpose', x, perm=[0, 2, 3, 1]), [0, 0, width, channels])
    return graph.op('Transpose', x, perm=[0, 3, 1, 2])
