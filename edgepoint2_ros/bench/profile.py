"""Where the time goes, stage by stage, beside the machine's floor: ``python -m edgepoint2_ros.bench.profile``.

Each runtime tells what its operators took; stages are the prefixes of their names, which the export chose. The floor of
a stage, about the least that it can take, is the longer of its arithmetic at the speed of a large convolution in the
same precision and its maps at the speed of a large copy, each read and written once per convolution.
"""

import argparse
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgepoint2_ros.engines import base
from edgepoint2_ros.engines.onnxruntime import import_onnxruntime
from edgepoint2_ros.engines.openvino import capabilities, import_openvino, settings_of
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.keypoints import Rows, best_keypoints
from edgepoint2_ros.models import Model, part_path
from edgepoint2_ros.models.official import provide_model
from edgepoint2_ros.models.variants import Variant, find_variant
from edgepoint2_ros.scenes.sources import VirtualFlight

WIDTH, HEIGHT = 640, 480
FRAMES = 60
STAGES = ('input', 'block1', 'block2', 'block3', 'detection', 'description', 'layouts', 'keypoints')
CHANNELS, SIDE = 256, 64  # of the large convolution's map
BYTES = {'fp32': 4, 'bf16': 2, 'fp16': 2, 'int8': 1}  # of a number


def convolutions(variant: Variant) -> list[tuple[str, int, int]]:
    """Return the stage, the floating-point operations and the numbers moved of each convolution at 640x480.

    A multiply-add counts as two operations; the numbers moved are those of its input and its output.
    """
    import torch

    from edgepoint2_ros.network import EdgePoint2

    layers = []

    def count(stage: str, conv: torch.nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        layers.append((stage, 2 * conv.weight[0].numel() * output.numel(), inputs[0].numel() + output.numel()))

    with torch.device('meta'):  # shapes, no arithmetic
        network = EdgePoint2(variant).eval()
        for name, module in network.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                part = name.split('.')[0]
                stage = part if part in STAGES else 'description' if part == 'desc_head' else 'detection'
                module.register_forward_hook(functools.partial(count, stage))
        network(torch.empty(1, 1, HEIGHT, WIDTH))
    return layers


def work_of(variant: Variant) -> dict[str, tuple[int, int]]:
    """Return the floating-point operations of each stage's convolutions and the numbers that they move, at 640x480."""
    work = dict.fromkeys(STAGES, (0, 0))
    for stage, operations, numbers in convolutions(variant):
        work[stage] = work[stage][0] + operations, work[stage][1] + numbers
    return work


def floor_of(
    work: dict[str, tuple[int, int]], precision: str, operations_a_second: float, bytes_a_second: float
) -> dict[str, float]:
    """Return the minimum milliseconds for each stage of `work_of` on a machine of those speeds."""
    return {
        stage: 1e3 * max(operations / operations_a_second, numbers * BYTES[precision] / bytes_a_second)
        for stage, (operations, numbers) in work.items()
    }


def profile_openvino(model: Model, precision: str, threads: int, images: list[np.ndarray]) -> dict[str, float]:
    """Return the mean milliseconds of each stage, as OpenVINO measures its operators."""
    core = import_openvino().Core()
    path = part_path(model.path, 'int8') if precision == 'int8' else model.path
    network = core.read_model(str(path))
    network.reshape({'image': list(images[0].shape)})
    settings = {**settings_of(precision, capabilities(core), threads), 'PERF_COUNT': 'YES'}
    compiled = core.compile_model(network, 'CPU', settings)
    request = compiled.create_infer_request()
    for k in range(FRAMES):
        request.infer({'image': images[k % len(images)]}, share_inputs=True)
    fused = {  # what each operator was made of: a rounding gives its name to all that it absorbs
        operator.get_friendly_name(): operator.get_rt_info()['originalLayersNames'].astype(str).split(',')
        for operator in compiled.get_runtime_model().get_ops()
    }
    times: defaultdict[str, float] = defaultdict(float)
    for operator in request.profiling_info:  # means over all runs
        times[_stage(operator.node_name, *fused.get(operator.node_name, ()))] += (
            operator.real_time.total_seconds() * 1e3
        )
    return times


def profile_onnxruntime(model: Model, threads: int, images: list[np.ndarray]) -> dict[str, float]:
    """Return the mean milliseconds of each stage, as ONNX Runtime measures its operators."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    times: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f'{folder}/profile'
        session = onnxruntime.InferenceSession(str(model.path), options, providers=['CPUExecutionProvider'])
        for k in range(FRAMES):
            session.run(None, {'image': images[k % len(images)]})
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('_kernel_time'):
            times[_stage(event['name'])] += event['dur'] / 1e3 / FRAMES
    return times


def _stage(*names: str) -> str:
    """Return the stage of an operator with these names; layout conversions, which runtimes insert, have none."""
    for name in names:
        stage = name.split('/')[0]
        if stage in STAGES:
            return stage
        if stage == 'cells':
            return 'detection'
        if stage.startswith('descriptors'):
            return 'description'
    return 'layouts'


def keypoints_time(model: Model, backend: str, precision: str, threads: int, images: list[np.ndarray]) -> float:
    """Return the mean milliseconds from the maps to the features."""
    extractor = Extractor(
        model.variant.name, weights=str(model.path), backend=backend, precision=precision, threads=threads
    )
    spent = []

    def timed(*arguments: Any) -> Rows:
        begin = time.perf_counter()
        rows = best_keypoints(*arguments)
        spent.append(time.perf_counter() - begin)
        return rows

    with mock.patch.object(base, 'best_keypoints', timed):
        for k in range(FRAMES):
            extractor.extract(images[k % len(images)])
    return float(np.mean(spent[FRAMES // 4 :])) * 1e3


def convolution_speed(precision: str, threads: int) -> float:
    """Return the operations per second of a large 3x3 convolution, by OpenVINO."""
    openvino = import_openvino()
    ops = openvino.opset13
    shape = 1, CHANNELS, SIDE, SIDE
    x = inputs = ops.parameter(shape, np.float32)
    weight = ops.constant(np.random.default_rng(0).normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32))
    if precision == 'int8':  # rounded as in the models, so that it computes in int8
        limits = (np.float32(-4), np.float32(4), np.float32(-4), np.float32(4))
        inputs, weight = ops.fake_quantize(x, *limits, 256), ops.fake_quantize(weight, *limits, 255)
    result = ops.convolution(inputs, weight, [1, 1], [1, 1], [1, 1], [1, 1])
    settings = settings_of(precision, {precision}, threads)
    request = openvino.Core().compile_model(openvino.Model([result], [x]), 'CPU', settings).create_infer_request()
    data = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    operations = 2 * 9 * CHANNELS**2 * SIDE**2
    return operations / fastest(lambda: request.infer({0: data}, share_inputs=True))


def copy_speed() -> float:
    """Return the bytes per second read and written by copying an array larger than the caches."""
    source = np.zeros(2**27, np.uint8)
    target = np.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: np.copyto(target, source))


def fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the shortest of ten runs."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    """Print a table for each variant, and the machine's speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', default=['T-32', 'E-64'])
    parser.add_argument('--threads', nargs='+', type=int, default=[1, 2])
    options = parser.parse_args()
    precisions = [name for name in base.ACCURACY if name in capabilities(import_openvino().Core())]
    bandwidth = copy_speed()
    print(f'copy, read and written: {bandwidth / 1e9:.0f} GB/s')
    speeds: dict[tuple[str, int], float] = {}
    for threads in options.threads:
        for precision in precisions:
            speeds[precision, threads] = speed = convolution_speed(precision, threads)
            print(f'large convolution, {precision}, threads {threads}: {speed / 1e9:.0f} GFLOP/s')
    images = [np.ascontiguousarray(VirtualFlight().image(15 * k)[..., None]) for k in range(10)]
    for variant in map(find_variant, options.variants):
        _print_table(variant, options.threads, precisions, speeds, bandwidth, images)


