"""The exported models, with the keypoints picked, against the dense reference and what the official code returned."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: models cannot be made')
onnx = pytest.importorskip('onnx', reason='onnx is not installed: models cannot be made')
onnxruntime = pytest.importorskip('onnxruntime')

from onnx import numpy_helper  # noqa: E402

from edgepoint2_ros.cpu import Cpu  # noqa: E402
from edgepoint2_ros.engines import open_engine  # noqa: E402
from edgepoint2_ros.errors import EngineError  # noqa: E402
from edgepoint2_ros.models import PAD_SCORE, find_model, open_model, read_part  # noqa: E402
from edgepoint2_ros.models.official import DIRECTORY_VARIABLE, file_name, find_weights  # noqa: E402
from edgepoint2_ros.models.variants import VARIANTS, find_variant  # noqa: E402
from edgepoint2_ros.network import maps  # noqa: E402
from edgepoint2_ros.network.export import export_again, export_model  # noqa: E402
from edgepoint2_ros.network.half_precision import open_model as open_sparse  # noqa: E402
from edgepoint2_ros.network.maps import build_maps  # noqa: E402
from edgepoint2_ros.network.reference import extract_dense  # noqa: E402
from edgepoint2_ros.network.sparse import build_sparse  # noqa: E402
from edgepoint2_ros.network.weights import load_network, restore_network, weights_digest  # noqa: E402

GOLDEN = Path(__file__).parents[2] / 'shared' / 'golden'
THRESHOLD = -5.0
NO_MASK = np.ones((1, 1), np.uint8)


def official_network(variant):
    path = find_weights(variant)
    if path is None:
        pytest.skip(f'no official weights of {variant}: name their folder in ${DIRECTORY_VARIABLE}')
    return load_network(path, variant)


def run(engine, image, mask=NO_MASK, top_k=2048):
    """Return xy, scores and descriptors of the keypoints above the threshold."""
    return engine.run(np.ascontiguousarray(image.reshape(*image.shape[:2], -1)), mask, top_k, THRESHOLD)


def agreement(first, second):
    """Return the share of keypoints that both have, to a hundredth of a pixel, and the lowest cosine among those."""
    distance = np.abs(first[0][:, None] - second[0][None]).max(axis=2)
    nearest = distance.argmin(axis=1)
    same = distance[np.arange(len(nearest)), nearest] < 0.01
    cosine = np.einsum('nd,nd->n', first[2][same], second[2][nearest[same]])
    return same.sum() / max(len(first[0]), len(second[0])), cosine.min()


@pytest.fixture(scope='module')
def views(photograph):
    """Real photographs: gray and colour, a multiple of 32, an odd size and a small one."""
    return {
        'colour 640x480': photograph,
        'gray 517x389': cv2.cvtColor(photograph[60:449, 70:587], cv2.COLOR_BGR2GRAY),
        'colour 100x70': cv2.resize(photograph, (100, 70), interpolation=cv2.INTER_AREA),
    }


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_every_variant_agrees_with_the_dense_reference_on_both_runtimes(variant, views, tmp_path):
    network = official_network(variant)
    model = open_model(export_model(network, tmp_path / 'model.onnx', subpixel=False))
    engines = {backend: open_engine(model, backend, 'fp32') for backend in ('onnxruntime', 'openvino')}
    for name, image in views.items():
        expected = extract_dense(network, image, score_threshold=THRESHOLD)
        assert len(expected[0]) > 20, name
        found = {backend: run(engine, image) for backend, engine in engines.items()}
        for backend, features in found.items():
            share, cosine = agreement(features, expected)
            assert share >= 0.999, f'{name}, {backend}: {share:.4%} of the keypoints'
            assert cosine >= 0.9999, f'{name}, {backend}'
        share, cosine = agreement(found['onnxruntime'], found['openvino'])
        assert share >= 0.999, f'{name}: runtimes agree on {share:.4%} of the keypoints'
        assert cosine >= 0.9999, name


@pytest.mark.skipif(not GOLDEN.is_dir(), reason='no output of the official code in ../shared/golden')
@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_every_variant_agrees_with_the_official_code(variant, tmp_path):
    model = open_model(export_model(official_network(variant), tmp_path / 'model.onnx', subpixel=False))
    engine = open_engine(model, 'onnxruntime')
    golden = np.load(GOLDEN / file_name(variant).replace('.pth', '.npz'))
    for name in ('vga', 'odd', 'large'):
        expected = tuple(golden[f'{name}_{what}'] for what in ('xy', 'scores', 'descriptors'))
        share, cosine = agreement(run(engine, cv2.imread(str(GOLDEN / f'{name}.png')), top_k=1000), expected)
        assert share >= 0.995, f'{name}: {share:.4%} of the keypoints'
        assert cosine >= 0.9999, name


@pytest.fixture(scope='module')
def network():
    return official_network(find_variant('T-32'))


@pytest.fixture(scope='module')
def engine(network, tmp_path_factory):
    path = export_model(network, tmp_path_factory.mktemp('model') / 'T-32.onnx')
    return open_engine(open_model(path), 'onnxruntime')


@pytest.mark.parametrize('name', ['T-32', 'M-48', 'E-64'])
def test_the_model_for_tensorrt_finds_what_the_model_for_cpus_finds(name, views, tmp_path):
    network = official_network(find_variant(name))
    engine = open_engine(open_model(export_model(network, tmp_path / 'model.onnx')), 'onnxruntime')
    sparse = open_sparse(build_sparse(network))
    for image in views.values():
        image = np.ascontiguousarray(image.reshape(*image.shape[:2], -1))
        rows, expected = sparse(image), engine.run(image, NO_MASK, threshold=THRESHOLD)
        share, cosine = agreement([array[rows[1] > THRESHOLD] for array in rows], expected)
        assert share >= 0.999
        assert cosine >= 0.9999


def test_rows_of_the_model_for_tensorrt_past_the_last_keypoint_can_be_cut_off_exactly(network, views):
    xy, scores, descriptors = open_sparse(build_sparse(network))(np.ascontiguousarray(views['colour 100x70']))
    assert xy.shape == (2048, 2)
    assert scores.shape == (2048,)
    assert descriptors.shape == (2048, 32)
    assert np.all(np.diff(scores) <= 0)
    padding = scores == np.float32(PAD_SCORE)
    assert 0 < np.count_nonzero(~padding) < 2048
    assert scores[~padding].min() > -100  # nothing lies between keypoints and padding
    assert np.isfinite(xy).all()
    assert np.isfinite(descriptors).all()


def test_descriptors_are_of_unit_length(engine, photograph):
    _, _, descriptors = run(engine, photograph)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, atol=1e-5)


def test_subpixel_refinement_moves_keypoints_by_half_a_pixel_at_most(engine, network, photograph):
    refined, scores, _ = run(engine, photograph)
    whole, expected, _ = extract_dense(network, photograph, score_threshold=THRESHOLD)
    shift = np.abs(refined[:, None] - whole[None]).max(axis=2).min(axis=1)
    assert shift.max() <= 0.5 + 1e-4
    assert np.median(shift) > 0.05
    np.testing.assert_allclose(scores, expected, atol=1e-3)  # the score stays that of the pixel


def test_subpixel_refinement_follows_a_shift_of_the_image(engine, photograph):
    """Keypoints of an image moved by 0.4 pixels move by about as much; without refinement they would stay or jump."""
    moved = cv2.warpAffine(photograph, np.float32([[1, 0, 0.4], [0, 1, 0]]), (640, 480), borderMode=cv2.BORDER_REFLECT)
    first, second = run(engine, photograph)[0][:500], run(engine, moved)[0]
    nearest = second[np.abs(first[:, None] - second[None]).max(axis=2).argmin(axis=1)]
    shift = np.median((nearest - first)[np.abs(nearest - first).max(axis=1) < 1.5], axis=0)
    assert shift == pytest.approx([0.4, 0.0], abs=0.1)


def test_masked_places_take_no_slot(engine, photograph):
    best = run(engine, photograph, top_k=100)[0]
    middle = np.median(best[:, 0])
    mask = np.zeros((480, 640), np.uint8)
    mask[:, int(middle) :] = 7  # any nonzero number allows
    allowed = run(engine, photograph, mask, top_k=100)[0]
    assert len(best) == len(allowed) == 100
    assert allowed[:, 0].min() >= middle - 1
    assert best[:, 0].min() < middle


def test_a_mask_removes_keypoints_and_moves_none(engine, photograph):
    mask = np.zeros((480, 640), np.uint8)
    mask[100:400, 100:500] = 255
    everywhere, inside = run(engine, photograph), run(engine, photograph, mask)
    pixel = np.rint(everywhere[0]).astype(int)
    expected = everywhere[0][mask[pixel[:, 1], pixel[:, 0]] > 0]
    distance = np.abs(expected[:, None] - inside[0][None]).max(axis=2).min(axis=1)
    assert np.mean(distance < 1e-3) > 0.98  # a sub-pixel place may round across the mask's edge


def test_exporting_twice_gives_the_same_file_and_card(network, tmp_path):
    first = export_model(network, tmp_path / 'a' / 'T-32.onnx')
    second = export_model(network, tmp_path / 'b' / 'T-32.onnx')
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix('.json').read_text() == second.with_suffix('.json').read_text()


@pytest.mark.parametrize('name', ['T-32', 'S-64', 'M-48'])
def test_a_shipped_model_exported_again_is_the_same_file(name):
    """Weights are found by their names, to the bit. The file in int8 also depends on the CPU that calibrates it."""
    model = find_model(name, 'shipped')
    network = restore_network(model)
    assert build_maps(network).SerializeToString() == read_part(model)
    sparse = build_sparse(network, model.max_keypoints, model.subpixel, half=True)
    assert sparse.SerializeToString() == read_part(model, 'tensorrt')


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_neighbouring_weights_in_int8_add_up_to_at_most_128(variant):
    """CPUs without VNNI add the products of two neighbouring channels, of up to 255 times a weight, in 16 bits."""
    model = onnx.load_from_string(read_part(find_model(variant.name, 'shipped'), 'int8'))
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) == 4]
    rounded = [np.abs(array.astype(int)) for array in weights if array.dtype == np.int8]
    assert len(rounded) >= 10
    for array in rounded:
        assert 100 < (array[:, ::2] + array[:, 1::2]).max() <= 128


@pytest.mark.parametrize('name', ['T-32', 'M-48', 'E-64'])
def test_int8_on_this_cpu_computes_what_exact_arithmetic_does(name, photograph, monkeypatch):
    openvino = pytest.importorskip('openvino')
    from edgepoint2_ros.engines import openvino as backend

    if 'int8' not in backend.capabilities(openvino.Core()):
        pytest.skip('this CPU has no int8')
    monkeypatch.setattr(backend, 'capabilities', lambda core: {'fp32', 'int8'})  # the rest in fp32
    model = find_model(name, 'shipped')
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # rounded, then in fp32
    exact = onnxruntime.InferenceSession(read_part(model, 'int8'), options, providers=['CPUExecutionProvider'])
    scores, descriptors = backend.open_engine(model, 'int8', 1, print).maps(photograph)
    expected_scores, expected = (array[0] for array in exact.run(['cells', 'descriptors'], {'image': photograph}))
    cosines = np.einsum('hwd,hwd->hw', descriptors, expected)
    cosines /= np.linalg.norm(descriptors, axis=2) * np.linalg.norm(expected, axis=2)
    assert cosines.min() > 0.9985  # without VNNI 0.988 to 0.996, if products overflow
    assert np.quantile(np.abs(scores - expected_scores), 0.99) < 0.3


def test_an_int8_model_whose_products_may_overflow_is_refused_on_a_cpu_without_vnni(network, tmp_path, monkeypatch):
    pytest.importorskip('openvino')
    from edgepoint2_ros.engines import openvino as backend

    monkeypatch.setattr(backend, 'capabilities', lambda core: {'fp32', 'int8'})
    # As the scales once were.
    monkeypatch.setattr(maps, 'int8_scales', lambda weights: np.abs(weights).max(axis=(1, 2, 3)) / 127)
    model = open_model(export_model(network, tmp_path / 'T-32.onnx'))
    monkeypatch.setattr(backend, 'find_cpu', lambda: Cpu('new', frozenset({'avx2', 'avx_vnni'})))
    assert 'int8' in backend.open_engine(model, 'int8', 1, print).description
    monkeypatch.setattr(backend, 'find_cpu', lambda: Cpu('old', frozenset({'avx2'})))
    with pytest.raises(EngineError, match='overflow on a CPU without VNNI: export the model again, or use fp32'):
        backend.open_engine(model, 'int8', 1, print)


def test_what_a_card_says_is_kept_when_its_model_is_exported_again(network, tmp_path):
    card = {'weights': 'trained', 'scores': {'MMA@3': 75.0}, 'digest': 'of something else'}
    first = open_model(export_model(network, tmp_path / 'mine.onnx', 300, subpixel=False, card=card))
    assert first.digest == weights_digest(network)
    again = open_model(export_again(first.path.with_suffix('.json'), tmp_path / 'again', {'weights': 'shipped'}))
    assert again.path == tmp_path / 'again' / 'T-32.onnx'
    assert (again.digest, again.max_keypoints, again.subpixel) == (first.digest, 300, False)
    assert again.card == {**first.card, 'weights': 'shipped'}


def test_weights_are_exported_with_what_the_card_of_their_training_says(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / 'T-32.pth')
    assert 'trained' not in open_model(export_again(tmp_path / 'T-32.pth', tmp_path / 'bare')).card
    old = {'format': 2, 'digest': '0' * 16, 'fp16_sha256': '0' * 64, 'weights': 'trained', 'trained': {'steps': 7}}
    (tmp_path / 'T-32.json').write_text(json.dumps(old))
    model = open_model(export_again(tmp_path / 'T-32.pth', tmp_path / 'models'))
    assert model.digest == weights_digest(network)
    assert model.card['trained'] == {'steps': 7}
    assert 'fp16_sha256' not in model.card


@pytest.mark.parametrize('half', [False, True])
def test_weights_in_the_model_for_tensorrt_have_the_names_of_the_state_dict(network, half):
    values = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in build_sparse(network, half=half).graph.initializer
    }
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4 and name != 'desc_head.2.weight':
            assert values[name].shape == tensor.shape
            assert values[name].dtype == (np.float16 if half else np.float32)
    np.testing.assert_array_equal(values['desc_head.2.weight.T'].T, network.desc_head[2].weight.detach()[:, :, 0, 0])


def test_the_digest_is_that_of_the_weights_not_of_the_export(network, tmp_path):
    few = open_model(export_model(network, tmp_path / 'few.onnx', max_keypoints=100, subpixel=False))
    assert few.digest == weights_digest(network)
    assert few.max_keypoints == 100
    other = official_network(find_variant('T-48'))
    assert weights_digest(other) != few.digest


def test_the_models_are_of_an_opset_that_every_runtime_reads(network):
    for model in (build_maps(network), build_sparse(network)):
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 17)]
    assert {value.name for value in model.graph.input} == {'image', 'mask'}
    assert [value.name for value in model.graph.output] == ['xy', 'scores', 'descriptors']
