"""Image pairs with known geometry: HPatches folders, pose pairs from a list, or pairs made from photographs."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.extractor import check_size, fit
from edgepoint2_ros.files import own_names
from edgepoint2_ros.image_files import SUFFIXES
from edgepoint2_ros.images import read_image
from edgepoint2_ros.scenes.rooms import INTRINSICS, render_rooms
from edgepoint2_ros.storage import sha256

log = logging.getLogger(__name__)

VIEWS, LIGHTS = 3, 2  # synthetic pairs per photograph: viewpoint changes, illumination changes
MIN_SIDE = 200  # pixels of a photograph for synthetic pairs
MIDDLE = 0.75  # of a photograph is in the first image of a synthetic pair; the rest is for the second


@dataclass(frozen=True)
class HomographyPair:
    """Two images of a plane, or of one place seen twice.

    Attributes:
        name: of the pair in tables.
        group: what changes between the images: ``viewpoint`` or ``light``.
        image_a, image_b: uint8 (H, W) or (H, W, 3).
        homography: (3, 3), maps pixels of a to pixels of b.
        sources: names of the images that the pair was made from; pairs that share one are not independent.
    """

    name: str
    group: str
    image_a: np.ndarray
    image_b: np.ndarray
    homography: np.ndarray
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class PosePair:
    """Two images of a scene by calibrated cameras.

    Attributes:
        name: of the pair in tables.
        group: the scene.
        image_a, image_b: uint8 (H, W) or (H, W, 3).
        intrinsics_a, intrinsics_b: (3, 3) camera matrices, of the images as they are here.
        pose: (4, 4), maps points from camera a's frame to camera b's.
        sources: names of the images that the pair was made from; pairs that share one are not independent.
    """

    name: str
    group: str
    image_a: np.ndarray
    image_b: np.ndarray
    intrinsics_a: np.ndarray
    intrinsics_b: np.ndarray
    pose: np.ndarray
    sources: tuple[str, ...] = ()


def pair_digest(pair: HomographyPair | PosePair) -> str:
    """Return what identifies the images of a pair and its geometry: 16 hex digits."""
    arrays = [value for value in vars(pair).values() if isinstance(value, np.ndarray)]
    return sha256(b''.join(np.ascontiguousarray(array).tobytes() for array in arrays))[:16]


def read_hpatches(folder: Path, long_side: int) -> Iterator[HomographyPair]:
    """Yield the pairs of a folder laid out as HPatches: ``v_name/1.ppm .. 6.ppm, H_1_2 .. H_1_6``; light is ``i_``.

    Image 1 is paired with every other image that has a homography. A warning names each pair that cannot be used.

    Raises:
        ImageError: the folder holds no sequence.
    """
    folders = sorted(path.parent for path in Path(folder).glob('*/H_1_2'))
    if not folders:
        raise ImageError(f'no sequences in {folder}: expected folders with 1.ppm .. 6.ppm and H_1_2 .. H_1_6 inside')
    for sequence in folders:
        images = {path.stem: path for path in sorted(sequence.iterdir()) if path.suffix.lower() in SUFFIXES}
        for matrix in sorted(sequence.glob('H_1_*')):
            number = matrix.name.removeprefix('H_1_')
            name = f'{sequence.name} 1-{number}'
            try:
                if '1' not in images or number not in images:
                    raise ImageError(f'no image 1 or {number} in {sequence}')
                image_a, scale_a = _read_fitting(images['1'], long_side)
                image_b, scale_b = _read_fitting(images[number], long_side)
                homography = np.loadtxt(matrix)
                if homography.shape != (3, 3):
                    raise ImageError(f'{matrix}: expected 3x3 numbers, got {homography.shape}')
                _check_invertible(homography, str(matrix))
                centre = [(image_a.shape[1] - 1) / 2, (image_a.shape[0] - 1) / 2, 1]
                homography = scale_b @ homography @ np.linalg.inv(scale_a)
                homography *= np.sign(homography[2] @ centre) or 1  # a file may have it with the other sign
            except (ImageError, ValueError, OSError) as error:
                log.warning('skipped %s: %s', name, error)
                continue
            group = 'light' if sequence.name.startswith('i_') else 'viewpoint'
            yield HomographyPair(name, group, image_a, image_b, homography, (sequence.name,))


def make_synthetic(paths: Sequence[Path], long_side: int, seed: int = 0) -> Iterator[HomographyPair]:
    """Yield pairs made from photographs, each seen as a poster on a wall by a moving camera.

    The first image is the middle of the photograph from straight ahead. For ``viewpoint`` the camera moves around it:
    up to 60 degrees aside, nearer or further, rolled. For ``light`` it moves little while a lamp, the exposure and
    the noise change. A warning names each photograph that cannot be used.

    Args:
        paths: of the photographs.
        long_side: of the images, pixels, at most; 0: as the photographs have it.
        seed: of everything random.
    """
    names = own_names(paths)
    for number, path in enumerate(paths):
        try:
            photo = read_image(path)
            if min(photo.shape[:2]) < MIN_SIDE:
                raise ImageError(f'{photo.shape[1]}x{photo.shape[0]}: expected at least {MIN_SIDE} pixels each way')
            check_size(*_synthetic_size(photo, long_side)[0])
        except ImageError as error:
            log.warning('skipped %s: %s', path.name, error)
            continue
        rng = np.random.default_rng([seed, number])
        for index in range(VIEWS + LIGHTS):
            group = 'viewpoint' if index < VIEWS else 'light'
            pair = _synthetic_pair(photo, f'{names[path]} {group} {index + 1}', group, long_side, rng)
            yield replace(pair, sources=(str(path),))


def make_rooms(paths: Sequence[Path], count: int, seed: int = 0) -> Iterator[PosePair]:
    """Yield ``count`` pairs of views of rooms hung with photographs, see `scenes.rooms`.

    A warning names each unreadable photograph.

    Raises:
        ImageError: no photograph is usable.
    """
    photographs = []
    for path in paths:
        try:
            photographs.append(read_image(path))
        except ImageError as error:
            log.warning('skipped %s: %s', path.name, error)
    if not photographs:
        raise ImageError(f'none of {len(paths)} photographs can be read')
    for number, (image_a, image_b, pose) in enumerate(render_rooms(photographs, count, seed), 1):
        yield PosePair(f'room {number}', 'all', image_a, image_b, INTRINSICS, INTRINSICS, pose)


def name_scene(listing: Path) -> str:
    """Return the name of a pairs file's scene: that of the file, or of its folder if the file is ``pairs.txt``."""
    return listing.resolve().parent.name if listing.stem == 'pairs' else listing.stem


