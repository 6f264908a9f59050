"""The layers of the network in a graph: one walk over them, each as it is. maps.py computes some differently."""

import functools
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from edgepoint2_ros.network.edgepoint2 import ConvBlock, EdgePoint2, ResNet
from edgepoint2_ros.network.graph import Graph


class Map(NamedTuple):
    """A map of a graph: ``pixels`` neighbours in a row are packed into one, with ``channels`` each."""

    name: str
    channels: int
    pixels: int = 1
    signed: bool = True


def parts_of(module: nn.Module) -> list[Any]:
    """Return the parts of a module in order; their kinds, which torch does not type, are those of edgepoint2.py."""
    return list(module.children())


class Layers(Graph):
    """A graph that the layers of a network are written into; their weights have the names of the state dict."""

    def __init__(self, network: EdgePoint2, kind: type = np.float32):
        super().__init__()
        self.network = network
        self.kind = kind  # of the convolutions
        self._names = {module: name for name, module in network.named_modules()}

    def write(self, gray: str) -> tuple[Map, Map]:
        """Append the network, as in `EdgePoint2.forward`, to a normalised gray image (1, 1, H, W).

        Return the scores of 2x2 cells (1, 4, H/2, W/2), and the map before the last projection of the descriptors
        (1, C, H/4, W/4).
        """

        def block(x: Map, block: ConvBlock, exact: bool = False) -> Map:
            conv, norm, _ = parts_of(block.layer)
            return self.conv(x, conv, norm, relu=True, exact=exact)

        def residual(x: Map, block: ResNet) -> Map:
            first, first_norm, _, second, second_norm = parts_of(block.layer)
            inner = self.conv(self.conv(x, first, first_norm, relu=True), second, second_norm)
            skip = self.conv(x, block.skip, exact=True) if isinstance(block.skip, nn.Conv2d) else x
            return self.add(inner, skip, relu=True)

        network = self.network
        self.prefix = 'block1/'
        first, second, third = parts_of(network.block1)
        x1 = residual(block(block(Map(gray, 1), first, exact=True), second), third)  # H/2
        half_x1 = self.pool(x1, 2)  # H/4
        self.prefix = 'block2/'
        x2 = residual(self.pool(half_x1, 2), network.block2)  # H/8
        self.prefix = 'block3/'
        x3 = residual(self.pool(x2, 4), network.block3)  # H/32

        self.prefix = 'detection/'
        first, _, second, _, last = parts_of(network.score_head)
        x = self.sum((x1, network.conv1, 1), (x2, network.conv2, 4), (x3, network.conv3, 16))
        scores = self.conv(self.conv(self.conv(x, first, relu=True), second, relu=True), last, exact=True)

        self.prefix = 'description/'
        mix, grouped, _ = parts_of(network.desc_head)
        return scores, block(self.join(mix, (half_x1, 1), (x2, 2), (x3, 8)), grouped)

    def conv(
        self, x: Map, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False, exact: bool = False
    ) -> Map:
        """Append a convolution with its batch normalisation and ReLU; one that is ``exact`` is never in int8."""
        weights = self.store(*self.fold(conv, norm), self.kind)
        shape: dict[str, Any] = {'kernel_shape': conv.kernel_size, 'strides': conv.stride, 'pads': conv.padding * 2}
        result = self.op('Conv', x.name, *weights, group=conv.groups, **shape)
        return Map(self.op('Relu', result) if relu else result, conv.out_channels)

    def add(self, x: Map, y: Map, relu: bool = False) -> Map:
        """Append a sum and its ReLU."""
        result = self.op('Add', x.name, y.name)
        return x._replace(name=self.op('Relu', result) if relu else result, signed=not relu)

    def pool(self, x: Map, size: int) -> Map:
        """Append an average over ``size`` x ``size`` pixels."""
        return x._replace(name=self.op('AveragePool', x.name, kernel_shape=[size, size], strides=[size, size]))

    def sum(self, *parts: tuple[Map, nn.Conv2d, int]) -> Map:
        """Append the sum of maps, each through its own 1x1 convolution and upsampled by a factor, the first by 1."""
        return functools.reduce(self.add, [self._enlarge(self.conv(x, conv), factor) for x, conv, factor in parts])

    def join(self, conv: nn.Conv2d, *parts: tuple[Map, int]) -> Map:
        """Append a 1x1 convolution of concatenated maps, each upsampled by a factor, the first by 1."""
        maps = [self._enlarge(x, factor).name for x, factor in parts]
        return self.conv(Map(self.op('Concat', *maps, axis=1), conv.in_channels), conv)

    def _enlarge(self, x: Map, factor: int) -> Map:
        if factor == 1:
            return x
        scales = [1.0, 1.0, factor, factor]
        name = self.op('Resize', x.name, '', scales, mode='linear', coordinate_transformation_mode='half_pixel')
        return x._replace(name=name)

    def fold(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> tuple[str, np.ndarray, np.ndarray]:
        """Return name, weights and offsets, float32, of a convolution with its batch normalisation folded in.

        Rounded once, before they are used: the model of a restored network is bit-identical.
        """
        weight = conv.weight.detach().double().numpy()
        offset = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().double().numpy()
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None  # torch keeps them unless told not to
            gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
            weight = weight * gain[:, None, None, None]
            offset = norm.bias.detach().double().numpy() + (offset - norm.running_mean.double().numpy()) * gain
        return self._names[conv], weight.astype(np.float32), offset.astype(np.float32)

    def store(self, name: str, weight: np.ndarray, offset: np.ndarray, kind: type = np.float32) -> tuple[str, str]:
        """Add weights and offsets of the layer ``name`` as initialisers and return their names."""
        return self.constant(weight, kind, f'{name}.weight'), self.constant(offset, kind, f'{name}.bias')
