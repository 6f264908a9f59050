"""The files that commands write: each has a unique name, and none overwrites anything."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.storage import write_whole


def own_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a unique name for what is made of each file or folder.

    Files go by their stem, folders by their name. If two would clash, all go by their path below their common folder:
    ``left/000001`` and ``right/000001``; and with the suffix if even those clash.
    """
    paths = {path: Path(os.path.abspath(path)) for path in paths}
    common = os.path.commonpath([path.parent for path in paths.values()]) if paths else ''
    below = {path: whole.relative_to(common) for path, whole in paths.items()}
    without = {path: place if path.is_dir() else place.with_suffix('') for path, place in below.items()}
    for names in ({path: place.name for path, place in without.items()}, without):
        if len(set(names.values())) == len(set(paths.values())):
            return {path: str(name) for path, name in names.items()}
    return {path: str(name) for path, name in below.items()}


def refuse_existing(paths: Iterable[Path]) -> None:
    """Refuse to overwrite files.

    Raises:
        EdgePoint2Error: one of the files exists, or two of them are the same.
    """
    seen = set()
    for path in paths:
        if os.path.lexists(path):  # a link that leads nowhere, too
            raise EdgePoint2Error(f'{path} already exists: choose another path, or remove it')
        if path in seen:
            raise EdgePoint2Error(f'{path} would be written twice: choose another path for one')
        seen.add(path)


def make_folder(path: Path) -> None:
    """Make a folder for files to come, and those above it, unless it is there.

    Raises:
        EdgePoint2Error: it cannot be made, is a file, or cannot be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise EdgePoint2Error(f"expected a folder, or room for one: {error.strerror}: '{path}'") from None


def refuse_unwritable(paths: Iterable[Path]) -> None:
    """Refuse files that exist or could not be written.

    Raises:
        EdgePoint2Error: one exists, is named twice, or cannot be written.
    """
    paths = list(paths)
    refuse_existing(paths)
    for path in paths:
        try:
            path.open('x').close()
        except OSError as error:
            raise EdgePoint2Error(f'{path} cannot be written: {error.strerror}') from None
        path.unlink()


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 (H, W) or (H, W, 3) BGR, in the format of the suffix.

    Raises:
        EdgePoint2Error: it cannot be written.
    """
    try:
        encoded, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise EdgePoint2Error(f'{path} cannot be written: {error.err}') from None
    if not encoded:
        raise EdgePoint2Error(f'{path} cannot be written: OpenCV cannot encode {image.shape} as {path.suffix}')
    if not path.parent.is_dir():
        raise EdgePoint2Error(f'{path} cannot be written: there is no folder {path.parent}')
    write_file(path, data.tobytes())


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        EdgePoint2Error: it cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise EdgePoint2Error(f'{path} cannot be written: {error.strerror}') from None
