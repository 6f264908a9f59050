"""Check the installation: what is there, what is missing and how to get it, and whether features can be extracted.

Every available backend extracts the features of a drawn scene, which are compared with those on the model's card; the
last row shows the choice of `auto`. The exit code is 0 if there is a model, a backend works and none gives wrong
features, else 1.
"""

import argparse
import contextlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros import __version__
from edgepoint2_ros.engines import BACKENDS, open_engine
from edgepoint2_ros.engines.check import CARD_SHAPE, check_against_card, draw_scene
from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.engines.tensorrt.gpu import find_gpu
from edgepoint2_ros.errors import EdgePoint2Error, EngineError
from edgepoint2_ros.models import Model, list_models
from edgepoint2_ros.storage import cache_directory, data_directory

OK, MISSING, WARNING, BROKEN = 'ok', 'missing', 'warning', 'BROKEN'
RUNS = 5
LITTLE_SPACE = 200e6  # bytes


@dataclass(frozen=True)
class Finding:
    """One row of the table; ``found`` says what is there or what is wrong, ``advice`` how to fix it."""

    what: str
    state: str
    found: str
    advice: str = ''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments: the doctor checks everything."""


def run(options: argparse.Namespace) -> int:
    """Print the table and the verdict and return the exit code."""
    found = list_models()
    for findings in (find_system(), find_ros(), find_nvidia(), find_models(found), find_storage()):
        for finding in findings:
            show(finding)
    models = [model for model in found if isinstance(model, Model)]
    if not models:
        print('\nnot ready: there is no model to extract features with')
        return 1
    backends = [try_backend(backend, models[0]) for backend in BACKENDS]
    for finding in [*backends, *find_choice(models[0])]:
        show(finding)
    broken = [finding.what for finding in backends if finding.state == BROKEN]
    if broken:
        print(f'\nnot ready: {" and ".join(broken)} cannot be trusted here')
        return 1
    working = [finding.what for finding in backends if finding.state == OK]
    if not working:
        print('\nnot ready: no backend works')
        return 1
    print(f'\nready: {", ".join(model.variant.name for model in models)} on {" or ".join(working)}')
    return 0


def show(finding: Finding) -> None:
    print(f'{finding.what:16} {finding.state:8} {finding.found}', flush=True)
    if finding.advice:
        print(f'{"":25} -> {finding.advice}', flush=True)


def find_system() -> Iterator[Finding]:
    """Python, its numpy and OpenCV, and the package itself."""
    yield Finding('edgepoint2_ros', OK, f'{__version__} in {Path(__file__).parents[1]}')
    right = sys.version_info >= (3, 10)
    yield Finding(
        'Python',
        OK if right else BROKEN,
        f'{platform.python_version()} on {platform.machine()}, {len(os.sched_getaffinity(0))} cores',
        '' if right else 'Python 3.10 or later is needed',
    )
    yield Finding('numpy', OK, np.__version__)
    yield Finding('OpenCV', OK, cv2.__version__)


def find_ros() -> Iterator[Finding]:
    """ROS 2, its middleware and the messages of this package; the library and the command need none of them."""
    advice = 'only the node needs it: source /opt/ros/DISTRIBUTION/setup.bash'
    if util.find_spec('rclpy') is None:
        yield Finding('ROS 2', MISSING, 'rclpy is not on the Python path', advice)
        return
    # In a separate process: a middleware that cannot be loaded ends it.
    ask = 'from rclpy.utilities import get_rmw_implementation_identifier as name; print(name())'
    answer = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True)
    if answer.returncode:
        wanted = os.environ.get('RMW_IMPLEMENTATION', 'the default')
        yield Finding(
            'ROS 2', BROKEN, f'its middleware ({wanted}) cannot be loaded', 'set RMW_IMPLEMENTATION, or install it'
        )
        return
    distribution = os.environ.get('ROS_DISTRO') or _version_of('ros-rclpy')
    yield Finding('ROS 2', OK, distribution or 'of unknown distribution: ROS_DISTRO is not set')
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    yield Finding('middleware', OK, f'{answer.stdout.strip()}, ROS_DOMAIN_ID {domain}')
    try:
        importlib.import_module('edgepoint2_ros.msg').KeypointArray  # noqa: B018
        yield Finding('messages', OK, 'edgepoint2_ros/msg/KeypointArray')
    except (ImportError, AttributeError) as error:
        yield Finding('messages', MISSING, _first_line(error), 'colcon build, then source install/setup.bash')


def find_nvidia() -> Iterator[Finding]:
    """Driver, GPU, TensorRT and cuda-python; nothing of TensorRT is imported without a driver."""
    try:
        gpu = find_gpu()
    except EngineError as error:
        yield Finding('NVIDIA GPU', MISSING, str(error), 'only TensorRT needs one')
        return
    yield Finding('NVIDIA GPU', OK, f'{gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.cuda}')
    from edgepoint2_ros.engines.tensorrt.bindings import import_cudart, import_tensorrt, version_of

    try:
        yield Finding('TensorRT', OK, version_of(import_tensorrt()))
    except EngineError as error:
        yield Finding('TensorRT', MISSING, str(error))
    try:
        import_cudart(gpu)
        yield Finding('cuda-python', OK, _version_of('cuda-python') or _version_of('cuda-bindings'))
    except EngineError as error:
        yield Finding('cuda-python', MISSING, str(error))


def find_models(models: Sequence[Model | EdgePoint2Error]) -> Iterator[Finding]:
    """The models in the user's data directory, with their digests."""
    for model in models:
        if isinstance(model, Model):
            yield Finding(f'model {model.variant}', OK, f'{model.digest} {model.path}')
        else:
            yield Finding('model', BROKEN, str(model))
    if not any(isinstance(model, Model) for model in models):
        folder = data_directory() / 'models'
        yield Finding('models', MISSING, f'none in {folder}', 'edgepoint2 models download T-32')


