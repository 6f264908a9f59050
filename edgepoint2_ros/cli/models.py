"""List, import, download and calibrate models, and learn their vocabulary for place recognition."""

import argparse
import sys
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgepoint2_ros.cli.arguments import check_minimum
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.evaluation.calibration import find_min_cosine, judge
from edgepoint2_ros.evaluation.methods import EdgePoint2Method
from edgepoint2_ros.evaluation.pairs import make_synthetic, read_pose_pairs
from edgepoint2_ros.extractor import Extractor, extract_shrunk
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.images import read_image
from edgepoint2_ros.models import MAX_KEYPOINTS, find_model, is_shipped, list_models, write_min_cosine
from edgepoint2_ros.models.official import download_weights, import_weights
from edgepoint2_ros.models.variants import NAMES, VARIANTS, find_variant
from edgepoint2_ros.places import CENTRES, store_vocabulary, train_centres
from edgepoint2_ros.progress import show_progress
from edgepoint2_ros.storage import data_directory

T = TypeVar('T')

LONG_SIDE = 640  # of the images that models are calibrated on and vocabularies learned from, pixels
ROWS = 300  # of the best keypoints of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``edgepoint2 models``."""
    actions = parser.add_subparsers(title='actions', required=True, metavar='ACTION')
    listing = actions.add_parser('list', help='list the installed models')
    listing.set_defaults(run_action=_list)
    importing = actions.add_parser('import', help='make models from weights (.pth)')
    importing.add_argument('paths', nargs='+', type=Path, metavar='PATH', help='.pth files or folders')
    importing.add_argument('--custom', action='store_true', help='allow weights other than the official ones')
    _add_export_arguments(importing)
    importing.set_defaults(run_action=_import)
    calibrating = actions.add_parser(
        'calibrate', help='measure the cosine above which most matches are correct, and write it to the model cards'
    )
    _add_calibrate_arguments(calibrating)
    calibrating.set_defaults(run_action=_calibrate)
    download = actions.add_parser('download', help='download official weights from GitHub and make models of them')
    download.add_argument('names', nargs='+', metavar='MODEL', help=f'all, or any of {", ".join(NAMES)}')
    _add_export_arguments(download)
    download.set_defaults(run_action=_download)
    vocabulary = actions.add_parser('vocabulary', help='learn the vocabulary for place recognition from images')
    add = vocabulary.add_argument
    add('names', nargs='+', metavar='MODEL', help=f'all, or any of {", ".join(NAMES)}')
    add('--weights', default='auto', help='auto, shipped, official, or a path (default: %(default)s)')
    add('--images', nargs='+', type=Path, required=True, metavar='DIR', help='folders of images')
    add('--most', type=int, default=500, help='maximum number of images, chosen at random (default: %(default)s)')
    add('--centres', type=int, default=CENTRES, help='number of cluster centres (default: %(default)s)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    add('--data', default='', metavar='TEXT', help='source and licence of the images, for the model card')
    vocabulary.set_defaults(run_action=_vocabulary)


def _add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        'models',
        nargs='+',
        metavar='MODEL',
        help='all (that ship), or variants, optionally with @ and their weights: T-32@my_training',
    )
    add('--synthetic', nargs='+', type=Path, default=[], metavar='DIR', help='photographs, for homography pairs')
    add('--pairs', nargs='+', type=Path, default=[], metavar='FILE', help='relative pose pairs, as for evaluate')
    add('--images', type=Path, metavar='DIR', help='image folder of --pairs (default: that of the file)')
    add('--scene-pairs', type=int, default=40, help='maximum number of pairs per file (default: %(default)s)')
    add('--photographs', type=int, default=30, help='maximum number of photographs (default: %(default)s)')
    add('--max-keypoints', type=int, default=1024, help='maximum number per image (default: %(default)s)')
    add('--precision', default='fp32', help='precision of the network (default: %(default)s)')
    add('--dry-run', action='store_true', help='print only, do not write the model cards')


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--max-keypoints', type=int, default=MAX_KEYPOINTS, help='limit on TensorRT (default: %(default)s)'
    )
    parser.add_argument('--no-subpixel', action='store_true', help='disable sub-pixel refinement')


def run(options: argparse.Namespace) -> int:
    """Run the action and return the exit code.

    Raises:
        EdgePoint2Error: no such file or variant, or weights that cannot be downloaded.
    """
    return options.run_action(options)


