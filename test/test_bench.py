import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from edgepoint2_ros.bench import worker
from edgepoint2_ros.bench.report import TITLES, format_report
from edgepoint2_ros.bench.worker import Contender, open_contender
from edgepoint2_ros.cli import bench, main
from edgepoint2_ros.engines import BACKENDS, PRECISIONS
from edgepoint2_ros.errors import EdgePoint2Error


def measured(
    kind, model='', precision='', milliseconds=(4.0,), error='', threads=2, size='640x480', accuracy=None, cold=()
):
    """A contender's entry of a report; without milliseconds it never ran."""
    paces = {'camera': list(milliseconds), 'cold': list(cold)}
    paces = {name: {'ms': times, 'cpu_ms': 7.0, 'keypoints': 1900.0} for name, times in paces.items() if times}
    return {
        'contender': {'kind': kind, 'model': model, 'precision': precision, 'threads': threads, 'size': size},
        'runs': [{'paces': paces, 'peak_mb': 100.0, 'first_s': 0.25}] if milliseconds else [],
        'error': error,
        'accuracy': accuracy and {'MMA@3': accuracy, 'repeatability': 60.0, 'pairs': 70},
    }


def report_of(*results):
    machine = {'processor': 'Abacus', 'cores': 2, 'versions': {'OpenCV': '5.0'}}
    settings = {'keypoints': 2048, 'frames': 30, 'rounds': 2}
    return {'format': bench.FORMAT, 'machine': machine, 'settings': settings, 'results': list(results), 'cameras': []}


@pytest.fixture
def report():
    return report_of(
        measured('orb'),
        measured('dense', 'T-32', milliseconds=(40.0,)),
        measured('openvino', 'T-32', 'fp32', (8.0, 10.0, 12.0)),
    )


class TestTable:
    def test_gives_spread_cost_and_ratios_to_orb_and_to_the_dense_reference(self, report):
        lines = format_report(report).splitlines()
        assert lines[0] == '640x480:'
        assert lines[4] == '| ORB (OpenCV) | 2 | 4.0 (4.0 to 4.0) | 7.0 | 1900 | 0.25 | 100 | 1.00 |  |'
        assert lines[6] == '| T-32, OpenVINO fp32 | 2 | 10.0 (8.4 to 11.6) | 7.0 | 1900 | 0.25 | 100 | 2.50 | 4.0x |'

    def test_compares_what_has_the_same_size_and_threads(self):
        results = [
            measured('orb', milliseconds=(ms,), threads=threads, size=size)
            for ms, threads, size in ((4.0, 1, '640x480'), (2.0, 2, '640x480'), (8.0, 1, '1280x960'))
        ]
        results.append(measured('onnxruntime', 'T-32', 'fp32', (16.0,), threads=1, size='1280x960'))
        text = format_report(report_of(*results))
        assert text.count('| 1.00 |') == 3
        assert '| T-32, ONNX Runtime fp32 | 1 | 16.0 (16.0 to 16.0) | 7.0 | 1900 | 0.25 | 100 | 2.00 |  |' in text
        assert text.index('640x480:') < text.index('1280x960:')

    def test_gives_the_ratio_to_orb_at_each_pace(self):
        results = measured('orb', cold=(5.0,)), measured('openvino', 'T-32', 'int8', (3.0,), cold=(7.0,))
        lines = format_report(report_of(*results)).splitlines()
        assert '| ms at 30 Hz | ms cold |' in lines[2]
        assert '| times ORB at 30 Hz | times ORB cold |' in lines[2]
        assert '| 0.75 | 1.40 |' in lines[5]

    def test_says_what_auto_takes_and_how_faithful_each_runtime_is(self, report):
        assert 'as fp32' not in format_report(report).splitlines()[2]
        report['results'].append(measured('auto', 'T-32', 'auto', (5.0,)))
        report['results'][-1]['fidelity'] = {'engine': 'Abacus 3, int8', 'share': 99.5, 'cosine': 0.9991}
        lines = format_report(report).splitlines()
        assert '| 99.5 % (0.9991) |' in next(line for line in lines if line.startswith('| T-32, auto |'))
        assert '- auto, T-32, 640x480: Abacus 3, int8' in lines

    def test_names_once_what_failed_and_why(self, report):
        for model in ('T-32', 'T-48'):
            report['results'].append(measured('openvino', model, 'bf16', (), 'this CPU has no bf16'))
        lines = format_report(report).splitlines()
        assert lines.count('- OpenVINO bf16: this CPU has no bf16') == 1
        assert not any(line.startswith('| T-48') for line in lines)

    def test_says_its_machine_in_one_line(self, report):
        lines = format_report(report).splitlines()
        assert 'Abacus, 2 cores; OpenCV 5.0; 2 x 30 frames, at most 2048 keypoints' in lines

    def test_has_accuracy_only_where_it_was_measured(self, report):
        assert 'MMA@3' not in format_report(report)
        report['results'][0] = measured('orb', accuracy=65.4)
        lines = format_report(report).splitlines()
        assert '| MMA@3 | repeatability |' in lines[2]
        assert '| 65.4 | 60.0 | 1.00 |' in lines[4]
        assert '|  |  | 2.50 |' in lines[6]
        assert any('70 synthetic pairs' in line for line in lines)

    def test_tells_how_many_cameras_can_share(self, report):
        report['cameras'] = [
            {'model': 'T-32', 'cameras': 2, 'fps': 60.0, 'p95_ms': 12.5},
            {'model': 'T-32', 'cameras': 4, 'error': 'out of order'},
        ]
        lines = format_report(report).splitlines()
        assert '| 2 | T-32 | 60.0 | 12.5 |' in lines
        assert '| 4 | T-32 | out of order |  |' in lines


