"""The model for TensorRT: everything from the image to the best K keypoints, so that only those leave the GPU.

TensorRT supports each operator since 8.6. The convolutions and the maps between them are in fp16.
Everything else stays fp32, by casts that TensorRT obeys: the sums of the normalisation overflow fp16, and coordinates
above 512 would be rounded to half pixels. The same graph in fp32 is what the fp16 one is compared with.

Inputs
    image    uint8 (H, W, C): C = 1 (gray) or 3 (colour in any channel order); H and W from 64 pixels.
    mask     uint8 (h, w): nonzero where keypoints are allowed, on the network's grid, which is the image floored to
             multiples of 32; or (1, 1) with a one in it: no mask. TensorRT takes only masks on the grid.
Outputs, best score first, always K rows
    xy           float32 (K, 2), pixels of the image, sub-pixel.
    scores       float32 (K,), raw logits. Rows past the last keypoint hold PAD_SCORE: cut where the score falls
                 to the threshold.
    descriptors  float32 (K, D), rows of unit length.
"""

import numpy as np
import onnx
from onnx import TensorProto

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import BORDER, MAX_KEYPOINTS, MIN_CURVATURE, NMS_RADIUS, PAD_SCORE
from edgepoint2_ros.network.edgepoint2 import EdgePoint2
from edgepoint2_ros.network.graph import Graph, gray_image
from edgepoint2_ros.network.layers import Layers, parts_of

MOST_KEYPOINTS = 3840  # the limit of TensorRT's TopK


def build_sparse(
    network: EdgePoint2, max_keypoints: int = MAX_KEYPOINTS, subpixel: bool = True, half: bool = False
) -> onnx.ModelProto:
    """Return the sparse model of ``network``; see the module's description for its inputs and outputs.

    Args:
        network: the network with its weights; it is not changed.
        max_keypoints: K, from 1 to MOST_KEYPOINTS.
        subpixel: refine keypoints by a parabola through the score map.
        half: the model for TensorRT, with fp16 convolutions.

    Raises:
        ModelError: max_keypoints is out of range.
    """
    if not 1 <= max_keypoints <= MOST_KEYPOINTS:
        raise ModelError(
            f'max_keypoints: expected 1 to {MOST_KEYPOINTS} (TensorRT picks no more best ones), got {max_keypoints}'
        )
    graph = Layers(network, np.float16 if half else np.float32)

    def cast(x: str, kind: int) -> str:
        return graph.op('Cast', x, to=kind) if half else x

    graph.prefix = 'input/'
    image_size, network_size, gray = gray_image(graph, branches=not half)
    cells, head = graph.write(cast(gray, TensorProto.FLOAT16))
    score_map = cast(graph.op('DepthToSpace', cells.name, blocksize=2, mode='CRD'), TensorProto.FLOAT)
    graph.prefix = 'keypoints/'
    xy, scores = _keypoints(graph, score_map, network_size, max_keypoints, subpixel)
    descriptors = _sample_descriptors(graph, cast(head.name, TensorProto.FLOAT), xy, network_size)
    scale = graph.op('Div', image_size, network_size)
    graph.op('Mul', xy, scale, name='xy')
    graph.op('Identity', scores, name='scores')
    graph.op('Identity', descriptors, name='descriptors')
    return graph.model(
        f'EdgePoint2 {network.variant}',
        {'image': ('height', 'width', 'channels'), 'mask': ('mask_height', 'mask_width')},
        {
            'xy': (max_keypoints, 2),
            'scores': (max_keypoints,),
            'descriptors': (max_keypoints, network.variant.descriptor_size),
        },
    )


