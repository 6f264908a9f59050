"""The engine for TensorRT, as far as a machine without a GPU can tell.

TensorRT-RTX parses models and builds plans without one, with NVIDIA's own parser and builder.
"""

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from edgepoint2_ros.engines import AutoEngine, open_engine, tensorrt
from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.engines.tensorrt.bindings import (
    advise_cuda_python,
    create,
    import_cudart,
    import_tensorrt,
    logger_of,
    version_of,
)
from edgepoint2_ros.engines.tensorrt.builder import build_plan, fp32_layers, parse
from edgepoint2_ros.engines.tensorrt.engine import plan_key, plan_path, report_while
from edgepoint2_ros.engines.tensorrt.gpu import Gpu
from edgepoint2_ros.engines.tensorrt.plan import INPUTS, tensors_of
from edgepoint2_ros.errors import EngineError, ModelError
from edgepoint2_ros.models import part_path, read_part
from edgepoint2_ros.models.variants import VARIANTS

# Its timing cache does nothing, and says so.
pytestmark = pytest.mark.filterwarnings('ignore:Use Deprecated in TensorRT-RTX')

ORIN = Gpu('Orin', '8.7', '12.6')
SIZES = [(240, 320, 3), (480, 640, 3), (720, 1280, 1)]


@pytest.fixture(scope='module')
def rtx():
    return pytest.importorskip('tensorrt_rtx', reason='TensorRT-RTX is not installed')


def input_shapes(model, image_shape):
    tensors = tensors_of(model, image_shape)
    return {name: tensors[name][0] for name in INPUTS}


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_nvidias_parser_and_builder_take_every_variant_at_every_size(variant, official_model, rtx):
    model = official_model(variant.name)
    types = {np.uint8: rtx.DataType.UINT8, np.float32: rtx.DataType.FLOAT}
    for image_shape in SIZES:
        expected = {name: (shape, types[dtype]) for name, (shape, dtype) in tensors_of(model, image_shape).items()}
        builder = rtx.Builder(logger_of(rtx))
        network = parse(rtx, builder, read_part(model, 'tensorrt'), input_shapes(model, image_shape))
        ends = [network.get_input(i) for i in range(network.num_inputs)]
        ends += [network.get_output(i) for i in range(network.num_outputs)]
        assert {end.name: (tuple(end.shape), end.dtype) for end in ends} == expected

        plan, timing = build_plan(rtx, read_part(model, 'tensorrt'), input_shapes(model, image_shape))
        assert len(plan) > 100_000
        assert isinstance(timing, bytes)


@pytest.mark.parametrize('name', ['T-32', 'E-64'])
def test_convolutions_are_half_and_what_needs_it_is_float(name, official_model, rtx):
    model = official_model(name)
    builder = rtx.Builder(logger_of(rtx))
    network = parse(rtx, builder, read_part(model, 'tensorrt'), input_shapes(model, (480, 640, 3)))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
    assert len(convolutions) >= 18
    for layer in convolutions:
        assert layer.get_input(0).dtype == layer.get_output(0).dtype == rtx.DataType.HALF, layer.name
    # Sums of the normalisation, the choice of keypoints, the sampling grid, and the length of descriptors.
    for kind in ('REDUCE', 'TOPK', 'GRID_SAMPLE', 'MATRIX_MULTIPLY', 'UNARY', 'GATHER'):
        found = [layer for layer in layers if layer.type == getattr(rtx.LayerType, kind)]
        assert found, kind
        for layer in found:
            kinds = {layer.get_input(0).dtype, layer.get_output(0).dtype}
            assert rtx.DataType.HALF not in kinds, layer.name


def test_8_6_is_told_of_every_fp32_layer_and_of_no_other(official_model, rtx):
    """8.6 may compute in fp16 whatever it is not told to leave alone."""
    builder = rtx.Builder(logger_of(rtx))
    model = official_model('T-32')
    network = parse(rtx, builder, read_part(model, 'tensorrt'), input_shapes(model, (480, 640, 3)))
    held = fp32_layers(rtx, network)
    assert not any(layer.type == rtx.LayerType.CONVOLUTION for layer in held)
    assert all(layer.get_output(0).dtype != rtx.DataType.HALF for layer in held)
    names = {layer.name for layer in held}
    assert {'xy', 'scores', 'descriptors'} <= names
    every = [network.get_layer(i) for i in range(network.num_layers)]
    for kind in ('REDUCE', 'TOPK', 'GRID_SAMPLE', 'MATRIX_MULTIPLY', 'UNARY'):
        wanted = {layer.name for layer in every if layer.type == getattr(rtx.LayerType, kind)}
        assert wanted
        assert wanted <= names, kind


