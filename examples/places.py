"""Are places found again? Recall of EdgePoint2's places beside a bag of words over ORB and beside shrunk images.

    pip install ".[bags]"
    python examples/places.py OUT --sequences walk tower ... --others PHOTOS --vocabulary PHOTOS [--models T-32 E-64]

Each folder of --sequences is reconstructed by SIFT (once, in OUT): images that see 15 of the same points show the same
place. An image is looked for among all images of all folders, those of --others included, but for its neighbours in
time (--gap). A query is found at 1 if the image most like it is of its place,
at 5 if one of the five most alike is. Only images count that have such an image outside the gap.

The bag of words is made as DBoW2 makes it: a tree of 10 branches and 4 levels by k-majority over ORB, tf-idf weights
and the L1 score, learned from the images of --vocabulary. Images are shrunk to 64 x 32 pixels, zero mean and unit
deviation.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from make_pairs import find_pairs, in_order, reconstruct

from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.evaluation.methods import OpenCVMethod
from edgepoint2_ros.extractor import Extractor, extract_shrunk, fit
from edgepoint2_ros.image_files import find_below, find_images
from edgepoint2_ros.images import read_image
from edgepoint2_ros.places import open_vocabulary
from edgepoint2_ros.progress import show_progress

LONG_SIDE = 640
KEYPOINTS = 1000
GAP = 8  # images before and after a query that are no revisit
BRANCHES, LEVELS = 10, 4

Score = Callable[[int], np.ndarray]  # of a query, by number: how like it each image is


class Tree:
    """A vocabulary tree over binary descriptors.

    Args:
        bits: (N, B) float32, -1 or 1.
        levels: of branches below this one.
        rng: for the first centres.
    """

    def __init__(self, bits: np.ndarray, levels: int, rng: np.random.Generator):
        self.children = []
        if levels == 0 or len(bits) < BRANCHES:
            self.leaves = 1
            return
        self.centres = bits[rng.permutation(len(bits))[:BRANCHES]]
        for _ in range(10):
            nearest = np.argmax(bits @ self.centres.T, axis=1)
            sums = np.stack([bits[nearest == k].sum(axis=0) for k in range(BRANCHES)])
            self.centres = np.where(sums == 0, self.centres, np.sign(sums)).astype(np.float32)
        nearest = np.argmax(bits @ self.centres.T, axis=1)
        self.children = [Tree(bits[nearest == k], levels - 1, rng) for k in range(BRANCHES)]
        self.leaves = sum(child.leaves for child in self.children)

    def words(self, bits: np.ndarray) -> np.ndarray:
        """Return the number of the leaf that each descriptor comes to, (N,)."""
        found, before = np.zeros(len(bits), int), 0
        if self.children:
            nearest = np.argmax(bits @ self.centres.T, axis=1)
            for k, child in enumerate(self.children):
                chosen = nearest == k
                found[chosen] = before + child.words(bits[chosen])
                before += child.leaves
        return found


def bag_of_words(images: Sequence[np.ndarray], vocabulary: Sequence[Path]) -> Score:
    """Return the score by ORB's visual words."""
    orb = OpenCVMethod('ORB', KEYPOINTS)

    def describe(image: np.ndarray) -> np.ndarray:
        return np.unpackbits(orb.extract(image).descriptors, axis=1).astype(np.float32) * 2 - 1

    learned = [describe(read_gray(path)) for path in show_progress(vocabulary, 'ORB vocabulary', len(vocabulary))]
    tree = Tree(np.concatenate([bits[:300] for bits in learned]), LEVELS, np.random.default_rng(0))

    def count(bits: np.ndarray) -> np.ndarray:
        return np.bincount(tree.words(bits), minlength=tree.leaves).astype(np.float32)

    weights = np.log(len(learned) / np.maximum(sum(count(bits) > 0 for bits in learned), 1))
    bags = np.stack([count(describe(image)) * weights for image in show_progress(images, 'ORB', len(images))])
    bags /= np.maximum(bags.sum(axis=1, keepdims=True), 1e-9)
    return lambda query: np.minimum(bags, bags[query]).sum(axis=1)  # 1 - |v - w| / 2 of vectors whose sum is 1


def shrunk_images(images: Sequence[np.ndarray]) -> Score:
    """Return the score by thumbnails."""
    small = np.stack([cv2.resize(image, (64, 32), interpolation=cv2.INTER_AREA).ravel() for image in images]) / 255.0
    small -= small.mean(axis=1, keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-9)
    return lambda query: small @ small[query]


