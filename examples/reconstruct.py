"""Photographs of a place in, cameras and points in space out: EdgePoint2 features in COLMAP.

    pip install ".[bags]" matplotlib
    python examples/reconstruct.py PHOTOS OUT [--model E-64]

OUT gets the COLMAP database, the model (cameras.bin, images.bin, points3D.bin, ...) and reconstruction.png.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pycolmap

from edgepoint2_ros.bridges.colmap import as_stored, exhaustive_pairs, write_colmap
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.extractor import Extractor, extract_shrunk
from edgepoint2_ros.image_files import read_orientation
from edgepoint2_ros.images import read_image


def reconstruct(
    photos: Path, output: Path, extractor: Extractor, long_side: int = 1024
) -> pycolmap.Reconstruction | None:
    """Return the largest reconstruction of the photographs in a folder, or None where they do not hold together.

    Args:
        photos: folder of image files.
        output: new folder, for the database and the reconstruction.
        extractor: finds the features.
        long_side: photographs are shrunk to this size in pixels before extraction.
    """
    output.mkdir(parents=True)
    features = {}
    for path in sorted(photos.iterdir()):
        try:
            image = read_image(path)
        except ImageError as error:
            print(f'left out: {error}')
            continue
        # In pixels of the file itself, where COLMAP looks the colours up.
        features[path.name] = as_stored(extract_shrunk(extractor, image, long_side), read_orientation(path))
        print(f'{path.name}: {len(features[path.name])} keypoints')
    pairs = exhaustive_pairs(list(features))
    # Photographs that people took have a camera each.
    matched = write_colmap(output / 'database.db', features, pairs, one_camera=False)
    print(f'{matched} of {len(pairs)} pairs match')
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = 3
    options.random_seed = 0
    models = pycolmap.incremental_mapping(output / 'database.db', photos, output, options)
    model = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    if model is not None:
        model.extract_colors_for_all_images(photos)
    return model


def draw(model: pycolmap.Reconstruction, path: Path) -> None:
    """Draw the cameras and the points, seen from above and from the front."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    images = [image for image in model.images.values() if image.has_pose]
    centres = np.array([image.projection_center() for image in images])
    ahead = np.array([image.viewing_direction() for image in images])
    seen = [point for point in model.points3D.values() if point.track.length() >= 3]
    points, colours = np.array([point.xyz for point in seen]), np.array([point.color for point in seen]) / 255
    # Up is against the mean of the cameras' y axes, so that the picture does not depend on COLMAP's choice of axes.
    down = np.mean([image.cam_from_world().rotation.matrix()[1] for image in images], axis=0)
    front = np.mean(ahead, axis=0)
    right = np.cross(down, front)
    axes = np.linalg.qr(np.stack([right, down, np.cross(right, down)], axis=1))[0]
    axes *= np.sign(np.sum(axes * np.stack([right, down, np.cross(right, down)], axis=1), axis=0))
    middle = np.median(points, axis=0)
    points, centres, ahead = (points - middle) @ axes, (centres - middle) @ axes, ahead @ axes
    low, high = np.percentile(points, [1, 99], axis=0)
    length = np.linalg.norm(high - low) / 6
    figure, plots = pyplot.subplots(1, 2, figsize=(14, 7))
    for plot, along, title in zip(plots, (2, 1), ('from above', 'from the front')):
        near, far = (low, high) if along == 1 else (np.minimum(low, centres.min(0)), np.maximum(high, centres.max(0)))
        reach = 0.55 * max((far - near)[[0, along]])
        x, y = (near + far)[[0, along]] / 2
        plot.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach), aspect='equal', xticks=[], yticks=[])
        plot.set_title(title)
        plot.scatter(points[:, 0], points[:, along], s=6, c=colours, linewidths=0)
        if along == 2:
            plot.quiver(
                *(centres[:, 0], centres[:, 2], length * ahead[:, 0], length * ahead[:, 2]),
                angles='xy', scale_units='xy', scale=1, color='tab:red', width=0.003,
            )  # fmt: skip
            plot.scatter(centres[:, 0], centres[:, 2], s=25, c='tab:red', zorder=3)
    plots[1].invert_yaxis()
    figure.suptitle(f'{len(images)} cameras (red), {model.num_points3D()} points')
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> int:
    """Reconstruct, say what came out and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('photos', type=Path)
    parser.add_argument('output', type=Path)
    parser.add_argument('--model', default='T-32')
    options = parser.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.WARNING.value
    try:
        model = reconstruct(options.photos, options.output, Extractor(options.model))
    except (EdgePoint2Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if model is None:
        print('the photographs do not hold together: too few of them match', file=sys.stderr)
        return 1
    print(
        f'{model.num_reg_images()} cameras, {model.num_points3D()} points, each seen '
        f'{model.compute_mean_track_length():.1f} times, error {model.compute_mean_reprojection_error():.2f} px'
    )
    draw(model, options.output / 'reconstruction.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