def _print_table(
    variant: Variant,
    thread_counts: Sequence[int],
    precisions: Sequence[str],
    speeds: Mapping[tuple[str, int], float],
    bandwidth: float,
    images: list[np.ndarray],
) -> None:
    model = provide_model(variant)
    work = work_of(variant)
    for threads in thread_counts:
        columns = {}
        for backend, precision in [('onnxruntime', 'fp32'), *(('openvino', name) for name in precisions)]:
            if backend == 'openvino':
                times = profile_openvino(model, precision, threads, images)
            else:
                times = profile_onnxruntime(model, threads, images)
            times['keypoints'] = keypoints_time(model, backend, precision, threads, images)
            columns[f'{backend} {precision}'] = times
        for precision in precisions:
            columns[f'floor {precision}'] = floor_of(work, precision, speeds[precision, threads], bandwidth)
        print(f'\n{variant}, threads {threads}, milliseconds\n')
        print(f'| stage | GFLOP | {" | ".join(columns)} |')
        print(f'|---|---:{"|---:" * len(columns)}|')
        for stage in (*STAGES, 'sum'):
            values = [sum(times.values()) if stage == 'sum' else times.get(stage, 0.0) for times in columns.values()]
            flops = sum(entry[0] for entry in work.values()) if stage == 'sum' else work[stage][0]
            print(f'| {stage} | {flops / 1e9:.3f} | {" | ".join(f"{value:.2f}" for value in values)} |')


if __name__ == '__main__':
    main()
