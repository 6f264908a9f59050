"""The engine for TensorRT from the first image to the last, on a GPU that is simulated (see simulated_gpu)."""

import gc

import numpy as np
import pytest

pytest.importorskip('tensorrt_rtx', reason='TensorRT-RTX is not installed')

from simulated_gpu import SimulatedCuda, simulated_tensorrt

from edgepoint2_ros.cli import main
from edgepoint2_ros.engines import open_engine
from edgepoint2_ros.engines.check import compare
from edgepoint2_ros.engines.tensorrt import engine as tensorrt
from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.engines.tensorrt.gpu import Gpu
from edgepoint2_ros.errors import EdgePoint2Error, EngineError
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.models import open_model, read_part
from edgepoint2_ros.storage import cache_directory

# What TensorRT-RTX calls deprecated, TensorRT 8.6 needs.
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')

NO_MASK = np.ones((1, 1), np.uint8)


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """A simulated GPU, and a plan cache of its own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    cuda = SimulatedCuda()
    monkeypatch.setattr(tensorrt, 'find_gpu', lambda: Gpu('Orin', '8.7', '12.6'))
    monkeypatch.setattr(tensorrt, 'import_cudart', lambda gpu: cuda)
    return cuda


@pytest.fixture
def model(official_model):
    return official_model('T-32')


@pytest.fixture
def lines():
    """What the engine reported."""
    return []


@pytest.fixture
def start(cuda, model, monkeypatch, lines):
    """Return a function that opens an engine, as a process does that starts."""

    def start(backend='tensorrt', **options):
        module = simulated_tensorrt(cuda, read_part(model, 'tensorrt'), **options)
        monkeypatch.setattr(tensorrt, 'import_tensorrt', lambda: module)
        return open_engine(model, backend, report=lines.append), module

    return start


def assert_same(found, expected):
    share, cosine = compare(found, expected)
    assert share > 0.99
    assert cosine > 0.9999


def test_the_features_are_those_of_the_cpu(start, model, photograph, lines):
    engine, module = start()
    assert engine.backend == 'tensorrt'
    assert engine.description == f'TensorRT-RTX {module.__version__}, fp16, Orin'
    expected = open_engine(model, 'onnxruntime')
    for image in (photograph, np.ascontiguousarray(photograph[:, ::-1])):
        assert_same(engine.run(image, NO_MASK), expected.run(image, NO_MASK))
    assert module.builds == 1
    assert lines[0].startswith('not ready: building T-32 for 640x480 colour images on Orin, 0 s so far')
    assert 'passed its self-check: ' in lines[-1]


def test_the_next_start_takes_the_plan_from_the_cache(start, model, photograph, lines):
    first, module = start()
    first.prepare((480, 640, 3))
    plan = next(cache_directory().glob('T-32-640x480x3-2048-*-Orin.plan')).read_bytes()
    lines.clear()
    again = open_engine(model, 'tensorrt', report=lines.append)
    assert np.count_nonzero(again.run(photograph, NO_MASK)[1] > -5) > 500
    assert module.builds == 1
    assert lines == []
    assert len(plan) > 100_000


def test_each_size_has_a_plan_and_keeps_it(start, model, photograph):
    engine, module = start()
    expected = open_engine(model, 'onnxruntime')
    small = np.ascontiguousarray(photograph[:240, :330, :1])
    for image in (photograph, small, photograph, small):
        assert_same(engine.run(image, NO_MASK), expected.run(image, NO_MASK))
    assert module.builds == 2


def test_a_mask_holds_for_its_image_alone(start, photograph):
    engine, _ = start()
    mask = np.zeros((480, 640), np.uint8)
    mask[:, 320:] = 255
    everywhere = engine.run(photograph, NO_MASK)
    inside = engine.run(photograph, mask)
    assert inside[0][inside[1] > -5][:, 0].min() >= 319
    assert np.count_nonzero(inside[1] > -5) > 100
    for found, expected in zip(engine.run(photograph, NO_MASK), everywhere):
        np.testing.assert_array_equal(found, expected)


def test_an_image_goes_up_and_k_rows_come_back_and_nothing_else(start, cuda, photograph):
    engine, _ = start()
    engine.prepare((480, 640, 3))
    allocated = len(cuda.device), len(cuda.host)
    cuda.copied.clear()
    first = engine.run(photograph, NO_MASK)
    assert cuda.copied == [480 * 640 * 3, 2048 * 2 * 4, 2048 * 4, 2048 * 32 * 4]
    kept = [array.copy() for array in first]
    engine.run(np.zeros_like(photograph), NO_MASK)
    for array, copy in zip(first, kept):  # the arrays of a run are the caller's
        np.testing.assert_array_equal(array, copy)
    assert (len(cuda.device), len(cuda.host)) == allocated == (5, 5)


def test_more_keypoints_than_the_model_returns_are_refused(start, model, photograph):
    start()
    refusal = 'max_keypoints: expected 1 to 2048 on TensorRT, got 2049; for more, export the model again'
    with pytest.raises(EdgePoint2Error, match=refusal):
        Extractor('T-32', backend='tensorrt', max_keypoints=2049)
    extractor = Extractor('T-32', backend='tensorrt')
    with pytest.raises(EdgePoint2Error, match=refusal):
        extractor.max_keypoints = 2049
    extractor.max_keypoints = 100
    assert len(extractor.extract(photograph)) == 100


def test_without_a_graph_it_runs_all_the_same(start, cuda, model, photograph):
    cuda.can_record = False
    engine, _ = start()
    assert_same(engine.run(photograph, NO_MASK), open_engine(model, 'onnxruntime').run(photograph, NO_MASK))
    assert 'graph' not in cuda.resources


def test_everything_is_freed_with_the_engine(start, cuda):
    engine, _ = start()
    engine.prepare((480, 640, 3))
    assert cuda.device and cuda.host and cuda.resources
    del engine
    gc.collect()
    assert not (cuda.device or cuda.host or cuda.resources)


def nothing_found(outputs):
    xy, scores, descriptors = outputs
    return xy, np.full_like(scores, -65504), descriptors


def blurred(outputs):
    xy, scores, descriptors = outputs
    return xy, scores, descriptors[::-1]


def not_numbers(outputs):
    xy, scores, descriptors = outputs
    return xy * np.nan, scores, descriptors


@pytest.mark.parametrize('spoil', [nothing_found, blurred, not_numbers])
def test_a_plan_that_fails_its_self_check_serves_nobody_and_is_not_kept(start, photograph, spoil, lines):
    engine, module = start(spoil=spoil)
    for _ in range(3):
        with pytest.raises(
            EngineError, match='failed the self-check against fp32 on the CPU: .* expected 97% and 0.999'
        ):
            engine.run(photograph, NO_MASK)
    assert module.builds == 1
    assert plan_cache.list_plans() == []


def test_auto_goes_on_with_the_cpu_then(start, photograph, lines):
    engine, _ = start('auto', spoil=blurred)
    assert engine.backend == 'tensorrt'
    assert np.count_nonzero(engine.run(photograph, NO_MASK)[1] > -5) > 500
    assert engine.backend == 'openvino'
    assert [line for line in lines if 'falling back' in line] == [lines[-1]]
    assert 'self-check' in lines[-1]


def test_auto_takes_the_cpu_for_a_model_without_its_file_for_tensorrt(cuda, model, monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt, 'import_tensorrt', lambda: None)
    for suffix in ('.onnx', '.json'):
        (tmp_path / f'T-32{suffix}').write_bytes(model.path.with_suffix(suffix).read_bytes())
    old = open_model(tmp_path / 'T-32.onnx')
    with pytest.raises(EngineError, match=r'T-32\.tensorrt\.onnx cannot be read .*export the model again'):
        open_engine(old, 'tensorrt')
    engine = open_engine(old, 'auto')
    assert engine.backend == 'openvino'
    assert 'export the model again' in engine.description


def test_a_gpu_without_memory_is_refused_in_cudas_words_and_keeps_nothing(start, cuda, photograph):
    cuda.memory = 1000
    engine, _ = start()
    with pytest.raises(EngineError, match='CUDA: cudaMalloc: cudaErrorMemoryAllocation'):
        engine.run(photograph, NO_MASK)
    gc.collect()
    assert not (cuda.device or cuda.host or cuda.resources)


def test_a_plan_that_tensorrt_does_not_open_is_built_again_once(start, model, photograph, lines):
    first, _ = start()
    first.prepare((480, 640, 3))
    lines.clear()
    other, module = start()  # it says that it is the same version, and knows no such plan
    found = other.run(photograph, NO_MASK)
    assert_same(found, open_engine(model, 'onnxruntime').run(photograph, NO_MASK))
    assert module.builds == 1
    assert 'TensorRT cannot open the plan: no reason given: rebuilding' in lines[0]
    assert len(plan_cache.list_plans()) == 1


def test_a_plan_that_another_process_has_built_again_meanwhile_is_taken(start, model, photograph, monkeypatch):
    first, _ = start()
    first.prepare((480, 640, 3))
    engine, module = start()
    beside = open_engine(model, 'tensorrt')
    discard = plan_cache.discard

    def discard_and_be_late(path):
        discard(path)
        beside.prepare((480, 640, 3))

    monkeypatch.setattr(plan_cache, 'discard', discard_and_be_late)
    assert_same(engine.run(photograph, NO_MASK), open_engine(model, 'onnxruntime').run(photograph, NO_MASK))
    assert module.builds == 1


def test_build_engine_builds_ahead_what_the_node_then_finds(start, model, capsys):
    engine, module = start()
    assert main(['build-engine', 'T-32', '--size', '640x480', '--size', '320x240', '--gray']) == 0
    out = capsys.readouterr().out
    assert 'not ready: building T-32 for 640x480 gray images on Orin' in out
    assert out.splitlines()[-1] == 'T-32 is ready for 320x240 gray images'
    assert module.builds == 2
    engine.prepare((480, 640, 1))
    assert module.builds == 2
