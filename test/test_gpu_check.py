"""tools/gpu_check, from the command line to its report, where there is no GPU and on one that is simulated."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from edgepoint2_ros.errors import EdgePoint2Error

ROOT = Path(__file__).parents[1]
TOOL = ROOT / 'tools' / 'gpu_check'

# Python runs this in every process that the tool starts. On this GPU T-32 works, and T-48 crashes.
SIMULATION = """
import os
from edgepoint2_ros.engines.tensorrt import engine, gpu
from edgepoint2_ros.engines import tensorrt
from edgepoint2_ros.models import read_part

def open_engine(model, *arguments):
    from simulated_gpu import SimulatedCuda, simulated_tensorrt
    cuda = SimulatedCuda()
    if model.variant.name == 'T-48':
        os.abort()
    engine.import_cudart = lambda gpu: cuda
    engine.import_tensorrt = lambda: simulated_tensorrt(cuda, read_part(model, 'tensorrt'))
    return original(model, *arguments)

gpu.find_gpu = engine.find_gpu = lambda: gpu.Gpu('Orin', '8.7', '12.6')
original, tensorrt.open_engine = tensorrt.open_engine, open_engine
"""


# A few steps of the tool's training, on the CPU.
TRAINING = """
import json, sys
from pathlib import Path
from edgepoint2_ros.distillation import train
from test_gpu_check import load_tool

