"""What the tests share: where the weights and images lie, models made once, and a ROS 2 that keeps to this machine."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from edgepoint2_ros.engines.onnxruntime import import_onnxruntime
from edgepoint2_ros.engines.openvino import import_openvino

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / 'shared'

# Own domain, this host only. Humble knows only ROS_LOCALHOST_ONLY, later distributions complain about it.
os.environ['ROS_DOMAIN_ID'] = str(os.getpid() % 100 + 1)
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


@pytest.fixture(scope='session')
def official_model():
    """Return a function that gives the default model of a variant: shipped, or official; or skips without weights."""
    from edgepoint2_ros.models import is_shipped
    from edgepoint2_ros.official import DIRECTORY_VARIABLE, find_weights, provide_model
    from edgepoint2_ros.variants import find_variant

    def provide(name: str):
        variant = find_variant(name)
        if not is_shipped(variant) and find_weights(variant) is None:
            pytest.skip(f'no official weights of {variant}: name their folder in ${DIRECTORY_VARIABLE}')
        return provide_model(variant)

    return provide


@pytest.fixture
def no_gpu():
    """Skips where there is a GPU."""
    from edgepoint2_ros.engines.gpu import find_gpu
    from edgepoint2_ros.errors import EngineError

    try:
        find_gpu()
    except EngineError:
        return
    pytest.skip('this machine has a GPU')


@pytest.fixture
def nothing_shipped(monkeypatch, tmp_path):
    """The package as if it had come without models."""
    from edgepoint2_ros import models

    monkeypatch.setattr(models, 'SHIPPED', tmp_path / 'nothing')


@pytest.fixture(scope='session')
def photograph() -> np.ndarray:
    """A colour photograph, uint8 (480, 640, 3), BGR."""
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    return np.ascontiguousarray(np.tile(data.astronaut()[:480], (1, 2, 1))[:, 60:700, ::-1])


@pytest.fixture(scope='module')
def ros():
    """ROS 2 in this process."""
    rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the node as a process; it is ended with the test."""
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
    from node_rig import Rig

    rigs = []

    def build(namespace: str, camera: str = '') -> Rig:
        rigs.append(Rig(namespace, camera))
        return rigs[-1]

    yield build
    for each in rigs:
        each.node.destroy_node()
