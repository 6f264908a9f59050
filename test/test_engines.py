import sys

import pytest

from edgepoint2_ros.engines import open_engine
from edgepoint2_ros.errors import EngineError


def has_bf16() -> bool:
    openvino = pytest.importorskip('openvino')
    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


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
        ({'precision': 'int4'}, "unknown precision 'int4': expected one of auto, fp32, fp16, bf16"),
        ({'threads': -1}, 'threads: expected 0'),
        ({'backend': 'onnxruntime', 'precision': 'bf16'}, 'ONNX Runtime runs fp32 on the CPU, not bf16'),
        ({'backend': 'openvino', 'precision': 'fp16'}, 'OpenVINO runs fp32 or bf16 on the CPU, not fp16'),
    ],
)
def test_a_setting_that_cannot_be_is_refused(official_model, settings, message):
    with pytest.raises(EngineError, match=message):
        open_engine(official_model('T-32'), **settings)


def test_by_default_onnx_runtime_computes_in_fp32(official_model):
    assert ', fp32, ' in open_engine(official_model('T-32'), 'onnxruntime').description


def test_by_default_openvino_computes_in_the_fastest_precision_that_the_cpu_has_and_says_so(official_model):
    expected = ', bf16 (auto: this CPU has bf16), ' if has_bf16() else ', fp32 (auto: this CPU has no bf16), '
    assert expected in open_engine(official_model('T-32'), 'openvino').description


@pytest.mark.parametrize('backend', ['auto', 'onnxruntime', 'openvino'])
def test_an_engine_can_be_prepared_for_a_size_and_serves_every_other_too(official_model, photograph, backend):
    import numpy as np

    engine = open_engine(official_model('T-32'), backend)
    engine.prepare(480, 640, 3)
    for image in (photograph, np.ascontiguousarray(photograph[:200, :300])):
        assert len(engine.run(image, np.ones((1, 1), np.uint8))[0]) > 500


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_file_that_is_no_model_is_refused(official_model, tmp_path, backend):
    from dataclasses import replace

    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    with pytest.raises(EngineError, match=r'cannot open .*broken\.onnx'):
        open_engine(replace(official_model('T-32'), path=tmp_path / 'broken.onnx'), backend)


def test_bf16_where_the_cpu_lacks_it_is_refused(official_model):
    if has_bf16():
        pytest.skip('this CPU has bf16')
    with pytest.raises(EngineError, match='no bf16'):
        open_engine(official_model('T-32'), 'openvino', 'bf16')


def test_bf16_keeps_keypoints_and_descriptors(official_model, photograph):
    if not has_bf16():
        pytest.skip('this CPU has no bf16')
    import numpy as np

    mask = np.ones((1, 1), np.uint8)
    model = official_model('T-32')
    xy, scores, descriptors = open_engine(model, 'openvino', 'fp32').run(photograph, mask)
    fast_xy, _, fast_descriptors = open_engine(model, 'openvino', 'bf16').run(photograph, mask)
    keypoints = np.flatnonzero(scores > -5)
    distance = np.abs(xy[keypoints][:, None] - fast_xy[None]).max(axis=2)
    same = distance.min(axis=1) < 1
    cosine = np.einsum('nd,nd->n', descriptors[keypoints][same], fast_descriptors[distance.argmin(axis=1)[same]])
    assert same.mean() > 0.95
    assert np.median(cosine) > 0.999


def test_results_stay_as_they_are_when_the_engine_runs_again(official_model, photograph):
    import numpy as np

    for backend in ('onnxruntime', 'openvino'):
        engine = open_engine(official_model('T-32'), backend)
        mask = np.ones((1, 1), np.uint8)
        first = engine.run(photograph, mask)
        kept = [array.copy() for array in first]
        engine.run(np.ascontiguousarray(photograph[:, ::-1]), mask)
        for array, copy in zip(first, kept):
            np.testing.assert_array_equal(array, copy)