def _keypoints(graph: Graph, score_map: str, network_size: str, count: int, subpixel: bool) -> tuple[str, str]:
    """Return xy (K, 2) on the network's grid and scores (K,) of the best local maxima.

    Two maxima of a 5x5 window lie at least 3 pixels apart, so a 2x2 cell holds at most one of them: the best K are
    chosen among cells, a quarter of the pixels.
    """
    window = 2 * NMS_RADIUS + 1
    # Rows, then columns: the maximum is separable.
    strongest = graph.op('MaxPool', score_map, kernel_shape=[1, window], pads=[0, NMS_RADIUS, 0, NMS_RADIUS])
    strongest = graph.op('MaxPool', strongest, kernel_shape=[window, 1], pads=[NMS_RADIUS, 0, NMS_RADIUS, 0])
    # Sums and products instead of And and Where: they run vectorised everywhere, also where the mask is (1, 1).
    is_maximum = graph.op('Cast', graph.op('Equal', score_map, strongest), to=TensorProto.FLOAT)
    allowed = graph.op('Min', graph.op('Cast', 'mask', to=TensorProto.FLOAT), 1.0)
    penalty = graph.op('Mul', graph.op('Sub', graph.op('Mul', is_maximum, allowed), 1.0), -2 * PAD_SCORE)
    maxima = graph.op('Add', score_map, penalty)
    maxima = graph.op('Slice', maxima, [BORDER, BORDER], [-BORDER, -BORDER], [2, 3])
    cells = graph.op('SpaceToDepth', maxima, blocksize=2)  # (1, 4, h, w), the four pixels of a cell side by side
    best_in_cell = graph.op('Max', graph.op('ReduceMax', cells, axes=[1], keepdims=0), PAD_SCORE)
    cell_columns = graph.op('Slice', graph.op('Shape', best_in_cell), [2], [3], [0])
    flat = graph.op('Reshape', best_in_cell, [-1])
    # K rows of padding: small images have fewer cells than K, and the outputs keep their shape.
    padded = graph.op('Concat', flat, np.full(count, PAD_SCORE), axis=0)
    scores, index = graph.op('TopK', padded, [count], outputs=2, axis=0)
    index = graph.op('Min', index, graph.op('Sub', graph.op('Shape', flat), [1]))

    pixels = graph.op('Reshape', cells, [4, -1])
    pixel_in_cell = graph.op('ArgMax', graph.op('Gather', pixels, index, axis=1), axis=0, keepdims=0)
    cell_row = graph.op('Div', index, cell_columns)
    cell_column = graph.op('Sub', index, graph.op('Mul', cell_row, cell_columns))
    row_in_cell = graph.op('Div', pixel_in_cell, 2)
    column_in_cell = graph.op('Sub', pixel_in_cell, graph.op('Mul', row_in_cell, 2))
    row = graph.op('Add', graph.op('Add', graph.op('Mul', cell_row, 2), row_in_cell), BORDER)
    column = graph.op('Add', graph.op('Add', graph.op('Mul', cell_column, 2), column_in_cell), BORDER)
    xy = graph.op('Concat', graph.op('Unsqueeze', column, [1]), graph.op('Unsqueeze', row, [1]), axis=1)
    xy = graph.op('Cast', xy, to=TensorProto.FLOAT)
    if not subpixel:
        return xy, scores

    # The vertex of the parabola through three neighbours a, b, c (b the largest): (c - a) / (4b - 2a - 2c).
    width = graph.op('Slice', graph.op('Shape', score_map), [3], [4], [0])
    index = graph.op('Add', graph.op('Mul', row, width), column)
    flat = graph.op('Reshape', score_map, [-1])
    centre = graph.op('Gather', flat, index)
    offsets = []
    for step in (1, width):
        before = graph.op('Gather', flat, graph.op('Sub', index, step))
        after = graph.op('Gather', flat, graph.op('Add', index, step))
        curvature = graph.op('Sub', graph.op('Mul', centre, 4.0), graph.op('Mul', graph.op('Add', before, after), 2.0))
        curvature = graph.op('Max', curvature, MIN_CURVATURE)
        offset = graph.op('Clip', graph.op('Div', graph.op('Sub', after, before), curvature), -0.5, 0.5)
        offsets.append(graph.op('Unsqueeze', offset, [1]))
    return graph.op('Add', xy, graph.op('Concat', *offsets, axis=1)), scores


def _sample_descriptors(graph: Layers, head: str, xy: str, network_size: str) -> str:
    """Return the descriptors (K, D) at ``xy``.

    Bilinear sampling and the last 1x1 convolution commute, because the border keeps every sample inside the map, so
    the convolution becomes a product over K points instead of over the map.
    """
    grid = graph.op('Div', graph.op('Add', xy, 0.5), network_size)
    grid = graph.op('Sub', graph.op('Mul', grid, 2.0), 1.0)
    grid = graph.op('Unsqueeze', grid, [0, 1])
    sampled = graph.op('GridSample', head, grid, mode='bilinear', padding_mode='zeros', align_corners=0)
    sampled = graph.op('Transpose', graph.op('Squeeze', sampled, [0, 2]), perm=[1, 0])
    *_, last = parts_of(graph.network.desc_head)
    name, weight, offset = graph.fold(last)
    product = graph.op('MatMul', sampled, graph.constant(weight[:, :, 0, 0].T, name=f'{name}.weight.T'))
    descriptors = graph.op('Add', product, graph.constant(offset, name=f'{name}.bias'))
    length = graph.op('ReduceL2', descriptors, axes=[1], keepdims=1)
    return graph.op('Div', descriptors, graph.op('Max', length, 1e-12))