class TestPlot:
    @pytest.fixture(autouse=True)
    def plots(self):
        pytest.importorskip('matplotlib', reason='matplotlib is not installed')

    @pytest.mark.parametrize('accuracies', [(None, None), (65.0, 72.0)])
    def test_is_written_as_svg_and_png(self, accuracies, tmp_path, capsys):
        orb, model = accuracies
        results = [
            measured('orb', accuracy=orb),
            measured('openvino', 'T-32', 'bf16', (3.0, 3.5), accuracy=model),
            measured('openvino', 'T-32', 'bf16', (6.0, 6.5), threads=1, accuracy=model),
            measured('tensorrt', 'T-32', 'fp16', (), 'no GPU'),
        ]
        source = tmp_path / 'report.json'
        source.write_text(json.dumps(report_of(*results)))
        svg, png = tmp_path / 'new' / 'bench.svg', tmp_path / 'new' / 'bench.png'
        assert main(['bench', '--from', str(source), '--plot', str(svg), '--plot', str(png)]) == 0
        texts = [element.text for element in ElementTree.parse(svg).iter('{http://www.w3.org/2000/svg}text')]
        assert any('ORB' in text for text in texts)
        assert any('OpenVINO bf16' in text for text in texts)
        assert ('MMA@3, %' in texts) == (model is not None)
        picture = cv2.imread(str(png))
        assert picture.shape[1] == 1350
        assert 0.5 < (picture == 255).mean() < 0.999

    def test_has_a_part_for_each_size(self, tmp_path):
        results = [measured('orb', size=size) for size in ('640x480', '1280x960')]
        (tmp_path / 'report.json').write_text(json.dumps(report_of(*results)))
        main(['bench', '--from', str(tmp_path / 'report.json'), '--plot', str(tmp_path / 'bench.svg')])
        text = (tmp_path / 'bench.svg').read_text()
        assert '640x480' in text
        assert '1280x960' in text


