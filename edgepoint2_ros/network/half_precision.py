"""The effect of fp16 on the features, on a CPU: ``python -m edgepoint2_ros.network.half_precision IMAGE...``.

ONNX Runtime has no fp16 convolutions for x86 CPUs: it silently computes such a model in fp32, and rounds no results on
the way. So the fp16 model is rewritten as an fp32 one that rounds every fp16 result to fp16 arithmetically. A GPU that
accumulates in fp32 rounds no more than that, and less where it fuses layers.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgepoint2_ros.engines.check import compare
from edgepoint2_ros.engines.onnxruntime import import_onnxruntime
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.images import read_image
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import STRIDE, find_model
from edgepoint2_ros.models.variants import VARIANTS
from edgepoint2_ros.network.sparse import build_sparse
from edgepoint2_ros.network.weights import restore_network

SPLIT = 2.0**13 + 1  # fp32 has 24 bits of mantissa, fp16 has 11


def round_explicitly(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an fp16 model as an fp32 one in which every result that was fp16 is rounded to the 11 bits of fp16.

    By Dekker's splitting: c = (2^13 + 1) x; c - (c - x) is x rounded to 24 - 13 bits (Dekker 1971, "A floating-point
    technique for extending the available precision"). Numbers below fp16's smallest normal keep more bits than in fp16.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    half = {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes = []
    for node in model.graph.node:
        result = node.output[0]
        if result not in half:
            nodes.append(node)
            continue
        if node.op_type == 'Cast':
            exact = node.input[0]
        else:
            exact = f'{result}.exact'
            nodes.append(helper.make_node(node.op_type, node.input, [exact]))
            nodes[-1].attribute.extend(node.attribute)
        scaled, rest = f'{result}.scaled', f'{result}.rest'
        nodes += [
            helper.make_node('Mul', [exact, 'split'], [scaled]),
            helper.make_node('Sub', [scaled, exact], [rest]),
            helper.make_node('Sub', [scaled, rest], [result]),
        ]
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    del rounded.graph.node[:], rounded.graph.initializer[:]
    rounded.graph.node.extend(nodes)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        kind = np.float32 if array.dtype == np.float16 else array.dtype
        rounded.graph.initializer.append(numpy_helper.from_array(array.astype(kind), tensor.name))
    rounded.graph.initializer.append(numpy_helper.from_array(np.float32(SPLIT), 'split'))
    return rounded


def open_model(model: onnx.ModelProto) -> Callable[[np.ndarray], Rows]:
    """Return a function from an image uint8 (H, W, C) to xy, scores and descriptors, by ONNX Runtime."""
    session = import_onnxruntime().InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])

    def run(image: np.ndarray) -> Rows:
        height, width = image.shape[:2]
        mask = np.ones((height // STRIDE * STRIDE, width // STRIDE * STRIDE), np.uint8)
        return tuple(session.run(['xy', 'scores', 'descriptors'], {'image': image, 'mask': mask}))

    return run


def main() -> None:
    """Print the table of docs/internals/fp16.md for the given photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    try:
        images = [read_image(path) for path in parser.parse_args().images]
    except EdgePoint2Error as error:
        sys.exit(str(error))
    print('| variant | keypoints found again, mean | worst image | cosine of descriptors, mean | worst image |')
    print('|---|---|---|---|---|')
    for variant in VARIANTS:
        network = restore_network(find_model(variant.name, 'shipped'))
        single = open_model(build_sparse(network))
        half = open_model(round_explicitly(build_sparse(network, half=True)))
        results = np.array([compare(half(image), single(image)) for image in images])
        (share, cosine), (worst, low) = results.mean(axis=0), results.min(axis=0)
        print(f'| {variant} | {share:.2%} | {worst:.2%} | {cosine:.6f} | {low:.6f} |', flush=True)


if __name__ == '__main__':
    main()
