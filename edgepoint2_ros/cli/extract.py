"""Extract features from image files."""

import argparse
import sys
from pathlib import Path

import numpy as np

from edgepoint2_ros.bridges.colmap import as_stored
from edgepoint2_ros.cli.arguments import add_extractor_arguments, check_minimum
from edgepoint2_ros.drawing import draw_keypoints
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor, ExtractorSettings, extract_shrunk
from edgepoint2_ros.files import make_folder, own_names, refuse_existing, write_image
from edgepoint2_ros.image_files import read_orientation
from edgepoint2_ros.images import read_image
from edgepoint2_ros.masks import combine, read_mask_file
from edgepoint2_ros.storage import replacing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``edgepoint2 extract``."""
    add = parser.add_argument
    add('images', nargs='+', type=Path, metavar='IMAGE')
    add_extractor_arguments(parser)
    add('--resize', type=int, default=0, metavar='PIXELS', help='long side for extraction from very large photographs')
    add('--mask', help='mask image, black where keypoints are not allowed; scaled to each image')
    add(
        '--as-stored',
        action='store_true',
        help='keypoints in the pixel coordinates of the file, ignoring EXIF orientation, as COLMAP and hloc expect; '
        'by default in those of the upright image',
    )
    add('--output', type=Path, help='output folder for IMAGE.npz with xy, scores, descriptors, ...')
    add('--overlay', type=Path, help='output folder for IMAGE.png with the keypoints drawn')


def run(options: argparse.Namespace) -> int:
    """Extract the features and return the exit code: 1 if an image cannot be used.

    Raises:
        EdgePoint2Error: an option out of range, no such model or backend, or an output that already exists.
    """
    check_minimum(options, resize=0)
    names = own_names(options.images)
    outputs, overlays = (
        {path: folder / (name + suffix) for path, name in names.items()} if folder else {}
        for folder, suffix in ((options.output, '.npz'), (options.overlay, '.png'))
    )
    refuse_existing([*outputs.values(), *overlays.values()])
    for folder in filter(None, (options.output, options.overlay)):
        make_folder(folder)
    masks = [read_mask_file(options.mask)] if options.mask else []
    extractor = Extractor(ExtractorSettings.of(options))
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
            with replacing(outputs[path]) as file:
                np.savez(file, **vars(features))
        if options.overlay:
            overlays[path].parent.mkdir(parents=True, exist_ok=True)
            write_image(overlays[path], draw_keypoints(image, features))
    return 1 if failed else 0