train.BASIS_VIEWS = train.HEAD_VIEWS = 4
print(json.dumps(load_tool().train([Path(sys.argv[1])], device='cpu')))
"""


def load_tool() -> ModuleType:
    """Return the tool as a module, with as little to do as it can have."""
    loader = SourceFileLoader('gpu_check', str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('gpu_check', loader))
    loader.exec_module(module)
    module.RUNS, module.SIDE, module.STEPS, module.WARM_UP = 5, 64, 3, 1
    return module


@pytest.fixture(scope='module')
def tool():
    return load_tool()


@pytest.fixture
def model(official_model):
    return official_model('T-32')


def run(report: Path, *arguments, path: str = '', **environment) -> str:
    """Run the tool and return what it printed."""
    environment = {**os.environ, 'PYTHONPATH': path, **environment}
    environment.pop('EDGEPOINT2_OFFICIAL_CODE', None)
    done = subprocess.run(
        [sys.executable, TOOL, report, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


class TestSteps:
    def test_fp16_by_pytorch_keeps_the_bounds(self, tool, model):
        pytest.importorskip('torch', reason='torch is not installed')
        found = tool.check_torch(model, device='cpu')
        assert 'of the keypoints within 1 px' in found['check']
        assert found['ms'] > 0

    def test_what_computes_something_else_fails_them(self, tool, model, monkeypatch):
        pytest.importorskip('torch', reason='torch is not installed')
        monkeypatch.setattr(tool, 'best_keypoints', _backwards)
        with pytest.raises(EdgePoint2Error, match='failed the self-check against fp32 on the CPU'):
            tool.check_torch(model, device='cpu')

    def test_the_model_for_tensorrt_runs_by_onnx_runtime(self, tool, model):
        found = tool.check_onnxruntime(model, provider='CPUExecutionProvider')
        assert 'of the keypoints within 1 px' in found['check']
        assert found['not on CUDA'] == []

    def test_the_floor_has_the_work_and_the_time_of_each_model(self, tool, model):
        pytest.importorskip('torch', reason='torch is not installed')
        found = tool.find_floor([model], device='cpu')['models']['T-32']
        assert found['GFLOP'] == pytest.approx(0.97, abs=0.01)
        assert found['MB'] == pytest.approx(30, abs=1)
        assert found['floor, ms'] > 0

    def test_the_training_runs_and_learns_from_the_given_images(self, photograph, tmp_path):
        pytest.importorskip('torch', reason='torch is not installed')
        cv2.imwrite(str(tmp_path / 'astronaut.png'), photograph)
        path = os.pathsep.join(map(str, (ROOT, ROOT / 'test')))
        environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'PYTHONPATH': path}
        # In a process of its own, as the tool does it: the loader of the pairs forks.
        command = [sys.executable, '-c', TRAINING, tmp_path / 'astronaut.png']
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found['images'] == 1
        assert found['steps a second'] > 0

    def test_a_step_that_raises_has_a_reason_of_one_line(self, tool):
        def fail():
            raise RuntimeError('CUDA error:\nno kernel image')

        assert tool.try_step(fail) == {'reason': 'RuntimeError: CUDA error: no kernel image'}

    def test_a_step_that_hangs_is_ended(self, tool, tmp_path, monkeypatch):
        hanging = tmp_path / 'nvidia-smi'  # of a driver that does not answer
        hanging.write_text('#!/bin/sh\nexec sleep 60\n')
        hanging.chmod(0o755)
        monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
        monkeypatch.setattr(tool, 'LIMIT', 5)
        monkeypatch.setattr(sys, 'argv', ['gpu_check', str(tmp_path / 'report')])
        assert tool.run_step('machine', str(tmp_path))['reason'] == 'took longer than 5 s'


def _backwards(*arguments, **options):
    from edgepoint2_ros.keypoints import best_keypoints

    xy, scores, descriptors = best_keypoints(*arguments, **options)
    return xy, scores, descriptors[::-1]


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        ([], '{folder}/mine.md already exists: choose another path, or remove it'),
        (['--models', 'X'], "unknown model 'X'"),
        (['--frames', '0'], '--frames: expected 1 or more, got 0'),
        (['--images', '/nowhere'], '--images: no such folder: /nowhere'),
    ],
)
def test_what_would_be_in_vain_is_refused_at_once(arguments, complaint, tmp_path):
    (tmp_path / 'mine.md').touch()
    done = subprocess.run([sys.executable, TOOL, tmp_path / 'mine', *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f'gpu_check: {complaint.format(folder=tmp_path)}')
    assert done.stderr.count('\n') == 1


@pytest.mark.slow
def test_without_a_gpu_it_says_of_each_step_why_not(no_gpu, tmp_path):
    pytest.importorskip('torch', reason='torch is not installed')
    printed = run(tmp_path / 'report', '--models', 'T-32')
    assert printed.endswith(f'Please send {tmp_path}/report.json and {tmp_path}/report.md.\n')
    outcomes = json.loads((tmp_path / 'report.json').read_text())
    assert list(outcomes) == [
        *('machine', 'TensorRT T-32', 'TensorRT T-32, odd size', 'ONNX Runtime T-32', 'PyTorch T-32'),
        *('speed', 'floor', 'training'),
    ]
    assert 'NVIDIA' in outcomes['machine']['result']['no gpu']
    assert 'NVIDIA' in outcomes['TensorRT T-32']['reason']
    assert 'install onnxruntime-gpu' in outcomes['ONNX Runtime T-32']['reason']
    assert 'sees no CUDA device' in outcomes['PyTorch T-32']['reason']
    assert outcomes['speed']['reason'] == outcomes['TensorRT T-32']['reason']
    assert 'sees no CUDA device' in outcomes['floor']['result']['no speeds']
    assert 'name a folder by --images' in outcomes['training']['reason']
    page = (tmp_path / 'report.md').read_text()
    assert f'| not done: {outcomes["training"]["reason"]} |' in page
    assert '| T-32 |  |  |  |  | 0.97 | 30.0 |' in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ['report.json', 'report.md']


@pytest.mark.slow
def test_on_a_gpu_it_measures_and_goes_on_after_a_crash(official_model, tmp_path):
    pytest.importorskip('tensorrt_rtx', reason='TensorRT-RTX is not installed')
    for name in ('T-32', 'T-48'):
        official_model(name)
    (tmp_path / 'sitecustomize.py').write_text(SIMULATION)
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / 'test')))
    run(tmp_path / 'new' / 'report', '--models', 'T-32', 'T-48', '--frames', '2', path=path)
    outcomes = json.loads((tmp_path / 'new' / 'report.json').read_text())
    assert outcomes['machine']['result']['gpu'] == {'name': 'Orin', 'compute_capability': '8.7', 'cuda': '12.6'}
    right = outcomes['TensorRT T-32']['result']
    assert right['engine'].startswith('TensorRT-RTX ')
    assert 'passed its self-check: ' in right['check']
    assert right['ms'] > 0
    assert 'passed its self-check: ' in outcomes['TensorRT T-32, odd size']['result']['check']
    assert outcomes['TensorRT T-48']['reason'] == 'crashed: SIGABRT'
    rows = outcomes['speed']['result']['results']
    timed = {(row['contender']['kind'], row['contender']['model']) for row in rows if row['runs']}
    assert ('tensorrt', 'T-32') in timed
    assert 'T-48' not in {model for _, model in timed}
    assert [row['cameras'] for row in outcomes['speed']['result']['cameras'] if 'fps' in row] == [1, 2, 4]
    page = (tmp_path / 'new' / 'report.md').read_text()
    assert '| T-32, TensorRT fp16 |' in page
    assert '| cameras at 30 Hz |' in page
