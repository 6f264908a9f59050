"""Reconstruct cameras and points from photographs, a video or a bag, for COLMAP and gaussian-splatting tools."""

import argparse
import sys
from pathlib import Path

import pycolmap

from edgepoint2_ros.bridges.mapping import Job, build_map
from edgepoint2_ros.bridges.mapping.build import LONG_SIDE, RATE, SIMILAR, WINDOW
from edgepoint2_ros.cli.arguments import add_extractor_arguments
from edgepoint2_ros.extractor import ExtractorSettings

SHOWN = 5  # names of left-out images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``edgepoint2 map``."""
    add = parser.add_argument
    add('source', type=Path, metavar='IMAGES_OR_BAG', help='folder of photographs, video, or bag')
    add('output', type=Path, metavar='OUT', help='output folder; that of an interrupted run is resumed')
    add('--topic', default='', help='image topic of a bag (default: the only one)')
    add_extractor_arguments(parser)
    add(
        '--resize',
        type=int,
        default=LONG_SIDE,
        metavar='PIXELS',
        help='long side for feature extraction, 0 for full size (%(default)s)',
    )
    add(
        '--rate',
        type=float,
        default=RATE,
        metavar='HZ',
        help='images per second of a video or bag, 0 for all (%(default)s)',
    )
    add(
        '--window',
        type=int,
        metavar='N',
        help=f'match with the next N images (default: {WINDOW} for a video or bag, else 0)',
    )
    add('--similar', type=int, default=SIMILAR, metavar='N', help='and with the N most similar ones (%(default)s)')
    add('--one-camera', action='store_true', help='all photographs are from one camera at one focal length')
    add('--focal', type=float, metavar='PIXELS', help='focal length (default: EXIF or camera_info, else estimated)')


def run(options: argparse.Namespace) -> int:
    """Make the map, print a summary, and return the exit code.

    Raises:
        EdgePoint2Error: the source cannot be read, no map can be made from it, or the output belongs to another job.
    """
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    job = Job(
        options.source,
        options.output,
        options.topic,
        ExtractorSettings.of(options),
        options.resize,
        options.rate,
        options.window,
        options.similar,
        options.one_camera,
        options.focal,
    )
    summary = build_map(job, lambda text: print(f'edgepoint2: {text}', file=sys.stderr))
    print(
        f'{summary.registered} of {summary.images} images, {summary.points} points, each seen '
        f'{summary.track_length:.1f} times, error {summary.error:.2f} px'
    )
    if summary.left_out:
        more = f' and {len(summary.left_out) - SHOWN} more' if len(summary.left_out) > SHOWN else ''
        print(f'not in the map: {", ".join(summary.left_out[:SHOWN])}{more}')
    if summary.registered < summary.images / 2:
        print('fewer than half of the images were registered: add images between those that were')
    print(options.output / 'index.html')
    return 0
