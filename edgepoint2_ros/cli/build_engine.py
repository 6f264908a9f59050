"""Build TensorRT plans ahead of time, once per model, image size and GPU, so that the node starts without delay."""

import argparse
import re

from edgepoint2_ros.engines import open_engine
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import check_size
from edgepoint2_ros.models import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgepoint2 build-engine`."""
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help='variants, for example T-32')
    add('--weights', default='auto', help='auto, shipped, official, or a path (default: %(default)s)')
    add('--size', action='append', metavar='WIDTHxHEIGHT', help='image size; may be repeated (default: 640x480)')
    add('--gray', action='store_true', help='for a camera that publishes gray images (mono8)')


def run(options: argparse.Namespace) -> int:
    """Build the plans and return the exit code."""
    sizes = [_parse_size(size) for size in options.size or ['640x480']]
    for name in options.models:
        engine = open_engine(find_model(name, options.weights), 'tensorrt', report=print)
        for width, height in sizes:
            engine.prepare((height, width, 1 if options.gray else 3))
            print(f'{name} is ready for {width}x{height} {"gray" if options.gray else "colour"} images')
    return 0


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'(\d+)[xX](\d+)', text)
    if not match:
        raise EdgePoint2Error(f'--size: expected WIDTHxHEIGHT, for example 640x480, got {text!r}')
    width, height = int(match[1]), int(match[2])
    check_size(width, height)
    return width, height
