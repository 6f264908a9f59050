"""The process in which `edgepoint2 bench` measures one contender; its answer is the last line that it prints, as JSON.

`python -m edgepoint2_ros.bench.worker JOB`, where JOB is the JSON of a task's name and arguments.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match

PERIODS = {'camera': 1 / 30, 'back-to-back': 0.0, 'cold': 0.25, '15-hz': 1 / 15, '10-hz': 0.1}  # seconds a frame
COLD_SHARE = 3  # cold frames take long: one is timed for this many at the other paces
SCRATCH = 2**27  # bytes, more than the caches hold
WARM_UP = 5  # frames
LONG_SIDE = 640  # pixels of the images on which accuracy is measured
OFFICIAL_CODE = 'EDGEPOINT2_OFFICIAL_CODE'  # names a clone of HITCSC/EdgePoint2
READY = 'first features'  # printed once they are there

Extract = Callable[[np.ndarray], Sized]  # from an image to its keypoints
ExtractFeatures = Callable[[np.ndarray], Features]


@dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
        kind: a backend or ``auto``, or ``orb``, ``sift``, ``dense`` or ``official``.
        model, precision: of the network; empty if there is none. The official code runs in fp16 on the GPU, else on
            the CPU.
        threads: of the runtime; 0 is every core.
        size: of the images, WIDTHxHEIGHT.
    """

    kind: str
    model: str = ''
    precision: str = ''
    threads: int = 0
    size: str = '640x480'


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of ``640x480``.

    Raises:
        EdgePoint2Error: the text is something else.
    """
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise EdgePoint2Error(f'--sizes: expected WIDTHxHEIGHT, for example 640x480, got {text!r}')
    return int(match[1]), int(match[2])


def main(job: str) -> None:
    """Do a job and print the answer."""
    task, contender, arguments = json.loads(job)
    tasks: dict[str, Callable[..., dict[str, Any]]] = {
        'time': _time,
        'inspect': _inspect,
        'score': _score,
        'serve': _serve,
    }
    try:
        answer = tasks[task](Contender(**contender), **arguments)
    except EdgePoint2Error as error:
        sys.exit(str(error))
    print(json.dumps(answer))


def _time(contender: Contender, keypoints: int, folder: str, frames: int, paces: list[str]) -> dict[str, Any]:
    """Return how long each frame took, at each pace, and the CPU time and memory of the process."""
    pictures, extract = _prepare(contender, keypoints, folder)
    for picture in pictures[:WARM_UP]:
        extract(picture)
    runs = {pace: _run(extract, pictures, frames, PERIODS[pace]) for pace in paces if pace != 'cold'}
    peak_mb = _peak_memory()
    if 'cold' in paces:
        runs['cold'] = _run(extract, pictures, -(-frames // COLD_SHARE), PERIODS['cold'], np.zeros(SCRATCH, np.uint8))
    return {'paces': runs, 'peak_mb': peak_mb}


def _inspect(contender: Contender) -> dict[str, Any]:
    """Return the engine's description, and how much of the best that fp32 finds on the drawn scene it finds.

    It may return as many as the model can, whatever was timed: one of the best that came last is not lost if its score
    lost a rank.
    """
    from edgepoint2_ros.engines import open_engine
    from edgepoint2_ros.engines.check import SCORE_THRESHOLD, compare, draw_scene
    from edgepoint2_ros.models import find_model

    model, (width, height) = find_model(contender.model), parse_size(contender.size)
    engine = open_engine(model, contender.kind, contender.precision, contender.threads)
    arguments = draw_scene(height, width, 1), np.ones((1, 1), np.uint8), model.max_keypoints, SCORE_THRESHOLD
    share, cosine = compare(engine.run(*arguments), open_engine(model, 'onnxruntime', 'fp32').run(*arguments))
    return {'engine': engine.description, 'share': 100 * share, 'cosine': cosine}


def _prepare(contender: Contender, keypoints: int, folder: str) -> tuple[np.ndarray, Extract]:
    """Return the images, uint8 (N, H, W), and the function that finds keypoints in them, after a first call."""
    pictures = np.load(f'{folder}/{contender.size}.npy')
    extract = open_contender(contender, keypoints)
    extract(pictures[0])
    print(READY, flush=True)
    return pictures, extract


def open_contender(contender: Contender, keypoints: int) -> Extract:
    """Return a function from an image to its keypoints.

    Raises:
        EdgePoint2Error: the model or the runtime is missing, or fails to open.
    """
    if contender.kind not in ('orb', 'sift'):
        return open_model(contender, keypoints)
    import cv2

    cv2.setNumThreads(contender.threads or -1)
    detector = (cv2.ORB.create if contender.kind == 'orb' else cv2.SIFT.create)(keypoints)
    return lambda image: detector.detectAndCompute(image, None)[0]


def open_model(contender: Contender, keypoints: int) -> ExtractFeatures:
    """Return a function from an image to its features, for a contender that has a model.

    Raises:
        EdgePoint2Error: as `open_contender` does.
    """
    if contender.kind == 'dense':
        return _open_dense(contender, keypoints)
    if contender.kind == 'official':
        return _open_official(contender, keypoints)
    from edgepoint2_ros.extractor import Extractor

    extractor = Extractor(
        contender.model,
        backend=contender.kind,
        precision=contender.precision,
        threads=contender.threads if contender.kind != 'auto' else 0,  # auto chooses them
        max_keypoints=keypoints,
    )
    return extractor.extract


def _open_dense(contender: Contender, keypoints: int) -> ExtractFeatures:
    """Return the network's definition in PyTorch, with the weights that the runtimes are timed with."""
    try:
        import torch

        from edgepoint2_ros.network.reference import extract_dense
        from edgepoint2_ros.network.weights import restore_network
    except ImportError as error:
        raise EdgePoint2Error(f'needs torch and onnx ({error})') from None
    from edgepoint2_ros.models import find_model

    if contender.threads:
        torch.set_num_threads(contender.threads)
    network = restore_network(find_model(contender.model))

    def extract(image: np.ndarray) -> Features:
        size = (image.shape[1], image.shape[0])
        return Features(*extract_dense(network, image, keypoints), size, contender.model, '')

    return extract


