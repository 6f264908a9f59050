"""Nothing phones home: the runtimes come without their telemetry; and where there is no home, everything works."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import ROOT

from edgepoint2_ros.engines import openvino
from edgepoint2_ros.engines.onnxruntime import import_onnxruntime

CI = ('CI', 'TF_BUILD', 'JENKINS_URL')  # where these are set, the runtimes are silent by themselves
NAMELESS = ['unshare', '--user', '--map-user=12345']  # as a user that the system does not know


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A new home, in an environment that says nothing of telemetry."""
    home = tmp_path / 'home'
    home.mkdir()
    monkeypatch.setenv('HOME', str(home))
    for name in ('XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME', 'XDG_STATE_HOME', 'ROS_LOG_DIR', 'ROS_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name in ('ORT_DISABLE_TELEMETRY', *CI):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def photo(photograph, tmp_path) -> str:
    cv2.imwrite(str(tmp_path / 'photo.png'), photograph)
    return str(tmp_path / 'photo.png')


def files(folder: Path) -> set[str]:
    """Return the files and folders in a home, but those of ROS."""
    return (
        {str(path.relative_to(folder)) for path in folder.rglob('*')}
        - {'.ros'}
        - {str(path.relative_to(folder)) for path in folder.glob('.ros/**/*')}
    )


def extract(photo: str, *arguments: str) -> list[str]:
    return [sys.executable, '-m', 'edgepoint2_ros.cli', 'extract', photo, *arguments]


def test_the_runtimes_are_imported_in_one_place_each():
    """Everywhere else their telemetry would be on."""
    places = [
        f'{path.relative_to(ROOT)}: {line.strip()}'
        for folder in ('edgepoint2_ros', 'examples', 'test', 'launch')
        for path in sorted((ROOT / folder).rglob('*.py'))
        for line in path.read_text(encoding='utf-8').splitlines()
        if re.match(r'\s*(import|from) (onnxruntime|openvino)\b', line)
    ]
    assert places == [
        'edgepoint2_ros/engines/onnxruntime.py: import onnxruntime',
        'edgepoint2_ros/engines/openvino.py: import openvino',
    ]


def test_what_the_user_has_chosen_stays(home, monkeypatch):
    import_onnxruntime()
    assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'
    monkeypatch.setenv('ORT_DISABLE_TELEMETRY', '0')
    import_onnxruntime()
    assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'

    monkeypatch.delitem(sys.modules, 'openvino_telemetry', raising=False)
    consent = home / 'intel' / 'openvino_telemetry'
    consent.parent.mkdir()
    for text, blocked in ((None, True), ('0', True), ('nonsense', True), ('1', False)):
        if text is not None:
            consent.write_text(text)
        with openvino.without_telemetry():
            assert (sys.modules.get('openvino_telemetry', 'free') is None) == blocked
        assert 'openvino_telemetry' not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime'])
def test_the_command_leaves_nothing_in_the_home(backend, official_model, photo, home):
    pytest.importorskip(backend)
    official_model('T-32')
    subprocess.run(extract(photo, '--backend', backend), check=True, cwd=ROOT)
    assert files(home) == set()


@pytest.mark.slow
def test_the_doctor_leaves_only_its_measurements_in_the_home(official_model, home):
    official_model('T-32')
    subprocess.run([sys.executable, '-m', 'edgepoint2_ros.cli', 'doctor'], check=True, cwd=ROOT)
    assert files(home) - {'.cache', '.cache/edgepoint2'} <= {'.cache/edgepoint2/auto.json'}


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime'])
def test_the_node_leaves_nothing_in_the_home(backend, official_model, home, tmp_path):
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    pytest.importorskip(backend)
    official_model('T-32')
    from node_rig import Process

    process = Process(tmp_path, 'private', backend=backend)
    try:
        process.wait_for('waiting for images')
    finally:
        process.interrupt()
        assert process.end() == 0
    assert files(home) == set()


@pytest.fixture
def strace(tmp_path):
    """The command that writes the calls of another one to trace.txt; skips where there is none."""
    command = ['strace', '-f', '-e', 'trace=connect,sendto,sendmsg,sendmmsg,exit_group', '-o', tmp_path / 'trace.txt']
    if not shutil.which('strace') or subprocess.run([*command, 'true']).returncode:
        pytest.skip('strace is not installed, or not allowed here')
    return command


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime'])
def test_the_command_calls_nobody_and_starts_no_process(backend, official_model, photo, home, strace):
    pytest.importorskip(backend)
    official_model('T-32')
    subprocess.run([*strace, *extract(photo, '--backend', backend)], check=True, cwd=ROOT)
    calls = strace[-1].read_text()
    assert 'AF_INET' not in calls
    assert len(re.findall(r' exit_group\(', calls)) == 1  # each process ends with one


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime'])
def test_the_node_looks_nobody_up_and_starts_no_process(backend, official_model, home, strace, ros):
    """Of its other calls most are those of DDS."""
    from node_rig import wait_until

    pytest.importorskip(backend)
    official_model('T-32')
    command = [*strace, sys.executable, '-m', 'edgepoint2_ros.node', '--ros-args', '-p', f'backend:={backend}']
    log = strace[-1].with_name('log.txt')
    with open(log, 'w') as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until(lambda: 'waiting for images' in log.read_text() or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    calls = strace[-1].read_text()
    assert 'htons(53)' not in calls
    assert len(re.findall(r' exit_group\(', calls)) == 1


@pytest.fixture
def nameless(monkeypatch):
    """Skip where no process of a user without a name can be started; return the command that does."""
    if not shutil.which('unshare') or subprocess.run([*NAMELESS, 'true']).returncode:
        pytest.skip('this machine allows no user namespace')
    domain = [f'{name}={os.environ[name]}' for name in ('ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE')]
    return [*NAMELESS, 'env', '-i', f'PATH={os.environ["PATH"]}', *domain]


@pytest.mark.slow
@pytest.mark.parametrize('home_of_others', [[], ['HOME=/'], ['HOME=/proc']])
def test_the_command_works_without_home_and_name(home_of_others, official_model, photo, nameless):
    official_model('T-32')
    done = subprocess.run([*nameless, *home_of_others, *extract(photo)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r'photo.png: \d{4} keypoints', done.stdout)
    for arguments in (['models', 'list'], ['doctor']):
        command = [*nameless, *home_of_others, sys.executable, '-m', 'edgepoint2_ros.cli', *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('home_of_others', [[], ['HOME=/proc']])
@pytest.mark.parametrize('module', ['edgepoint2_ros.node', 'edgepoint2_ros.node.visual_odometry'])
def test_the_nodes_work_without_home_and_name(module, home_of_others, nameless, official_model, ros):
    import rclpy
    from node_rig import wait_until

    official_model('T-32')
    peer = rclpy.create_node('peer')
    process = subprocess.Popen([*nameless, *home_of_others, sys.executable, '-m', module], cwd=ROOT)
    topic = 'image' if module == 'edgepoint2_ros.node' else 'camera_info'
    try:
        wait_until(lambda: peer.count_subscribers(topic) == 1 or process.poll() is not None)
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0
        peer.destroy_node()
