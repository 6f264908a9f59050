"""The engine: a plan for each image size, built once, checked against the CPU and kept."""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgepoint2_ros.engines.base import Backend, Shape
from edgepoint2_ros.engines.check import check
from edgepoint2_ros.engines.tensorrt import plan_cache
from edgepoint2_ros.engines.tensorrt.bindings import import_cudart, import_tensorrt, logger_of, version_of
from edgepoint2_ros.engines.tensorrt.builder import build_plan
from edgepoint2_ros.engines.tensorrt.gpu import Gpu, find_gpu
from edgepoint2_ros.engines.tensorrt.plan import INPUTS, Plan, PlanRefused, Tensors, tensors_of
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import MAX_KEYPOINTS, Model, read_part
from edgepoint2_ros.progress import Report
from edgepoint2_ros.storage import cache_directory, sha256

BACKEND = Backend('tensorrt', 'TensorRT', 'tensorrt', ('fp16',), 'the fastest on NVIDIA GPUs')

T = TypeVar('T')


class TensorRtEngine:
    """A model on the GPU, with a plan for each image size seen so far."""

    backend = BACKEND.name
    precision = 'fp16'

    def __init__(self, tensorrt: Any, cudart: Any, gpu: Gpu, model: Model, onnx: bytes, report: Report):
        self._tensorrt = tensorrt
        self._cudart = cudart
        self._gpu = gpu
        self._model = model
        self._onnx = onnx
        self._report = report
        self.max_keypoints = model.max_keypoints
        self._plans: dict[Shape, Plan | EngineError] = {}  # by the image's shape
        self.description = f'{version_of(tensorrt)}, {self.precision}, {gpu.name}'

    def prepare(self, image_shape: Shape) -> None:
        self._plan(image_shape)

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        return self._plan(image.shape).run(image, mask)

    def _plan(self, image_shape: Shape) -> Plan:
        if image_shape not in self._plans:
            try:
                self._plans[image_shape] = self._open_plan(image_shape)
            except EngineError as error:
                # Kept, so that the next image does not wait for the same failure.
                self._plans[image_shape] = EngineError(f'{version_of(self._tensorrt)}: {error}')
        plan = self._plans[image_shape]
        if isinstance(plan, EngineError):
            raise plan
        return plan

    def _open_plan(self, image_shape: Shape) -> Plan:
        tensors = tensors_of(self._model, image_shape)
        opened: Plan | None = None

        def build_and_check() -> bytes:
            nonlocal opened
            data = self._build(image_shape, tensors)
            opened = Plan(self._tensorrt, self._cudart, data, tensors)
            self._report(f'the plan passed its self-check: {check(opened.run, self._model, image_shape)}')
            return data

        key = plan_key(self._model, self._onnx, image_shape, version_of(self._tensorrt), self._gpu)
        path = plan_path(key)
        data = plan_cache.provide(path, key, build_and_check, self._report)
        if opened is None:
            try:
                opened = Plan(self._tensorrt, self._cudart, data, tensors)
            except PlanRefused as error:
                self._report(f'{path.name}: {error}: rebuilding')
                plan_cache.discard(path)
                data = plan_cache.provide(path, key, build_and_check, self._report)
        return opened or Plan(self._tensorrt, self._cudart, data, tensors)

    def _build(self, image_shape: Shape, tensors: Tensors) -> bytes:
        key = {'runtime': version_of(self._tensorrt), **vars(self._gpu)}
        timing_path = cache_directory() / f'{_file_name(*key.values())}.timing'
        timing, _ = plan_cache.load(timing_path, key)
        logger = logger_of(self._tensorrt)
        what = f'building {self._model.variant} for {size_in_words(image_shape)} images on {self._gpu.name}'
        data, timing = report_while(
            lambda: build_plan(self._tensorrt, self._onnx, {name: tensors[name][0] for name in INPUTS}, timing or b''),
            lambda seconds: f'not ready: {what}, {seconds:.0f} s so far; TensorRT says: {logger.latest}',
            self._report,
        )
        # Only the next build would be slower, and a cache that cannot be written is reported with the plan.
        with contextlib.suppress(OSError):
            plan_cache.store(timing_path, key, timing)
        return data


def open_engine(model: Model, precision: str, threads: int, report: Report) -> TensorRtEngine:
    """Open ``model``; see edgepoint2_ros.engines for arguments and errors."""
    gpu = find_gpu()  # before anything of TensorRT is touched
    tensorrt, cudart = import_tensorrt(), import_cudart(gpu)
    return TensorRtEngine(tensorrt, cudart, gpu, model, read_part(model, 'tensorrt'), report)


def plan_key(model: Model, onnx: bytes, image_shape: Shape, version: str, gpu: Gpu) -> plan_cache.Key:
    """Return everything that a plan depends on."""
    height, width, channels = image_shape
    return {
        'model': model.variant.name,
        'onnx': sha256(onnx),
        'precision': 'fp16',
        'image': f'{width}x{height}x{channels}',
        'keypoints': str(model.max_keypoints),
        'runtime': version,
        'gpu': gpu.name,
        'compute capability': gpu.compute_capability,
        'cuda': gpu.cuda,
    }


def plan_path(key: plan_cache.Key) -> Path:
    """Return where a plan is kept; plans that differ only in what is not in the name replace each other."""
    name = _file_name(key['model'], key['image'], key['keypoints'], key['onnx'][:8], key['gpu'])
    return cache_directory() / f'{name}.plan'


def size_in_words(image_shape: Shape) -> str:
    height, width, channels = image_shape
    return f'{width}x{height} {"gray" if channels == 1 else "colour"}'


def _file_name(*parts: str) -> str:
    return '-'.join(re.sub(r'[^\w.-]+', '_', part) for part in parts)


def report_while(work: Callable[[], T], line: Callable[[float], str], report: Report) -> T:
    """Return what ``work`` returns; while it runs, report ``line`` of the seconds so far every few seconds.

    It runs in its own thread, so that the caller can still be interrupted.
    """
    outcome: list[T | EngineError] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error if isinstance(error, EngineError) else EngineError(f'{type(error).__name__}: {error}'))

    start = time.monotonic()
    thread = threading.Thread(target=run, name='TensorRT build', daemon=True)
    thread.start()
    report(line(0))
    while thread.is_alive():
        thread.join(plan_cache.REPORT_PERIOD)
        if thread.is_alive():
            report(line(time.monotonic() - start))
    result = outcome[0]
    if isinstance(result, EngineError):
        raise result
    return result
