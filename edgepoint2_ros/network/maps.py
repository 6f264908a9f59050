"""The model for CPUs: from the image to the network's dense maps, arranged for their wide vector units.

The network has few channels, and few channels waste vectors: a convolution to 8 of them fills half the 16 lanes of
AVX-512. Four rearrangements help; none changes the result by more than rounding.

- A convolution to few channels computes several neighbouring pixels of a row at once, as further channels: its kernel
  is padded with zeros and its stride increased accordingly. Runtimes store the channels of a pixel contiguously, so
  turning them back into pixels is a reshape that moves no data (``unpack``).
- Upsampling along a row also computes its new pixels as channels, by a convolution, which absorbs the 1x1 convolution
  before it. Upsampling along columns then blends whole rows.
- The descriptor head's first projection and upsampling commute, so each scale is projected before upsampling, while it
  is small, and the scales are added instead of concatenated.
- The same goes for the detection head.

In the int8 model the convolutions between the network's first and the detection head's last compute in int8, with one
scale for each map and one for each output channel of the weights. The score map needs its resolution: these two, and
all sums on the way, stay as they are.

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
            scale = np.abs(wide).max(axis=(1, 2, 3)) / 127
            rounded = self.constant(np.rint(wide / scale[:, None, None, None]), np.int8, f'{name}.weight')
            weight = self.op('DequantizeLinear', rounded, scale, self.constant(np.zeros(len(scale)), np.int8), axis=0)
        if not exact:
            x = self._round(x)
        offset = self.constant(np.tile(bias, pixels), name=f'{name}.bias')
        packed = x.name if x.pixels == 1 else self._regroup(x.name, -1, x.channels)
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
        result = self.op('Conv', x.name, weight, np.zeros(x.channels), strides=(2, 1))
        return Map(result, x.channels, signed=x.signed)

    def sum(self, *parts: tuple[Map, nn.Conv2d, int]) -> Map:
        (x, conv, _), *coarse = parts
        total = self._project(x, conv)
        for x, conv, factor in coarse:
            name, weight, offset = self.fold(conv)
            total = self._add_enlarged(total, x, *self.store(name, weight, np.tile(offset, factor)), factor)
        return total

    def join(self, conv: nn.Conv2d, *parts: tuple[Map, int]) -> Map:
        """Append the sum of the maps, each through its part of the convolution while it is small."""
        weight, offset = self.store(*self.fold(conv))
        weights = self.op('Split', weight, [x.channels for x, _ in parts], outputs=len(parts), axis=1)
        (x, _), *coarse = parts
        assert x.pixels == 1
        total = Map(self.op('Conv', x.name, weights[0], offset), conv.out_channels)
        for (x, factor), weight in zip(coarse, weights[1:]):
            total = self._add_enlarged(total, x, weight, np.zeros(factor * conv.out_channels), factor)
        return total

    def _project(self, x: Map, conv: nn.Conv2d) -> Map:
        """Append a 1x1 convolution; if its input is packed as its output will be, the pixels stay packed."""
        if x.pixels != max(1, LANES // conv.out_channels):
            return self.conv(x, conv, exact=True)
        name, weight, offset = self.fold(conv)
        weight = np.kron(np.eye(x.pixels), weight[:, :, 0, 0])[:, :, None, None]
        result = self.op('Conv', x.name, *self.store(name, weight, np.tile(offset, x.pixels)))
        return Map(result, conv.out_channels, x.pixels)

    def _add_enlarged(self, total: Map, x: Map, weight: str, offset: np.ndarray | str, factor: int) -> Map:
        """Append a 1x1 convolution, bilinear upsampling (corners not aligned), and the addition to ``total``.

        New pixel p of ``factor`` lies (p + 1/2) / factor - 1/2 to the right of the old one: between that and a
        neighbour.
        """
        shift = (np.arange(factor) + 0.5) / factor - 0.5
        blend = np.stack([np.maximum(-shift, 0), 1 - np.abs(shift), np.maximum(shift, 0)], axis=1)  # left, same, right
        # Multiplied out only when the model is opened: the file would be five times as large.
        phases = self.op('Mul', blend[:, None, None, None], weight)
        phases = self.op('Reshape', phases, [factor * total.channels, x.channels, 1, 3])
        padded = self.op('Pad', x.name, [0, 0, 0, 1, 0, 0, 0, 1], mode='edge')
        rows = self._regroup(self.op('Conv', padded, phases, offset), 1, -1)  # (1, w channels, h, 1)
        scales = [1.0, 1.0, factor, 1.0]
        rows = self.op('Resize', rows, '', scales, mode='linear', coordinate_transformation_mode='half_pixel')
        return total._replace(name=self.op('Add', total.name, self._regroup(rows, -1, total.channels * total.pixels)))

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

    def _regroup(self, x: str, width: int, channels: int) -> str:
        """Append another division of each row's numbers into pixels and channels; -1 for one of the two is the rest."""
        x = self.op('Reshape', self.op('Transpose', x, perm=[0, 2, 3, 1]), [0, 0, width, channels])
        return self.op('Transpose', x, perm=[0, 3, 1, 2])
