"""The fp16 model on a CPU, with its rounding made explicit: what a GPU's arithmetic does to the features."""

from pathlib import Path

import cv2
import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='onnx is not installed: models cannot be made')
pytest.importorskip('torch', reason='torch is not installed: models cannot be made')

from onnx import TensorProto, helper

from edgepoint2_ros.engines.check import compare
from edgepoint2_ros.network.half_precision import open_model, round_explicitly
from edgepoint2_ros.network.sparse import build_sparse
from edgepoint2_ros.network.weights import load_network
from edgepoint2_ros.official import DIRECTORY_VARIABLE, find_weights
from edgepoint2_ros.variants import VARIANTS, find_variant

GOLDEN = Path(__file__).parents[2] / 'shared' / 'golden'


def official_network(variant):
    path = find_weights(variant)
    if path is None:
        pytest.skip(f'no official weights of {variant}: name their folder in ${DIRECTORY_VARIABLE}')
    return load_network(path, variant)


@pytest.fixture(scope='module')
def images(photograph):
    """Real photographs, of the sizes that TensorRT is asked for."""
    if GOLDEN.is_dir():
        return [cv2.imread(str(GOLDEN / name)) for name in ('vga.png', 'odd.png')]
    return [photograph, np.ascontiguousarray(photograph[:389, :517])]


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_fp16_keeps_keypoints_and_descriptors_of_every_variant(variant, images):
    network = official_network(variant)
    half = open_model(round_explicitly(build_sparse(network, half=True)))
    single = open_model(build_sparse(network))
    for image in images:
        share, cosine = compare(half(image), single(image))
        assert share > 0.99
        assert cosine > 0.99999


def test_the_fp16_model_unrounded_is_the_fp32_model(images):
    """Without its rounding only that of the weights is left: the two graphs say the same."""
    network = official_network(find_variant('T-32'))
    for image in [*images, cv2.resize(images[0], (100, 70), interpolation=cv2.INTER_AREA)[..., :1]]:
        share, cosine = compare(
            open_model(build_sparse(network, half=True))(image), open_model(build_sparse(network))(image)
        )
        assert share > 0.995
        assert cosine > 0.99999


def test_rounding_is_that_of_fp16():
    graph = helper.make_graph(
        [
            helper.make_node('Cast', ['x'], ['half'], to=TensorProto.FLOAT16),
            helper.make_node('Cast', ['half'], ['y'], to=TensorProto.FLOAT),
        ],
        'rounding',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['n'])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, ['n'])],
    )
    from edgepoint2_ros.engines.onnxruntime import import_onnxruntime

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    numbers = np.random.default_rng(0).normal(0, 100, 10_000).astype(np.float32)
    session = import_onnxruntime().InferenceSession(round_explicitly(model).SerializeToString())
    (rounded,) = session.run(None, {'x': numbers})
    np.testing.assert_array_equal(rounded, numbers.astype(np.float16).astype(np.float32))


def test_scores_of_the_rounded_model_are_fp16_numbers(images):
    """The runtime has not optimised the rounding away."""
    network = official_network(find_variant('T-32'))
    _, scores, _ = open_model(round_explicitly(build_sparse(network, half=True)))(images[0])
    np.testing.assert_array_equal(scores, scores.astype(np.float16).astype(np.float32))
