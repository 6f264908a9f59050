import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgepoint2_ros import engines
from edgepoint2_ros.cpu import Cpu, find_cpu
from edgepoint2_ros.engines import open_engine
from edgepoint2_ros.engines.check import MIN_SHARE, compare
from edgepoint2_ros.engines.openvino import Layer, OpenVinoEngine
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.models import part_path

NO_MASK = np.ones((1, 1), np.uint8)


def has(precision: str) -> bool:
    """Tell whether this CPU is fast in a precision."""
    pytest.importorskip('openvino')
    cpu = {'bf16': {'avx512_bf16', 'amx_bf16'}, 'int8': {'avx2'}, 'fp16': {'asimdhp'}}
    return bool(cpu[precision] & find_cpu().flags)


def test_auto_takes_the_best_that_is_installed_and_says_why(official_model):
    pytest.importorskip('openvino')
    engine = open_engine(official_model('T-32'), 'auto')
    assert engine.backend == 'openvino'
    assert 'auto: ' in engine.description


def test_auto_without_openvino_takes_onnx_runtime_and_says_what_is_missing(official_model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)  # its import now fails
    engine = open_engine(official_model('T-32'), 'auto')
    assert engine.backend == 'onnxruntime'
    assert 'OpenVINO is not installed' in engine.description


def test_int8_is_for_x86_alone(official_model, monkeypatch):
    if not has('int8'):
        pytest.skip('this CPU has no AVX2, whose name would be seen in an emulated ARM machine too')
    model = official_model('T-32')
    assert 'int8' in engines.openvino.fast_precisions(model)
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    assert 'int8' not in engines.openvino.fast_precisions(model)
    assert 'int8' not in open_engine(model, 'openvino').description
    with pytest.raises(EngineError, match='does not accelerate int8 .needs x86 with AVX2'):
        open_engine(model, 'openvino', 'int8')


# T-32 as OpenVINO 2026.4 compiles it in QEMU, on a Cortex-A76 and on a core with SVE of 128 bits.
VECTOR = [Layer('Convolution', 'gemm_acl_f16')] * 24 + [Layer('Interpolate', 'ref_f32')] * 4
SCALAR = [Layer('Convolution', 'ref_any_f32')] * 22 + [Layer('Convolution', 'gemm_acl_f32')] * 2


def test_openvino_is_refused_on_a_cpu_for_which_it_has_only_scalar_code(official_model, monkeypatch):
    pytest.importorskip('openvino')
    model = official_model('T-32')
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    monkeypatch.setattr(engines.onnxruntime, 'find_cpu', lambda: Cpu('ARM', frozenset()))
    for layers, backend in ((VECTOR, 'openvino'), (SCALAR, 'onnxruntime')):
        monkeypatch.setattr(OpenVinoEngine, 'layers', lambda self, image_shape, layers=layers: layers)
        engine = open_engine(model, 'auto')
        assert engine.backend == backend
        assert ('scalar reference code' in engine.description) == (layers is SCALAR)
    with pytest.raises(EngineError, match='22 of 24 convolutions by scalar reference code on this CPU: use .*onnx'):
        open_engine(model, 'openvino')


def test_openvino_computes_with_vectors_here_or_is_refused(official_model):
    pytest.importorskip('openvino')
    if 'sve' in find_cpu().flags:
        with pytest.raises(EngineError, match='scalar reference code'):
            open_engine(official_model('T-32'), 'openvino')
        return
    kernels = [
        kernel
        for kind, kernel in open_engine(official_model('T-32'), 'openvino').layers((480, 640, 1))
        if kind == 'Convolution'
    ]
    assert kernels
    assert not [kernel for kernel in kernels if kernel.startswith('ref')]


def test_onnx_runtime_is_not_even_imported_where_it_would_crash(official_model, monkeypatch):
    pytest.importorskip('openvino')
    monkeypatch.setattr(engines.onnxruntime, 'find_cpu', lambda: Cpu('emulated', frozenset(), foreign=True))
    monkeypatch.setattr(OpenVinoEngine, 'layers', lambda self, image_shape: VECTOR)
    with pytest.raises(EngineError, match='ONNX Runtime crashes in an emulator'):
        open_engine(official_model('T-32'), 'onnxruntime')
    assert open_engine(official_model('T-32'), 'auto').backend == 'openvino'


