"""The backend `auto`: how it measures what is fastest here, and what it does with the result."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from edgepoint2_ros import engines
from edgepoint2_ros.engines import open_engine
from edgepoint2_ros.engines.auto import Choice, Measurements, choose, measure
from edgepoint2_ros.errors import EngineError

NO_MASK = np.ones((1, 1), np.uint8)
SHAPE = (240, 320, 1)
FP32, BF16, INT8 = (Choice('openvino', precision, 2) for precision in ('fp32', 'bf16', 'int8'))
KEY = {'cpu': 'here', 'image': '240x320x1'}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def told(caplog):
    """Return a function that gives the lines about what was measured."""
    caplog.set_level(logging.INFO, 'edgepoint2_ros')
    return lambda: [record.getMessage() for record in caplog.records if record.getMessage().startswith('auto chose ')]


@pytest.fixture
def two_ways(monkeypatch):
    """Make OpenVINO in fp32 and ONNX Runtime in fp32 what is worth trying, as on an x86 CPU without AVX2."""
    pytest.importorskip('openvino')
    monkeypatch.setattr(engines.openvino, 'capabilities', lambda core: {'fp32'})


@pytest.mark.parametrize(
    ('times', 'expected'),
    [
        ({FP32: 10.0, BF16: 6.0, INT8: 5.0}, INT8),
        ({FP32: 10.0, BF16: 5.2, INT8: 5.0}, BF16),  # within 5 %: the more accurate
        ({FP32: 5.2, BF16: 5.1, INT8: 5.0}, FP32),
        ({FP32: 5.0, INT8: 9.0}, FP32),
        ({INT8: 3.0}, INT8),
    ],
)
def test_the_fastest_is_taken_and_the_more_accurate_of_those_that_are_as_fast(times, expected):
    assert choose(times) == expected


def test_the_first_image_decides_and_the_next_start_remembers(official_model, two_ways, photograph, told):
    engine = open_engine(official_model('T-32'), report=pytest.fail)
    assert 'measured' not in engine.description
    image = np.ascontiguousarray(photograph[:240, :320, :1])
    rows = engine.run(image, NO_MASK)
    assert len(rows[0]) > 100
    (line,) = told()
    for runtime in ('openvino', 'onnxruntime'):
        assert f'{runtime} fp32 on ' in line
    assert line.startswith(f'auto chose {engine.backend} fp32 on ')
    assert 'measured here at 320x240: ' in engine.description

    again = open_engine(official_model('T-32'), report=pytest.fail)
    again.prepare(SHAPE)
    assert again.description == engine.description
    assert len(told()) == 1  # nothing was measured
    np.testing.assert_array_equal(again.run(image, NO_MASK)[0], rows[0])


def test_another_size_model_or_number_of_threads_is_measured_anew(official_model, two_ways, told):
    for number, (model, threads, shape) in enumerate(
        [('T-32', 2, SHAPE), ('T-32', 1, SHAPE), ('S-64', 1, SHAPE), ('S-64', 1, (240, 320, 3))], start=1
    ):
        open_engine(official_model(model), threads=threads, report=pytest.fail).prepare(shape)
        assert len(told()) == number
        assert len(json.loads(Measurements().path.read_bytes())) == number


def test_another_export_of_the_same_weights_is_measured_anew(official_model, two_ways, told):
    model = official_model('T-32')
    again = replace(model, sha256={**model.sha256, '.int8.onnx': '0' * 64})
    assert again.digest == model.digest
    for number, each in enumerate([model, again, model], start=1):
        open_engine(each, report=pytest.fail).prepare(SHAPE)
        assert len(told()) == min(number, 2)


def test_one_engine_keeps_its_choice_for_every_size(official_model, two_ways, told):
    engine = open_engine(official_model('T-32'), report=pytest.fail)
    for shape in (SHAPE, (480, 640, 1)):
        engine.prepare(shape)
    assert len(told()) == 1


@pytest.mark.parametrize('content', [b'', b'no json', b'[1]', b'{"a": 1}', b'[{"key": {}, "ms": [["openvino"]]}]'])
def test_a_cache_that_cannot_be_read_is_measured_again(official_model, two_ways, content):
    path = Measurements().path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    engine = open_engine(official_model('T-32'), report=lambda line: None)
    engine.prepare(SHAPE)
    assert 'measured here' in engine.description
    assert len(json.loads(path.read_bytes())) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_else(official_model, two_ways, monkeypatch, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    engine = open_engine(official_model('T-32'), report=lambda line: None)
    engine.prepare(SHAPE)
    assert 'measured here' in engine.description


def test_the_cache_keeps_the_latest(monkeypatch):
    monkeypatch.setattr('edgepoint2_ros.engines.auto.KEPT', 3)
    measurements = Measurements()
    for number in range(5):
        measurements.add(KEY | {'image': str(number)}, {FP32: float(number), INT8: 1.0})
    measurements.add(KEY | {'image': '3'}, {FP32: 9.0})  # in place of the former
    assert [measurements.find(KEY | {'image': str(number)}).get(FP32) for number in range(5)] == [None, None, 2, 9, 4]


def test_what_was_remembered_and_cannot_be_opened_any_more_is_done_without(official_model, two_ways, monkeypatch):
    open_engine(official_model('T-32'), report=lambda line: None).prepare(SHAPE)
    entries = json.loads(Measurements().path.read_bytes())
    entries[0]['ms'] = [['onnxruntime', 'fp32', 2, 1.0], ['openvino', 'fp32', 2, 9.0]]
    Measurements().path.write_text(json.dumps(entries))

    def fail(*_):
        raise RuntimeError('gone')

    monkeypatch.setattr(engines.onnxruntime, 'open_engine', fail)
    engine = open_engine(official_model('T-32'), report=lambda line: None)
    engine.prepare(SHAPE)
    assert engine.backend == 'openvino'
    assert 'gone' in engine.description


def test_a_way_with_other_features_or_that_does_not_run_is_left_out(official_model):
    model, lines = official_model('T-32'), []

    class Wrong:
        def __init__(self, spoil):
            self.engine, self.spoil = open_engine(model, 'onnxruntime'), spoil

        def run(self, image, mask):
            return self.spoil(*self.engine.run(image, mask))

    def moved(xy, scores, descriptors):
        return xy + 5, scores, descriptors

    def other(xy, scores, descriptors):
        return xy, scores, descriptors[::-1]

    def failing(*_):
        raise EngineError('does not run')

    ways = [
        Choice('right', 'fp32', 1),
        Choice('moved', 'bf16', 1),
        Choice('other', 'int8', 1),
        Choice('failing', 'int8', 1),
    ]
    spoilers = {'right': lambda *rows: rows, 'moved': moved, 'other': other, 'failing': failing}
    _, times = measure(ways, lambda choice: Wrong(spoilers[choice.backend]), SHAPE, lines.append)
    assert list(times) == ways[:1]
    for name, line in zip(('moved', 'other', 'failing'), lines):
        assert line.startswith(f'{name} ')


def test_images_of_many_megapixels_are_not_measured(official_model, two_ways, monkeypatch):
    monkeypatch.setattr('edgepoint2_ros.engines.auto.MAX_PIXELS', 1000)
    engine = open_engine(official_model('T-32'), report=pytest.fail)
    engine.prepare(SHAPE)
    assert 'measured' not in engine.description


def test_on_many_cores_half_of_them_are_tried_too(official_model, two_ways, monkeypatch):
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: set(range(4)))
    open_engine(official_model('T-32'), report=lambda line: None).prepare(SHAPE)
    (entry,) = json.loads(Measurements().path.read_bytes())
    assert {threads for _, _, threads, _ in entry['ms']} == {2, 4}
