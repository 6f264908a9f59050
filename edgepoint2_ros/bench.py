"""Time the models at 640x480 beside ORB, SIFT and the dense torch reference, as a camera would drive them.

Each contender runs in a process of its own, one after the other, over the same real photographs, a frame every 30 ms:
between frames caches and threads go cold, as they do on a robot.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error, ModelError

CADENCE = 0.030  # seconds from frame to frame
WARM_UP = 10  # frames
IMAGES = 20  # different frames of the demo's flight, 640x480 gray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgepoint2 bench`."""
    parser.add_argument('--models', nargs='+', default=['T-32', 'E-64'], help='variants (default: T-32 E-64)')
    parser.add_argument('--keypoints', type=int, default=2048, help='most keypoints a frame (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='for every contender; 0 takes every core')
    parser.add_argument('--frames', type=int, default=100, help='frames a round (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=2, help='rounds over all contenders (default: %(default)s)')
    parser.add_argument('--worker', help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark and print its table."""
    if options.worker:
        print(json.dumps(_time(options.worker.split(), options)))
        return 0
    from edgepoint2_ros.official import provide_model
    from edgepoint2_ros.variants import find_variant

    models = []
    for variant in map(find_variant, options.models):
        try:
            models.append(provide_model(variant).variant.name)
        except ModelError as error:
            print(f'edgepoint2: {variant} is left out: {error}', file=sys.stderr)
    contenders = ['orb', 'sift']
    for name in models:
        contenders += [f'dense {name}', f'onnxruntime {name} fp32', f'openvino {name} fp32', f'openvino {name} bf16']
    results: dict[str, dict] = {}
    for turn in range(options.rounds):
        for contender in contenders:
            _progress(f'round {turn + 1} of {options.rounds}: {contender}')
            result = _run_worker(contender, options)
            if contender in results and 'times' in result:
                result['times'] += results[contender]['times']
            results[contender] = result
    _progress('')
    print(_table(results))
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f'\r{text:<60}', end='' if text else '\r', file=sys.stderr, flush=True)


def _run_worker(contender: str, options: argparse.Namespace) -> dict:
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'bench', '--worker', contender]
    for name in ('keypoints', 'threads', 'frames'):
        command += [f'--{name}', str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {'error': lines[-1].removeprefix('edgepoint2: ') if lines else f'exit code {done.returncode}'}
    return json.loads(done.stdout.splitlines()[-1])


def _time(contender: list[str], options: argparse.Namespace) -> dict:
    """Return the seconds that each frame took, and the mean number of keypoints."""
    from edgepoint2_ros.demo.sources import VirtualFlight

    flight = VirtualFlight()
    images = [flight.image(k * 15) for k in range(IMAGES)]
    extract = _contender(contender, options.keypoints, options.threads)
    times, counts = [], []
    due = time.perf_counter()
    for k in range(WARM_UP + options.frames):
        time.sleep(max(0.0, due - time.perf_counter()))
        begin = time.perf_counter()
        counts.append(extract(images[k % len(images)]))
        times.append(time.perf_counter() - begin)
        due = begin + CADENCE
    return {'times': times[WARM_UP:], 'keypoints': float(np.mean(counts))}


def _contender(words: list[str], keypoints: int, threads: int):
    """Return a function from a gray image to its number of keypoints."""
    import cv2

    kind, *rest = words
    if kind in ('orb', 'sift'):
        if threads:
            cv2.setNumThreads(threads)
        detector = cv2.ORB_create(keypoints) if kind == 'orb' else cv2.SIFT_create(keypoints)
        return lambda image: len(detector.detectAndCompute(image, None)[0])
    if kind == 'dense':
        try:
            import torch

            from edgepoint2_ros.network.reference import extract_dense
            from edgepoint2_ros.network.weights import load_network
        except ImportError as error:
            raise EdgePoint2Error(f'needs torch and onnx ({error})') from None
        from edgepoint2_ros.official import download_weights, find_weights
        from edgepoint2_ros.variants import find_variant

        if threads:
            torch.set_num_threads(threads)
        variant = find_variant(rest[0])
        network = load_network(find_weights(variant) or download_weights(variant), variant)
        return lambda image: len(extract_dense(network, image, keypoints)[0])
    from edgepoint2_ros.extractor import Extractor

    model, precision = rest
    extractor = Extractor(model, 'auto', kind, precision, threads, keypoints)
    return lambda image: len(extractor.extract(image))


_NAMES = {'orb': 'ORB (OpenCV)', 'sift': 'SIFT (OpenCV)', 'dense': 'dense reference, PyTorch'}
_RUNTIMES = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}


def _table(results: dict[str, dict]) -> str:
    """Return the results as a Markdown table, with ratios to ORB and to the dense reference of the same variant."""
    medians = {name: np.median(result['times']) * 1e3 for name, result in results.items() if 'times' in result}
    lines = [
        '| extractor | median ms | 10 to 90 % | keypoints | times ORB | faster than the dense reference |',
        '|---|---:|---:|---:|---:|---:|',
    ]
    for name, result in results.items():
        kind, *rest = name.split()
        title = _NAMES.get(kind) or f'{_RUNTIMES[kind]} {rest[1]}'
        title = f'{rest[0]}, {title}' if rest else title
        if 'error' in result:
            lines.append(f'| {title} | - | {result["error"]} | | | |')
            continue
        low, high = np.percentile(result['times'], [10, 90]) * 1e3
        dense = medians.get(f'dense {rest[0]}') if rest else None
        faster = f'{dense / medians[name]:.1f}x' if dense and kind != 'dense' else ''
        orb = f'{medians[name] / medians["orb"]:.2f}' if 'orb' in medians else ''
        times = f'{medians[name]:.1f} | {low:.1f} to {high:.1f}'
        lines.append(f'| {title} | {times} | {result["keypoints"]:.0f} | {orb} | {faster} |')
    return '\n'.join(lines)
