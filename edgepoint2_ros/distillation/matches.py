"""Pairs of photographs of one place, with verified matches: what a COLMAP database holds.

The database's format is described at https://colmap.github.io/database.html. Any matcher may have made it.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepoint2_ros.distillation.photos import Photos, load_photos, shrinkage
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.image_files import read_orientation, turn_points

MIN_MATCHES = 40  # verified, of a pair; its views show only some of them
_MAX_IMAGES = 2**31 - 1  # of a database: a pair's number is that times the first image's plus the second's
_WATERMARK = 7  # the configuration of a pair of images that have in common what is printed on them


class MatchesError(EdgePoint2Error):
    """A database without matches to train on."""


@dataclass(frozen=True)
class Match:
    """Verified matches of two images.

    Attributes:
        a, b: names of the images.
        xy: (M, 2, 2) float32, pixels of each match in a and in b; the centre of the first pixel is 0, 0.
    """

    a: str
    b: str
    xy: np.ndarray


class MatchedPhotos:
    """Photographs and their matched pairs.

    Args:
        photos: the photographs.
        pairs: numbers of two photographs, and the pixels (M, 2, 2) of their matches.
    """

    def __init__(self, photos: Photos, pairs: list[tuple[int, int, np.ndarray]]):
        self.photos = photos
        self.pairs = pairs

    def digest(self) -> str:
        """Return what tells these pairs from others."""
        content = hashlib.sha256()
        for a, b, xy in self.pairs:
            content.update(f'{self.photos.names[a]} {self.photos.names[b]} '.encode())
            content.update(xy.tobytes())
        return content.hexdigest()[:16]


def load_matched_photos(
    database: Path, images: Path, cache: Path, progress: Callable[[Iterable[Path]], Iterable[Path]] = iter
) -> MatchedPhotos:
    """Return the matched photographs of a COLMAP database, upright; see `load_photos`.

    Pairs of which an image is not usable are left out, with a warning about the image.

    Args:
        database: of COLMAP.
        images: the folder of its images.
        cache: a folder for the decoded images.
        progress: wraps the iteration over the images.

    Raises:
        EdgePoint2Error: the database cannot be read or has no pair with MIN_MATCHES verified matches, an image is
            missing or of another size than in the database, or no pair has two usable images.
    """
    found, sizes = read_matches(database)
    names = sorted({name for match in found for name in (match.a, match.b)})
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise MatchesError(
            f'{len(missing)} of {len(names)} matched images of {database} are not in {images}, for example {missing[0]}'
        )
    photos = load_photos([images / name for name in names], cache, progress)
    numbers = {name: number for number, name in enumerate(photos.names)}
    usable = {name: numbers[str(images / name)] for name in names if str(images / name) in numbers}
    orientations = {name: read_orientation(images / name) for name in usable}
    for name, number in usable.items():
        width, height = sizes[name] if orientations[name] < 5 else sizes[name][::-1]
        expected = tuple(round(side * shrinkage(width, height)) for side in (height, width))
        shape = photos[number][0].shape
        if shape != expected:
            raise MatchesError(
                f'{images / name} was read as {shape[1]}x{shape[0]} pixels; of the image in {database} it would be '
                f'{expected[1]}x{expected[0]}: expected the images that were matched'
            )
    pairs = []
    for match in found:
        if match.a in usable and match.b in usable:
            both = zip((match.a, match.b), match.xy.swapaxes(0, 1))
            xy = [_as_read(points, sizes[name], orientations[name]) for name, points in both]
            pairs.append((usable[match.a], usable[match.b], np.stack(xy, axis=1)))
    if not pairs:
        raise MatchesError(f'{database}: no pair has two usable images in {images}')
    return MatchedPhotos(photos, pairs)


def _as_read(xy: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Return pixels (N, 2) of a file of a width and height in the pixels of the photograph that was read from it."""
    upright, (width, height) = turn_points(xy, size, orientation)
    # The corner of the first pixel stays where it is; its centre, from which pixels are counted, does not.
    return ((upright + 0.5) * shrinkage(width, height) - 0.5).astype(np.float32)


def read_matches(database: Path) -> tuple[list[Match], dict[str, tuple[int, int]]]:
    """Return the verified matches of a COLMAP database, and the width and height of its images by name.

    Raises:
        MatchesError: it is not such a database, or no pair has MIN_MATCHES verified matches.
    """
    if not database.is_file():
        raise MatchesError(f'there is no file {database}: expected the database of a COLMAP reconstruction')
    path = database.resolve()
    # Nothing is written, not even beside it, unless a program that was killed or still runs left a log there.
    has_log = any(path.with_name(f'{path.name}-{log}').exists() for log in ('wal', 'journal'))
    try:
        with closing(sqlite3.connect(f'{path.as_uri()}?{"mode=ro" if has_log else "immutable=1"}', uri=True)) as reader:
            images = reader.execute(
                'SELECT image_id, images.name, width, height, rows, cols, data FROM images '
                'JOIN cameras USING (camera_id) JOIN keypoints USING (image_id)'
            ).fetchall()
            geometries = reader.execute(
                'SELECT pair_id, rows, data FROM two_view_geometries WHERE rows >= ? AND config != ? ORDER BY pair_id',
                [MIN_MATCHES, _WATERMARK],
            ).fetchall()
        keypoints, names, sizes = {}, {}, {}
        for number, name, width, height, rows, columns, data in images:
            # An image without keypoints has no data.
            xy = np.frombuffer(data or b'', np.float32).reshape(rows, columns)[:, :2]
            keypoints[number] = xy - np.float32(0.5)  # COLMAP's origin is the corner of the first pixel
            names[number] = str(name)
            sizes[str(name)] = int(width), int(height)
            if min(sizes[str(name)]) < 1:
                raise ValueError(f'{name} has {width}x{height} pixels')
        matches = []
        for pair, rows, data in geometries:
            a, b = divmod(pair, _MAX_IMAGES)
            indices = np.frombuffer(data, np.uint32).reshape(rows, 2)
            xy = np.stack([keypoints[a][indices[:, 0]], keypoints[b][indices[:, 1]]], axis=1)
            matches.append(Match(names[a], names[b], xy))
    except (sqlite3.Error, ValueError, TypeError, KeyError, IndexError) as error:
        raise MatchesError(
            f'{database} cannot be read as the database of a COLMAP reconstruction: {type(error).__name__}: {error}'
        ) from None
    if not matches:
        raise MatchesError(f'{database}: no pair of images has {MIN_MATCHES} verified matches')
    return matches, sizes
