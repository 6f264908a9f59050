"""Time the models on every runtime against ORB, SIFT and the dense reference in PyTorch, and measure their accuracy.

The dense reference is the network's definition with the weights of the runtimes. If the environment variable
EDGEPOINT2_OFFICIAL_CODE names a clone of HITCSC/EdgePoint2, its own code is timed, too, with its own weights, and in
fp16 on an NVIDIA GPU.

Each contender runs in its own process on the same photographs, interleaved over several rounds, so that a drift of the
machine affects all alike. At a camera's pace, caches and threads go cold between frames, as on a robot; back to back
they stay warm; at the pace "cold" the caches are evicted before every frame.

Please send what --report writes from a machine that the documentation does not list.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros import __version__
from edgepoint2_ros.bench.plot import SUFFIXES, write_plot
from edgepoint2_ros.bench.report import FORMAT, format_report, read_report
from edgepoint2_ros.bench.worker import OFFICIAL_CODE, PERIODS, READY, Contender, parse_size
from edgepoint2_ros.cli.arguments import check_minimum
from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.engines import BACKENDS, PRECISIONS
from edgepoint2_ros.engines.tensorrt.gpu import find_gpu
from edgepoint2_ros.errors import EdgePoint2Error, EngineError, ModelError
from edgepoint2_ros.extractor import check_size
from edgepoint2_ros.files import refuse_unwritable
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.models.variants import NAMES, find_variant
from edgepoint2_ros.progress import show_progress

IMAGES = 20  # different frames of the demo's flight, gray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgepoint2 bench`."""
    add = parser.add_argument
    add('--models', nargs='+', default=['T-32', 'E-64'], metavar='MODEL', help='variants, or all (default: T-32 E-64)')
    add('--backends', nargs='+', metavar='NAME', help=f'auto, {", ".join(BACKENDS)} (default: all that run here)')
    add('--precisions', nargs='+', metavar='NAME', help=f'of {", ".join(PRECISIONS[1:])} (default: all of the backend)')
    add('--threads', nargs='+', type=int, default=[1, 0], metavar='N', help='0 uses every core (default: 1 0)')
    add('--sizes', nargs='+', default=['640x480'], metavar='WIDTHxHEIGHT', help='image sizes (default: 640x480)')
    add(
        '--paces',
        nargs='+',
        choices=PERIODS,
        default=['camera', 'back-to-back', 'cold'],
        help='30 Hz, back to back, 4 Hz with cold caches, 15 or 10 Hz (default: the first 3)',
    )
    add('--busy', type=int, default=0, metavar='N', help='run N busy processes beside all that is timed (default: 0)')
    add('--keypoints', type=int, default=2048, help='maximum number of keypoints per frame (default: %(default)s)')
    add('--frames', type=int, default=30, help='frames per round and pace, a third if cold (default: %(default)s)')
    add('--rounds', type=int, default=2, help='number of interleaved rounds (default: %(default)s)')
    add('--accuracy', type=Path, metavar='DIR', help='also measure accuracy on these photographs')
    add(
        '--cameras',
        nargs='+',
        type=int,
        default=[],
        metavar='N',
        help='also time N cameras at 30 Hz sharing the first model, on the first of --backends (default: auto)',
    )
    add(
        '--plot',
        action='append',
        type=Path,
        default=[],
        metavar='FILE',
        help='write a plot, .svg or .png; may be repeated',
    )
    add('--report', type=Path, metavar='FILE', help='write the report as Markdown, for sending')
    add('--json', type=Path, metavar='FILE', help='write all measurements as JSON')
    add('--from', type=Path, dest='source', metavar='FILE', help='report what --json wrote instead of measuring')


