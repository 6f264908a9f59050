"""The backend `auto`: the first runtime that can be opened; on a CPU, the precision and threads that are fastest there.

Which is fastest differs between CPUs and image sizes, so it is measured: at the first image, on a drawn scene, at a
camera's pace. The result is kept in the user's cache.
"""

import contextlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.engines.base import ACCURACY, Engine, Shape
from edgepoint2_ros.engines.check import MIN_COSINE_OF_CPU, MIN_SHARE, compare, draw_scene
from edgepoint2_ros.errors import EngineError
from edgepoint2_ros.keypoints import Rows
from edgepoint2_ros.models import MAX_KEYPOINTS, Model
from edgepoint2_ros.progress import Report
from edgepoint2_ros.storage import cache_directory, write_whole

log = logging.getLogger('edgepoint2_ros')

SAME = 1.05  # within this ratio of the fastest, the more accurate one is taken
ROUNDS = 4  # timed runs of each candidate, after one warm-up
PAUSE = 0.02  # seconds before each: between the images of a camera, cores go idle and caches cool down
MANY_CORES = 4  # with this many or more, half the threads are tried, too
MAX_PIXELS = 2**21  # of images for which a choice is measured: larger ones would take seconds
KEPT = 200  # measurements in the cache

Result = TypeVar('Result')


@dataclass(frozen=True)
class Choice:
    """A way to run a model on this machine."""

    backend: str
    precision: str
    threads: int

    def __str__(self) -> str:
        return f'{self.backend} {self.precision} on {self.threads} thread{"s" if self.threads > 1 else ""}'


Open = Callable[[Choice], Engine]


