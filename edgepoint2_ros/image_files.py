"""Image files and compressed images: decoded as stored, refused if truncated."""

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from edgepoint2_ros.errors import ImageError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')  # of files to look for

_SIGNATURES = {
    'jpeg': re.compile(rb'\xff\xd8'),
    'png': re.compile(rb'\x89PNG\r\n\x1a\n'),
    'tiff': re.compile(rb'II\*\0|MM\0\*'),
    'webp': re.compile(rb'RIFF.{4}WEBP', re.DOTALL),
}
_LOSSLESS = re.compile(rb'\x89PNG|II\*\0|MM\0\*|BM|P[1-7]\s|RIFF.{4}WEBP(VP8L|VP8X.*VP8L)', re.DOTALL)

# Markers of a JPEG, by their second byte.
_SOI, _EOI, _SOS, _DRI, _APP1 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_MARKER = re.compile(rb'\xff[^\x00\x01\xd0-\xd7\xff]')  # the rest is 0xFF in the data, restarts and padding
_RESTART = re.compile(rb'\xff[\xd0-\xd7]')
_END = bytes([0xFF, _EOI])
# Data without a marker. Their first bit differs from the zeros that libjpeg reads where data are missing.
_NOISE = b'\xaa' + np.random.default_rng(0).integers(0, 255, 2**16, np.uint8).tobytes()

# Of TIFF, which is also what EXIF is written in.
_ORIENTATION, _SAMPLE_FORMAT = 274, 339  # tags
_SHORT = 3  # a type: 16 bits
_BACK = {6: 8, 8: 6}  # orientations that another one undoes; the rest undo themselves
_SIGNED = 2  # a sample format


class Picture(NamedTuple):
    """An image file, decoded.

    Attributes:
        pixels: (H, W) gray, or (H, W, C) in the order BGR or BGRA, of any dtype, in the rows and columns of the file.
        orientation: 1 to 8, by which EXIF turns it upright (see `turn_upright`); 1 leaves it as it is.
        is_lossless: every pixel is what was saved.
    """

    pixels: np.ndarray
    orientation: int
    is_lossless: bool


def format_of(data: bytes) -> str:
    """Return ``jpeg``, ``png``, ``tiff`` or ``webp``, or '' for anything else."""
    return next((name for name, signature in _SIGNATURES.items() if signature.match(data)), '')


def decode(data: bytes) -> Picture:
    """Decode an image file, whatever may follow its end.

    Raises:
        ImageError: it is not an image that OpenCV supports, damaged, truncated, or larger than OpenCV takes.
    """
    kind = format_of(data)
    pixels = _decode_jpeg(data) if kind == 'jpeg' else _decode(data, kind)
    tags = _read_tags(_find_exif(data, kind))
    orientation = _orientation(tags)
    if kind == 'tiff':
        pixels = _undo_opencv(pixels, orientation, tags.get(_SAMPLE_FORMAT, 1))
    return Picture(pixels, orientation, _LOSSLESS.match(data) is not None)


def load(path: str | Path) -> Picture:
    """Decode an image file on disk.

    Raises:
        ImageError: as for `decode`, or the file is missing or cannot be read.
    """
    try:
        return decode(Path(path).read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, 'strerror', None) or error
    except ImageError as error:
        reason = error
    raise ImageError(f'expected an image, but {path} cannot be read as one: {reason}')


def find_below(folder: str | Path) -> list[Path]:
    """Return the files in a folder and below it that are images by their names, in a fixed order."""
    return sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file())


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the images in folders and below them, in a fixed order and each once; a file is taken as it is.

    Raises:
        ImageError: there is no such folder or file, or no image in any.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise ImageError(f'no such folder or image: {path}')
        found.update(dict.fromkeys([path] if path.is_file() else find_below(path)))
    if not found:
        raise ImageError(f'no images found in {", ".join(map(str, paths))}: expected {" ".join(SUFFIXES)}')
    return list(found)


