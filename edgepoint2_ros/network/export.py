"""Export of a network to the sparse ONNX model that every runtime runs.

The graph is written out operator by operator rather than traced, because it is the product: it holds the whole
post-processing, so that only the best K keypoints leave the runtime, and each operator is one that ONNX Runtime,
OpenVINO and TensorRT 8.6 and later know (opset 17).

It is written twice: in fp32 for CPUs (``T-32.onnx``), and for TensorRT (``T-32.fp16.onnx``) with the convolutions and
the maps between them in fp16. Everything else stays fp32 there, by casts that TensorRT obeys: the sums of the
normalisation overflow fp16, and coordinates above 512 would be rounded to half pixels.

Inputs
    image    uint8 (H, W, C): C = 1 (gray) or 3 (colour in any channel order); H and W from 64 pixels.
    mask     uint8 (h, w): nonzero where keypoints are allowed, on the network's grid, which is the image floored to
             multiples of 32; or (1, 1) with a one in it: no mask. TensorRT takes masks on the grid alone.
Outputs, best score first, always K rows
    xy           float32 (K, 2), pixels of the image, sub-pixel.
    scores       float32 (K,), raw logits. Rows past the last keypoint hold PAD_SCORE: cut where the score falls
                 to the threshold.
    descriptors  float32 (K, D), rows of unit length.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgepoint2_ros.engines.check import CARD_SHAPE, draw_scene, pack
from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import (
    BORDER,
    CARD_FORMAT,
    MOST_KEYPOINTS,
    NMS_RADIUS,
    PAD_SCORE,
    STRIDE,
    card_path,
    half_path,
)
from edgepoint2_ros.network.edgepoint2 import EdgePoint2

OPSET = 17  # the newest that TensorRT 8.6 reads
IR_VERSION = 8
MAX_KEYPOINTS = 2048
MIN_CURVATURE = 1e-6  # of a parabola through three scores; keeps plateaus from dividing by zero


def export_model(
    network: EdgePoint2,
    path: Path,
    max_keypoints: int = MAX_KEYPOINTS,
    subpixel: bool = True,
    card: dict | None = None,
) -> Path:
    """Write ``network`` as a sparse ONNX model to ``path``, and beside it the fp16 model and the card (JSON).

    Args:
        network: the network with its weights; it is not changed.
        path: the model's file, ending in ``.onnx``; the folder is made.
        max_keypoints: K, the number of rows in the outputs.
        subpixel: refine keypoints by a parabola through the score map.
        card: further entries of the card, such as ``source`` and ``licence``.

    Raises:
        ModelError: max_keypoints is out of range.
    """
    path = Path(path)
    data = build_model(network, max_keypoints, subpixel).SerializeToString()
    half = build_model(network, max_keypoints, subpixel, half=True).SerializeToString()
    entries = {
        'format': CARD_FORMAT,
        'model': network.variant.name,
        'digest': weights_digest(network),
        'max_keypoints': max_keypoints,
        'subpixel': subpixel,
        'sha256': hashlib.sha256(data).hexdigest(),
        'fp16_sha256': hashlib.sha256(half).hexdigest(),
        'expected': pack(_run(data, draw_scene(*CARD_SHAPE))),
        **(card or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # The card goes last and each file replaces what was there in one step: a reader never sees half a model.
    text = json.dumps(entries, indent=2) + '\n'
    for target, content in ((path, data), (half_path(path), half), (card_path(path), text.encode())):
        temporary = target.with_name(target.name + '.part')
        temporary.write_bytes(content)
        temporary.replace(target)
    return path


def _run(model: bytes, image: np.ndarray) -> list[np.ndarray]:
    """Return xy, scores and descriptors of an image, in fp32 on the CPU."""
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    return session.run(['xy', 'scores', 'descriptors'], {'image': image, 'mask': np.ones((1, 1), np.uint8)})


def weights_digest(network: EdgePoint2) -> str:
    """Return the identity of the weights: 16 hex digits, equal for equal numbers however they were stored."""
    digest = hashlib.sha256(network.variant.name.encode())
    for name, tensor in sorted(network.state_dict().items()):
        if not name.endswith('num_batches_tracked'):  # counts training steps; no part of the function
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().numpy().astype('<f4').tobytes())
    return digest.hexdigest()[:16]


def build_model(
    network: EdgePoint2, max_keypoints: int = MAX_KEYPOINTS, subpixel: bool = True, half: bool = False
) -> onnx.ModelProto:
    """Return the sparse ONNX model of ``network``; see the module's description for its inputs and outputs.

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
    graph = _Graph(half=half)
    image_size, network_size, gray = _gray_image(graph)
    score_map, head = _dense_maps(graph, network, gray)
    xy, scores = _keypoints(graph, score_map, network_size, max_keypoints, subpixel)
    descriptors = _sample_descriptors(graph, head, xy, network_size, network.desc_head[2])
    scale = graph.op('Div', image_size, network_size)
    graph.op('Mul', xy, scale, name='xy')
    graph.op('Identity', scores, name='scores')
    graph.op('Identity', descriptors, name='descriptors')

    def value(name, kind, *shape):
        return helper.make_tensor_value_info(name, kind, shape)

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f'EdgePoint2 {network.variant}',
            inputs=[
                value('image', TensorProto.UINT8, 'height', 'width', 'channels'),
                value('mask', TensorProto.UINT8, 'mask_height', 'mask_width'),
            ],
            outputs=[
                value('xy', TensorProto.FLOAT, max_keypoints, 2),
                value('scores', TensorProto.FLOAT, max_keypoints),
                value('descriptors', TensorProto.FLOAT, max_keypoints, network.variant.descriptor_size),
            ],
            initializer=graph.initializers,
        ),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=IR_VERSION,
        producer_name='edgepoint2_ros',
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Graph:
    """Nodes and constants of an ONNX graph in the making; values are named by strings."""

    def __init__(self, prefix: str = '', half: bool = False):
        self.prefix = prefix  # keeps names apart in the branches of an If
        self.half = half  # convolutions in fp16
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs, outputs: int = 1, name: str = '', **attributes):
        """Append an operator and return its output's name; arrays and numbers among the inputs become constants."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        base = name or f'{self.prefix}{kind.lower()}_{len(self.nodes)}'
        results = [base] if outputs == 1 else [f'{base}.{i}' for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, results, name=base, **attributes))
        return base if outputs == 1 else results

    def constant(self, value, kind: type = np.float32) -> str:
        """Add a constant; integers become int64, as ONNX wants them nearly everywhere, and floats ``kind``."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == 'i' else kind)
        name = f'{self.prefix}constant_{len(self.initializers)}'
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def choose(self, condition: str, then, otherwise) -> str:
        """Append an If whose branches are built by ``then`` and ``otherwise`` from a graph of their own."""
        branches = []
        for place, build in enumerate((then, otherwise)):
            branch = _Graph(f'{self.prefix}branch_{len(self.nodes)}_{place}_')
            result = helper.make_empty_tensor_value_info(build(branch))
            branches.append(helper.make_graph(branch.nodes, branch.prefix, [], [result], branch.initializers))
        condition = self.op('Cast', condition, to=TensorProto.BOOL)
        return self.op('If', condition, then_branch=branches[0], else_branch=branches[1])

    def conv(self, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False) -> str:
        """Append a convolution with its batch normalisation folded in."""
        weight = conv.weight.detach().double().numpy()
        offset = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().double().numpy()
        if norm is not None:
            gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double().numpy()
            weight = weight * gain[:, None, None, None]
            offset = norm.bias.detach().double().numpy() + (offset - norm.running_mean.double().numpy()) * gain
        kind = np.float16 if self.half else np.float32
        x = self.op(
            'Conv',
            x,
            self.constant(weight, kind),
            self.constant(offset, kind),
            kernel_shape=conv.kernel_size,
            strides=conv.stride,
            pads=[*conv.padding, *conv.padding],
            group=conv.groups,
        )
        return self.op('Relu', x) if relu else x

    def enlarge(self, x: str, factor: int) -> str:
        """Append a bilinear up-sampling, corners not aligned."""
        return self.op(
            'Resize', x, '', [1.0, 1.0, factor, factor], mode='linear', coordinate_transformation_mode='half_pixel'
        )

    def to_half(self, x: str) -> str:
        return self.op('Cast', x, to=TensorProto.FLOAT16) if self.half else x

    def to_float(self, x: str) -> str:
        return self.op('Cast', x, to=TensorProto.FLOAT) if self.half else x

    def average_pool(self, x: str, size: int) -> str:
        return self.op('AveragePool', x, kernel_shape=[size, size], strides=[size, size])