# What the parser of TensorRT 8.6 takes (docs/operators.md of onnx-tensorrt 8.6), as far as the model uses it.
FLOATS = (
    'ArgMax AveragePool Clip Conv DepthToSpace Equal GridSample MatMul MaxPool Reciprocal ReduceL2 ReduceMax '
    'ReduceMean Relu Resize SpaceToDepth Sqrt TopK'
)
FLOATS_AND_INTEGERS = (
    'Add Concat Div Gather Max Min Mul Reshape Shape Slice Squeeze Sub Transpose Unsqueeze Identity Cast'
)


def test_8_6_knows_every_operator_with_the_types_that_it_gets(official_model):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = onnx.load_from_string(read_part(official_model('E-64'), 'tensorrt'))
    assert model.opset_import[0].version <= 17
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    for node in model.graph.node:
        if node.op_type in FLOATS.split():
            assert types[node.input[0]] in floats, node.name
        else:
            assert node.op_type in FLOATS_AND_INTEGERS.split(), node.name
    # 8.6 turns int64 into int32.
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:
            assert np.abs(onnx.numpy_helper.to_array(tensor)).max() < 2**31


def test_a_model_that_tensorrt_cannot_read_or_build_is_refused_in_its_words(official_model, rtx):
    with pytest.raises(EngineError, match='cannot parse the model: .*Failed to parse'):
        build_plan(rtx, b'no model', {})
    model = official_model('T-32')
    with pytest.raises(EngineError, match='cannot build the plan: .+'):
        build_plan(rtx, read_part(model, 'tensorrt'), {'image': (480, 640, 3), 'mask': (100, 100)})


def test_more_keypoints_than_tensorrt_can_pick_are_refused_when_the_model_is_made(tmp_path):
    pytest.importorskip('torch', reason='torch is not installed: models cannot be made')
    from edgepoint2_ros.network.edgepoint2 import EdgePoint2
    from edgepoint2_ros.network.export import export_model

    network = EdgePoint2(VARIANTS[0]).eval()
    with pytest.raises(ModelError, match='max_keypoints: expected 1 to 3840 .*got 4096'):
        export_model(network, tmp_path / 'T-32.onnx', max_keypoints=4096)
    assert not list(tmp_path.iterdir())
    export_model(network, tmp_path / 'T-32.onnx', max_keypoints=3840)


def test_3840_keypoints_are_built(rtx):
    pytest.importorskip('torch', reason='torch is not installed: models cannot be made')
    from edgepoint2_ros.network.edgepoint2 import EdgePoint2
    from edgepoint2_ros.network.sparse import build_sparse

    model = build_sparse(EdgePoint2(VARIANTS[0]).eval(), 3840, half=True)
    build_plan(rtx, model.SerializeToString(), {'image': (480, 640, 3), 'mask': (480, 640)})


def test_buffers_are_those_of_the_model_and_the_image(official_model):
    assert tensors_of(official_model('T-32'), (389, 517, 3)) == {
        'image': ((389, 517, 3), np.uint8),
        'mask': ((384, 512), np.uint8),
        'xy': ((2048, 2), np.float32),
        'scores': ((2048,), np.float32),
        'descriptors': ((2048, 32), np.float32),
    }


