import json
import multiprocessing
import os
import resource
import signal
import time

import pytest

from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.storage import cache_directory

KEY = {'model': 'T-32', 'runtime': 'TensorRT 10.3.0', 'gpu': 'Orin'}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'cache' / 'T-32.plan'


@pytest.fixture
def lines():
    """What was reported."""
    return []


def never():
    raise AssertionError('built, though the plan was there')


def provide(path, key, plan, lines):
    return plan_cache.provide(path, key, lambda: plan, lines.append)


def test_a_plan_is_built_once_and_kept(path, lines):
    assert provide(path, KEY, b'plan', lines) == b'plan'
    assert plan_cache.provide(path, KEY, never, lines.append) == b'plan'
    assert lines == []
    assert not list(path.parent.glob('*.part'))


def test_another_version_rebuilds_once_and_says_why(path, lines):
    provide(path, KEY, b'old', lines)
    newer = {**KEY, 'runtime': 'TensorRT 10.7.0'}
    assert provide(path, newer, b'new', lines) == b'new'
    assert lines == [
        'T-32.plan was built for runtime TensorRT 10.3.0; this is runtime TensorRT 10.7.0: building it again'
    ]
    assert plan_cache.provide(path, newer, never, lines.append) == b'new'


def test_another_model_or_gpu_rebuilds_and_names_both(path, lines):
    provide(path, KEY, b'old', lines)
    provide(path, {**KEY, 'model': 'E-64', 'gpu': 'Thor'}, b'new', lines)
    assert 'built for model T-32, gpu Orin; this is model E-64, gpu Thor' in lines[0]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (flip_a_bit, 'is damaged'),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), 'is damaged: its 5 bytes'),
        (lambda path: path.write_bytes(b''), 'is damaged: its 0 bytes'),
        (lambda path: path.unlink(), 'cannot be read'),
        (lambda path: path.with_name('T-32.plan.json').write_text('{"key":'), 'cannot be read'),
        (lambda path: path.with_name('T-32.plan.json').write_text('[]'), 'cannot be read'),
        (lambda path: path.with_name('T-32.plan.json').write_text('{"key": {}}'), 'cannot be read'),
        (lambda path: path.with_name('T-32.plan.json').write_bytes(b'\xff\xfe'), 'cannot be read'),
    ],
)
def test_a_damaged_plan_is_never_given_back(path, lines, damage, reason):
    provide(path, KEY, b'0123456789', lines)
    damage(path)
    assert provide(path, KEY, b'again', lines) == b'again'
    assert reason in lines[0]
    assert plan_cache.load(path, KEY) == (b'again', '')


def test_a_plan_without_its_sidecar_is_built_again(path, lines):
    """As a crash leaves it between the two files."""
    path.parent.mkdir()
    path.write_bytes(b'half written')
    assert provide(path, KEY, b'plan', lines) == b'plan'
    assert plan_cache.load(path, KEY) == (b'plan', '')


def test_a_build_that_fails_leaves_nothing_and_the_next_may_work(path, lines):
    def refuse():
        raise RuntimeError('refused')

    with pytest.raises(RuntimeError, match='refused'):
        plan_cache.provide(path, KEY, refuse, lines.append)
    assert plan_cache.load(path, KEY) == (None, '')
    assert provide(path, KEY, b'plan', lines) == b'plan'


def full_disk(*_):
    raise OSError(28, 'No space left on device')


def test_a_full_disk_costs_only_the_next_start(path, lines, monkeypatch):
    provide(path, KEY, b'old', lines)
    monkeypatch.setattr(os, 'fsync', full_disk)  # where a full disk shows, once the data must be on it
    newer = {**KEY, 'runtime': 'TensorRT 10.7.0'}
    assert provide(path, newer, b'new', lines) == b'new'
    assert 'cannot be kept in' in lines[-1]
    assert 'No space left on device' in lines[-1]
    assert not list(path.parent.glob('*.part'))
    assert plan_cache.load(path, KEY) == (b'old', '')  # what was there is still whole


def test_a_disk_that_fills_up_while_the_plan_is_written(path, lines):
    """The kernel takes the first bytes and refuses the rest."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert provide(path, KEY, bytes(100_000), lines) == bytes(100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 'cannot be kept in' in lines[-1]
    assert plan_cache.load(path, KEY) == (None, '')
    assert [file.name for file in path.parent.iterdir()] == ['T-32.plan.lock']


def test_a_cache_that_cannot_be_written_costs_only_the_next_start(tmp_path, lines):
    (tmp_path / 'file').write_text('')
    path = tmp_path / 'file' / 'cache' / 'T-32.plan'  # no folder can be made below a file, not even by root
    assert provide(path, KEY, b'plan', lines) == b'plan'
    assert 'cannot be kept in' in lines[-1]


def test_a_read_only_cache_serves_what_it_has_and_takes_nothing_new(path, lines):
    provide(path, KEY, b'plan', lines)
    path.with_name('T-32.plan.lock').unlink()
    path.parent.chmod(0o500)
    try:
        assert plan_cache.provide(path, KEY, never, lines.append) == b'plan'
        if os.access(path.parent, os.W_OK):
            pytest.skip('this user may write everywhere (root)')
        assert provide(path, {**KEY, 'gpu': 'Thor'}, b'other', lines) == b'other'
        assert 'cannot be kept in' in lines[-1]
    finally:
        path.parent.chmod(0o700)


def _build_slowly(path, log, seconds):
    def build() -> bytes:
        with open(log, 'a') as file:
            file.write(f'{os.getpid()}\n')
        time.sleep(seconds)
        return b'plan'

    assert plan_cache.provide(path, KEY, build, lambda line: None) == b'plan'


@pytest.mark.slow
def test_two_processes_build_a_plan_once(path, tmp_path):
    spawn = multiprocessing.get_context('spawn')
    processes = [spawn.Process(target=_build_slowly, args=(path, tmp_path / 'log', 1)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / 'log').read_text().split()) == 1


@pytest.mark.slow
def test_a_builder_that_is_killed_leaves_no_lock(path, tmp_path, lines):
    spawn = multiprocessing.get_context('spawn')
    builder = spawn.Process(target=_build_slowly, args=(path, tmp_path / 'log', 60))
    builder.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / 'log').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    waiter = spawn.Process(target=_build_slowly, args=(path, tmp_path / 'log', 0))
    waiter.start()
    time.sleep(0.5)
    os.kill(builder.pid, signal.SIGKILL)
    waiter.join(20)
    assert waiter.exitcode == 0
    assert plan_cache.load(path, KEY) == (b'plan', '')
    builder.join()


def test_plans_are_listed_with_what_they_were_built_for(monkeypatch, tmp_path, lines):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    folder = cache_directory()
    assert plan_cache.list_plans() == []
    provide(folder / 'a.plan', KEY, b'plan', lines)
    (folder / 'b.plan').write_bytes(b'')
    (folder / 'b.plan.json').write_text(json.dumps({'key': 3}))
    assert plan_cache.list_plans() == [(folder / 'a.plan', KEY), (folder / 'b.plan', {})]
