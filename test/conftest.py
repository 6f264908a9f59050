"""What the tests share: where the weights and images lie, models made once, and a ROS 2 that keeps to this machine."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgepoint2_ros.engines.onnxruntime import import_onnxruntime
from edgepoint2_ros.engines.openvino import import_openvino

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared'

# A domain for each process, this host only; those of pytest-xdist count up from their parent's. Humble knows only
# ROS_LOCALHOST_ONLY, later distributions complain about it.
_worker = os.environ.get('PYTEST_XDIST_WORKER')
_process = os.getpid() if _worker is None else os.getppid() + 1 + int(_worker.removeprefix('gw'))
os.environ['ROS_DOMAIN_ID'] = str(_process % 100 + 1)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
if os.environ.get('ROS_DISTRO') == 'humble':
    os.environ['ROS_LOCALHOST_ONLY'] = '1'

# Without their telemetry, before a test imports them by itself.
for import_runtime in (import_onnxruntime, import_openvino):
    with contextlib.suppress(ImportError):
        import_runtime()

# Models that the tests make are kept between runs, until the code that makes them changes.
_exporter = b''.join(path.read_bytes() for path in sorted((ROOT / 'edgepoint2_ros' / 'network').glob('*.py')))
os.environ['XDG_DATA_HOME'] = str(ROOT / 'build' / 'test-data' / hashlib.sha256(_exporter).hexdigest()[:12])

# What `auto` measures is kept between runs, too.
os.environ['XDG_CACHE_HOME'] = str(ROOT / 'build' / 'test-cache')


def pytest_collection_modifyitems(config, items):
    """Let tests that start real processes fail twice: on a busy machine the middleware loses messages."""
    if config.pluginmanager.hasplugin('rerunfailures'):
        for item in items:
            if item.get_closest_marker('slow'):
                item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(scope='session')
def official_model():
    """Return a function that gives the default model of a variant: shipped, or official; or skips without weights."""
    from edgepoint2_ros.models import is_shipped
    from edgepoint2_ros.models.official import DIRECTORY_VARIABLE, find_weights, provide_model
    from edgepoint2_ros.models.variants import find_variant

    def provide(name: str):
        variant = find_variant(name)
        if not is_shipped(variant) and find_weights(variant) is None:
            pytest.skip(f'no official weights of {variant}: name their folder in ${DIRECTORY_VARIABLE}')
        if not is_shipped(variant):
            for name in ('torch', 'onnx'):
                pytest.importorskip(name, reason=f'{name} is not installed: models cannot be made')
        return provide_model(variant)

    return provide


@pytest.fixture(scope='module')
def import_example():
    """Return a function that imports a program of examples/ as a module."""
    names = []

    def load(name: str):
        names.append(name)
        return importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'examples')
        yield load
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def no_gpu():
    """Skips where there is a GPU."""
    from edgepoint2_ros.engines.tensorrt.gpu import find_gpu
    from edgepoint2_ros.errors import EngineError

    try:
        find_gpu()
    except EngineError:
        return
    pytest.skip('this machine has a GPU')


@pytest.fixture
def nothing_shipped(monkeypatch, tmp_path):
    """The package as if it had come without models."""
    monkeypatch.setattr('edgepoint2_ros.models.SHIPPED', tmp_path / 'nothing')


@pytest.fixture(scope='session')
def photograph() -> np.ndarray:
    """A colour photograph, uint8 (480, 640, 3), BGR."""
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    return np.ascontiguousarray(np.tile(data.astronaut()[:480], (1, 2, 1))[:, 60:700, ::-1])


@pytest.fixture
def gray(photograph):
    """The photograph in gray, (480, 640): small enough for every buffer of the middleware."""
    return np.ascontiguousarray(photograph[:, :, 1])


@pytest.fixture(scope='module')
def ros():
    """ROS 2 in this process."""
    rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope='session')
def tf2_msgs(tmp_path_factory) -> dict[str, str]:
    """The message of tf2 in this process; returns the environment in which other processes find it.

    A ROS 2 from pip lacks it: then it is built from test/tf2.
    """
    return _build_messages('tf2_msgs', ROOT / 'test' / 'tf2', tmp_path_factory)


@pytest.fixture(scope='session')
def rtabmap_msgs(tmp_path_factory) -> dict[str, str]:
    """RTAB-Map's messages of an image, from test/rtabmap where they are not installed; as for tf2_msgs."""
    return _build_messages('rtabmap_msgs', ROOT / 'test' / 'rtabmap', tmp_path_factory)


def _build_messages(name: str, source: Path, tmp_path_factory) -> dict[str, str]:
    """Build a package of messages unless it is installed, load it, and return the environment for other processes."""
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    if importlib.util.find_spec(name):
        return dict(os.environ)
    build, prefix = tmp_path_factory.mktemp('build'), tmp_path_factory.mktemp(name)
    configure = ['cmake', '-S', source, '-B', build, f'-DPython3_EXECUTABLE={sys.executable}']
    configure += [f'-DCMAKE_PREFIX_PATH={sys.prefix}', f'-DCMAKE_INSTALL_PREFIX={prefix}']
    configure += [f'-DCMAKE_INSTALL_RPATH={prefix}/lib;{sys.prefix}/lib']
    environment = {**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
    for command in (configure, ['cmake', '--build', build, '--parallel', '2'], ['cmake', '--install', build]):
        done = subprocess.run(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
        )
        assert done.returncode == 0, done.stdout[-4000:]
    [package] = prefix.rglob(f'{name}/__init__.py')
    sys.path.append(str(package.parents[1]))
    for library in (prefix / 'lib').glob('*.so'):
        ctypes.CDLL(str(library))  # the middleware asks for them by name
    libraries = f'{prefix}/lib:{os.environ.get("LD_LIBRARY_PATH", "")}'
    return {**os.environ, 'PYTHONPATH': str(package.parents[1]), 'LD_LIBRARY_PATH': libraries}


@pytest.fixture
def start(rig, tmp_path):
    """Return a function that starts the node as a process; it is ended with the test, before the rigs are."""
    from node_rig import Process

    processes = []

    def start(namespace: str, *args, **values) -> Process:
        processes.append(Process(tmp_path, namespace, *args, **values))
        return processes[-1]

    yield start
    for process in processes:
        process.interrupt()
        process.end()


@pytest.fixture
def rig(ros):
    """Return a function that sets up a camera and a reader of its keypoints in the namespace of a node."""
    from node_rig import Rig, destroy

    rigs = []

    def build(namespace: str, camera: str = '', **options) -> Rig:
        rigs.append(Rig(namespace, camera, **options))
        return rigs[-1]

    yield build
    for each in rigs:
        destroy(each.node, each.target)
