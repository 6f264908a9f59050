"""The command `edgepoint2`: extraction, models, evaluation, training, demo and benchmark without writing code.

Each command imports what it needs when it is called: extraction starts without torch, and only the demo needs ROS.
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

from edgepoint2_ros import __version__
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.models import PRECISION
from edgepoint2_ros.models.variants import NAMES, VARIANTS, find_variant

# Commands with a module of their own, which offers add_arguments(parser) and run(options) -> exit code.
_MODULES = {
    'bag': ('edgepoint2_ros.cli.bag', 'bags of images to bags of keypoints, and those to COLMAP and hloc'),
    'build-engine': ('edgepoint2_ros.cli.build_engine', 'build the plans of TensorRT ahead of time'),
    'doctor': ('edgepoint2_ros.cli.doctor', 'what is here, what is missing, and whether it works'),
    'evaluate': ('edgepoint2_ros.cli.evaluate', 'accuracy of models beside ORB and SIFT, with a report'),
    'match': ('edgepoint2_ros.cli.match', 'match two images and draw the matches'),
    'train': ('edgepoint2_ros.cli.train', 'train a variant on your own images'),
    'demo': ('edgepoint2_ros.cli.demo', 'camera, extractor and consumer as three processes over DDS'),
    'bench': ('edgepoint2_ros.cli.bench', 'time the models beside ORB, SIFT and the dense reference'),
}


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 for an error, which is printed in one line."""
    args = sys.argv[1:] if args is None else args
    try:
        options = _parser(args[0] if args else '').parse_args(args)
        return options.run(options)
    except EdgePoint2Error as error:
        print(f'edgepoint2: {error}', file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, say `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f'edgepoint2: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(called: str) -> argparse.ArgumentParser:
    """Return the parser; of the commands with modules of their own only the one that is called has its arguments."""
    parser = argparse.ArgumentParser(prog='edgepoint2', description='EdgePoint2 keypoints and compact descriptors')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')

    extract = commands.add_parser('extract', help='extract the features of image files')
    extract.add_argument('images', nargs='+', type=Path, metavar='IMAGE')
    add_extractor_arguments(extract)
    extract.add_argument('--max-keypoints', type=int, help='(default: 2048)')
    extract.add_argument('--score-threshold', type=float, default=-5.0, help='raw logit (default: %(default)s)')
    extract.add_argument(
        '--resize', type=int, default=0, metavar='PIXELS', help='shrink to this long side, for very large photographs'
    )
    extract.add_argument('--mask', help='image, not black where keypoints are allowed, scaled to each image')
    extract.add_argument(
        '--as-stored',
        action='store_true',
        help='keypoints in the pixels of the file as COLMAP and hloc read it, without regard to its EXIF orientation; '
        'by default in those of the upright image',
    )
    extract.add_argument('--output', type=Path, help='folder for IMAGE.npz with xy, scores, descriptors, ...')
    extract.add_argument('--overlay', type=Path, help='folder for IMAGE.png with the keypoints drawn')
    extract.set_defaults(run=_extract)

    models = commands.add_parser('models', help='list, import or download models')
    actions = models.add_subparsers(title='actions', required=True, metavar='ACTION')
    listing = actions.add_parser('list', help='say which models are there')
    listing.set_defaults(run=_list_models)
    importing = actions.add_parser('import', help='make models from files of weights (.pth)')
    importing.add_argument('paths', nargs='+', type=Path, metavar='PATH', help='.pth files, or folders of them')
    importing.add_argument('--custom', action='store_true', help='allow weights that are not the official ones')
    _add_export_arguments(importing)
    importing.set_defaults(run=_import_models)
    download = actions.add_parser('download', help='fetch official weights from GitHub and make models of them')
    download.add_argument('names', nargs='+', metavar='MODEL', help=f'all, or of {", ".join(NAMES)}')
    _add_export_arguments(download)
    download.set_defaults(run=_download_models)

    for name, (path, text) in _MODULES.items():
        command = commands.add_parser(name, help=text)
        if name == called:
            try:
                module = import_module(path)
            except ImportError as error:
                raise EdgePoint2Error(f'`edgepoint2 {name}` lacks a package: {error}') from None
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def add_extractor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a model and how it runs."""
    parser.add_argument('--model', default='T-32', help='one of the 14 variants (default: %(default)s)')
    parser.add_argument('--weights', default='auto', help='auto, shipped, official or a path (default: %(default)s)')
    parser.add_argument('--backend', default='auto', help='auto, tensorrt, openvino, onnxruntime (%(default)s)')
    parser.add_argument('--precision', default=PRECISION, help='auto, fp32, fp16, bf16 or int8 (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='0 takes every core (default: %(default)s)')


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--max-keypoints', type=int, default=2048, help='most keypoints on TensorRT (%(default)s)')
    parser.add_argument('--no-subpixel', action='store_true', help='leave keypoints at whole pixels')


def _extract(options: argparse.Namespace) -> int:
    import numpy as np

    from edgepoint2_ros.bridges.colmap import as_stored
    from edgepoint2_ros.drawing import draw_keypoints
    from edgepoint2_ros.extractor import Extractor, extract_shrunk
    from edgepoint2_ros.files import own_names, refuse_existing, write_image
    from edgepoint2_ros.image_files import read_orientation
    from edgepoint2_ros.images import read_image
    from edgepoint2_ros.masks import combine, read_mask_file

    if options.resize < 0:
        raise EdgePoint2Error(f'--resize: expected 0 (as it is) or more, got {options.resize}')
    names = own_names(options.images)
    outputs, overlays = (
        {path: folder / (name + suffix) for path, name in names.items()} if folder else {}
        for folder, suffix in ((options.output, '.npz'), (options.overlay, '.png'))
    )
    refuse_existing([*outputs.values(), *overlays.values()])
    masks = [read_mask_file(options.mask)] if options.mask else []
    extractor = Extractor(
        options.model,
        options.weights,
        options.backend,
        options.precision,
        options.threads,
        options.max_keypoints,
        options.score_threshold,
    )
    print(extractor.description)
    failed = 0
    for path in names:
        try:
            image = read_image(path)
            mask = combine(masks, 0, image.shape[1], image.shape[0])
            features = extract_shrunk(extractor, image, options.resize, mask)
        except EdgePoint2Error as error:
            print(f'edgepoint2: {path}: {error}', file=sys.stderr)
            failed += 1
            continue
        line = f'{path}: {len(features)} keypoints'
        orientation = read_orientation(path)
        if orientation != 1:
            line += f', turned upright as EXIF says (orientation {orientation})'
            if options.as_stored:
                line += ', in the pixels of the file as it is stored'
                image, features = read_image(path, upright=False), as_stored(features, orientation)
        print(line)
        if options.output:
            outputs[path].parent.mkdir(parents=True, exist_ok=True)
            np.savez(outputs[path], **vars(features))
        if options.overlay:
            overlays[path].parent.mkdir(parents=True, exist_ok=True)
            write_image(overlays[path], draw_keypoints(image, features))
    return 1 if failed else 0


def _list_models(options: argparse.Namespace) -> int:
    from edgepoint2_ros.models import data_directory, list_models

    models = list_models()
    for model in models:
        if isinstance(model, EdgePoint2Error):
            print(f'broken: {model}')
        else:
            print(f'{model.variant!s:5} {model.card.get("weights", "?"):9} {model.digest}  {model.path}')
    if not models:
        print(f'no models in {data_directory() / "models"}: get one with `edgepoint2 models download T-32`')
    return 0


def _import_models(options: argparse.Namespace) -> int:
    from edgepoint2_ros.models.official import import_weights

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


def _download_models(options: argparse.Namespace) -> int:
    from edgepoint2_ros.models.official import download_weights, import_weights

    for variant in VARIANTS if options.names == ['all'] else [find_variant(name) for name in options.names]:
        weights = download_weights(variant)
        model = import_weights(weights, False, options.max_keypoints, not options.no_subpixel)
        print(f'{model.variant}: {model.path}')
    return 0