def read_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image file on disk, 1 to 8; 1 if it has none.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    data = Path(path).read_bytes()
    return _orientation(_read_tags(_find_exif(data, format_of(data))))


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image (H, W) or (H, W, C) turned and mirrored as its EXIF orientation (1 to 8) asks for."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def turn_points(
    xy: np.ndarray, size: tuple[int, int], orientation: int, back: bool = False
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return pixels (N, 2) of an image of a width and height after `turn_upright`, and its size then.

    Args:
        xy, size: of the image as stored.
        orientation: 1 to 8.
        back: the other way: of the upright image, as stored.
    """
    if back:
        orientation = _BACK.get(orientation, orientation)
    x, y = xy.T
    width, height = size
    if orientation >= 5:
        x, y, width, height = y, x, height, width
    if orientation in (2, 3, 6, 7):
        x = width - 1 - x
    if orientation in (3, 4, 7, 8):
        y = height - 1 - y
    return np.stack([x, y], axis=1), (width, height)


def _undo_opencv(pixels: np.ndarray, orientation: int, sample_format: int) -> np.ndarray:
    """Return a TIFF as stored: OpenCV turns it upright whatever the flags, and before 4.6 took signed for unsigned."""
    if sample_format == _SIGNED and pixels.dtype.kind != 'i':
        pixels = pixels.view(f'i{pixels.itemsize}')
    return turn_upright(pixels, _BACK.get(orientation, orientation))


def _decode(data: bytes, kind: str) -> np.ndarray:
    if data:
        try:
            # Unchanged: with all bits, with alpha, and not turned.
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:  # such as more pixels than it takes
            raise ImageError(f'OpenCV refuses the {kind or "file"} of {len(data)} bytes: {error.err}') from None
        if pixels is not None:
            return pixels
    raise ImageError(
        f'the {kind} of {len(data)} bytes is damaged or truncated' if kind else 'OpenCV does not support this format'
    )


def _decode_jpeg(data: bytes) -> np.ndarray:
    """Decode a JPEG that is complete except, perhaps, for its end marker.

    libjpeg makes up what is missing: first it reads zeros, then it paints gray. Keypoints there would be false.
    """
    end, is_marked = _find_end(data)
    if is_marked:
        pixels = _decode(data[:end] + _END, 'jpeg')
        if (pixels[-8:, -8:] != 128).any():
            return pixels
        body = data[:end].rstrip(b'\xff')  # its data ran out, or a gray wall was in front of the camera
    else:
        body = _strip_padding(data[:end])
    if is_marked or _has_all_scans(body):
        complete = _decode_whatever_follows(body)
        if complete is not None:
            return complete
    raise ImageError(f'the jpeg of {len(data)} bytes is truncated')


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment of a JPEG, and where its contents begin and end.

    The data of a picture follow the segment _SOS; _EOI or another picture's _SOI, where they end, come last.
    """
    at = 2
    while match := _MARKER.search(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker in (_SOI, _EOI):
            yield marker, match.start(), match.end()
            return
        end = at + int.from_bytes(data[at : at + 2], 'big')
        if end > len(data):
            return
        yield marker, at + 2, end
        at = end


def _find_end(data: bytes) -> tuple[int, bool]:
    """Return where the data of a JPEG end, and whether the end marker is there."""
    for marker, begin, _ in _segments(data):
        if marker in (_SOI, _EOI):
            return begin, marker == _EOI
    return len(data), False


def _strip_padding(body: bytes) -> bytes:
    """Return the data of a JPEG without trailing zeros and 0xFF, except those that may be its last byte."""
    length = len(body.rstrip(b'\0\xff'))
    padding = body[length : length + 2]
    return body[: length + (2 if padding == b'\xff\0' else 1 if padding[:1] == b'\0' else 0)]


def _has_all_scans(body: bytes) -> bool:
    """Tell whether the scans of a JPEG have every coefficient of every component, to its last bit."""
    missing = None
    is_progressive = False
    for marker, begin, end in _segments(body):
        if marker in _FRAMES:
            missing = {(component, k) for component in body[begin + 6 : end : 3] for k in range(64)}
            is_progressive = marker in _PROGRESSIVE
        elif marker == _SOS and missing:
            components, (first, last, bits) = body[begin + 1 : end - 3 : 2], body[end - 3 : end]
            if not is_progressive:
                missing -= {(component, k) for component in components for k in range(64)}
            elif bits & 15 == 0:
                missing -= {(component, k) for component in components for k in range(first, last + 1)}
    return missing == set()


def _decode_whatever_follows(body: bytes) -> np.ndarray | None:
    """Return the pixels of a JPEG without its end, or None if they depend on what follows: then data are missing."""
    segments = list(_segments(body))
    scans = [end for marker, _, end in segments if marker == _SOS]
    # With several scans libjpeg wants to see the end first. With one it would complain about the noise, on stderr.
    noise = _NOISE + _END if len(scans) > 1 else _NOISE
    tails = [noise, _END]
    if any(marker == _DRI for marker, _, _ in segments):
        # If the data break off at a restart, only what follows the next one is decoded.
        restarts = _RESTART.findall(body, scans[-1]) if scans else []
        following = (restarts[-1][1] + 1) % 8 if restarts else 0
        tails.append(bytes([0xFF, 0xD0 + following]) + noise)
    try:
        pixels = _decode(body + tails[0], 'jpeg')
        same = all(np.array_equal(_decode(body + tail, 'jpeg'), pixels) for tail in tails[1:])
    except ImageError:
        return None
    return pixels if same else None


def _find_exif(data: bytes, kind: str) -> bytes:
    """Return the EXIF of an image file, which is a TIFF without pixels, or the TIFF itself, or b''."""
    if kind == 'tiff':
        return data
    if kind == 'jpeg':
        for marker, begin, end in _segments(data):
            if marker == _SOS:
                break
            if marker == _APP1 and data.startswith(b'Exif\0\0', begin):
                return data[begin + 6 : end]
    if kind in ('png', 'webp'):
        for name, begin, end in _chunks(data, kind):
            if name in (b'eXIf', b'EXIF'):
                return data[begin:end].removeprefix(b'Exif\0\0')
    return b''


def _chunks(data: bytes, kind: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk of a PNG or WebP, and where its contents begin and end."""
    at = 8 if kind == 'png' else 12
    while at + 8 <= len(data):
        if kind == 'png':
            length, name = struct.unpack_from('>I4s', data, at)
            behind = 4  # its checksum
        else:
            name, length = struct.unpack_from('<4sI', data, at)
            behind = length % 2
        yield name, at + 8, at + 8 + length
        at += 8 + length + behind


def _orientation(tags: dict[int, int]) -> int:
    orientation = tags.get(_ORIENTATION, 1)
    return orientation if 1 <= orientation <= 8 else 1


def _read_tags(tiff: bytes) -> dict[int, int]:
    """Return the 16-bit numbers in the first directory of a TIFF by their tags; none if it is malformed."""
    order = {b'II': '<', b'MM': '>'}.get(tiff[:2], '')
    try:
        (directory,) = struct.unpack_from(f'{order}I', tiff, 4)
        (count,) = struct.unpack_from(f'{order}H', tiff, directory)
        entries = [struct.unpack_from(f'{order}HHIH', tiff, directory + 2 + 12 * i) for i in range(count)]
    except struct.error:
        return {}
    return {tag: value for tag, type_, many, value in entries if type_ == _SHORT and many <= 2}