def run(options: argparse.Namespace) -> int:
    """Measure, or read earlier measurements; print the tables and write the files.

    Raises:
        EdgePoint2Error: an invalid option, no photographs, or a file that cannot be read or written.
    """
    _check(options)
    report = read_report(options.source) if options.source else measure(options)
    page = format_report(report)
    print(page)
    if options.report:
        options.report.write_text(f'# edgepoint2 bench\n\n{page}\n', encoding='utf-8')
    if options.json:
        options.json.write_text(json.dumps(report) + '\n', encoding='utf-8')
    for path in options.plot:
        write_plot(path, report)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse at once what would otherwise fail after minutes of measuring."""
    check_minimum(options, keypoints=1, frames=1, rounds=1, threads=0, cameras=1, busy=0)
    for name, known in (('backends', ('auto', *BACKENDS)), ('precisions', PRECISIONS[1:])):
        for value in getattr(options, name) or []:
            if value not in known:
                raise EdgePoint2Error(f'--{name}: expected {", ".join(known)}, got {value!r}')
    for size in options.sizes:
        check_size(*parse_size(size))
    for path in options.plot:
        if path.suffix not in SUFFIXES:
            raise EdgePoint2Error(f'--plot: expected a file {" or ".join(SUFFIXES)}, got {path}')
    files = [*options.plot, *filter(None, (options.json, options.report))]
    for path in files:
        with suppress(OSError):  # then the file cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
    refuse_unwritable(files)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        What --json writes: ``machine``, ``settings``, in ``results`` each contender with its ``runs``, one per round,
        the ``error`` that ended it, the ``fidelity`` of runtimes and the ``accuracy`` if requested, and in ``cameras``
        a row for each number.

    Raises:
        EdgePoint2Error: no such variant, or no photographs.
    """
    if options.accuracy:
        find_images([options.accuracy])  # raises if there are none
    models = _provide_models(NAMES if options.models == ['all'] else options.models)
    results: list[dict[str, Any]] = [
        {'contender': asdict(each), 'runs': [], 'error': ''} for each in list_contenders(options, models)
    ]
    settings = {name: getattr(options, name) for name in ('keypoints', 'frames', 'rounds', 'busy')}
    with tempfile.TemporaryDirectory() as folder, _busy(options.busy):
        _write_frames(Path(folder), options.sizes)
        job = {'keypoints': options.keypoints, 'folder': folder, 'frames': options.frames}
        _time_all(results, options, job)
        cameras = _share_first(models, options, job)
    timed = [result for result in results if result['runs']]
    runtimes = [result for result in timed if result['contender']['kind'] in ('auto', *BACKENDS)]
    _add_once(runtimes, 'fidelity', 'inspect', {'threads': 0})
    if options.accuracy:
        folder = str(options.accuracy)
        _add_once(timed, 'accuracy', 'score', {'threads': 0, 'size': ''}, keypoints=options.keypoints, folder=folder)
    return {'format': FORMAT, 'machine': find_machine(), 'settings': settings, 'results': results, 'cameras': cameras}


def _provide_models(names: Sequence[str]) -> list[str]:
    from edgepoint2_ros.models.official import provide_model

    models = []
    for variant in dict.fromkeys(map(find_variant, names)):
        try:
            models.append(provide_model(variant).variant.name)
        except ModelError as error:
            print(f'edgepoint2: {variant} is left out: {error}', file=sys.stderr)
    return models


def list_contenders(options: argparse.Namespace, models: list[str]) -> list[Contender]:
    """Return the matrix: at each size and number of threads ORB, SIFT, and the models on the runtimes."""
    cores = len(os.sched_getaffinity(0))
    threads = sorted({count or cores for count in options.threads})
    backends = options.backends or [*(name for name in reversed(BACKENDS) if name != 'tensorrt' or _has_gpu()), 'auto']
    contenders = []
    for size, count in product(options.sizes, threads):
        contenders += [Contender('orb', '', '', count, size), Contender('sift', '', '', count, size)]
        for model in models:
            contenders.append(Contender('dense', model, '', count, size))
            if OFFICIAL_CODE in os.environ:
                contenders.append(Contender('official', model, '', count, size))
                if count == threads[-1] and _has_gpu():
                    contenders.append(Contender('official', model, 'fp16', count, size))
            for backend in backends:
                if backend in ('auto', 'tensorrt') and count != threads[-1]:
                    continue  # the CPU's threads do not matter to a GPU, and auto chooses them
                precisions = ('auto',) if backend == 'auto' else options.precisions or BACKENDS[backend].precisions
                for precision in precisions:
                    contenders.append(Contender(backend, model, precision, count, size))
    return list(dict.fromkeys(contenders))


