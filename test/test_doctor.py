import os
import re
import subprocess
import sys

import pytest

from edgepoint2_ros.cli import doctor, main
from edgepoint2_ros.engines import check
from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.storage import cache_directory


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def row(out: str, what: str) -> str:
    """Return the line of the table about ``what``."""
    return next(line for line in out.splitlines() if line.startswith(what))


def test_a_machine_that_works_is_ready(official_model, capsys):
    official_model('T-32')
    assert main(['doctor']) == 0
    out = capsys.readouterr().out
    for what in ('Python', 'numpy', 'OpenCV', 'model T-32', 'models folder', 'plans folder', 'onnxruntime'):
        assert row(out, what).split(maxsplit=len(what.split()))[len(what.split())].startswith('ok'), what
    assert row(out, 'edgepoint2_ros').endswith('/edgepoint2_ros')
    assert official_model('T-32').digest in row(out, 'model T-32')
    assert 'GB free' in row(out, 'plans folder')
    assert '% of the keypoints within 1 px' in row(out, 'onnxruntime')
    assert out.splitlines()[-1].startswith('ready: T-32')


def test_without_a_model_it_is_not_ready_and_says_how_to_get_one(nothing_shipped, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert 'edgepoint2 models download T-32' in out
    assert out.splitlines()[-1].startswith('not ready: there is no model')


def test_a_broken_model_is_named(official_model, nothing_shipped, monkeypatch, tmp_path, capsys):
    model = official_model('T-32')
    folder = tmp_path / 'edgepoint2' / 'models' / 'official'
    folder.mkdir(parents=True)
    (folder / 'T-32.onnx').write_bytes(model.path.read_bytes()[:-1])
    (folder / 'T-32.json').write_bytes(model.path.with_suffix('.json').read_bytes())
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    assert main(['doctor']) == 1
    assert 'T-32.onnx is corrupt' in capsys.readouterr().out


def test_without_a_gpu_that_is_said_and_all_else_works(official_model, no_gpu, capsys):
    official_model('T-32')
    assert main(['doctor']) == 0
    out = capsys.readouterr().out
    assert 'missing' in row(out, 'NVIDIA GPU')
    assert 'missing' in row(out, 'tensorrt')


def test_backends_that_are_missing_are_named_and_without_any_it_is_not_ready(
    official_model, no_gpu, monkeypatch, capsys
):
    official_model('T-32')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    assert main(['doctor']) == 0
    assert 'pip install openvino' in row(capsys.readouterr().out, 'openvino')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert main(['doctor']) == 1
    assert capsys.readouterr().out.splitlines()[-1] == 'not ready: no backend works'


def test_a_backend_with_wrong_features_is_broken(official_model, monkeypatch, capsys):
    official_model('T-32')
    compare = check.compare
    monkeypatch.setattr(check, 'compare', lambda found, expected: compare(found[:2] + (found[2][::-1],), expected))
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert 'BROKEN' in row(out, 'onnxruntime')
    assert 'failed the self-check' in row(out, 'onnxruntime')
    assert 'cannot be trusted' in out.splitlines()[-1]


def test_plans_are_listed(official_model, capsys):
    official_model('T-32')
    key = {'model': 'T-32', 'image': '640x480x3', 'runtime': 'TensorRT 10.3.0', 'gpu': 'Orin'}
    plan_cache.provide(cache_directory() / 'a.plan', key, lambda: bytes(2_000_000), print)
    (cache_directory() / 'b.plan').write_bytes(b'')
    main(['doctor'])
    out = capsys.readouterr().out
    assert 'T-32, 640x480x3, TensorRT 10.3.0, Orin, 2.0 MB' in out
    assert 'b.plan has no sidecar' in out


def test_little_space_is_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(doctor, 'LITTLE_SPACE', 1e18)
    main(['doctor'])
    out = capsys.readouterr().out
    assert 'warning' in row(out, 'plans folder')
    assert 'little space is left' in out


@pytest.mark.slow
def test_scripts_get_an_exit_code_and_ros_is_found(official_model):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    official_model('T-32')
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'doctor']
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'ok' in row(done.stdout, 'ROS 2')
    assert 'rmw_' in row(done.stdout, 'middleware')
    assert 'ok' in row(done.stdout, 'messages')
    environment = {**os.environ, 'RMW_IMPLEMENTATION': 'rmw_of_nobody'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert 'BROKEN' in row(done.stdout, 'ROS 2')
    assert done.stderr.count('Traceback') == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['T-64'], "unknown model 'T-64'"),
        (['T-32', '--size', '640'], "--size: expected WIDTHxHEIGHT, for example 640x480, got '640'"),
        (['T-32', '--size', '32x32'], 'at least 64 x 64 pixels, got 32 x 32'),
        (['T-32'], 'no NVIDIA driver|no GPU'),
    ],
)
def test_build_engine_refuses_in_one_line(official_model, no_gpu, capsys, arguments, message):
    official_model('T-32')
    assert main(['build-engine', *arguments]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert re.search(message, err)
