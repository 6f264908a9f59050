"""Features for structure from motion: a COLMAP database with verified matches, and the HDF5 layout of hloc.

Images are given by name; both tools look the names up in their image folder. Both read the files there as stored,
ignoring EXIF: see `as_stored`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import refuse_existing, write_file
from edgepoint2_ros.image_files import turn_points
from edgepoint2_ros.matching import match
from edgepoint2_ros.storage import drafting

FOCAL = 1.2  # times the longer side: COLMAP's own guess if nothing is known
# Wrong matches that agree by chance misplace cameras, and repeated facades are ambiguous. With a ratio of 0.95 half of
# the pairs of different scenes would pass, with 0.9 (and 20 matches) 1 in 150, with 0.85 none; of those that share 10
# to 35 % of their points 98, 83 and 78 %.
RATIO = 0.85  # of the ratio test
MIN_MATCHES = 15  # inliers of a pair
MIN_SHARE = 0.2  # of inliers among its matches
TRIALS = 2000  # of RANSAC, enough to find a geometry with MIN_SHARE inliers or more


def sequential_pairs(names: Sequence[str], window: int) -> list[tuple[str, str]]:
    """Return the pairs of names at most ``window`` positions apart."""
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 1 + window]]


def exhaustive_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return all pairs of names."""
    return sequential_pairs(names, len(names))


def as_stored(features: Features, orientation: int) -> Features:
    """Return the features of an image that was turned upright, in the pixels of its file.

    Descriptors are not invariant to a quarter turn, so upright images match best.

    Args:
        features: of the upright image.
        orientation: 1 to 8, by which EXIF turned it.
    """
    xy, size = turn_points(features.xy, features.image_size, orientation, back=True)
    return replace(features, xy=xy, image_size=size)


def write_colmap(
    path: Path,
    images: Mapping[str, Features],
    pairs: Iterable[tuple[str, str]],
    focal: float | None = None,
    one_camera: bool = True,
) -> int:
    """Write a COLMAP database: cameras, images, keypoints, and for each pair matches and their two-view geometry.

    Args:
        path: the new file.
        images: features by image name.
        pairs: names of images to match.
        focal: in pixels; by default 1.2 times the longer side, to be refined by the reconstruction.
        one_camera: the images of one size come from one camera; otherwise each has its own.

    Returns:
        The number of pairs that match.

    Raises:
        EdgePoint2Error: the file exists or cannot be written, or features come from different weights.
    """
    refuse_existing([path])
    try:
        with drafting(path) as draft:
            write_features(draft, images, dict.fromkeys(images, focal) if focal else {}, one_camera)
            return sum(inliers > 0 for inliers in match_pairs(draft, images, pairs))
    except (RuntimeError, OSError) as error:  # by pycolmap the former
        raise EdgePoint2Error(f'{path} cannot be written: {" ".join(str(error).split())}') from None


def write_features(
    path: Path, images: Mapping[str, Features], focals: Mapping[str, float], one_camera: bool = True
) -> None:
    """Write a COLMAP database with cameras, images and keypoints; the pairs are for `match_pairs`.

    Args:
        path: the new file.
        images: features by image name.
        focals: known focal lengths in pixels by image name.
        one_camera: the images of one size come from one camera, whose focal length is the first that is known;
            otherwise each has its own.
    """
    import pycolmap

    owners = {name: features.image_size if one_camera else name for name, features in images.items()}
    known = {owners[name]: focals[name] for name in reversed(owners) if name in focals}
    with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
        cameras = {}
        for name, features in images.items():
            owner = owners[name]
            if owner not in cameras:
                cameras[owner] = _write_camera(database, features.image_size, known.get(owner))
            image = _write_image(database, name, *cameras[owner])
            # COLMAP's origin is the corner of the first pixel, ours its centre.
            database.write_keypoints(image, features.xy + np.float32(0.5))


def match_pairs(path: Path, images: Mapping[str, Features], pairs: Iterable[tuple[str, str]]) -> Iterator[int]:
    """Match pairs of images and verify the matches, and write both into a COLMAP database, pair by pair.

    Pairs already in the database are not matched again: after an interruption the same call resumes.

    Args:
        path: the database, with the images.
        images: features by image name.
        pairs: names of images.

    Yields:
        The number of inliers of each pair; 0 if there are fewer than MIN_MATCHES or MIN_SHARE of the matches.

    Raises:
        EdgePoint2Error: features come from different weights.
    """
    import pycolmap

    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0  # the same database from the same features
    options.ransac.max_num_trials = TRIALS
    with pycolmap.Database.open(path) as database:
        known = {image.name: image for image in database.read_all_images()}
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        for a, b in pairs:
            ids = known[a].image_id, known[b].image_id
            if database.exists_two_view_geometry(*ids):
                yield len(database.read_two_view_geometry(*ids).inlier_matches)
                continue
            found = match(images[a], images[b], ratio=RATIO).astype(np.uint32)
            geometry = pycolmap.TwoViewGeometry()
            if len(found) >= MIN_MATCHES:
                first, second = (cameras[known[name].camera_id] for name in (a, b))
                xy, other_xy = (images[name].xy.astype(np.float64) + 0.5 for name in (a, b))
                estimated = pycolmap.estimate_two_view_geometry(first, xy, second, other_xy, found, options)
                if len(estimated.inlier_matches) >= max(MIN_MATCHES, MIN_SHARE * len(found)):
                    geometry = estimated
            with pycolmap.DatabaseTransaction(database):
                if not database.exists_matches(*ids):
                    database.write_matches(*ids, found)
                database.write_two_view_geometry(*ids, geometry)
            yield len(geometry.inlier_matches)


def _write_camera(database: Any, size: tuple[int, int], focal: float | None) -> tuple[Any, int]:
    """Return a new camera and the id of its rig: COLMAP requires one for each camera."""
    import pycolmap

    camera = pycolmap.Camera.create_from_model_name(0, 'SIMPLE_RADIAL', focal or FOCAL * max(size), *size)
    camera.has_prior_focal_length = focal is not None
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    return camera, database.write_rig(rig)


def _write_image(database: Any, name: str, camera: Any, rig: int) -> int:
    import pycolmap

    image = pycolmap.Image(name=name, camera_id=camera.camera_id)
    image.image_id = database.write_image(image)
    frame = pycolmap.Frame()
    frame.rig_id = rig
    frame.add_data_id(image.data_id)
    database.write_frame(frame)
    return image.image_id


def write_hloc(path: Path, images: Mapping[str, Features]) -> None:
    """Write features in hloc's format: one group per name with keypoints, scores, descriptors (D, N) and image_size.

    Raises:
        EdgePoint2Error: the file exists or cannot be written.
    """
    import h5py

    refuse_existing([path])
    # In memory first: where the disk is full, HDF5 crashes.
    with h5py.File(path.name, 'w', driver='core', backing_store=False) as file:
        for name, features in images.items():
            group = file.create_group(name)
            group.create_dataset('keypoints', data=features.xy)
            group.create_dataset('scores', data=features.scores)
            group.create_dataset('descriptors', data=np.ascontiguousarray(features.descriptors.T))
            group.create_dataset('image_size', data=np.array(features.image_size))
        file.flush()
        content = file.id.get_file_image()
    write_file(path, content)