@pytest.mark.parametrize('error', [RuntimeError('no home'), KeyError('uid'), OSError(13, 'no'), TypeError('broken')])
def test_auto_survives_whatever_the_import_of_a_runtime_raises(official_model, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr('edgepoint2_ros.engines.openvino.import_openvino', fail)
    engine = open_engine(official_model('T-32'), 'auto')
    assert engine.backend == 'onnxruntime'
    reason = f'OpenVINO cannot be started: {type(error).__name__}: {error}'
    assert reason in engine.description
    with pytest.raises(EngineError, match=re.escape(reason)):
        open_engine(official_model('T-32'), 'openvino')


@pytest.mark.parametrize('capabilities', [None, {'fp32'}], ids=['this CPU', 'fp32 alone'])
@pytest.mark.parametrize(
    ('method', 'doing'),
    [
        ('Core', 'start'),
        ('Core.get_property', 'start'),
        ('Core.read_model', r'open .*T-32.*\.onnx'),
        ('Core.compile_model', r'compile the network for images of 640 x 480 x \d'),  # ARM tries a gray one first
        ('InferRequest.infer', 'run the network'),
    ],
)
def test_auto_gives_openvino_up_wherever_it_fails_and_says_why(
    official_model, photograph, monkeypatch, tmp_path, method, doing, capabilities
):
    pytest.importorskip('openvino')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))  # nothing was measured before
    if capabilities and method != 'Core.get_property':
        monkeypatch.setattr('edgepoint2_ros.engines.openvino.capabilities', lambda core: capabilities)

    def fail(*_, **__):
        raise RuntimeError('Exception from src/core.cpp:268:\nno plugin\n')

    monkeypatch.setattr(f'openvino.{method}', fail)
    reason = rf'OpenVINO cannot {doing}: Exception from src/core.cpp:268: no plugin'
    with pytest.raises(EngineError, match=reason):
        open_engine(official_model('T-32'), 'openvino').run(photograph, NO_MASK)
    engine = open_engine(official_model('T-32'), 'auto')
    assert len(engine.run(photograph, NO_MASK)[0]) > 500
    assert engine.backend == 'onnxruntime'
    assert re.search(reason, engine.description)


def test_whatever_onnx_runtime_raises_while_it_runs_is_an_error_of_one_line(official_model, photograph, monkeypatch):
    def fail(*_):
        raise MemoryError('bad\nallocation')

    monkeypatch.setattr('onnxruntime.InferenceSession.run', fail)
    with pytest.raises(EngineError, match='ONNX Runtime cannot run the network: bad allocation'):
        open_engine(official_model('T-32'), 'onnxruntime').run(photograph, NO_MASK)


def test_a_backend_that_is_missing_is_an_error_that_says_how_to_get_it(official_model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(EngineError, match='pip install openvino'):
        open_engine(official_model('T-32'), 'openvino')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(EngineError, match='OpenVINO is not installed.*ONNX Runtime is not installed'):
        open_engine(official_model('T-32'), 'auto')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'backend': 'tflite'}, "unknown backend 'tflite': expected auto or one of tensorrt, openvino, onnxruntime"),
        ({'precision': 'int4'}, "unknown precision 'int4': expected one of auto, fp32, fp16, bf16, int8"),
        ({'threads': -1}, 'threads: expected 0'),
        ({'threads': 257}, r'threads: expected 0 \(all cores\) to 256, got 257'),
        ({'threads': 5_000_000_000}, 'got 5000000000'),
        ({'backend': 'onnxruntime', 'precision': 'bf16'}, 'ONNX Runtime runs fp32, not bf16'),
        ({'backend': 'onnxruntime', 'precision': 'int8'}, 'ONNX Runtime runs fp32, not int8'),
        ({'backend': 'onnxruntime', 'precision': 'fp16'}, 'ONNX Runtime runs fp32, not fp16'),
    ],
)
def test_a_setting_that_cannot_be_is_refused(official_model, settings, message):
    with pytest.raises(EngineError, match=message):
        open_engine(official_model('T-32'), **settings)


