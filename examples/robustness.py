"""How much bad light, noise and blur cost: right matches of models in views of photographs, as they are and spoiled.

    pip install ".[models]"
    python examples/robustness.py T-32 T-32@official --photographs PHOTOS

Two views of each pair of `distillation.pairs` differ by homographies. Both are spoiled as those of a training are, each
by another gamma, exposure, shading, shadow, fog, darkness, blur, noise or JPEG compression.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation.methods import EdgePoint2Method
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.progress import show_progress
from edgepoint2_ros.storage import cache_directory

try:
    import torch

    from edgepoint2_ros.distillation.pairs import Pair, PairDataset, change_light, correspond
    from edgepoint2_ros.distillation.photos import load_photos
except ImportError as error:
    sys.exit(f'{error}. {__doc__}')

CORRECT = 3  # pixels


def right_matches(method: EdgePoint2Method, views: np.ndarray, pair: Pair) -> tuple[int, int]:
    """Return how many matches of two views (2, H, W) are right, and how many there are."""
    a, b = (method.extract(view) for view in views)
    i, j = method.match(a, b).T
    moved, visible = correspond(torch.from_numpy(a.xy[i]), pair)
    near = np.linalg.norm(moved.numpy() - b.xy[j], axis=1) <= CORRECT
    return int(np.count_nonzero(near & visible.numpy())), len(i)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('models', nargs='+', metavar='MODEL', help='as of `edgepoint2 evaluate`')
    add('--photographs', nargs='+', type=Path, required=True, metavar='DIR')
    add('--pairs', type=int, default=150, help='(default: %(default)s)')
    add('--max-keypoints', type=int, default=1024, help='(default: %(default)s)')
    add('--score-threshold', type=float, default=-5, help='(default: %(default)s)')
    add('--seed', type=int, default=99, help='(default: %(default)s)')
    options = parser.parse_args()
    try:
        methods = [
            EdgePoint2Method(model, options.max_keypoints, score_threshold=options.score_threshold)
            for model in options.models
        ]
        photos = load_photos(find_images(options.photographs), cache_directory() / 'training')
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1
    dataset = PairDataset(photos, options.seed, options.pairs)
    counts = np.zeros((len(methods), 2, 2))  # model, kind of views, right and all
    for number in show_progress(range(options.pairs), 'pairs', options.pairs):
        pair = dataset[number]
        clean = pair.clean.numpy()
        rng = np.random.default_rng([options.seed, number, 1])
        spoiled = np.stack([change_light(view, rng) for view in clean])
        for row, method in zip(counts, methods):
            row += [right_matches(method, views, pair) for views in (clean, spoiled)]
    print(f'{options.pairs} pairs; right matches of a pair, and their share in percent')
    print('| | as they are | spoiled |')
    print('|---|---:|---:|')
    for method, row in zip(methods, counts):
        cells = (f'{right / options.pairs:.0f} / {100 * right / max(1, total):.1f}' for right, total in row)
        print(f'| {method.name} | {" | ".join(cells)} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
