"""Match two images: count keypoints, matches and inliers, and draw the matches."""

import argparse
import time
from pathlib import Path

import numpy as np

from edgepoint2_ros.cli.arguments import add_extractor_arguments
from edgepoint2_ros.drawing import draw_matches, write_caption
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor, ExtractorSettings
from edgepoint2_ros.files import refuse_unwritable, write_image
from edgepoint2_ros.images import read_image
from edgepoint2_ros.matching import GEOMETRIES, match, verify
from edgepoint2_ros.scenes.sources import find_photographs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``edgepoint2 match``."""
    add = parser.add_argument
    add('images', nargs='*', type=Path, metavar='IMAGE', help='two images (default: a stereo pair from scikit-image)')
    add_extractor_arguments(parser, max_keypoints=1000)
    add('--geometry', choices=list(GEOMETRIES), default='epipolar', help='model of the inliers (default: %(default)s)')
    add('--output', type=Path, default=Path('matches.png'), help='image to write (default: %(default)s)')


def run(options: argparse.Namespace) -> int:
    """Match two images and write the picture.

    Raises:
        EdgePoint2Error: not two images, or one that cannot be read.
    """
    paths = options.images or _sample()
    if len(paths) != 2:
        raise EdgePoint2Error(f'match: expected two images, got {len(paths)}')
    refuse_unwritable([options.output])
    images = [read_image(path) for path in paths]
    extractor = Extractor(ExtractorSettings.of(options))
    for image in images:
        extractor.extract(image)  # warm-up: the first inference of an image size compiles the network for it
    print(extractor.description)
    features = []
    for path, image in zip(paths, images):
        start = time.perf_counter()
        features.append(extractor.extract(image))
        print(f'{path}: {len(features[-1])} keypoints in {_ms(start)}')
    start = time.perf_counter()
    first, second = features
    matches = match(first, second)
    print(f'{len(matches)} mutual nearest neighbours in {_ms(start)}')
    start = time.perf_counter()
    inliers, _ = verify(first, second, matches, options.geometry)
    print(f'{len(inliers)} inliers ({options.geometry} geometry) in {_ms(start)}')

    agrees = np.isin(matches[:, 0], inliers[:, 0])
    first_xy, second_xy = (f.xy[column] for f, column in zip(features, matches.T))
    picture = draw_matches(images[0], images[1], first_xy, second_xy, agrees)
    text = f'{extractor.variant}: {len(inliers)} inliers of {len(matches)} matches'
    write_image(options.output, write_caption(picture, text))
    print(f'wrote {options.output}')
    return 0


def _sample() -> list[Path]:
    """Return two photographs that come with scikit-image: a motorcycle in a workshop, from the left and the right."""
    folder = find_photographs()
    if folder is None:
        raise EdgePoint2Error('match: expected two images; the sample pair comes with `pip install scikit-image`')
    return [folder / f'motorcycle_{side}.png' for side in ('left', 'right')]


def _ms(start: float) -> str:
    return f'{(time.perf_counter() - start) * 1e3:.1f} ms'
