"""The arguments that several commands share."""

import argparse

import numpy as np

from edgepoint2_ros.engines import BACKENDS, PRECISIONS
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import DEFAULTS


def add_extractor_arguments(parser: argparse.ArgumentParser, max_keypoints: int = DEFAULTS.max_keypoints) -> None:
    """Add the settings of the extractor; ExtractorSettings.of reads them from the parsed arguments."""
    add = parser.add_argument
    add('--model', default=DEFAULTS.model, help='variant (default: %(default)s)')
    add('--weights', default=DEFAULTS.weights, help='auto, shipped, official, or a path (default: %(default)s)')
    add('--backend', default=DEFAULTS.backend, help=f'auto, {", ".join(BACKENDS)} (default: %(default)s)')
    add('--precision', default=DEFAULTS.precision, help=f'{", ".join(PRECISIONS)} (default: %(default)s)')
    add('--threads', type=int, default=DEFAULTS.threads, help='0 uses every core (default: %(default)s)')
    add('--max-keypoints', type=int, default=max_keypoints, help='maximum number per image (default: %(default)s)')
    add(
        '--score-threshold',
        type=float,
        default=DEFAULTS.score_threshold,
        help='minimum raw logit (default: %(default)s)',
    )


def check_minimum(options: argparse.Namespace, **minimum: float) -> None:
    """Refuse options, by name, that are below their minimum.

    Raises:
        EdgePoint2Error: one is, or one of its values.
    """
    for name, least in minimum.items():
        for value in np.atleast_1d(getattr(options, name)):
            if value < least:
                raise EdgePoint2Error(f'--{name.replace("_", "-")}: expected {least} or more, got {value}')
