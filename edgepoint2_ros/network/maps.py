"""The model for CPUs: from the image to the network's dense maps, arranged for their wide vector units.

The network has few channels, and few channels waste vectors: a convolution to 8 of them fills half the 16 lanes of
AVX-512. Three rearrangements help; none changes the result by more than rounding.

- A convolution to few channels computes several neighbouring pixels of a row at once, as further channels: its kernel
  is padded with zeros and its stride increased accordingly. Runtimes store the channels of a pixel contiguously, so
  turning them back into pixels is a reshape that moves no data.
- The first projections of the heads and upsampling commute, so each scale is projected before upsampling, while it is
  small, and the descriptor head's scales are added instead of concatenated.
- Upsampling blends pixels of a row with the ones beside them, then whole rows, by elementwise operators: OpenVINO
  compiles the second blend into one pass with the sum of the scales and its rounding.

In the int8 model the convolutions between the network's first and the detection head's last compute in int8, with one
scale for each map and one for each output channel of the weights. The score map needs its resolution: these two, and
all sums on the way, stay as they are. CPUs without VNNI add the products of two neighbouring input channels in 16 bits;
the weights are scaled so that this never overflows.

Inputs
    image        uint8 (H, W, C): C = 1 (gray) or 3 (colour in any channel order); H and W from 64 pixels.
Outputs, where h and w are H and W floored to multiples of 32
    cells        float32 (1, h/2, w/2, 4): the scores, raw logits, of the four pixels of each 2x2 cell, row by row.
    descriptors  float32 (1, h/4, w/4, D), not normalised.
"""

from typing import Any

import numpy as np
import onnx
from torch import nn

from edgepoint2_ros.engines.onnxruntime import import_onnxruntime
from edgepoint2_ros.network.edgepoint2 import EdgePoint2
from edgepoint2_ros.network.graph import gray_image
from edgepoint2_ros.network.layers import Layers, Map, parts_of

LANES = 16  # float32 numbers of the widest vectors


def build_maps(network: EdgePoint2, limits: list[float] | None = None) -> onnx.ModelProto:
    """Return the model of ``network`` for CPUs; see the module's description for its input and outputs.

    Args:
        network: the network with its weights; it is not changed.
        limits: what ``calibrate`` returned, for the int8 model; None for fp32.
    """
    return _WideLayers(network, limits).build()


def calibrate(network: EdgePoint2, images: list[np.ndarray]) -> list[float]:
    """Return the maximum magnitudes in the maps that are rounded to 8 bits, over ``images``, uint8 (H, W, C)."""
    graph = _WideLayers(network, None)
    model = graph.build()
    names = list(graph.rounded)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    found = [[float(np.abs(x).max()) for x in session.run(names, {'image': image})] for image in images]
    return np.max(found, axis=0).tolist()


