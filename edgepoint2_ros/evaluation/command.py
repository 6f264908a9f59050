"""Compare models with each other and with ORB and SIFT: a table, a CSV file and a page with plots and matches."""

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path

import cv2

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import report
from edgepoint2_ros.evaluation.benchmark import Picture, Result, run_benchmark
from edgepoint2_ros.evaluation.methods import EdgePoint2Method, OpenCVMethod
from edgepoint2_ros.evaluation.pairs import find_photographs, make_synthetic, read_hpatches, read_pose_pairs
from edgepoint2_ros.evaluation.rooms import make_rooms
from edgepoint2_ros.files import refuse_existing
from edgepoint2_ros.progress import show_progress

PICTURE_EVERY = 5  # pairs; of these the page shows some
ROOMS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``edgepoint2 evaluate``."""
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL',
        help='a variant, with @ and its weights where not the default: T-32@official',
    )
    parser.add_argument('--synthetic', nargs='+', type=Path, metavar='DIR', help='photographs to make pairs from')
    parser.add_argument(
        '--rooms', nargs='+', type=Path, metavar='DIR', help='photographs to hang in rendered rooms, for relative poses'
    )
    parser.add_argument('--hpatches', type=Path, metavar='DIR', help="homography sequences in HPatches' layout")
    parser.add_argument('--pairs', type=Path, metavar='FILE', help='relative pose pairs: a b 0 0 K_a K_b T a line')
    parser.add_argument('--images', type=Path, metavar='DIR', help="folder of the pairs' images (default: the file's)")
    parser.add_argument('--output', type=Path, default=Path('evaluation'), metavar='DIR', help='default: %(default)s')
    parser.add_argument('--max-keypoints', type=int, default=1024, help='of every method (default: %(default)s)')
    parser.add_argument(
        '--resize',
        type=int,
        default=640,
        metavar='PIXELS',
        help='long side of the images, 0: as they are (%(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the synthetic pairs and rooms (default: %(default)s)')


def run(options: argparse.Namespace) -> int:
    """Run the comparison and return the exit code.

    Raises:
        EdgePoint2Error: nothing to evaluate on, a model that cannot be opened or is named twice, no usable images, or
            results of another run in the output folder.
    """
    if not (options.synthetic or options.rooms or options.hpatches or options.pairs):
        raise EdgePoint2Error(
            'nothing to evaluate on: give --synthetic DIR, --rooms DIR, --hpatches DIR or --pairs FILE'
        )
    if options.max_keypoints < 1 or options.resize < 0:
        raise EdgePoint2Error(
            f'expected --max-keypoints from 1 and --resize from 0, got {options.max_keypoints} and {options.resize}'
        )
    outputs = [options.output / name for name in ('table.txt', 'results.csv', 'report.html')]
    refuse_existing(outputs)
    models = [EdgePoint2Method(spec, options.max_keypoints) for spec in options.models]
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise EdgePoint2Error(f'{twice[0]} is named twice: its results would be added up')
    methods = [*models, *(OpenCVMethod(name, options.max_keypoints) for name in ('ORB', 'SIFT'))]
    results, pictures = _run_benchmarks(options, methods)

    options.output.mkdir(parents=True, exist_ok=True)
    table = report.format_table(results)
    table_file, csv_file, page = outputs
    table_file.write_text(table, encoding='utf-8')
    report.write_csv(csv_file, results)
    settings = {
        'long side of the images, pixels': options.resize or 'as they are',
        'keypoints at most': options.max_keypoints,
        'seed of the synthetic pairs and rooms': options.seed,
        'OpenCV': cv2.__version__,
        **{f'model {model.name}': model.extractor.description for model in models},
    }
    command = shlex.join(['edgepoint2', *sys.argv[1:]])
    report.write_page(page, results, pictures, settings, command)
    print(table)
    print(f'written to {options.output}: {", ".join(path.name for path in outputs)}')
    return 0


def _run_benchmarks(options: argparse.Namespace, methods: list) -> tuple[list[Result], list[Picture]]:
    benchmarks = []
    if options.synthetic:
        photographs = find_photographs(options.synthetic)
        benchmarks.append(('synthetic', make_synthetic(photographs, options.resize, options.seed)))
    if options.rooms:
        benchmarks.append(('rooms', make_rooms(find_photographs(options.rooms), ROOMS, options.seed)))
    if options.hpatches:
        benchmarks.append(('HPatches layout', read_hpatches(options.hpatches, options.resize)))
    if options.pairs:
        root = options.images or options.pairs.parent
        benchmarks.append(('relative pose', read_pose_pairs(options.pairs, root, options.resize)))
    results, pictures = [], []
    for name, pairs in benchmarks:
        found, drawn = run_benchmark(name, show_progress(pairs, f'{name}, pair'), methods, PICTURE_EVERY)
        if not found:
            raise EdgePoint2Error(f'{name}: none of the pairs could be read')
        results += found
        pictures += drawn
    return results, pictures
