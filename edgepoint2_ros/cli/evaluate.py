"""Compare the accuracy of models with each other, ORB and SIFT: a table, a CSV file and a page with plots."""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import cv2

from edgepoint2_ros.cli.arguments import check_minimum
from edgepoint2_ros.drawing import import_matplotlib
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import metrics, report
from edgepoint2_ros.evaluation.benchmark import Picture, Result, run_benchmark
from edgepoint2_ros.evaluation.methods import EdgePoint2Method, Method, OpenCVMethod
from edgepoint2_ros.evaluation.pairs import (
    HomographyPair,
    PosePair,
    make_rooms,
    make_synthetic,
    name_scene,
    read_hpatches,
    read_pose_pairs,
)
from edgepoint2_ros.extractor import DEFAULTS
from edgepoint2_ros.files import make_folder, refuse_existing
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.progress import show_progress

# Options that results must share to be compared.
SHARED = ('resize', 'max_keypoints', 'score_threshold', 'seed')
PICTURE_EVERY = 5  # pairs; of these the page shows some
ROOMS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``edgepoint2 evaluate``."""
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help='variant, optionally with @ and its weights: T-32@official')
    add('--synthetic', nargs='+', type=Path, metavar='DIR', help='photographs to generate homography pairs from')
    add(
        '--rooms',
        nargs='+',
        type=Path,
        metavar='DIR',
        help='photographs to generate pose pairs from, in rendered rooms',
    )
    add('--hpatches', type=Path, metavar='DIR', help='homography sequences in the layout of HPatches')
    add(
        '--pairs',
        nargs='+',
        type=Path,
        metavar='FILE',
        help='relative pose pairs, one file per scene, one pair per line: a b 0 0 K_a K_b T',
    )
    add('--images', type=Path, metavar='DIR', help='image folder of --pairs (default: that of the file)')
    add('--seeds', type=int, default=3, help='RANSAC seeds per pose and homography (default: %(default)s)')
    add('--models-only', action='store_true', help='omit ORB and SIFT')
    add(
        '--with',
        nargs='+',
        default=[],
        type=Path,
        dest='earlier',
        metavar='FILE',
        help='results.csv of earlier runs on the same pairs with the same options, to include',
    )
    add('--output', type=Path, default=Path('evaluation'), metavar='DIR', help='output folder (default: %(default)s)')
    add('--max-keypoints', type=int, default=1024, help='per image, for every method (default: %(default)s)')
    add(
        '--score-threshold',
        type=float,
        default=DEFAULTS.score_threshold,
        help='minimum score of the models, a raw logit (default: %(default)s)',
    )
    add(
        '--resize',
        type=int,
        default=640,
        metavar='PIXELS',
        help='long side of the images, 0 for full size; those of --rooms have 640x480 pixels (default: %(default)s)',
    )
    add('--seed', type=int, default=0, help='random seed of --synthetic and --rooms (default: %(default)s)')


def run(options: argparse.Namespace, others: Sequence[Method] = ()) -> int:
    """Run the comparison and return the exit code.

    Args:
        options: of `add_arguments`.
        others: methods to compare the models with, besides ORB and SIFT.

    Raises:
        EdgePoint2Error: nothing to evaluate on, a model that cannot be opened or is named twice, no usable images, no
            poselib or matplotlib, or results of another run in the output folder.
    """
    if not (options.synthetic or options.rooms or options.hpatches or options.pairs):
        raise EdgePoint2Error(
            'nothing to evaluate on: give --synthetic DIR, --rooms DIR, --hpatches DIR or --pairs FILE'
        )
    check_minimum(options, max_keypoints=1, resize=0, seeds=1, seed=0)
    outputs = [options.output / name for name in ('table.txt', 'results.csv', 'report.html')]
    refuse_existing(outputs)
    # These raise now if they are missing, not after the extraction.
    metrics.import_poselib()
    import_matplotlib()
    scenes = [name_scene(listing) for listing in options.pairs or ()]
    if len(set(scenes)) < len(scenes):
        raise EdgePoint2Error(f'--pairs: expected files or folders of different names, got {", ".join(scenes)}')
    threshold = options.score_threshold
    models = [EdgePoint2Method(spec, options.max_keypoints, score_threshold=threshold) for spec in options.models]
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise EdgePoint2Error(f'{twice[0]} is named twice: its results would be added up')
    opencv = () if options.models_only else ('ORB', 'SIFT')
    methods = [*models, *others, *(OpenCVMethod(name, options.max_keypoints) for name in opencv)]
    shared = {name: getattr(options, name) for name in SHARED}
    earlier = [report.read_csv(path, shared) for path in options.earlier]
    make_folder(options.output)
    results, pictures = _run_benchmarks(options, methods)
    for path, more in zip(options.earlier, earlier):
        results += _join(path, more, results)

    known = list(dict.fromkeys(result.method for result in results))
    rivals = find_rivals(known) + [(model.name, other.name) for other in others for model in models]
    table = report.format_table(results, rivals)
    table_file, csv_file, page = outputs
    table_file.write_text(table, encoding='utf-8', errors='backslashreplace')
    report.write_csv(csv_file, results, shared)
    settings = {
        'long side of the images, pixels': options.resize or 'as they are',
        'keypoints at most': options.max_keypoints,
        'score threshold of the models': threshold,
        'seed of the synthetic pairs and rooms': options.seed,
        'estimations of each pose and homography': options.seeds,
        'OpenCV': cv2.__version__,
        **{f'model {model.name}': model.extractor.description for model in models},
    }
    command = shlex.join(['edgepoint2', *sys.argv[1:]])
    report.write_page(page, results, rivals, pictures, settings, command)
    print(table)
    print(f'written to {options.output}: {", ".join(path.name for path in outputs)}')
    return 0


def find_rivals(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return which methods are compared, by name: each model with the last one of its variant."""
    last = {name.split()[0]: name for name in methods}
    return [(name, last[name.split()[0]]) for name in methods if name != last[name.split()[0]]]