def places(images: Sequence[np.ndarray], model: str, backend: str) -> Score:
    """Return the score by the global descriptors of a model."""
    extractor = Extractor(model, backend=backend, max_keypoints=KEYPOINTS)
    vocabulary = open_vocabulary(extractor.model)
    found = [extract_shrunk(extractor, image, LONG_SIDE) for image in show_progress(images, model, len(images))]
    rows = np.stack([vocabulary.describe(features) for features in found])
    return lambda query: rows @ rows[query]


def read_gray(path: Path) -> np.ndarray:
    """Return an image as the methods see it, (H, W) uint8."""
    image = read_image(path)
    return fit(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), LONG_SIDE)[0]


def find_revisits(sequences: Sequence[Path], numbers: dict[Path, int], output: Path, gap: int) -> list[dict]:
    """Return for each sequence its queries: by number the images of the same place, and those too near in time."""
    found = []
    for folder in sequences:
        names = in_order([str(path.relative_to(folder)) for path in find_below(folder) if path in numbers])
        kept = output / folder.name
        if kept.exists() and not (kept / 'sparse').exists():
            raise EdgePoint2Error(f'{kept} holds no finished reconstruction: remove it')
        model = pycolmap.Reconstruction(kept / 'sparse') if kept.exists() else reconstruct(folder, kept, names)
        order = {name: place for place, name in enumerate(names)}
        queries = {}
        for pair in find_pairs(model):
            a, b = (model.images[number].name for number in (pair.a, pair.b))
            if abs(order[a] - order[b]) > gap:
                for query, other in ((a, b), (b, a)):
                    near = {numbers[folder / name] for name in names if abs(order[name] - order[query]) <= gap}
                    good, _ = queries.setdefault(numbers[folder / query], (set(), near))
                    good.add(numbers[folder / other])
        found.append(queries)
    return found


def recall(score: Score, queries: dict) -> tuple[float, float]:
    """Return the share of queries that are found at 1 and at 5."""
    found = []
    for query, (good, near) in queries.items():
        likeness = score(query).astype(float)
        likeness[list(near)] = -np.inf
        best = np.argsort(-likeness, kind='stable')[:5].tolist()
        found.append((best[0] in good, bool(good.intersection(best))))
    return tuple(np.mean(found, axis=0)) if found else (np.nan, np.nan)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('output', type=Path, help='folder for the reconstructions')
    add('--sequences', type=Path, nargs='+', required=True, metavar='DIR', help='images in order, with revisits')
    add('--others', type=Path, nargs='*', default=[], metavar='DIR', help='images of other places')
    add('--vocabulary', type=Path, nargs='+', required=True, metavar='DIR', help="images to learn ORB's words from")
    add('--models', nargs='+', default=['T-32'])
    add('--gap', type=int, default=GAP, help='images before and after one that are no revisit (default: %(default)s)')
    add('--backend', default='auto')
    options = parser.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    seen, images, numbers = (*options.sequences, *options.others), [], {}
    try:
        found = {folder: find_images([folder]) for folder in (*seen, *options.vocabulary)}
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    paths = dict.fromkeys(path for folder in seen for path in found[folder])
    for path in paths:
        try:
            images.append(read_gray(path))
        except ImageError as error:
            print(f'left out: {error}', file=sys.stderr)
            continue
        numbers[path] = len(images) - 1
    try:
        revisits = find_revisits(options.sequences, numbers, options.output, options.gap)
        words = [path for folder in options.vocabulary for path in found[folder]]
        methods = {model: places(images, model, options.backend) for model in options.models}
        methods |= {'ORB, bag of words': bag_of_words(images, words), 'shrunk image': shrunk_images(images)}
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1
    everything = {query: known for queries in revisits for query, known in queries.items()}
    print(f'{len(everything)} queries among {len(images)} images; recall at 1 / 5, percent')
    columns = [*((folder.name, queries) for folder, queries in zip(options.sequences, revisits)), ('all', everything)]
    print(f'| | {" | ".join(f"{name} ({len(queries)})" for name, queries in columns)} |')
    print(f'|{"---|" * (len(columns) + 1)}')
    for name, score in methods.items():
        cells = (' / '.join(f'{100 * share:.0f}' for share in recall(score, queries)) for _, queries in columns)
        print(f'| {name} | {" | ".join(cells)} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
