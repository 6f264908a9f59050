"""Photographs for training: found in folders, decoded once, kept as gray image pyramids in one memory-mapped file."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.images import read_image
from edgepoint2_ros.storage import replacing, sha256, write_whole

log = logging.getLogger(__name__)

MIN_SIDE = 200  # pixels; a smaller photograph would fill a training view with blur
MAX_SIDE = 2048  # pixels; a larger one only makes the cache larger
_FORMAT = 2  # of the cache; raise it when the file's content changes


class Photos:
    """Gray pyramids of photographs; ``photos[i]`` is a list of uint8 arrays, each half the size of the previous one."""

    def __init__(self, names: Sequence[str], shapes: Sequence[Sequence[tuple[int, int]]], pixels: np.ndarray):
        self.names = tuple(names)
        self._pyramids = []
        offset = 0
        for levels in shapes:
            pyramid = []
            for height, width in levels:
                pyramid.append(pixels[offset : offset + height * width].reshape(height, width))
                offset += height * width
            self._pyramids.append(pyramid)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return self._pyramids[index]


def load_photos(
    paths: Sequence[Path], cache: Path, progress: Callable[[Iterable[Path]], Iterable[Path]] = iter
) -> Photos:
    """Return the photographs as pyramids, decoded at most once: a later call reads the cache.

    An image that cannot be read or is too small is left out, with a warning.

    Args:
        paths: image files.
        cache: a folder; a file in it belongs to one list of paths, sizes and modification times.
        progress: wraps the iteration, for example ``tqdm``.

    Raises:
        ImageError: no image of the list is usable.
    """
    cache.mkdir(parents=True, exist_ok=True)
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = sha256(json.dumps([_FORMAT, MIN_SIDE, MAX_SIDE, stats]).encode())[:16]
    index, data = cache / f'{key}.json', cache / f'{key}.u8'
    if not index.exists():
        # The index is written last and by renaming: if it exists, the data is complete.
        _decode(paths, index, data, progress)
    entries = json.loads(index.read_text())
    for line in entries['skipped']:
        log.warning('skipped %s', line)
    if not entries['names']:
        raise ImageError(f'none of {len(paths)} images is usable; the first: {entries["skipped"][0]}')
    return Photos(entries['names'], entries['shapes'], np.memmap(data, np.uint8, 'r'))


def _decode(
    paths: Sequence[Path], index: Path, data: Path, progress: Callable[[Iterable[Path]], Iterable[Path]]
) -> None:
    names, shapes, skipped = [], [], []
    with replacing(data) as file:
        for path in progress(paths):
            try:
                pyramid = _read_pyramid(path)
            except ImageError as error:
                skipped.append(str(error))
                continue
            names.append(str(path))
            shapes.append([level.shape for level in pyramid])
            for level in pyramid:
                file.write(level.tobytes())
    write_whole(index, json.dumps({'names': names, 'shapes': shapes, 'skipped': skipped}).encode())


def shrinkage(width: int, height: int) -> float:
    """Return by how much a photograph is shrunk when it is read; 1: not at all."""
    return min(1.0, MAX_SIDE / max(width, height))


def _read_pyramid(path: Path) -> list[np.ndarray]:
    image = read_image(path)
    height, width = image.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f'{path}: {width}x{height} is too small: expected at least {MIN_SIDE} pixels each way')
    gray = cv2.transform(image, np.full((1, 3), 1 / 3, np.float32))  # the plain mean, as the network's input
    shrink = shrinkage(width, height)
    if shrink < 1:
        gray = cv2.resize(gray, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    pyramid = [gray]
    while min(pyramid[-1].shape) >= 2 * 64:
        height, width = pyramid[-1].shape
        pyramid.append(cv2.resize(pyramid[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return pyramid
