"""Photographs of a place or frames of a sequence in, pairs of images with known relative poses out, to evaluate on.

    pip install ".[bags,evaluation]"
    python examples/make_pairs.py PHOTOS street
    python examples/make_pairs.py 00 drive --kitti           # image_0/, calib.txt and poses.txt, as KITTI lays them out
    edgepoint2 evaluate MODEL --pairs street/pairs.txt

COLMAP reconstructs cameras and points by SIFT, at the full size of the images, so that no model is judged by poses of
its own. The pairs are drawn from those that see some of the same points, from different places. The new folder
gets images/ (without distortion), sparse/ (the reconstruction) and pairs.txt. Where a drive of KITTI has recorded
poses, these are taken: any two images a few apart between which the camera moved.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edgepoint2_ros.bridges.colmap import exhaustive_pairs, sequential_pairs
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.files import refuse_existing
from edgepoint2_ros.image_files import find_images

MAX_FEATURES = 4096
MIN_COMMON = 15  # points that both images of a pair see
APART = range(2, 13)  # images from one to the other of a pair of KITTI,
MIN_MOVED = 0.5  # and metres


@dataclass(frozen=True)
class Pair:
    """Two images of a reconstruction, by number.

    Attributes:
        overlap: of the points that each sees the share that both see, of the image with the smaller number of them.
        angle: between the two rays to a common point, degrees, in the median.
    """

    a: int
    b: int
    overlap: float
    angle: float


def reconstruct(
    photos: Path,
    output: Path,
    names: list[str],
    window: int = 0,
    camera: Sequence[float] | None = None,
    one_camera: bool = True,
) -> pycolmap.Reconstruction:
    """Return the largest reconstruction of photographs, without distortion; its images go to ``output``/images.

    Args:
        photos: their folder.
        output: new folder.
        names: files in ``photos``, in order of time where ``window`` is not 0.
        window: images so many places apart are matched; 0: all with all.
        camera: fx, fy, cx, cy, k1, k2, p1, p2; without it focal length and radial distortion are found out.
        one_camera: took all of them.

    Raises:
        EdgePoint2Error: the images cannot be connected.
    """
    output.mkdir(parents=True)
    database = output / 'database.db'
    reader = pycolmap.ImageReaderOptions()
    if camera is not None:
        reader.camera_model = 'OPENCV'
        # COLMAP counts from the corner of the first pixel, we from its centre.
        reader.camera_params = ','.join(map(str, np.add(camera, [0, 0, 0.5, 0.5, 0, 0, 0, 0])))
    # One thread where the order counts, and seeds: the same images give the same reconstruction.
    extraction = pycolmap.FeatureExtractionOptions(num_threads=1)
    extraction.sift.max_num_features = MAX_FEATURES
    mode = pycolmap.CameraMode.SINGLE if one_camera else pycolmap.CameraMode.PER_IMAGE
    pycolmap.extract_features(database, photos, names, mode, reader, extraction)
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        pairs = sequential_pairs(names, window) if window else exhaustive_pairs(names)
        file.write(''.join(f'{a} {b}\n' for a, b in pairs))
        file.flush()
        verification = pycolmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = 0
        pycolmap.match_image_pairs(
            database,
            pairing_options=pycolmap.ImportedPairingOptions(match_list_path=file.name),
            verification_options=verification,
        )
    mapping = pycolmap.IncrementalPipelineOptions(min_model_size=3, random_seed=0, num_threads=1, extract_colors=False)
    mapping.ba_refine_focal_length = mapping.ba_refine_extra_params = camera is None
    mapping.mapper.init_min_tri_angle = 4  # degrees; 16 by default, which a car that drives ahead never has
    models = pycolmap.incremental_mapping(database, photos, output / 'models', mapping)
    if not models:
        raise EdgePoint2Error(f'{photos}: the images cannot be connected')
    best = max(models, key=lambda number: models[number].num_reg_images())
    pycolmap.undistort_images(output, output / 'models' / str(best), photos)
    return pycolmap.Reconstruction(output / 'sparse')


def find_pairs(model: pycolmap.Reconstruction) -> list[Pair]:
    """Return all pairs of images with MIN_COMMON points in common."""
    numbers = sorted(model.reg_image_ids())
    seen = {
        number: {point.point3D_id for point in model.images[number].points2D if point.has_point3D()}
        for number in numbers
    }
    pairs = []
    for k, a in enumerate(numbers):
        for b in numbers[k + 1 :]:
            common = seen[a] & seen[b]
            if len(common) >= MIN_COMMON:
                points = np.array([model.points3D[number].xyz for number in common])
                rays = [points - model.images[number].projection_center() for number in (a, b)]
                rays = [ray / np.linalg.norm(ray, axis=1, keepdims=True) for ray in rays]
                angles = np.degrees(np.arccos(np.clip((rays[0] * rays[1]).sum(axis=1), -1, 1)))
                overlap = len(common) / min(len(seen[a]), len(seen[b]))
                pairs.append(Pair(a, b, overlap, float(np.median(angles))))
    return pairs


def draw(pairs: list, count: int, seed: int) -> list:
    """Return at most so many of the pairs, drawn at random, in their order."""
    return [pairs[k] for k in sorted(np.random.default_rng(seed).permutation(len(pairs))[:count])]


def write_lines(path: Path, lines: list[str]) -> None:
    """Write lines of pairs as `edgepoint2 evaluate --pairs` reads them."""
    path.write_text('\n'.join(['# a b 0 0 K_a K_b T, by examples/make_pairs.py', *lines]) + '\n')


def _to_line(model: pycolmap.Reconstruction, pair: Pair) -> str:
    a, b = model.images[pair.a], model.images[pair.b]
    pose = np.vstack([(b.cam_from_world() * a.cam_from_world().inverse()).matrix(), [0, 0, 0, 1]])
    return _line(a.name, b.name, _matrix(a.camera), _matrix(b.camera), pose)


def _line(a: str, b: str, matrix_a: np.ndarray, matrix_b: np.ndarray, pose: np.ndarray) -> str:
    numbers = np.concatenate([matrix_a.ravel(), matrix_b.ravel(), pose.ravel()])
    return f'images/{a} images/{b} 0 0 {" ".join(f"{number:.9g}" for number in numbers)}'


def _matrix(camera: pycolmap.Camera) -> np.ndarray:
    matrix = camera.calibration_matrix().copy()
    matrix[:2, 2] -= 0.5  # from the corner of the first pixel to its centre
    return matrix


def convert_kitti(drive: Path, output: Path, count: int, seed: int) -> str:
    """Draw pairs of a KITTI drive by its recorded poses, copy its images, and say what came out.

    Raises:
        EdgePoint2Error: the drive has no images, no poses or no calibration, or never moves.
    """
    folder = next((drive / name for name in ('image_0', 'image_l') if (drive / name).is_dir()), None)
    if folder is None:
        raise EdgePoint2Error(f'{drive}: expected the images of a KITTI drive in image_0/')
    names = [path.name for path in find_images([folder])]
    refuse_spaces(names)
    try:
        recorded = np.loadtxt(drive / 'poses.txt', ndmin=2)[: len(names)].reshape(-1, 3, 4)
        first = (drive / 'calib.txt').read_text().splitlines()[0].removeprefix('P0:')
        matrix = np.array(first.split(), float).reshape(3, 4)[:, :3]
    except (OSError, ValueError, IndexError) as error:
        raise EdgePoint2Error(f'{drive}: expected poses.txt and calib.txt as KITTI writes them: {error}') from None
    poses = np.tile(np.eye(4), (len(recorded), 1, 1))
    poses[:, :3] = recorded
    good = []
    for a in range(len(poses)):
        for b in range(a + APART.start, min(a + APART.stop, len(poses))):
            pose = np.linalg.inv(poses[b]) @ poses[a]
            if np.linalg.norm(pose[:3, 3]) > MIN_MOVED:
                good.append(_line(names[a], names[b], matrix, matrix, pose))
    if not good:
        raise EdgePoint2Error(f'{drive}: the camera never moves by {MIN_MOVED} m within {APART.stop - 1} images')
    shutil.copytree(folder, output / 'images')
    drawn = draw(good, count, seed)
    write_lines(output / 'pairs.txt', drawn)
    return f'{len(names)} images; {len(drawn)} of {len(good)} pairs'


def refuse_spaces(names: list[str]) -> None:
    """Raise EdgePoint2Error for names that a list of pairs cannot hold."""
    for name in names:
        if len(name.split()) != 1:
            raise EdgePoint2Error(f'{name!r}: expected file names without spaces, which separate the fields of a pair')


def in_order(names: list[str]) -> list[str]:
    """Return names sorted so that 10.png comes after 9.png."""
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)])


def main() -> int:
    """Reconstruct, draw pairs, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('photos', type=Path)
    add('output', type=Path)
    add('--every', type=int, default=1, metavar='N', help='take every Nth image')
    add('--window', type=int, default=0, metavar='N', help='of a sequence: match images at most N apart (default: all)')
    add('--camera', type=float, nargs=8, metavar=('FX', 'FY', 'CX', 'CY', 'K1', 'K2', 'P1', 'P2'), help='where known')
    add('--kitti', action='store_true', help='a drive with recorded poses, as KITTI lays it out')
    add('--cameras-differ', action='store_true', help='each image has a camera of its own')
    add('--pairs', type=int, default=40, metavar='N', help='most pairs that are drawn (default: %(default)s)')
    add('--overlap', type=float, nargs=2, default=(0.1, 0.6), help='least and most common points (default: 0.1 0.6)')
    add('--min-angle', type=float, default=2.0, help='between the rays to a point, degrees (default: %(default)s)')
    add('--seed', type=int, default=0, help='of the draw (default: %(default)s)')
    options = parser.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    try:
        if options.kitti:
            print(convert_kitti(options.photos, options.output, options.pairs, options.seed))
            return 0
        found = find_images([options.photos])
        names = in_order([str(path.relative_to(options.photos)) for path in found])[:: options.every]
        if (options.output / 'sparse').is_dir():
            model = pycolmap.Reconstruction(options.output / 'sparse')
            if not {image.name for image in model.images.values()} <= set(names):
                raise EdgePoint2Error(f'{options.output} holds other images than {options.photos}: choose another path')
            print(f'{options.output}: drawing anew from the reconstruction that is there', file=sys.stderr)
        else:
            refuse_existing([options.output])
            refuse_spaces(names)
            one_camera = not options.cameras_differ
            model = reconstruct(options.photos, options.output, names, options.window, options.camera, one_camera)
        least, most = options.overlap
        good = [pair for pair in find_pairs(model) if least <= pair.overlap <= most and pair.angle >= options.min_angle]
        if not good:
            raise EdgePoint2Error(f'{options.photos}: no pair of images overlaps as wanted')
    except (EdgePoint2Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    drawn = draw(good, options.pairs, options.seed)
    write_lines(options.output / 'pairs.txt', [_to_line(model, pair) for pair in drawn])
    overlap, angle = (np.median([getattr(pair, name) for pair in drawn]) for name in ('overlap', 'angle'))
    print(
        f'{model.num_reg_images()} images, {model.num_points3D()} points, error '
        f'{model.compute_mean_reprojection_error():.2f} px; {len(drawn)} of {len(good)} pairs, in the median '
        f'{overlap:.0%} common points, {angle:.0f} degrees apart'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