def _gray_image(graph: _Graph) -> tuple[str, str, str]:
    """Return width and height of the image and of the network's grid, float (2,) each, and the gray image on the grid.

    The two Ifs spare CPUs a pass over all pixels in the common cases: gray images, sizes that are multiples of 32.
    TensorRT wants branches of equal shapes and knows the size when it builds, so its graph is written without.
    """
    height_width = graph.op('Slice', graph.op('Shape', 'image'), [0], [2], [0])
    grid = graph.op('Mul', graph.op('Div', height_width, STRIDE), STRIDE)
    grid_4d = graph.op('Concat', [1, 1], grid, axis=0)

    def average_channels(graph):
        return graph.op('ReduceMean', graph.op('Cast', 'image', to=TensorProto.FLOAT), axes=[2], keepdims=0)

    def resample(graph):
        return graph.op('Resize', gray, '', '', grid_4d, mode='linear', coordinate_transformation_mode='align_corners')

    if graph.half:
        gray = average_channels(graph)
    else:
        gray = graph.choose(
            graph.op('Equal', graph.op('Slice', graph.op('Shape', 'image'), [2], [3], [0]), [1]),
            lambda branch: branch.op('Cast', branch.op('Reshape', 'image', height_width), to=TensorProto.FLOAT),
            average_channels,
        )
    gray = graph.op('Unsqueeze', graph.op('Mul', gray, 1 / 255), [0, 1])
    if graph.half:
        gray = resample(graph)
    else:
        gray = graph.choose(
            graph.op('ReduceMin', graph.op('Cast', graph.op('Equal', grid, height_width), to=TensorProto.INT64)),
            lambda branch: branch.op('Identity', gray),
            resample,
        )
    width_height = [
        graph.op('Cast', graph.op('Gather', size, [1, 0]), to=TensorProto.FLOAT) for size in (height_width, grid)
    ]
    return *width_height, graph.op('Reshape', _normalise(graph, graph.op('Reshape', gray, [-1])), grid_4d)