class _WideLayers(Layers):
    """Layers rearranged for wide vectors, whose convolutions may compute in int8.

    The weights of a convolution begin with those of the state dict: ``weight[:outputs, :inputs, :height, :width]``.

    Attributes:
        limits: the maximum magnitude of each rounded map, in the order of ``rounded``; None for fp32.
        rounded: the maps that are rounded to 8 bits, or would be, and their names afterwards.
    """

    def __init__(self, network: EdgePoint2, limits: list[float] | None):
        super().__init__(network)
        self.limits = limits
        self.rounded: dict[str, str] = {}
        self._indices: dict[tuple[str, int], str] = {}  # of neighbours, by map and axis

    def build(self) -> onnx.ModelProto:
        self.prefix = 'input/'
        _, _, gray = gray_image(self)
        cells, descriptors = self.write(gray)
        *_, last = parts_of(self.network.desc_head)
        descriptors = self.conv(descriptors, last)
        self.op('Reshape', self.op('Transpose', cells.name, perm=[0, 2, 3, 1]), [0, 0, -1, 4], name='cells')
        self.op('Transpose', descriptors.name, name='descriptors', perm=[0, 2, 3, 1])
        return self.model(
            f'EdgePoint2 {self.network.variant}',
            {'image': ('height', 'width', 'channels')},
            {
                'cells': (1, 'cell_rows', 'cell_columns', 4),
                'descriptors': (1, 'map_height', 'map_width', descriptors.channels),
            },
        )

    def conv(
        self, x: Map, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False, exact: bool = False
    ) -> Map:
        """Append a convolution that computes as many pixels at once as fill the lanes."""
        name, kernel, bias = self.fold(conv, norm)
        outputs, inputs, height, width = kernel.shape
        pixels = max(1, LANES // outputs)
        down, right = conv.stride
        wide = np.zeros((pixels, outputs, inputs, height, width + right * (pixels - 1)))
        for pixel in range(pixels):
            wide[pixel, ..., right * pixel : right * pixel + width] = kernel
        wide = wide.reshape(pixels * outputs, *wide.shape[2:])
        if exact or self.limits is None:
            weight = self.constant(wide, name=f'{name}.weight')
        else:
            scale = int8_scales(wide)
            rounded = self.constant(np.rint(wide / scale[:, None, None, None]), np.int8, f'{name}.weight')
            weight = self.op('DequantizeLinear', rounded, scale, self.constant(np.zeros(len(scale)), np.int8), axis=0)
        if not exact:
            x = self._round(x)
        offset = self.constant(np.tile(bias, pixels), name=f'{name}.bias')
        packed = x.name if x.pixels == 1 else self._unpack(x)
        shape: dict[str, Any] = {'strides': (down, right * pixels), 'pads': conv.padding * 2}
        result = self.op('Conv', packed, weight, offset, group=conv.groups, **shape)
        if relu and exact and self.limits is not None:
            # With Relu, OpenVINO would fold the rounding that follows into this convolution, which does not support it,
            # and add a slow pass that does: 1.2 ms.
            result = self.op('Max', result, 0.0)
        elif relu:
            result = self.op('Relu', result)
        return Map(result, outputs, pixels, signed=not relu)

    def pool(self, x: Map, size: int) -> Map:
        if x.pixels == 1:
            return super().pool(x, size)
        # The average of packed pixels is a convolution, which needs no unpacking.
        assert x.pixels == size == 2
        weight = np.tile(np.eye(x.channels) / 4, 2)[:, :, None, None].repeat(2, axis=2)
        result = self.op('Conv', x.name, weight, strides=(2, 1))
        return Map(result, x.channels, signed=x.signed)

    def sum(self, *parts: tuple[Map, nn.Conv2d, int]) -> Map:
        (x, conv, _), *coarse = parts
        total = self._project(x, conv)
        return self._add_enlarged(total, *((x, Layers.conv(self, x, conv).name, factor) for x, conv, factor in coarse))

    def join(self, conv: nn.Conv2d, *parts: tuple[Map, int]) -> Map:
        """Append the sum of the maps, each through its part of the convolution while it is small."""
        weight, offset = self.store(*self.fold(conv))
        first, *weights = self.op('Split', weight, [x.channels for x, _ in parts], outputs=len(parts), axis=1)
        (x, _), *coarse = parts
        assert x.pixels == 1
        total = Map(self.op('Conv', x.name, first, offset), conv.out_channels)
        scales = ((x, self.op('Conv', x.name, weight), factor) for (x, factor), weight in zip(coarse, weights))
        return self._add_enlarged(total, *scales)

    def _project(self, x: Map, conv: nn.Conv2d) -> Map:
        """Append a 1x1 convolution; if its input is packed as its output will be, the pixels stay packed."""
        if x.pixels != max(1, LANES // conv.out_channels):
            return self.conv(x, conv, exact=True)
        name, weight, offset = self.fold(conv)
        weight = np.kron(np.eye(x.pixels), weight[:, :, 0, 0])[:, :, None, None]
        result = self.op('Conv', x.name, *self.store(name, weight, np.tile(offset, x.pixels)))
        return Map(result, conv.out_channels, x.pixels)

    def _add_enlarged(self, total: Map, *scales: tuple[Map, str, int]) -> Map:
        """Append the sum of ``total`` and two coarse maps after bilinear upsampling, corners not aligned.

        New pixel p of a factor lies (p + 1/2) / factor - 1/2 beside the old one: in the first half of the new pixels it
        blends with the old one on the left, in the second half with the one on the right. Rows likewise, above and
        below. So the rows have an axis for each half: with the factors 4 and 16, the 16 new rows of a row of the
        coarser map are 2 halves of 2 rows of the finer map, and each of these has 2 halves of 2 new rows. All blends
        are then broadcasts. There are always six axes: OpenVINO would convert the layout of four or five.

        Args:
            total: the sum so far.
            scales: a map, its projection to the channels of ``total``, and the factor; the finer one first.
        """
        (*_, fine), (*_, coarse) = scales
        assert fine % 2 == 0 and coarse % (2 * fine) == 0
        axes = [2, coarse // fine // 2, 2, fine // 2]
        row = self.constant([0, 0, 1, 1, 1, -1])
        rows = self.op('Reshape', self.op('Transpose', total.name, perm=[0, 2, 3, 1]), row)
        result = self.op('Reshape', rows, [-1, *axes, 0])
        for (x, projected, factor), outer in zip(scales, (2, 0)):
            distance = np.abs((np.arange(factor) + 0.5) / factor - 0.5)
            pixels = self.op('Transpose', projected, perm=[0, 2, 3, 1])
            pixels = self.op('Reshape', pixels, [0, 0, -1, 1, 1, total.channels])
            beside = self.op('Gather', pixels, self._neighbours(x, 3), axis=2)
            beside = self.op('Reshape', beside, [0, 0, -1, 2, 1, total.channels])
            rows = self.op('Reshape', self._blend(pixels, beside, distance.reshape(2, -1, 1)), row)
            beside = self.op('Gather', rows, self._neighbours(x, 2), axis=1)
            beside = self.op('Reshape', beside, [-1, *axes[:outer], 2, *[1] * (3 - outer), 0])
            rows = self.op('Reshape', rows, [-1, *axes[:outer], *[1] * (4 - outer), 0])
            result = self.op('Add', result, self._blend(rows, beside, distance.reshape(*axes[outer:], 1)))
        result = self.op('Reshape', self.op('Reshape', result, [1, -1, 1, 1, 1, 0]), [0, 0, -1, total.channels])
        return Map(self.op('Transpose', result, perm=[0, 3, 1, 2]), total.channels)

    def _blend(self, x: str, other: str, share: np.ndarray) -> str:
        """Append a blend, in which ``other`` has a share."""
        return self.op('Add', x, self.op('Mul', self.op('Sub', other, x), share))

    def _neighbours(self, x: Map, axis: int) -> str:
        """Append the indices before and after each index of an axis of a map, in one list; clipped to the map."""
        if (x.name, axis) not in self._indices:
            zero, one = (self.constant(value, np.int64) for value in (0, 1))
            count = self.op('Gather', self.op('Shape', x.name), self.constant(axis, np.int64))
            indices = self.op('Reshape', self.op('Range', zero, count, one), [-1, 1])
            indices = self.op('Clip', self.op('Add', indices, [[-1, 1]]), zero, self.op('Sub', count, one))
            self._indices[x.name, axis] = self.op('Reshape', indices, [-1])
        return self._indices[x.name, axis]

    def _round(self, x: Map) -> Map:
        """Append the rounding of a map to 8 bits with one scale, if the model is int8."""
        if x.name not in self.rounded:
            result = x.name
            if self.limits is not None:
                scale = self.limits[len(self.rounded)] / (127 if x.signed else 255)
                zero = self.constant(0, np.int8 if x.signed else np.uint8)
                result = self.op('DequantizeLinear', self.op('QuantizeLinear', x.name, scale, zero), scale, zero)
            self.rounded[x.name] = result
        return x._replace(name=self.rounded[x.name])

    def _unpack(self, x: Map) -> str:
        """Append the division of each row's numbers into single pixels, from packed ones."""
        rows = self.op('Reshape', self.op('Transpose', x.name, perm=[0, 2, 3, 1]), [0, 0, -1, x.channels])
        return self.op('Transpose', rows, perm=[0, 3, 1, 2])


def int8_scales(weights: np.ndarray) -> np.ndarray:
    """Return the scale of each output channel's int8 weights, (O, I, h, w) before they are divided by it.

    The magnitudes of two neighbouring input channels add up to at most 128: 2^15 is more than 255 times as much.
    """
    outputs, inputs, *size = weights.shape
    pairs = np.abs(weights).reshape(outputs, inputs // 2, 2, *size).sum(axis=2).max(axis=(1, 2, 3))
    return np.maximum(pairs / 127.5, np.abs(weights).max(axis=(1, 2, 3)) / 127)