class TestFile:
    def test_gives_the_same_table_again(self, report, tmp_path, capsys):
        (tmp_path / 'report.json').write_text(json.dumps(report))
        assert main(['bench', '--from', str(tmp_path / 'report.json')]) == 0
        assert capsys.readouterr().out == format_report(report) + '\n'

    @pytest.mark.parametrize(
        'files', [('--json', 'a.json'), ('--plot', 'a.svg'), ('--json', 'b.svg', '--plot', 'b.svg')]
    )
    def test_takes_no_others_place(self, files, report, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for name in ('a.json', 'a.svg'):
            (tmp_path / name).write_text('precious')
        (tmp_path / 'report.json').write_text(json.dumps(report))
        assert main(['bench', '--from', 'report.json', *files]) == 1
        assert re.search('a.* already exists|b.svg would be written twice', capsys.readouterr().err)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'a.svg', 'report.json']
        assert (tmp_path / 'a.json').read_text() == (tmp_path / 'a.svg').read_text() == 'precious'

    @pytest.mark.parametrize('content', ['', '[]', '{"format": "something else"}', None])
    def test_of_another_kind_is_refused(self, content, tmp_path, capsys):
        path = tmp_path / 'report.json'
        if content is not None:
            path.write_text(content)
        assert main(['bench', '--from', str(path)]) == 1
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ('args', 'complaint'),
    [
        (['--models', 'X-1'], "unknown model 'X-1'"),
        (['--backends', 'abacus'], "--backends: expected auto, tensorrt, openvino, onnxruntime, got 'abacus'"),
        (['--precisions', 'fp8'], f"--precisions: expected {', '.join(PRECISIONS[1:])}, got 'fp8'"),
        (['--threads', '1', '-2'], '--threads: expected 0 or more, got -2'),
        (['--sizes', '640'], "--sizes: expected WIDTHxHEIGHT, for example 640x480, got '640'"),
        (['--sizes', '640x48'], 'expected at least 64 x 64 pixels, got 640 x 48'),
        (['--frames', '0'], '--frames: expected 1 or more, got 0'),
        (['--rounds', '0'], '--rounds: expected 1 or more, got 0'),
        (['--keypoints', '0'], '--keypoints: expected 1 or more, got 0'),
        (['--busy', '-1'], '--busy: expected 0 or more, got -1'),
        (['--cameras', '2', '0'], '--cameras: expected 1 or more, got 0'),
        (['--plot', 'bench.gif'], '--plot: expected a file .svg or .png, got bench.gif'),
        (['--json', '/proc/bench.json'], '/proc/bench.json cannot be written'),
        (['--report', '/proc/bench.md'], '/proc/bench.md cannot be written'),
        (['--accuracy', '/nowhere'], 'no such folder or image: /nowhere'),
    ],
)
def test_an_impossible_option_is_refused_before_anything_runs(args, complaint, monkeypatch, capsys):
    monkeypatch.setattr(bench.subprocess, 'Popen', lambda *args, **rest: pytest.fail('a worker was started'))
    assert main(['bench', *args]) == 1
    assert complaint in capsys.readouterr().err


class TestMatrix:
    def contenders(self, *args, models=('T-32', 'E-64')):
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        return bench.list_contenders(parser.parse_args(args), list(models))

    def test_holds_every_combination(self):
        args = ('--threads', '1', '2', '--sizes', '640x480', '320x240', '--backends', 'onnxruntime', 'openvino')
        found = {(each.kind, each.model, each.precision) for each in self.contenders(*args)}
        ways = sum(len(BACKENDS[name].precisions) for name in ('onnxruntime', 'openvino'))
        assert len(self.contenders(*args)) == 2 * 2 * len(found) == 2 * 2 * (2 + 2 * (1 + ways))
        assert ('openvino', 'E-64', 'bf16') in found

    def test_holds_nothing_twice(self):
        once, twice = ('--threads', '1'), ('--threads', '1', '1', '--sizes', '640x480', '640x480')
        assert self.contenders(*once) == self.contenders(*twice)

    def test_runs_a_gpu_with_one_number_of_threads(self):
        args = ('--threads', '1', '2', '--backends', 'tensorrt')
        assert [each.threads for each in self.contenders(*args, models=['T-32']) if each.kind == 'tensorrt'] == [2]

    def test_has_the_official_code_where_it_is_at_hand(self, monkeypatch):
        assert 'official' not in {each.kind for each in self.contenders()}
        monkeypatch.setenv('EDGEPOINT2_OFFICIAL_CODE', '/some/clone')
        assert Contender('official', 'T-32', '', 1, '640x480') in self.contenders('--threads', '1')

    def test_lets_auto_choose_once_for_each_size(self):
        args = ('--threads', '1', '2', '--sizes', '640x480', '320x240')
        chosen = [each for each in self.contenders(*args, models=['T-32']) if each.kind == 'auto']
        assert [(each.precision, each.threads, each.size) for each in chosen] == [
            ('auto', 2, '640x480'),
            ('auto', 2, '320x240'),
        ]

    @pytest.mark.parametrize('name', BACKENDS)
    def test_runs_every_precision_that_a_backend_declares(self, name):
        contenders = [each for each in self.contenders('--backends', name) if each.kind == name]
        assert {each.precision for each in contenders} == set(BACKENDS[name].precisions)
        assert TITLES[name] == BACKENDS[name].title


