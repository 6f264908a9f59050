"""Pairs of photographs of one place, with verified matches: what a COLMAP database holds.

The database's format is described at https://colmap.github.io/database.html. Any matcher may have made it.
"""

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepoint2_ros.distillation.photos import Photos, load_photos
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.storage import sha256

MIN_MATCHES = 40  # verified, of a pair; a view shows only some of them
_MAX_IMAGES = 2**31 - 1  # of a database: a pair's number is that times the first image's plus the second's


class MatchesError(EdgePoint2Error):
    """A database without matches to train on."""


@dataclass(frozen=True)
class Match:
    """Verified matches of two images, by name.

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
        photos: the photographs, as stored in their files.
        pairs: numbers of two photographs, and the pixels (M, 2, 2) of their matches.
    """

    def __init__(self, photos: Photos, pairs: list[tuple[int, int, np.ndarray]]):
        self.photos = photos
        self.pairs = pairs

    def digest(self) -> str:
        """Return what tells these pairs from others."""
        content = [f'{self.photos.names[a]} {self.photos.names[b]}'.encode() + xy.tobytes() for a, b, xy in self.pairs]
        return sha256(b'\n'.join(content))[:16]


def load_matched_photos(
    database: Path, images: Path, cache: Path, progress: Callable[[Iterable[Path]], Iterable[Path]] = iter
) -> MatchedPhotos:
    """Return the matched photographs of a COLMAP database; see `load_photos`.

    Pairs of which an image is not usable are left out, with a warning about the image.

    Args:
        database: of COLMAP.
        images: the folder of its images.
        cache: a folder for the decoded images.
        progress: wraps the iteration over the images.

    Raises:
        EdgePoint2Error: the database cannot be read or has no pair with MIN_MATCHES verified matches, an image is
            missing or of another size than in the database, or none is usable.
    """
    found, sizes = read_matches(database)
    names = sorted({name for match in found for name in (match.a, match.b)})
    paths = {name: images / name for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise MatchesError(
            f'{len(missing)} of {len(names)} matched images of {database} are not in {images}, for example {missing[0]}'
        )
    photos = load_photos([*paths.values()], cache, progress, upright=False)
    numbers = {name: number for number, name in enumerate(photos.names)}
    pairs = []
    for match in found:
        a, b = (numbers.get(str(paths[name])) for name in (match.a, match.b))
        if a is not None and b is not None:
            shrinks = [_shrink(photos[k], name, sizes[name], database) for k, name in ((a, match.a), (b, match.b))]
            # Half a pixel lies between the corner of the first pixel and its centre, however large a pixel is.
            xy = (match.xy + 0.5) * np.array(shrinks, np.float32) - 0.5
            pairs.append((a, b, xy.astype(np.float32)))
    if not pairs:
        raise MatchesError(f'{database}: no pair has two usable images in {images}')
    return MatchedPhotos(photos, pairs)


def _shrink(pyramid: list[np.ndarray], name: str, size: tuple[int, int], database: Path) -> tuple[float, float]:
    """Return by how much a photograph was shrunk when it was read, from the size that the database gives."""
    height, width = pyramid[0].shape
    across, down = width / size[0], height / size[1]
    # Rounding to whole pixels aside, it is shrunk by one factor or not at all.
    if abs(across - down) > max(across / width, down / height) or across > 1:
        raise MatchesError(
            f'{name} has {width}x{height} pixels, in {database} {size[0]}x{size[1]}: expected the images that it is of'
        )
    return across, down


def read_matches(database: Path) -> tuple[list[Match], dict[str, tuple[int, int]]]:
    """Return the verified matches of a COLMAP database, and the width and height of its images by name.

    Raises:
        MatchesError: it is not such a database, or no pair has MIN_MATCHES verified matches.
    """
    if not database.is_file():
        raise MatchesError(f'there is no file {database}: expected the database of a COLMAP reconstruction')
    try:
        # Nothing is written, not even beside it, unless a program that was killed or still runs left a log there.
        options = 'mode=ro' if database.with_name(f'{database.name}-wal').exists() else 'immutable=1'
        with closing(sqlite3.connect(f'{database.resolve().as_uri()}?{options}', uri=True)) as connection:
            images = connection.execute(
                'SELECT image_id, images.name, width, height, rows, cols, data FROM images '
                'JOIN cameras USING (camera_id) JOIN keypoints USING (image_id)'
            ).fetchall()
            geometries = connection.execute(
                'SELECT pair_id, rows, data FROM two_view_geometries WHERE rows >= ? ORDER BY pair_id', [MIN_MATCHES]
            ).fetchall()
        names = {number: name for number, name, *_ in images}
        sizes = {name: (width, height) for _, name, width, height, *_ in images}
        keypoints = {
            number: np.frombuffer(data, np.float32).reshape(rows, columns)[:, :2] - np.float32(0.5)
            for number, _, _, _, rows, columns, data in images
        }
        matches = []
        for number, rows, data in geometries:
            a, b = divmod(number, _MAX_IMAGES)
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