def _list(options: argparse.Namespace) -> int:
    models = list_models()
    for model in models:
        if isinstance(model, EdgePoint2Error):
            print(f'broken: {model}')
        else:
            print(f'{model.variant!s:5} {model.card.get("weights", "?"):9} {model.digest}  {model.path}')
    if not models:
        print(f'no models in {data_directory() / "models"}: get one with `edgepoint2 models download T-32`')
    return 0


def _import(options: argparse.Namespace) -> int:
    files = []
    for path in options.paths:
        found = sorted(path.glob('*.pth')) if path.is_dir() else [path]
        if not found:
            raise EdgePoint2Error(f'{path} holds no .pth files')
        files += found
    failed = 0
    for file in files:
        try:
            model = import_weights(file, options.custom, options.max_keypoints, not options.no_subpixel)
            print(f'{model.variant}: {model.path}')
        except EdgePoint2Error as error:
            print(f'edgepoint2: {error}', file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def _calibrate(options: argparse.Namespace) -> int:
    if not options.synthetic and not options.pairs:
        raise EdgePoint2Error('nothing to calibrate on: give --synthetic DIR and --pairs FILE')
    check_minimum(options, scene_pairs=1, photographs=1, max_keypoints=1)
    specs = options.models
    if specs == ['all']:
        specs = [f'{variant}@shipped' for variant in VARIANTS if is_shipped(variant)]
    models = [find_model(name, weights or 'auto') for name, _, weights in (spec.partition('@') for spec in specs)]
    methods = [EdgePoint2Method(spec, options.max_keypoints, options.precision) for spec in specs]
    kinds = {}
    if options.synthetic:
        photographs = _spread(find_images(options.synthetic), options.photographs)
        kinds['synthetic'] = judge(show_progress(make_synthetic(photographs, LONG_SIDE), 'synthetic pair'), methods)
    if options.pairs:
        root = options.images
        scenes = [
            list(read_pose_pairs(file, root or file.parent, LONG_SIDE, options.scene_pairs)) for file in options.pairs
        ]
        kinds['real'] = judge(show_progress(chain.from_iterable(scenes), 'real pair'), methods)
    for number, (spec, model) in enumerate(zip(specs, models)):
        found = {name: judged[number] for name, judged in kinds.items()}
        value = find_min_cosine(found.values())
        counts = ' and '.join(f'{kind.pairs} {name}' for name, kind in found.items()) + ' pairs'
        alone = ', '.join(f'{name} alone {find_min_cosine([kind]):.3f}' for name, kind in found.items())
        print(f'{spec:14} {value:.3f}  ({alone}; {counts})')
        if not options.dry_run:
            write_min_cosine(model, value, f'{counts}, {options.max_keypoints} keypoints an image')
    return 0


def _spread(items: list[T], most: int) -> list[T]:
    """Return at most ``most`` of the items, evenly spread."""
    return items[:: max(1, -(-len(items) // most))]


def _download(options: argparse.Namespace) -> int:
    for variant in VARIANTS if options.names == ['all'] else [find_variant(name) for name in options.names]:
        weights = download_weights(variant)
        model = import_weights(weights, False, options.max_keypoints, not options.no_subpixel)
        print(f'{model.variant}: {model.path}')
    return 0


def _vocabulary(options: argparse.Namespace) -> int:
    check_minimum(options, most=1, centres=1, seed=0)
    found = find_images(options.images)
    drawn = np.sort(np.random.default_rng(options.seed).permutation(len(found))[: options.most])
    for variant in VARIANTS if options.names == ['all'] else [find_variant(name) for name in options.names]:
        # With the runtime that every installation has, so that the same command gives the same vocabulary.
        extractor = Extractor(
            variant.name, weights=options.weights, backend='onnxruntime', precision='fp32', max_keypoints=ROWS
        )
        rows = []
        for number in show_progress(drawn, variant.name, len(drawn)):
            try:
                rows.append(extract_shrunk(extractor, read_image(found[number]), LONG_SIDE).descriptors)
            except ImageError as error:
                print(f'edgepoint2: left out {found[number]}: {error}', file=sys.stderr)
        centres = train_centres(np.concatenate(rows or [np.empty((0, 1), np.float32)]), options.centres, options.seed)
        trained = {'images': len(rows), 'keypoints': sum(map(len, rows)), 'seed': options.seed}
        store_vocabulary(extractor.model, centres, trained | ({'data': options.data} if options.data else {}))
        print(f'{variant}: {len(centres)} centres from {trained["keypoints"]} keypoints of {len(rows)} images')
    return 0