def test_the_dense_reference_has_the_weights_of_the_runtimes(photograph):
    pytest.importorskip('torch', reason='torch is not installed')
    dense = open_contender(Contender('dense', 'T-32'), 500)(photograph)
    sparse = open_contender(Contender('onnxruntime', 'T-32', 'fp32'), 500)(photograph)
    distances = np.linalg.norm(dense.xy[:, None] - sparse.xy[None], axis=2)
    assert np.mean(distances.min(axis=1) < 0.75) > 0.99  # the reference has whole pixels


def test_a_folder_without_the_official_code_is_named(monkeypatch, tmp_path):
    pytest.importorskip('torch', reason='torch is not installed')
    monkeypatch.setenv('EDGEPOINT2_OFFICIAL_CODE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdgePoint2Error, match='expected a clone of HITCSC/EdgePoint2'):
        open_contender(Contender('official', 'T-32'), 500)


def test_the_official_code_may_be_named_from_here_and_leaves_here_as_it_was(monkeypatch, tmp_path):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    (tmp_path / 'clone').mkdir()
    torch.save(torch.tensor([3.0, 4.0]), tmp_path / 'clone' / 'weights.pth')
    (tmp_path / 'clone' / 'edgepoint2.py').write_text(
        'import torch\n'
        'class EdgePoint2Wrapper(torch.nn.Module):\n'
        '    def __init__(self, name, keypoints):\n'
        '        super().__init__()\n'
        '        self.place = torch.load("weights.pth")[None]\n'
        '    def forward(self, image):\n'
        '        return [{"keypoints": self.place, "scores": torch.ones(1), "descriptors": torch.eye(1, 32)}]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('EDGEPOINT2_OFFICIAL_CODE', 'clone')
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    monkeypatch.delitem(sys.modules, 'edgepoint2', raising=False)
    extract = open_contender(Contender('official', 'T-32'), 500)
    assert extract(np.zeros((48, 64), np.uint8)).xy.tolist() == [[3.0, 4.0]]
    assert Path.cwd() == tmp_path
    del sys.modules['edgepoint2']


@pytest.mark.parametrize('precision', ['int8', 'bf16', 'fp16'])
def test_the_best_that_fp32_finds_are_found_in_every_precision(official_model, precision, capsys):
    pytest.importorskip('openvino')
    official_model('T-32')
    contender = asdict(Contender('openvino', 'T-32', precision, threads=1))
    try:
        worker.main(json.dumps(['inspect', contender, {}]))
    except SystemExit as error:
        assert f'this CPU does not accelerate {precision}' in str(error)
        pytest.skip(str(error))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['share'] > 99


@pytest.mark.slow
def test_a_model_that_is_not_to_be_had_is_left_out(nothing_shipped, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    monkeypatch.setattr('edgepoint2_ros.models.official.find_weights', lambda variant: None)
    monkeypatch.setattr('edgepoint2_ros.models.official.UPSTREAM', 'http://127.0.0.1:9/')
    assert main(['bench', '--models', 'T-32', '--frames', '2', '--rounds', '1', '--threads', '0']) == 0
    out, err = capsys.readouterr()
    assert 'T-32 is left out' in err
    assert 'ORB' in out


@pytest.mark.slow
def test_a_backend_that_is_not_to_be_had_is_a_line(official_model, no_gpu, capsys):
    official_model('T-32')
    args = ['--models', 'T-32', '--backends', 'tensorrt', '--frames', '2', '--rounds', '1', '--threads', '0']
    assert main(['bench', *args]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('- TensorRT fp16: ') for line in lines) == 1
    assert not any(line.startswith('| T-32, TensorRT') for line in lines)


@pytest.mark.slow
class TestRun:
    @pytest.fixture(scope='class')
    def outcome(self, official_model, photograph, tmp_path_factory):
        """The report of a run with everything, and its table."""
        official_model('T-32')
        folder = tmp_path_factory.mktemp('bench')
        (folder / 'photographs').mkdir()
        cv2.imwrite(str(folder / 'photographs' / 'astronaut.png'), photograph)
        args = ['--models', 'T-32', '--frames', '3', '--rounds', '1', '--keypoints', '500', '--threads', '0']
        args += ['--backends', 'onnxruntime', 'openvino', 'auto', '--precisions', 'fp32', 'fp16', '--cameras', '2']
        args += ['--accuracy', str(folder / 'photographs'), '--json', str(folder / 'report.json'), '--busy', '1']
        args += ['--paces', 'camera', 'back-to-back', 'cold', '10-hz']
        assert main(['bench', *args, '--report', str(folder / 'report.md')]) == 0
        outcome = json.loads((folder / 'report.json').read_text())
        assert (folder / 'report.md').read_text() == f'# edgepoint2 bench\n\n{format_report(outcome)}\n'
        return outcome

    def test_has_every_contender_at_every_pace(self, outcome):
        lines = format_report(outcome).splitlines()
        assert '| ms at 30 Hz | ms back to back | ms at 10 Hz | ms cold |' in lines[2]
        for name in ('T-32, auto', 'ORB (OpenCV)', 'SIFT (OpenCV)', 'T-32, ONNX Runtime fp32', 'T-32, OpenVINO fp32'):
            assert sum(line.startswith(f'| {name} |') for line in lines) == 1
        assert 'dense reference, PyTorch' in format_report(outcome)  # a line, where there is no torch

    def test_says_what_it_ran_beside(self, outcome):
        assert 'beside 1 busy process;' in f'{format_report(outcome)};'.replace('\n', ';')

    def test_names_a_precision_that_is_refused(self, outcome):
        lines = format_report(outcome).splitlines()
        assert any(line.startswith('- ONNX Runtime fp16: ') and 'fp16' in line[23:] for line in lines)

    def test_knows_what_each_process_took(self, outcome):
        for result in outcome['results']:
            for run in result['runs']:
                assert run['first_s'] > 0
                assert 20 < run['peak_mb'] < 2000
                assert [len(pace['ms']) for pace in run['paces'].values()] == [3, 3, 3, 1]
                for pace in run['paces'].values():
                    assert pace['cpu_ms'] > 0
                    assert 100 < pace['keypoints'] <= 510

    def test_holds_each_runtime_against_fp32(self, outcome):
        found = {result['contender']['kind']: result.get('fidelity') for result in outcome['results'] if result['runs']}
        assert found['orb'] is None
        assert found['openvino']['share'] > 99
        assert found['auto']['share'] > 97
        assert 'auto: ' in found['auto']['engine']

    def test_measures_accuracy_with_the_precision_that_was_timed(self, outcome):
        for result in outcome['results']:
            if result['runs']:
                assert result['accuracy']['pairs'] == 5
                assert 20 < result['accuracy']['MMA@3'] <= 100
            else:
                assert 'accuracy' not in result

    def test_lets_cameras_share_the_first_model(self, outcome):
        (row,) = outcome['cameras']
        assert (row['model'], row['cameras']) == ('T-32', 2)
        assert row['fps'] > 0
        assert row['p95_ms'] > 0