def _join(path: Path, earlier: list[Result], results: list[Result]) -> list[Result]:
    """Return the earlier results of methods that have none here, in the order of the pairs here.

    Raises:
        EdgePoint2Error: they are for other pairs.
    """
    measured = {result.method for result in results}
    pairs = {pair: number for number, pair in enumerate(dict.fromkeys(map(_pair_of, results)))}
    more = [result for result in earlier if result.method not in measured]
    for method in dict.fromkeys(result.method for result in more):
        found = [_pair_of(result) for result in more if result.method == method]
        if len(found) != len(pairs) or set(found) != set(pairs):
            both = len(pairs.keys() & found)
            raise EdgePoint2Error(
                f'{path}: {method} was measured on other pairs: of {len(found)} there and {len(pairs)} here {both} '
                'are the same'
            )
    return sorted(more, key=lambda result: pairs[_pair_of(result)])


def _pair_of(result: Result) -> tuple[str, ...]:
    return result.benchmark, result.group, result.pair, result.digest


def _run_benchmarks(options: argparse.Namespace, methods: list[Method]) -> tuple[list[Result], list[Picture]]:
    benchmarks: list[tuple[str, Iterator[HomographyPair] | Iterator[PosePair]]] = []
    if options.synthetic:
        photographs = find_images(options.synthetic)
        benchmarks.append(('synthetic', make_synthetic(photographs, options.resize, options.seed)))
    if options.rooms:
        benchmarks.append(('rooms', make_rooms(find_images(options.rooms), ROOMS, options.seed)))
    if options.hpatches:
        benchmarks.append(('HPatches layout', read_hpatches(options.hpatches, options.resize)))
    if options.pairs:
        scenes = (read_pose_pairs(file, options.images or file.parent, options.resize) for file in options.pairs)
        benchmarks.append(('relative pose', chain.from_iterable(scenes)))
    results, pictures = [], []
    for name, pairs in benchmarks:
        found, drawn = run_benchmark(name, show_progress(pairs, f'{name}, pair'), methods, PICTURE_EVERY, options.seeds)
        if not found:
            raise EdgePoint2Error(f'{name}: none of the pairs could be read')
        results += found
        pictures += drawn
    return results, pictures