def read_pose_pairs(listing: Path, root: Path, long_side: int, most: int = 0) -> Iterator[PosePair]:
    """Yield the pairs of a text file, one per line: ``a b rotation_a rotation_b K_a(9) K_b(9) T(16)``.

    This is the common layout of the MegaDepth-1500 and ScanNet-1500 lists: two paths below ``root``, two EXIF rotations
    (must be 0 here), the two camera matrices of the images as stored and the (4, 4) matrix that maps points from camera
    a's frame to camera b's, all row by row. A warning names each pair with images or matrices that cannot be used. With
    ``most``, only that many are read, evenly spread over the file.

    Raises:
        ImageError: the file is missing or a line is malformed; the message names the line.
    """
    listing = Path(listing)
    if not listing.is_file():
        raise ImageError(f'no pairs file {listing}')
    # Names of files need not be UTF-8.
    numbered = enumerate(listing.read_text(encoding='utf-8', errors='surrogateescape').splitlines(), 1)
    lines = [(number, line) for number, line in numbered if line.strip() and not line.startswith('#')]
    for number, line in lines[:: max(1, -(-len(lines) // most))] if most else lines:
        fields = line.split()
        if len(fields) != 38:
            raise ImageError(f'{listing}:{number}: expected 38 fields (a b 0 0 K_a K_b T), got {len(fields)}')
        try:
            numbers = np.array(fields[2:], float)
        except ValueError as error:
            raise ImageError(f'{listing}:{number}: {error}') from error
        if numbers[:2].any():
            raise ImageError(f'{listing}:{number}: expected upright images (rotation 0), got {fields[2]} {fields[3]}')
        intrinsics_a, intrinsics_b = numbers[2:11].reshape(3, 3), numbers[11:20].reshape(3, 3)
        pose = numbers[20:].reshape(4, 4)
        try:
            for name, matrix in (('K_a', intrinsics_a), ('K_b', intrinsics_b), ('T', pose)):
                _check_invertible(matrix, name)
            # As stored, like the camera matrices.
            image_a, scale_a = _read_fitting(Path(root) / fields[0], long_side, upright=False)
            image_b, scale_b = _read_fitting(Path(root) / fields[1], long_side, upright=False)
        except ImageError as error:
            log.warning('skipped pair %d: %s', number, error)
            continue
        yield PosePair(
            f'{fields[0]} {fields[1]}',
            name_scene(listing),
            image_a,
            image_b,
            scale_a @ intrinsics_a,
            scale_b @ intrinsics_b,
            pose,
            (fields[0], fields[1]),
        )


def _read_fitting(path: Path, long_side: int, upright: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, shrunk as `fit` does it, and the matrix; raise ImageError if no method could take it."""
    image, scale = fit(read_image(path, upright=upright), long_side)
    try:
        check_size(*image.shape[1::-1])
    except ImageError as error:
        raise ImageError(f'{path}: {error}') from None
    return image, scale


def _check_invertible(matrix: np.ndarray, name: str) -> None:
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < len(matrix):
        numbers = ' '.join(f'{number:g}' for number in matrix.ravel())
        raise ImageError(f'{name}: expected an invertible matrix, got {numbers}')


def orbit_homography(
    width: int,
    height: int,
    tilt: float,
    azimuth: float,
    roll: float,
    distance: float,
    target: Sequence[float] | np.ndarray = (0.0, 0.0),
) -> np.ndarray:
    """Return how a picture on a wall moves in the image when the camera moves around it.

    The camera, of focal length ``width`` pixels, first faces the picture so that both have the same pixels; then it
    looks at ``target`` from another side.

    Args:
        width, height: of the image, in pixels.
        tilt: angle between the wall's normal and the line of sight, radians.
        azimuth: direction in which the camera moved, radians.
        roll: of the camera about the line of sight, radians.
        distance: in units of the first distance.
        target: the point on the wall in the image's centre, in pixels from the picture's.

    Returns:
        (3, 3), maps pixels before to pixels after.
    """
    focal = float(width)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    back = np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), -np.cos(tilt)])
    ahead = -back
    right = np.array([1.0, 0, 0]) - ahead[0] * ahead
    right /= np.linalg.norm(right)
    down = np.cross(ahead, right)
    cos, sin = np.cos(roll), np.sin(roll)
    rotation = np.stack([cos * right + sin * down, cos * down - sin * right, ahead])
    position = np.array([*target, 0.0]) + distance * focal * back
    intrinsics = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    # A point (x, y, 0) of the wall is seen at rotation @ (x * e1 + y * e2 - position).
    to_camera = rotation @ np.column_stack([[1, 0, 0], [0, 1, 0], -position])
    homography = intrinsics @ to_camera @ np.array([[1, 0, -centre[0]], [0, 1, -centre[1]], [0, 0, 1]])
    return homography / homography[2, 2]


def _synthetic_size(photo: np.ndarray, long_side: int) -> tuple[tuple[int, int], float]:
    """Return width and height of a photograph's first image, and the scale of the photograph in it."""
    width, height = (MIDDLE * side for side in photo.shape[1::-1])
    shrink = min(1.0, long_side / max(width, height)) if long_side else 1.0
    return (int(width * shrink), int(height * shrink)), shrink


def _synthetic_pair(
    photo: np.ndarray, name: str, group: str, long_side: int, rng: np.random.Generator
) -> HomographyPair:
    height, width = photo.shape[:2]
    size, shrink = _synthetic_size(photo, long_side)
    # Enlarged twice and averaged: neither image is a sharper copy of the photograph than the other.
    to_photo = np.array([[1, 0, (width * shrink - size[0]) / 2], [0, 1, (height * shrink - size[1]) / 2], [0, 0, 1]])
    scaled = cv2.resize(photo, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA) if shrink < 1 else photo

    strong = group == 'viewpoint'
    homography = orbit_homography(
        *size,
        tilt=np.radians(rng.uniform(15, 60) if strong else rng.uniform(0, 12)),
        azimuth=rng.uniform(0, 2 * np.pi),
        roll=np.radians(rng.uniform(-45, 45) if strong else rng.uniform(-5, 5)),
        distance=np.exp(rng.uniform(np.log(0.65), np.log(1.5))) if strong else rng.uniform(0.9, 1.1),
        target=rng.uniform(-0.08, 0.08, 2) * size,
    )
    image_a = _render(scaled, to_photo, size)
    image_b = _render(scaled, to_photo @ np.linalg.inv(homography), size)
    return HomographyPair(name, group, image_a, _relight(image_b, rng, 1.0 if not strong else 0.25), homography)


def _render(photo: np.ndarray, to_photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the image of ``size`` whose pixels ``to_photo`` maps to the photograph's: four samples per pixel."""
    halves = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])  # the pixels of the image twice as large
    large = cv2.warpPerspective(
        photo, to_photo @ halves, (2 * size[0], 2 * size[1]), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    return cv2.resize(large, size, interpolation=cv2.INTER_AREA)


def _relight(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return the image under a lamp from one side, with another exposure, gamma and noise."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)  # -0.7 to 0.7
    spot_x, spot_y = rng.uniform(0, 1, 2) * (width, height)
    spot = np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / (2 * (rng.uniform(0.1, 0.3) * width) ** 2))
    lamp = 1 + strength * (rng.uniform(0, 1.1) * ramp + rng.uniform(-0.3, 0.8) * spot)
    gamma = np.exp(strength * rng.uniform(-0.8, 0.8))
    exposure = np.exp(strength * rng.uniform(-0.7, 0.4))
    values = (image.astype(np.float32) / 255) ** gamma * (lamp * exposure)[..., None].astype(np.float32)
    values += rng.normal(0, 0.005 + 0.02 * strength, values.shape).astype(np.float32)
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)