def _open_official(contender: Contender, keypoints: int) -> ExtractFeatures:
    """Return the official code of EdgePoint2 with its weights, from the folder that OFFICIAL_CODE names."""
    try:
        import torch
    except ImportError as error:
        raise EdgePoint2Error(f'needs torch ({error})') from None
    folder, here = Path(os.environ[OFFICIAL_CODE]).resolve(), Path.cwd()
    sys.path.insert(0, str(folder))
    try:
        from edgepoint2 import EdgePoint2Wrapper
    except ImportError as error:
        raise EdgePoint2Error(f'{OFFICIAL_CODE}={folder}: expected a clone of HITCSC/EdgePoint2: {error}') from None
    if contender.threads:
        torch.set_num_threads(contender.threads)
    half = contender.precision == 'fp16'
    if half and not torch.cuda.is_available():
        raise EdgePoint2Error('torch sees no CUDA device here')
    device = 'cuda' if half else 'cpu'
    os.chdir(folder)  # it looks for its weights there
    try:
        network = EdgePoint2Wrapper(contender.model.replace('-', ''), keypoints).eval().to(device)
    finally:
        os.chdir(here)

    def extract(image: np.ndarray) -> Features:
        gray = torch.from_numpy(image if image.ndim == 2 else image.mean(axis=2)).to(device)
        with torch.autocast(device, torch.float16, enabled=half):
            [found] = network(gray[None, None].float() / 255)
        xy, scores, descriptors = (found[name].float().cpu().numpy() for name in ('keypoints', 'scores', 'descriptors'))
        return Features(xy, scores, descriptors, (image.shape[1], image.shape[0]), contender.model, 'official')

    return extract