class AutoEngine:
    """The best backend that can be opened; if it fails later, the next one replaces it for good.

    TensorRT builds its plans when images come, so it may fail as late as that. On a CPU the choice is made for the size
    of the first image.
    """

    def __init__(
        self,
        model: Model,
        precision: str,
        threads: int,
        report: Report,
        runtimes: Mapping[str, ModuleType],
        open_one: Open,
    ):
        """Open the first backend that can be opened.

        Args:
            model: to run.
            precision: of the engine, or ``auto``.
            threads: of the engine on a CPU; 0 for as many as are fastest.
            report: called with lines about slow steps and failures.
            runtimes: modules of the runtimes by backend, in the order in which they are tried.
            open_one: opens a backend with a precision, which may be ``auto``, and a number of threads.

        Raises:
            EngineError: no backend can be opened.
        """
        self._model = model
        self._precision = precision
        self._threads = threads
        self._cores = len(os.sched_getaffinity(0))
        self._report = report
        self._runtimes = runtimes
        self._open = open_one
        self._candidates = list(runtimes)
        self._refusals: list[str] = []
        self._reason = ''
        self._settled = False
        self._engine = self._next()

    @property
    def backend(self) -> str:
        return self._engine.backend

    @property
    def precision(self) -> str:
        return self._engine.precision

    @property
    def max_keypoints(self) -> int | None:
        return self._engine.max_keypoints

    @property
    def description(self) -> str:
        reason = self._reason or self._runtimes[self.backend].BACKEND.reason
        return f'{self._engine.description} (auto: {"; ".join([*self._refusals, reason])})'

    def prepare(self, image_shape: Shape) -> None:
        self._settle(image_shape)
        self._try(lambda engine: engine.prepare(image_shape))

    def run(self, image: np.ndarray, mask: np.ndarray, count: int = MAX_KEYPOINTS, threshold: float = -np.inf) -> Rows:
        self._settle(image.shape)
        return self._try(lambda engine: engine.run(image, mask, count, threshold))

    def _try(self, use: Callable[[Engine], Result]) -> Result:
        while True:
            try:
                return use(self._engine)
            except EngineError as error:
                if not self._candidates:
                    raise
                failed = self.backend
                self._refusals.append(str(error))
                self._engine = self._next()
                self._reason = ''
                self._report(f'falling back from {failed} to {self._engine.description}: {error}')

    def _next(self) -> Engine:
        while self._candidates:
            try:
                return self._open(Choice(self._candidates.pop(0), self._precision, self._threads or self._cores))
            except EngineError as error:
                self._refusals.append(str(error))
        what = f'{self._model.variant} in {self._precision}'
        raise EngineError(f'no backend can run {what}: {"; ".join(self._refusals)}')

    def _settle(self, image_shape: Shape) -> None:
        """Choose the fastest way to run the model on this CPU, once."""
        if self._settled or self.backend == 'tensorrt':
            return
        self._settled = True
        choices = self._choices()
        if len(choices) < 2 or image_shape[0] * image_shape[1] > MAX_PIXELS:
            return
        key = {
            'cpu': f'{platform.machine()} {find_cpu().name}',
            'candidates': ', '.join(map(str, choices)),
            'runtimes': ', '.join(sorted({self._runtimes[choice.backend].BACKEND.version() for choice in choices})),
            'model': ' '.join([str(self._model.variant), *(sha[:16] for sha in self._model.sha256.values())]),
            'image': 'x'.join(map(str, image_shape)),
        }
        measurements = Measurements()
        times = measurements.find(key)
        engines: dict[Choice, Engine] = {}
        if not times:
            engines, times = measure(choices, self._open, image_shape, self._exclude)
            if not times:
                return
            if len(times) == len(choices):
                measurements.add(key, times)
        best = choose(times)
        try:
            self._engine = engines.get(best) or self._open(best)
        except EngineError as error:  # cached before something was uninstalled
            self._refusals.append(str(error))
            return
        width, height = image_shape[1::-1]
        listed = ', '.join(f'{choice} {time:.1f} ms' for choice, time in times.items())
        self._reason = f'measured here at {width}x{height}: {listed}'
        if engines:
            log.info('auto chose %s, %s', best, self._reason)

    def _exclude(self, reason: str) -> None:
        self._refusals.append(reason)
        self._report(f'auto excludes {reason}')

    def _choices(self) -> list[Choice]:
        """Return what is worth timing, the most accurate first."""
        ways = [
            (name, precision) for name in (self.backend, *self._candidates) for precision in self._worth_trying(name)
        ]
        if {'bf16', 'int8'} & {precision for _, precision in ways}:  # then ONNX Runtime in fp32 is never the fastest
            ways = [way for way in ways if way[0] == self.backend]
        ways.sort(key=lambda way: ACCURACY.index(way[1]))
        threads = [self._threads or self._cores]
        if not self._threads and self._cores >= MANY_CORES:
            threads.append(self._cores // 2)
        return [Choice(*way, number) for way in ways for number in threads]

    def _worth_trying(self, backend: str) -> list[str]:
        try:
            precisions = self._runtimes[backend].fast_precisions(self._model)
        except Exception:  # missing or broken: the error on opening it says why
            return []
        return [name for name in precisions if self._precision in ('auto', name)]


def measure(
    choices: list[Choice], open_one: Open, image_shape: Shape, exclude: Report
) -> tuple[dict[Choice, Engine], dict[Choice, float]]:
    """Time each choice on the drawn scene: the shortest of ROUNDS runs, interleaved, with a pause before each.

    A choice is excluded if it cannot be opened, or if its features differ from those of the first, the most accurate
    one, by more than the self-check allows.

    Args:
        choices: the most accurate first.
        open_one: opens an engine.
        image_shape: (H, W, C) of the scene.
        exclude: called with a line about each excluded choice and why.

    Returns:
        The opened engines, and their milliseconds, by choice.
    """
    scene, mask = draw_scene(*image_shape), np.ones((1, 1), np.uint8)
    engines: dict[Choice, Engine] = {}
    reference: Rows | None = None
    for choice in choices:
        try:
            engine = open_one(choice)
            rows = engine.run(scene, mask)
        except EngineError as error:
            exclude(f'{choice}: {error}')
            continue
        reference = reference or rows
        share, cosine = compare(rows, reference)
        if share < MIN_SHARE or cosine < MIN_COSINE_OF_CPU:
            exclude(f'{choice}: {share:.1%} of the keypoints, median descriptor cosine {cosine:.4f}')
            continue
        engines[choice] = engine
    times: dict[Choice, list[float]] = {choice: [] for choice in engines}
    for _ in range(ROUNDS):
        for choice, engine in engines.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            engine.run(scene, mask)
            times[choice].append(1e3 * (time.perf_counter() - start))
    return engines, {choice: min(own) for choice, own in times.items()}


def choose(times: dict[Choice, float]) -> Choice:
    """Return the first choice, the most accurate, that takes no longer than SAME times the fastest."""
    limit = SAME * min(times.values())
    return next(choice for choice, time in times.items() if time <= limit)


class Measurements:
    """The measurements on this machine, in the user's cache. A file that cannot be read or written is no error."""

    def __init__(self) -> None:
        self.path = cache_directory() / 'auto.json'

    def find(self, key: dict[str, str]) -> dict[Choice, float]:
        """Return the times of a measurement, empty if there is none."""
        for entry in self._entries():
            if entry['key'] == key:
                return entry['times']
        return {}

    def add(self, key: dict[str, str], times: dict[Choice, float]) -> None:
        """Store a measurement; the oldest are dropped."""
        entries = [entry for entry in self._entries() if entry['key'] != key][1 - KEPT :]
        entries.append({'key': key, 'times': times})
        rows = [
            {'key': entry['key'], 'ms': [[*asdict(choice).values(), ms] for choice, ms in entry['times'].items()]}
            for entry in entries
        ]
        with contextlib.suppress(OSError):
            write_whole(self.path, json.dumps(rows, indent=1).encode())

    def _entries(self) -> list[dict[str, Any]]:
        try:
            rows = json.loads(self.path.read_bytes())
            return [
                {
                    'key': dict(row['key']),
                    'times': {Choice(str(a), str(b), int(c)): float(ms) for a, b, c, ms in row['ms']},
                }
                for row in rows
            ]
        except (OSError, ValueError, TypeError, KeyError):
            return []
