"""How faithful a fast precision is to fp32: ``python -m edgepoint2_ros.bench.fidelity PHOTOS``.

For each variant and size of images: of the best keypoints in fp32 the share that the precision finds again, and
the matches that are right between a photograph and a view of it from aside.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros.bench.report import markdown
from edgepoint2_ros.bench.worker import parse_size
from edgepoint2_ros.engines import PRECISIONS
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.benchmark import RIGHT
from edgepoint2_ros.evaluation.pairs import orbit_homography
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.images import read_image
from edgepoint2_ros.matching import match
from edgepoint2_ros.models.variants import NAMES
from edgepoint2_ros.progress import show_progress

DISTANCES = (0.75, 1.0)  # pixels between two keypoints that count as the same


def find_again(found: Features, expected: Features, best: int) -> tuple[np.ndarray, float]:
    """Return how many of the ``best`` expected features were found again.

    Returns:
        The share within each of DISTANCES, and the median cosine between the descriptors of those within the last, 0
        if there are none.
    """
    if len(expected) == 0 or len(found) == 0:
        return np.zeros(len(DISTANCES)), 0.0
    distance = np.linalg.norm(expected.xy[:best, None] - found.xy[None], axis=2)
    nearest, least = distance.argmin(axis=1), distance.min(axis=1)
    same = least <= DISTANCES[-1]
    cosines = np.einsum('nd,nd->n', expected.descriptors[:best][same], found.descriptors[nearest[same]])
    return metrics.share_within(least, DISTANCES), float(np.median(cosines)) if same.any() else 0.0


def scale(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the middle of an image, rotated by a quarter turn if that fits better, shrunk to the given size.

    Raises:
        ImageError: the image is smaller.
    """
    if (image.shape[1] > image.shape[0]) != (width > height):
        image = cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)
    factor = max(width / image.shape[1], height / image.shape[0])
    if factor > 1:
        raise ImageError(f'{image.shape[1]}x{image.shape[0]}: expected at least {width}x{height}')
    size = max(width, round(image.shape[1] * factor)), max(height, round(image.shape[0] * factor))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def step_aside(image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a view of a picture from up to 40 degrees to the side, and the homography (3, 3) to it."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    tilt, roll = np.radians(rng.uniform(15, 40)), np.radians(rng.uniform(-20, 20))
    homography = orbit_homography(width, height, tilt, rng.uniform(0, 2 * np.pi), roll, rng.uniform(0.8, 1.25))
    return cv2.warpPerspective(image, homography, (width, height), borderMode=cv2.BORDER_REFLECT), homography


def measure(extractors: Sequence[Extractor], images: Sequence[np.ndarray], best: int) -> dict[str, np.ndarray]:
    """Compare the second extractor with the first on every image.

    Returns:
        For N images: ``again`` (N, 2), the shares of `find_again`; ``cosine`` (N,); ``matches`` and ``right`` (N, 2),
        how many matches with the side view each extractor makes, and how many of them are right.
    """
    rows: dict[str, list[Any]] = {'again': [], 'cosine': [], 'matches': [], 'right': []}
    for seed, image in enumerate(images):
        view, homography = step_aside(image, seed)
        first, second = (extractor.extract(image) for extractor in extractors)
        again, cosine = find_again(second, first, best)
        rows['again'].append(again)
        rows['cosine'].append(cosine)
        counts = []
        for extractor, features in zip(extractors, (first, second)):
            seen = extractor.extract(view)
            pairs = match(features, seen)
            errors = metrics.matching_errors(features.xy[pairs[:, 0]], seen.xy[pairs[:, 1]], homography)
            counts.append((len(pairs), np.count_nonzero(errors <= RIGHT)))
        matches, right = zip(*counts)
        rows['matches'].append(matches)
        rows['right'].append(right)
    return {name: np.array(values) for name, values in rows.items()}


def main() -> int:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photos', nargs='+', type=Path, help='folders of photographs')
    parser.add_argument('--models', nargs='+', default=NAMES, metavar='MODEL', help='variants (default: all)')
    parser.add_argument('--weights', default='auto', help='auto, shipped, official, or a path (default: %(default)s)')
    parser.add_argument(
        '--precision',
        default='int8',
        choices=PRECISIONS[2:],
        help='precision to compare with fp32 (default: %(default)s)',
    )
    parser.add_argument('--sizes', nargs='+', default=['640x480', '1920x1080'], metavar='WIDTHxHEIGHT')
    parser.add_argument(
        '--max-keypoints', type=int, default=2048, help='maximum number per image (default: %(default)s)'
    )
    parser.add_argument('--best', type=int, default=1000, help='number of best keypoints to compare (%(default)s)')
    parser.add_argument('--threads', type=int, default=0, help='0 uses every core (default)')
    options = parser.parse_args()
    try:
        for size in options.sizes:
            images = _read(options.photos, *parse_size(size))
            print(f'\n{size}, {len(images)} photographs, {options.precision} beside fp32:\n')
            print(_table(options, images), flush=True)
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _read(folders: Sequence[Path], width: int, height: int) -> list[np.ndarray]:
    images = []
    for path in find_images(folders):
        try:
            images.append(scale(read_image(path), width, height))
        except ImageError as error:
            print(f'skipped {path}: {error}', file=sys.stderr)
    if not images:
        raise EdgePoint2Error(f'none of the photographs can be used at {width}x{height}')
    return images


def _table(options: argparse.Namespace, images: Sequence[np.ndarray]) -> str:
    columns: dict[str, list[Any]] = {}
    for model in show_progress(options.models, 'variant', len(options.models)):
        extractors = [
            Extractor(
                model,
                weights=options.weights,
                backend='openvino',
                precision=precision,
                threads=options.threads,
                max_keypoints=options.max_keypoints,
            )
            for precision in ('fp32', options.precision)
        ]
        found = measure(extractors, images, options.best)
        matches, right = found['matches'].sum(axis=0), found['right'].sum(axis=0)
        row = {'model': f'{extractors[0].variant}'}
        for index, distance in enumerate(DISTANCES):
            shares = 100 * found['again'][:, index]
            row[f'best {options.best} again within {distance:g} px, % (worst)'] = (
                f'{shares.mean():.1f} ({shares.min():.1f})'
            )
        row['median cosine'] = f'{np.median(found["cosine"]):.4f}'
        row['right matches in fp32'] = right[0]
        row[f'in {options.precision}'] = f'{right[1]} ({100 * (right[1] / max(1, right[0]) - 1):+.1f} %)'
        shares = 100 * right / np.maximum(1, matches)
        row['share of right matches, %'] = f'{shares[0]:.1f} to {shares[1]:.1f}'
        for name, cell in row.items():
            columns.setdefault(name, []).append(cell)
    return markdown(columns)


if __name__ == '__main__':
    sys.exit(main())