def test_a_plan_is_known_by_everything_that_it_depends_on(official_model, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    model = official_model('T-32')
    key = plan_key(model, b'onnx', (480, 640, 3), 'TensorRT 10.3.0', ORIN)
    assert plan_path(key).parent == tmp_path / 'edgepoint2'
    assert plan_path(key).name.startswith('T-32-640x480x3-2048-')
    others = [
        plan_key(model, b'other', (480, 640, 3), 'TensorRT 10.3.0', ORIN),
        plan_key(model, b'onnx', (480, 640, 1), 'TensorRT 10.3.0', ORIN),
        plan_key(replace(model, max_keypoints=100), b'onnx', (480, 640, 3), 'TensorRT 10.3.0', ORIN),
        plan_key(model, b'onnx', (480, 640, 3), 'TensorRT 10.7.0', ORIN),
        *(
            plan_key(model, b'onnx', (480, 640, 3), 'TensorRT 10.3.0', replace(ORIN, **change))
            for change in ({'name': 'NVIDIA A/100'}, {'compute_capability': '8.0'}, {'cuda': '13.0'})
        ),
    ]
    assert all(other != key for other in others)
    # A second size, another model or another GPU leaves the first plan alone; another version takes its place.
    places = [plan_path(other) != plan_path(key) for other in others]
    assert places == [True, True, True, False, True, False, False]
    assert '/' not in plan_path(others[4]).name


def test_without_a_driver_one_sentence_says_so_and_nothing_of_tensorrt_is_touched(official_model, no_gpu, monkeypatch):
    monkeypatch.setattr(
        'edgepoint2_ros.engines.tensorrt.engine.import_tensorrt', lambda: pytest.fail('TensorRT was touched')
    )
    with pytest.raises(EngineError, match='no NVIDIA driver is installed|the NVIDIA driver finds no GPU'):
        open_engine(official_model('T-32'), 'tensorrt')
    engine = open_engine(official_model('T-32'), 'auto')
    assert engine.backend != 'tensorrt'
    assert 'NVIDIA driver' in engine.description


def test_tensorrt_runs_fp16_alone(official_model):
    with pytest.raises(EngineError, match='TensorRT runs fp16, not fp32'):
        open_engine(official_model('T-32'), 'tensorrt', 'fp32')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'TensorRT is not installed'),
        ('import libnvinfer_that_is_missing', 'tensorrt is installed, but broken: No module named'),
        ('raise OSError("libnvinfer.so.10: cannot open")', 'tensorrt is installed, but broken: libnvinfer.so.10'),
        ('', 'TensorRT is not installed'),  # something else of that name
    ],
)
def test_a_missing_or_broken_tensorrt_is_one_sentence(content, message, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'tensorrt_rtx', None)
    monkeypatch.delitem(sys.modules, 'tensorrt', raising=False)
    if content is None:
        monkeypatch.setitem(sys.modules, 'tensorrt', None)
    else:
        (tmp_path / 'tensorrt.py').write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=message):
        import_tensorrt()


