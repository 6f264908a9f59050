"""The layers of the network, walked once for every graph that they are written into.

The walk says what follows what. How a layer is computed is for the graph to say: as it stands (sparse.py), or
rearranged for CPUs (maps.py).
"""

from typing import Protocol, TypeVar

from torch import nn

from edgepoint2_ros.network.edgepoint2 import ConvBlock, EdgePoint2, ResNet

Map = TypeVar('Map')  # a map of a graph


class Layers(Protocol[Map]):
    """A graph that writes layers. Their weights are initialisers with the names of the state dict."""

    def stage(self, name: str) -> None:
        """Begin a stage of the network."""

    def conv(
        self, x: Map, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False, exact: bool = False
    ) -> Map:
        """Append a convolution with its batch normalisation and ReLU; an ``exact`` one is in int8 in no model."""

    def add(self, x: Map, y: Map) -> Map:
        """Append the ReLU of a sum."""

    def pool(self, x: Map, size: int) -> Map:
        """Append an average over ``size`` x ``size`` pixels."""

    def sum(self, *parts: tuple[Map, nn.Conv2d, int]) -> Map:
        """Append the sum of maps, each under a 1x1 convolution of its own and enlarged by a factor, the first by 1."""

    def join(self, conv: nn.Conv2d, *parts: tuple[Map, int]) -> Map:
        """Append a 1x1 convolution of maps side by side, each enlarged by a factor, the first by 1."""


def write_layers(graph: Layers[Map], network: EdgePoint2, gray: Map) -> tuple[Map, Map]:
    """Append the network; see `EdgePoint2.forward`.

    Args:
        graph: takes the layers.
        network: the network with its weights; it is not changed.
        gray: the normalised image (1, 1, H, W).

    Returns:
        The scores of 2x2 cells (1, 4, H/2, W/2), and the map before the last projection of the descriptors
        (1, C, H/4, W/4).
    """

    def block(x: Map, block: ConvBlock, exact: bool = False) -> Map:
        return graph.conv(x, block.layer[0], block.layer[1], relu=True, exact=exact)

    def residual(x: Map, block: ResNet) -> Map:
        first, first_norm, _, second, second_norm = block.layer
        inner = graph.conv(graph.conv(x, first, first_norm, relu=True), second, second_norm)
        return graph.add(inner, graph.conv(x, block.skip, exact=True) if isinstance(block.skip, nn.Conv2d) else x)

    graph.stage('block1')
    first, second, third = network.block1
    x1 = residual(block(block(gray, first, exact=True), second), third)  # H/2
    half_x1 = graph.pool(x1, 2)  # H/4
    graph.stage('block2')
    x2 = residual(graph.pool(half_x1, 2), network.block2)  # H/8
    graph.stage('block3')
    x3 = residual(graph.pool(x2, 4), network.block3)  # H/32

    graph.stage('detection')
    first, _, second, _, last = network.score_head
    x = graph.sum((x1, network.conv1, 1), (x2, network.conv2, 4), (x3, network.conv3, 16))
    scores = graph.conv(graph.conv(graph.conv(x, first, relu=True), second, relu=True), last, exact=True)

    graph.stage('description')
    mix, grouped, _ = network.desc_head
    return scores, block(graph.join(mix, (half_x1, 1), (x2, 2), (x3, 8)), grouped)
