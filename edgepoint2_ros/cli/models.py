"""List, import or download models."""

import argparse
import sys
from pathlib import Path

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.models import MAX_KEYPOINTS, list_models
from edgepoint2_ros.models.official import download_weights, import_weights
from edgepoint2_ros.models.variants import NAMES, VARIANTS, find_variant
from edgepoint2_ros.storage import data_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``edgepoint2 models``."""
    actions = parser.add_subparsers(title='actions', required=True, metavar='ACTION')
    listing = actions.add_parser('list', help='say which models are there')
    listing.set_defaults(run_action=_list)
    importing = actions.add_parser('import', help='make models from files of weights (.pth)')
    importing.add_argument('paths', nargs='+', type=Path, metavar='PATH', help='.pth files, or folders of them')
    importing.add_argument('--custom', action='store_true', help='allow weights that are not the official ones')
    _add_export_arguments(importing)
    importing.set_defaults(run_action=_import)
    download = actions.add_parser('download', help='fetch official weights from GitHub and make models of them')
    download.add_argument('names', nargs='+', metavar='MODEL', help=f'all, or of {", ".join(NAMES)}')
    _add_export_arguments(download)
    download.set_defaults(run_action=_download)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--max-keypoints', type=int, default=MAX_KEYPOINTS, help='most keypoints on TensorRT (%(default)s)'
    )
    parser.add_argument('--no-subpixel', action='store_true', help='leave keypoints at whole pixels')


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


def _download(options: argparse.Namespace) -> int:
    for variant in VARIANTS if options.names == ['all'] else [find_variant(name) for name in options.names]:
        weights = download_weights(variant)
        model = import_weights(weights, False, options.max_keypoints, not options.no_subpixel)
        print(f'{model.variant}: {model.path}')
    return 0