def _run(
    extract: Extract, pictures: np.ndarray, frames: int, period: float, scratch: np.ndarray | None = None
) -> dict[str, Any]:
    """Time frames at a pace; with a scratch buffer, all caches are filled with it before each."""
    times, counts = [], []
    evicting = 0.0
    cpu = time.process_time()
    for k in range(frames):
        if scratch is not None:
            start = time.perf_counter(), time.process_time()
            _evict(scratch)
            evicting += time.process_time() - start[1]
            time.sleep(max(0.0, start[0] + period - time.perf_counter()))
        begin = time.perf_counter()
        counts.append(len(extract(pictures[k % len(pictures)])))
        times.append(time.perf_counter() - begin)
        if scratch is None:
            time.sleep(max(0.0, begin + period - time.perf_counter()))
    # Including the pauses: threads that spin while waiting use CPU time there.
    cpu = time.process_time() - cpu - evicting
    milliseconds = [round(seconds * 1e3, 3) for seconds in times]
    return {'ms': milliseconds, 'cpu_ms': cpu / frames * 1e3, 'keypoints': float(np.mean(counts))}


def _evict(scratch: np.ndarray) -> None:
    """Fill the caches with something else: each core's own, and the shared ones."""
    cores = os.sched_getaffinity(0)
    for core, part in zip(cores, np.array_split(scratch, len(cores))):
        os.sched_setaffinity(0, {core})
        part += 1
    os.sched_setaffinity(0, cores)


def _peak_memory() -> float:
    """Return the peak resident memory in MB.

    getrusage would include the parent's: on Linux a child inherits its ru_maxrss through exec.
    """
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024 / 1e6


@dataclass
class _Timed:
    """The timed function, with the interface of the evaluation."""

    name: str
    extract: ExtractFeatures
    match = staticmethod(match)


def _score(contender: Contender, keypoints: int, folder: str) -> dict[str, Any]:
    """Return accuracy on the evaluation's synthetic pairs from a folder of photographs, in percent."""
    from edgepoint2_ros.evaluation.benchmark import run_benchmark, summarise
    from edgepoint2_ros.evaluation.methods import Method, OpenCVMethod
    from edgepoint2_ros.evaluation.pairs import make_synthetic
    from edgepoint2_ros.image_files import find_images

    method: Method
    if contender.kind in ('orb', 'sift'):
        method = OpenCVMethod(contender.kind.upper(), keypoints)
    else:
        method = _Timed(contender.kind, open_model(contender, keypoints))
    pairs = make_synthetic(find_images([Path(folder)]), LONG_SIDE)
    results, _ = run_benchmark('synthetic', pairs, [method], picture_every=0, seeds=0)
    if not results:
        raise EdgePoint2Error(f'none of the photographs in {folder} can be used')
    means = summarise(results)[0]
    return {'MMA@3': means['MMA@3'], 'repeatability': means['repeatability'], 'pairs': means['pairs']}


def _serve(contender: Contender, keypoints: int, folder: str, frames: int, cameras: int) -> dict[str, Any]:
    """Let cameras at 30 Hz share one extractor in turn, each with only its newest frame waiting, as the node does.

    Returns:
        Frames served per second, and the 95th percentile of the time from a frame's arrival to its features.
    """
    pictures, extract = _prepare(contender, keypoints, folder)
    step = PERIODS['camera'] / cameras  # frame k comes at k * step, from camera k % cameras
    served = [-1] * cameras
    latencies = []
    last = cameras - 1
    begin = time.perf_counter()
    while (now := time.perf_counter() - begin) < frames * PERIODS['camera']:
        arrived = int(now / step)
        for camera in [(last + 1 + turn) % cameras for turn in range(cameras)]:
            newest = arrived - (arrived - camera) % cameras
            if newest > served[camera]:
                extract(pictures[newest % len(pictures)])
                latencies.append(time.perf_counter() - begin - newest * step)
                served[camera], last = newest, camera
                break
        else:
            time.sleep(max(0.0, begin + (arrived + 1) * step - time.perf_counter()))
    return {
        'cameras': cameras,
        'fps': len(latencies) / (time.perf_counter() - begin),
        'p95_ms': float(np.percentile(latencies, 95)) * 1e3,
    }


if __name__ == '__main__':
    main(sys.argv[1])