def find_storage() -> Iterator[Finding]:
    """Where models and plans are kept, the free space there, and the plans."""
    for what, folder in (('models', data_directory()), ('plans', cache_directory())):
        parent = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        free = shutil.disk_usage(parent).free
        writable = os.access(parent, os.W_OK)
        trouble = '' if writable else 'it cannot be written: the next start builds every plan again'
        if free < LITTLE_SPACE:
            trouble = 'little space is left'
        yield Finding(f'{what} folder', WARNING if trouble else OK, f'{folder}, {free / 1e9:.1f} GB free', trouble)
    for path, key in plan_cache.list_plans():
        if key:
            built = ', '.join(key.get(name, '?') for name in ('model', 'image', 'runtime', 'gpu'))
            yield Finding('plan', OK, f'{built}, {path.stat().st_size / 1e6:.1f} MB')
        else:
            yield Finding('plan', WARNING, f'{path} has no sidecar that can be read', 'it is built again when needed')


def try_backend(backend: str, model: Model) -> Finding:
    """Open a backend, compare its features of a drawn scene with the model's card, and time it."""
    try:
        engine = open_engine(model, backend, report=lambda line: print(f'{"":25} {line}', flush=True))
    except EdgePoint2Error as error:
        return Finding(backend, MISSING, str(error))
    try:
        result = check_against_card(engine.run, model)
    except EdgePoint2Error as error:
        return Finding(backend, BROKEN, str(error))
    image, mask = draw_scene(*CARD_SHAPE), np.ones((1, 1), np.uint8)
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        engine.run(image, mask)
        times.append(time.perf_counter() - start)
    return Finding(backend, OK, f'{engine.description}: {model.variant} in {min(times) * 1e3:.1f} ms; {result}')


def find_choice(model: Model) -> Iterator[Finding]:
    """What `auto` chooses for images of CARD_SHAPE, with the times it measured."""
    with contextlib.suppress(EdgePoint2Error):  # then no backend works, as the rows above say
        engine = open_engine(model, report=lambda line: None)
        engine.prepare(CARD_SHAPE)
        yield Finding('auto', OK, engine.description)


def _version_of(distribution: str) -> str:
    try:
        return f'{distribution} {metadata.version(distribution)}'
    except metadata.PackageNotFoundError:
        return ''


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