def _has_gpu() -> bool:
    try:
        find_gpu()
    except EngineError:
        return False
    return True


def _write_frames(folder: Path, sizes: list[str]) -> None:
    """Write the frames of the flight in each size: rendering them must not count as a worker's time or memory."""
    from edgepoint2_ros.scenes.sources import VirtualFlight

    flight = VirtualFlight()
    frames = [flight.image(k * 15) for k in range(IMAGES)]
    for size in sizes:
        np.save(folder / f'{size}.npy', [cv2.resize(frame, parse_size(size)) for frame in frames])


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep this many processes busy meanwhile, like a planner or a mapper on a robot."""
    processes = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _time_all(results: list[dict[str, Any]], options: argparse.Namespace, job: dict[str, Any]) -> None:
    """Append a run to each contender, round by round; one that failed is not tried again."""
    turns = results * options.rounds
    for result in show_progress(turns, 'run', len(turns)):
        if not result['error']:
            answer = _ask('time', result['contender'], paces=options.paces, **job)
            if 'error' in answer:
                result['error'] = answer['error']
            else:
                result['runs'].append(answer)


def _share_first(models: list[str], options: argparse.Namespace, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each number of cameras how well the first model, on the first backend or with auto, serves them."""
    backend = options.backends[0] if options.backends else 'auto'
    rows = []
    for model, cameras in product(models[:1], options.cameras):
        contender = Contender(backend, model, 'auto', 0, options.sizes[0])
        rows.append({'model': model, 'cameras': cameras, **_ask('serve', asdict(contender), cameras=cameras, **job)})
    return rows


def _add_once(results: list[dict[str, Any]], name: str, task: str, aside: dict[str, Any], **arguments: Any) -> None:
    """Add a worker's answer to a task to each result; those that differ only in ``aside`` share one."""
    settings: dict[Contender, list[dict[str, Any]]] = {}
    for result in results:
        settings.setdefault(Contender(**result['contender'] | aside), []).append(result)
    for setting, same in show_progress(settings.items(), name, len(settings)):
        answer = _ask(task, asdict(setting), **arguments)
        for result in same:
            if 'error' in answer:
                result['error'] = answer['error']
            else:
                result[name] = answer


def _ask(task: str, contender: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Return what a worker process answers, with the seconds from its start to its first features, or its error."""
    command = [sys.executable, '-m', 'edgepoint2_ros.bench.worker', json.dumps([task, contender, arguments])]
    answer = {}
    begin = time.perf_counter()
    with tempfile.TemporaryFile('w+') as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as worker:
            for line in worker.stdout or ():
                if line.strip() == READY:
                    answer['first_s'] = time.perf_counter() - begin
        if worker.returncode == 0:
            return {**answer, **json.loads(line)}
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    return {'error': lines[-1] if lines else f'exit code {worker.returncode}'}


def find_machine() -> dict[str, Any]:
    """Return what the times depend on: ``processor``, ``cores`` that may be used, and ``versions``."""
    cpu = find_cpu()
    versions = {'edgepoint2_ros': __version__, 'Python': platform.python_version(), 'OpenCV': cv2.__version__}
    packages = {backend.title: backend.package for backend in BACKENDS.values()} | {'PyTorch': 'torch'}
    for name, package in packages.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = [find_gpu().name] if _has_gpu() else []
    return {
        'processor': ', '.join([' '.join([cpu.name, *cpu.extensions]), *gpu]),
        'cores': len(os.sched_getaffinity(0)),
        'versions': versions,
    }