def _normalise(graph: _Graph, pixels: str) -> str:
    """Return ``pixels`` (N,) with mean 0 and variance 1: InstanceNorm2d(1), as sums over a vector, which run faster."""
    centred = graph.op('Sub', pixels, graph.op('ReduceMean', pixels))
    variance = graph.op('ReduceMean', graph.op('Mul', centred, centred))
    gain = graph.op('Reciprocal', graph.op('Sqrt', graph.op('Add', variance, 1e-5)))
    return graph.op('Mul', centred, gain)


def _dense_maps(graph: _Graph, network: EdgePoint2, gray: str) -> tuple[str, str]:
    """Return the score map (1, 1, H, W) and the map before the last projection of the descriptors (1, C, H/4, W/4)."""

    def block(x, block):
        return graph.conv(x, block.layer[0], block.layer[1], relu=True)

    def residual(x, block):
        inner = graph.conv(x, block.layer[0], block.layer[1], relu=True)
        inner = graph.conv(inner, block.layer[3], block.layer[4])
        skip = graph.conv(x, block.skip) if isinstance(block.skip, nn.Conv2d) else x
        return graph.op('Relu', graph.op('Add', inner, skip))

    x1 = residual(block(block(graph.to_half(gray), network.block1[0]), network.block1[1]), network.block1[2])
    half_x1 = graph.average_pool(x1, 2)
    x2 = residual(graph.average_pool(half_x1, 2), network.block2)
    x3 = residual(graph.average_pool(x2, 4), network.block3)

    scales = graph.op('Concat', half_x1, graph.enlarge(x2, 2), graph.enlarge(x3, 8), axis=1)
    descriptors = block(graph.conv(scales, network.desc_head[0]), network.desc_head[1])

    detection = graph.op('Add', graph.conv(x1, network.conv1), graph.enlarge(graph.conv(x2, network.conv2), 4))
    detection = graph.op('Add', detection, graph.enlarge(graph.conv(x3, network.conv3), 16))
    detection = graph.conv(detection, network.score_head[0], relu=True)
    detection = graph.conv(detection, network.score_head[2], relu=True)
    detection = graph.conv(detection, network.score_head[4])
    score_map = graph.op('DepthToSpace', detection, blocksize=2, mode='CRD')
    return graph.to_float(score_map), graph.to_float(descriptors)


def _keypoints(graph: _Graph, score_map: str, network_size: str, count: int, subpixel: bool) -> tuple[str, str]:
    """Return xy (K, 2) on the network's grid and scores (K,) of the best local maxima.

    Two maxima of a 5x5 window lie at least 3 pixels apart, so a 2x2 cell holds at most one of them: the best K are
    chosen among cells, a quarter of the pixels.
    """
    window = 2 * NMS_RADIUS + 1
    # Row and column after each other: the maximum is separable.
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


def _sample_descriptors(graph: _Graph, head: str, xy: str, network_size: str, projection: nn.Conv2d) -> str:
    """Return the descriptors (K, D) at ``xy``.

    Bilinear sampling and the last 1x1 convolution commute, because the border keeps every sample inside the map, so
    the convolution becomes a product over K points instead of over the map.
    """
    grid = graph.op('Div', graph.op('Add', xy, 0.5), network_size)
    grid = graph.op('Sub', graph.op('Mul', grid, 2.0), 1.0)
    grid = graph.op('Unsqueeze', grid, [0, 1])
    sampled = graph.op('GridSample', head, grid, mode='bilinear', padding_mode='zeros', align_corners=0)
    sampled = graph.op('Transpose', graph.op('Squeeze', sampled, [0, 2]), perm=[1, 0])
    weight = projection.weight.detach().numpy()[:, :, 0, 0]
    descriptors = graph.op('Add', graph.op('MatMul', sampled, weight.T), projection.bias.detach().numpy())
    length = graph.op('ReduceL2', descriptors, axes=[1], keepdims=1)
    return graph.op('Div', descriptors, graph.op('Max', length, 1e-12))