def test_by_default_onnx_runtime_computes_in_fp32(official_model):
    assert ', fp32, ' in open_engine(official_model('T-32'), 'onnxruntime').description


def test_by_default_openvino_computes_in_the_narrowest_precision_that_the_cpu_has_and_says_so(official_model):
    narrowest = next(name for name in ('int8', 'bf16', 'fp16', 'fp32') if name == 'fp32' or has(name))
    description = open_engine(official_model('T-32'), 'openvino').description
    assert f', {narrowest}' in description
    assert '(auto: the narrowest that this CPU accelerates)' in description


@pytest.mark.parametrize('backend', ['auto', 'onnxruntime', 'openvino'])
def test_an_engine_can_be_prepared_for_a_size_and_serves_every_other_too(official_model, photograph, backend):
    engine = open_engine(official_model('T-32'), backend)
    engine.prepare((480, 640, 3))
    for image in (photograph, np.ascontiguousarray(photograph[:200, :300])):
        assert len(engine.run(image, NO_MASK)[0]) > 500


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_file_that_is_no_model_is_refused(official_model, tmp_path, backend):
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    with pytest.raises(EngineError, match=r'cannot open .*broken\.onnx'):
        open_engine(replace(official_model('T-32'), path=tmp_path / 'broken.onnx'), backend, 'fp32')


@pytest.mark.parametrize('precision', ['fp16', 'bf16', 'int8'])
def test_a_precision_that_the_cpu_lacks_is_refused(official_model, precision, monkeypatch):
    pytest.importorskip('openvino')
    monkeypatch.setattr(engines.openvino, 'capabilities', lambda core: {'fp32'})
    with pytest.raises(EngineError, match=f'this CPU does not accelerate {precision} .needs .*: use auto or fp32'):
        open_engine(official_model('T-32'), 'openvino', precision)
    assert ', fp32 (auto' in open_engine(official_model('T-32'), 'openvino').description


@pytest.mark.parametrize('precision', ['fp16', 'bf16', 'int8'])
def test_low_precision_keeps_keypoints_and_descriptors(official_model, photograph, precision):
    if not has(precision):
        pytest.skip(f'this CPU has no {precision}')
    model = official_model('T-32')
    data = pytest.importorskip('skimage.data')
    others = [np.ascontiguousarray(image()[..., ::-1]) for image in (data.coffee, data.chelsea, data.rocket)]
    fast, exact = (open_engine(model, 'openvino', name) for name in (precision, 'fp32'))
    found = [compare(fast.run(image, NO_MASK), exact.run(image, NO_MASK)) for image in (photograph, *others)]
    shares, cosines = np.transpose(found)
    assert shares.mean() > 0.98
    assert shares.min() > MIN_SHARE
    assert cosines.min() > 0.998


def test_a_damaged_int8_model_is_refused(official_model, tmp_path):
    if not has('int8'):
        pytest.skip('this CPU has no int8')
    model = official_model('T-32')
    copy = tmp_path / model.path.name
    shutil.copy(model.path, copy)
    with pytest.raises(EngineError, match=r'T-32\.int8\.onnx cannot be read .*: export the model again'):
        open_engine(replace(model, path=copy), 'openvino', 'int8')
    part_path(copy, 'int8').write_bytes(b'no model')
    with pytest.raises(EngineError, match=r'T-32\.int8\.onnx is corrupt'):
        open_engine(replace(model, path=copy), 'openvino', 'int8')


def test_results_stay_as_they_are_when_the_engine_runs_again(official_model, photograph):
    for backend in ('onnxruntime', 'openvino'):
        engine = open_engine(official_model('T-32'), backend)
        mask = np.ones((1, 1), np.uint8)
        first = engine.run(photograph, mask)
        kept = [array.copy() for array in first]
        engine.run(np.ascontiguousarray(photograph[:, ::-1]), mask)
        for array, copy in zip(first, kept):
            np.testing.assert_array_equal(array, copy)