def test_rtx_serves_where_tensorrt_is_missing(rtx, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    assert import_tensorrt() is rtx
    assert version_of(rtx) == f'TensorRT-RTX {rtx.__version__}'


def test_cuda_python_that_is_missing_or_does_not_fit_is_named_with_its_version(no_gpu):
    with pytest.raises(EngineError, match=r'cuda-python .*pip install "cuda-python>=12.2,<12\.7"'):
        import_cudart(ORIN)


@pytest.mark.parametrize('driver', [*((12, minor) for minor in range(10)), *((13, minor) for minor in range(6))])
def test_of_the_cuda_python_that_is_advised_there_is_a_release_that_the_driver_runs(driver):
    releases = [(12, minor) for minor in (1, 2, 3, 4, 5, 6, 8, 9)] + [(13, minor) for minor in range(5)]
    bounds = re.search(r'"cuda-python>=(\d+)\.(\d+),<(\d+)\.(\d+)"', advise_cuda_python('{}.{}'.format(*driver)))
    first, end = (tuple(map(int, bound)) for bound in (bounds.group(1, 2), bounds.group(3, 4)))
    fitting = [release for release in releases if first <= release < end]
    assert fitting
    assert max(fitting) <= max(driver, (12, 2))  # of a later minor version only where none of its own would do


def test_for_a_driver_that_is_too_old_a_newer_one_is_advised():
    assert advise_cuda_python('11.4') == 'this needs a driver of CUDA 12 or later'


def test_a_model_whose_file_for_tensorrt_is_missing_or_damaged_is_refused(official_model, tmp_path):
    model = official_model('T-32')
    copy = tmp_path / 'T-32.onnx'
    with pytest.raises(ModelError, match=r'T-32\.tensorrt\.onnx cannot be read .*export the model again'):
        read_part(replace(model, path=copy), 'tensorrt')
    part_path(copy, 'tensorrt').write_bytes(read_part(model, 'tensorrt')[:-1])
    with pytest.raises(ModelError, match='is corrupt: its SHA-256'):
        read_part(replace(model, path=copy), 'tensorrt')
    with pytest.raises(ModelError, match='its card says nothing'):
        read_part(replace(model, path=copy, sha256={}), 'tensorrt')


def test_a_long_build_reports_and_its_failure_is_passed_on(monkeypatch):
    monkeypatch.setattr(plan_cache, 'REPORT_PERIOD', 0.1)
    lines = []

    def build() -> str:
        while len(lines) < 3:
            time.sleep(0.01)
        return 'plan'

    result = report_while(build, '{:.1f} s so far'.format, lines.append)
    assert result == 'plan'
    assert all(re.fullmatch(r'\d+\.\d s so far', line) for line in lines)

    def fail():
        raise ValueError('no memory')

    with pytest.raises(EngineError, match='ValueError: no memory'):
        report_while(fail, str, lines.append)


def test_the_reports_go_on_while_nvidias_builder_works(official_model, rtx):
    """The builder leaves Python's lock to others."""
    model = official_model('E-64')
    moments = []
    done = threading.Event()
    clock = threading.Thread(
        target=lambda: [moments.append(time.monotonic()) for _ in iter(lambda: done.wait(0.005), True)]
    )
    clock.start()
    start = time.monotonic()
    build_plan(rtx, read_part(model, 'tensorrt'), input_shapes(model, (720, 1280, 3)))
    end = time.monotonic()
    done.set()
    clock.join()
    assert np.diff([start, *(moment for moment in moments if moment < end), end]).max() < 0.5 * (end - start)


class Failing:
    """A backend that opens, and then refuses images, as TensorRT does whose plan fails its self-check."""

    backend = 'tensorrt'
    description = 'TensorRT 10.3.0, fp16, Orin'

    def prepare(self, image_shape):
        raise EngineError('failed the self-check')

    def run(self, *_):
        raise EngineError('failed the self-check')


@pytest.mark.parametrize('first_use', ['prepare', 'run'])
def test_auto_falls_back_for_good_and_says_so_once(first_use, official_model, photograph, monkeypatch):
    monkeypatch.setattr(tensorrt, 'open_engine', lambda *_: Failing())
    lines = []
    engine = open_engine(official_model('T-32'), 'auto', report=lines.append)
    assert isinstance(engine, AutoEngine)
    assert engine.backend == 'tensorrt'
    mask = np.ones((1, 1), np.uint8)
    if first_use == 'prepare':
        engine.prepare((480, 640, 3))
    for _ in range(2):
        assert np.count_nonzero(engine.run(photograph, mask)[1] > -5) > 500
    assert engine.backend in ('openvino', 'onnxruntime')  # which of them is faster depends on the CPU
    assert len(lines) == 1
    assert lines[0].startswith('falling back from tensorrt to OpenVINO')
    assert lines[0].endswith('failed the self-check')


def test_a_backend_that_was_asked_for_by_name_has_no_fallback(official_model, photograph, monkeypatch):
    monkeypatch.setattr(tensorrt, 'open_engine', lambda *_: Failing())
    engine = open_engine(official_model('T-32'), 'tensorrt')
    for _ in range(2):
        with pytest.raises(EngineError, match='self-check'):
            engine.run(photograph, np.ones((1, 1), np.uint8))


def test_the_last_backend_that_fails_is_an_error(official_model, photograph, monkeypatch):
    monkeypatch.setattr(tensorrt, 'open_engine', lambda *_: Failing())
    for backend in ('openvino', 'onnxruntime'):
        monkeypatch.setitem(sys.modules, backend, None)
    engine = open_engine(official_model('T-32'), 'auto')
    for message in ('no backend can run T-32 in auto: failed .*OpenVINO is not installed', 'failed the self-check'):
        with pytest.raises(EngineError, match=message):
            engine.run(photograph, np.ones((1, 1), np.uint8))


@pytest.mark.slow
def test_a_process_with_tensorrt_and_without_a_gpu_ends_well(official_model, rtx, no_gpu):
    """Touching TensorRT's runtime without a driver crashes a process when it ends."""
    official_model('T-32')
    code = (
        'import numpy; from edgepoint2_ros.extractor import Extractor;'
        'extractor = Extractor("T-32"); extractor.prepare(640, 480);'
        'extractor.extract(numpy.zeros((480, 640), numpy.uint8)); print(extractor.backend)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert done.stdout.strip() in ('openvino', 'onnxruntime'), done.stderr


@pytest.mark.parametrize('what', ['builder', 'runtime'])
def test_a_gpu_that_tensorrt_refuses_is_reported_in_the_words_of_its_logger(rtx, what):
    def refuse():
        logger_of(rtx).log(rtx.ILogger.Severity.ERROR, 'compute capability 6.1 is not supported')
        raise TypeError('pybind11::init(): factory function returned nullptr')

    with pytest.raises(EngineError, match=f'TensorRT cannot make a {what}: compute capability 6.1 is not supported'):
        create(refuse, what, logger_of(rtx))
