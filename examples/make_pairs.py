"""Photographs of a place or frames of a sequence in, image pairs with known relative poses out, to evaluate on.

    pip install ".[bags]"
    python examples/make_pairs.py IMAGES OUT
    edgepoint2 evaluate MODEL --pairs OUT/pairs.txt

COLMAP reconstructs cameras and points by SIFT at full resolution, so that the poses are nobody's who is judged by them.
OUT gets the undistorted images, the sparse model and pairs.txt.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pycolmap

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation.pairs import find_photographs

SHARE = (0.1, 0.6)  # of the points of the image with fewer of them which both images of a pair see
MIN_COMMON = 15  # points
MIN_ANGLE = 2.0  # degrees between the rays to a common point, in the median
MAX_FEATURES = 4096


def reconstruct(
    images: Path,
    output: Path,
    every: int = 1,
    window: int = 0,
    camera: str | None = None,
    one_camera: bool = True,
    start_angle: float = 16.0,
) -> pycolmap.Reconstruction:
    """Return the largest reconstruction of the images of a folder, undistorted; its files go into ``output``."""
    names = [str(path.relative_to(images)) for path in find_photographs([images])][::every]
    database = output / 'database.db'
    output.mkdir(parents=True)
    reader = pycolmap.ImageReaderOptions(camera_model='OPENCV' if camera else 'SIMPLE_RADIAL')
    if camera:
        reader.camera_params = camera
    mode = pycolmap.CameraMode.SINGLE if one_camera else pycolmap.CameraMode.PER_IMAGE
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.sift.max_num_features = MAX_FEATURES
    pycolmap.extract_features(database, images, names, mode, reader, extraction)
    matching = pycolmap.FeatureMatchingOptions()
    if window:
        pairing = pycolmap.SequentialPairingOptions(overlap=window, quadratic_overlap=False)
        pycolmap.match_sequential(database, matching, pairing)
    else:
        pycolmap.match_exhaustive(database, matching)
    mapping = pycolmap.IncrementalPipelineOptions(
        min_model_size=3,
        random_seed=0,
        extract_colors=False,
        ba_refine_focal_length=camera is None,
        ba_refine_extra_params=camera is None,
    )
    mapping.mapper.init_min_tri_angle = start_angle
    models = pycolmap.incremental_mapping(database, images, output, mapping)
    if not models:
        raise EdgePoint2Error(f'{images}: the images do not hold together')
    best = max(models, key=lambda number: models[number].num_reg_images())
    print(models[best].summary(), [m.num_reg_images() for m in models.values()])
    pycolmap.undistort_images(output, output / str(best), images)
    return pycolmap.Reconstruction(output / 'sparse')


def choose_pairs(model, count, seed, share=SHARE, min_angle=MIN_ANGLE):
    ids = sorted(model.reg_image_ids())
    xyz = {number: point.xyz for number, point in model.points3D.items()}
    seen = {i: {p.point3D_id for p in model.images[i].points2D if p.has_point3D()} for i in ids}
    good = []
    for a, i in enumerate(ids):
        for j in ids[a + 1 :]:
            common = seen[i] & seen[j]
            if len(common) < MIN_COMMON:
                continue
            overlap = len(common) / min(len(seen[i]), len(seen[j]))
            points = np.array([xyz[number] for number in common])
            rays = [points - model.images[k].projection_center() for k in (i, j)]
            rays = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rays]
            angle = np.degrees(np.median(np.arccos(np.clip((rays[0] * rays[1]).sum(1), -1, 1))))
            if share[0] <= overlap <= share[1] and angle >= min_angle:
                good.append((i, j, overlap, angle))
    rng = np.random.default_rng(seed)
    if len(good) > count:
        good = [good[k] for k in sorted(rng.choice(len(good), count, replace=False))]
    return good


def matrix(camera):
    k = camera.calibration_matrix().copy()
    k[:2, 2] -= 0.5  # COLMAP counts from the corner of the first pixel, we from its centre
    return k


def write_pairs(path, model, pairs):
    with open(path, 'w') as file:
        for i, j, *_ in pairs:
            a, b = model.images[i], model.images[j]
            pose = np.eye(4)
            pose[:3] = (b.cam_from_world() * a.cam_from_world().inverse()).matrix()
            numbers = np.concatenate([matrix(a.camera).ravel(), matrix(b.camera).ravel(), pose.ravel()])
            file.write(f'images/{a.name} images/{b.name} 0 0 ' + ' '.join(f'{x:.9g}' for x in numbers) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', type=Path)
    parser.add_argument('output', type=Path)
    parser.add_argument('--every', type=int, default=1)
    parser.add_argument('--window', type=int, default=0)
    parser.add_argument('--camera')
    parser.add_argument('--each', action='store_true')
    parser.add_argument('--pairs', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--start-angle', type=float, default=16.0)
    parser.add_argument('--min-angle', type=float, default=MIN_ANGLE)
    options = parser.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.WARNING.value
    if (options.output / 'sparse').exists():
        model = pycolmap.Reconstruction(options.output / 'sparse')
    else:
        model = reconstruct(
            options.images,
            options.output,
            options.every,
            options.window,
            options.camera,
            not options.each,
            options.start_angle,
        )
    pairs = choose_pairs(model, options.pairs, options.seed, min_angle=options.min_angle)
    write_pairs(options.output / 'pairs.txt', model, pairs)
    print(
        len(pairs),
        'pairs',
        'overlap',
        np.round(np.percentile([p[2] for p in pairs], [10, 50, 90]), 2),
        'angle',
        np.round(np.percentile([p[3] for p in pairs], [10, 50, 90]), 1),
    )


if __name__ == '__main__':
    sys.exit(main())
