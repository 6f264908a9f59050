"""EXIF for the tests: JPEGs that say which way up they are, and carry a thumbnail with an end of its own."""

import struct

import cv2
import numpy as np

ORIENTATION = 274
# What a viewer has done to a picture when it is upright is undone before it is stored.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}


def exif(orientation: int, thumbnail: bytes = b'', order: str = '<') -> bytes:
    """Return EXIF that holds an orientation and a thumbnail."""
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', 8)
    first = struct.pack(f'{order}HHHIHHI', 1, ORIENTATION, 3, 1, orientation, 0, 26 if thumbnail else 0)
    if not thumbnail:
        return head + first
    place = struct.pack(f'{order}HHHIIHHIII', 2, 513, 4, 1, 26 + 30, 514, 4, 1, len(thumbnail), 0)
    return head + first + place + thumbnail


def add_exif(jpeg: bytes, orientation: int, thumbnail: bytes = b'', order: str = '<') -> bytes:
    """Return a JPEG with EXIF in front."""
    contents = b'Exif\0\0' + exif(orientation, thumbnail, order)
    return jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(contents) + 2) + contents + jpeg[2:]


def store(path, image: np.ndarray, orientation: int) -> None:
    """Write a JPEG that is upright (H, W, 3) once it was turned by its orientation."""
    jpeg = cv2.imencode('.jpg', np.ascontiguousarray(STORED[orientation](image)), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    path.write_bytes(add_exif(jpeg.tobytes(), orientation))
