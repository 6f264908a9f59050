"""Maps of EdgePoint2 features beside those of pycolmap's own SIFT: the same images, pairs and mapping, and a table.

    pip install ".[bags]"
    python examples/map_beside_sift.py OUT PHOTOS... [--model T-32] [--one-camera]

Each folder of photographs becomes a map in OUT as `edgepoint2 map` makes it. Then pycolmap extracts as many SIFT
features from the same images at the same size, matches the same pairs by its own ratio and cross check, verifies and
maps them. The times are those of features, pairs and mapping together; of ours also of the images without distortion
and of the page.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import pycolmap

from edgepoint2_ros.bridges.mapping import Job, build_map
from edgepoint2_ros.bridges.mapping.build import LONG_SIDE, SIMILAR, map_images
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import ExtractorSettings


def map_by_sift(ours: Path, folder: Path, features: int, long_side: int, one_camera: bool) -> pycolmap.Reconstruction:
    """Return the reconstruction of a map's images by SIFT.

    Args:
        ours: folder of the map; the pairs are those of its database.
        folder: new folder.
        features: most of an image.
        long_side: images are shrunk to it before extraction, pixels.
        one_camera: took all images.

    Raises:
        EdgePoint2Error: the images cannot be connected.
    """
    folder.mkdir()
    database, images = folder / 'database.db', ours / 'input'
    with pycolmap.Database.open(ours / 'distorted' / 'database.db') as known:
        names = {image.image_id: image.name for image in known.read_all_images()}
        pairs = [pycolmap.pair_id_to_image_pair(pair) for pair, _ in zip(*known.read_two_view_geometries())]
    (folder / 'pairs.txt').write_text(''.join(f'{names[a]} {names[b]}\n' for a, b in pairs))
    extraction = pycolmap.FeatureExtractionOptions(max_image_size=long_side)
    extraction.sift.max_num_features = features
    mode = pycolmap.CameraMode.PER_FOLDER if one_camera else pycolmap.CameraMode.PER_IMAGE
    pycolmap.extract_features(database, images, sorted(names.values()), camera_mode=mode, extraction_options=extraction)
    listed = pycolmap.ImportedPairingOptions(match_list_path=folder / 'pairs.txt')
    pycolmap.match_image_pairs(database, pairing_options=listed)
    map_images(database, images, folder / 'sparse' / '0', len(names))
    return pycolmap.Reconstruction(folder / 'sparse' / '0')


def describe(model: pycolmap.Reconstruction | None, total: int, seconds: float) -> str:
    """Return the cells of a row: images, points, track length, error, time."""
    if model is None:
        return f'0 of {total} | - | - | - | {seconds:.0f} s'
    return (
        f'{model.num_reg_images()} of {total} | {model.num_points3D()} | {model.compute_mean_track_length():.1f} | '
        f'{model.compute_mean_reprojection_error():.2f} px | {seconds:.0f} s'
    )


def main() -> int:
    """Make the maps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('output', type=Path)
    add('photos', type=Path, nargs='+')
    add('--model', default='T-32')
    add('--max-keypoints', type=int, default=2048)
    add('--resize', type=int, default=LONG_SIDE)
    add('--similar', type=int, default=SIMILAR)
    add('--window', type=int, help='images after each one that it is matched with')
    add('--one-camera', action='store_true')
    add('--backend', default='auto')
    options = parser.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    rows = []
    for photos in options.photos:
        ours = options.output / photos.name
        extractor = ExtractorSettings(options.model, backend=options.backend, max_keypoints=options.max_keypoints)
        job = Job(photos, ours, extractor=extractor, resize=options.resize, window=options.window,
                  similar=options.similar, one_camera=options.one_camera)  # fmt: skip
        sift = options.output / f'{photos.name}_sift'
        shutil.rmtree(sift, ignore_errors=True)
        for name in (options.model, 'SIFT'):
            begun, model = time.monotonic(), None
            try:
                if name == 'SIFT':
                    model = map_by_sift(ours, sift, options.max_keypoints, options.resize, options.one_camera)
                else:
                    build_map(job, lambda text: print(text, file=sys.stderr))
                    model = pycolmap.Reconstruction(ours / 'distorted' / 'sparse' / '0')
            except EdgePoint2Error as error:
                print(error, file=sys.stderr)
            if not (ours / 'input').is_dir():  # there are no images to map
                return 1
            total = len(list((ours / 'input').iterdir()))
            rows.append(f'| {photos.name} | {name} | {describe(model, total, time.monotonic() - begun)} |')
            print(rows[-1], file=sys.stderr)
    print(
        '| images | features | registered | points | track length | error | time |',
        '|---|---|---|---|---|---|---|',
        sep='\n',
    )
    print('\n'.join(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
