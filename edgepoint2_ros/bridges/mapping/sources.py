"""Where a map's images come from: photographs, a video or a bag, collected in one folder as upright JPEG and PNG."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycolmap

from edgepoint2_ros.bridges.bag_contents import IMAGES, only_topic
from edgepoint2_ros.bridges.recordings import open_recording
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.files import own_names
from edgepoint2_ros.image_files import find_below, format_of, load
from edgepoint2_ros.images import read_image, to_array
from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.odometry.camera import image_window
from edgepoint2_ros.progress import Report

VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
BAGS = ('.bag', '.db3', '.mcap', '.zstd')
_AS_THEY_ARE = {'jpeg': ('.jpg', '.jpeg'), 'png': ('.png',)}  # formats that every tool reads, by their suffixes
_CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
_QUALITY = 95  # of a JPEG that is written again
_COMPLETE = 0.95  # of the frames that a video announces, which may be an estimate


class Entry(NamedTuple):
    """An image of the map.

    Attributes:
        name: of its file.
        stamp: in nanoseconds, or its number if the stamp is unknown.
        focal: focal length by its EXIF, pixels, or None.
    """

    name: str
    stamp: int
    focal: float | None = None


def kind_of(source: Path) -> str:
    """Return ``photographs``, ``video`` or ``bag``.

    Raises:
        EdgePoint2Error: it is missing, or none of these.
    """
    if source.is_dir():
        holds_bag = any(path.name == 'metadata.yaml' or path.suffix in BAGS for path in source.iterdir())
        return 'bag' if holds_bag else 'photographs'
    if not source.exists():
        raise EdgePoint2Error(f'{source}: there is no such folder, video or bag')
    if source.suffix.lower() in VIDEOS:
        return 'video'
    if source.suffix.lower() in BAGS:
        return 'bag'
    raise EdgePoint2Error(
        f'{source}: expected a folder of photographs, a video ({" ".join(VIDEOS)}) or a bag ({" ".join(BAGS)})'
    )


def fingerprint(source: Path, output: Path) -> dict[str, Any]:
    """Return the number of a source's files, ``count``, and a ``digest`` of their names, sizes and times.

    Those in the folder of the map do not count, nor, in a bag, any but its recordings.
    """
    paths = [source]
    if source.is_dir() and kind_of(source) == 'bag':
        # SQLite makes more files while they are read.
        paths = [path for path in sorted(source.iterdir()) if path.suffix in BAGS or path.name.endswith('-wal')]
    elif source.is_dir():
        below = output.resolve()
        paths = [path for path in find_below(source) if below not in path.resolve().parents]
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(os.fsencode(path.relative_to(source)) + f' {status.st_size} {status.st_mtime_ns}\n'.encode())
    return {'count': len(paths), 'digest': digest.hexdigest()}


def import_images(source: Path, folder: Path, topic: str, rate: float, report: Report) -> Iterator[Entry]:
    """Write the images of a source into a folder, upright, and yield their names and stamps in order.

    Args:
        source: folder of photographs, video or bag.
        folder: for the files; it exists.
        topic: of the images in a bag; may be empty if it has only one.
        rate: images taken per second of a video or a bag; 0 takes all.
        report: called with a message about each image that cannot be used.

    Raises:
        EdgePoint2Error: the source cannot be read.
    """
    kind = kind_of(source)
    if kind == 'photographs':
        yield from _import_photographs(source, folder, report)
    elif kind == 'video':
        yield from _import_video(source, folder, rate, report)
    else:
        yield from _import_bag(source, folder, topic, rate, report)


def _import_photographs(source: Path, folder: Path, report: Report) -> Iterator[Entry]:
    paths = find_below(source)
    names = own_names(paths)
    taken: set[str] = set()
    for number, path in enumerate(paths):
        stem = _new_name(names[path], taken)
        try:
            picture = load(path)
            pixels = picture.pixels
            is_plain = pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] == 3)
            data = path.read_bytes()
            suffixes = _AS_THEY_ARE.get(format_of(data), ())
            if suffixes and is_plain and picture.orientation == 1:
                suffix = path.suffix.lower()
                name = stem + (suffix if suffix in suffixes else suffixes[0])
                (folder / name).write_bytes(data)
            else:
                name = stem + ('.png' if picture.is_lossless else '.jpg')
                _write(folder / name, read_image(path))
        except ImageError as error:
            report(f'left out: {error}')
            continue
        yield Entry(name, number, _read_exif_focal(path))


def _read_exif_focal(path: Path) -> float | None:
    """Return the focal length in pixels that the EXIF of an image file tells, however the image is turned, or None."""
    try:
        camera = pycolmap.infer_camera_from_image(path)
    except (RuntimeError, ValueError):  # a format that COLMAP does not read
        return None
    return camera.mean_focal_length() if camera.has_prior_focal_length else None


def _in_utf8(path: str | Path) -> str:
    return os.fsencode(path).decode('utf-8', 'replace')


def _new_name(path: str, taken: set[str]) -> str:
    """Return a file name made of a path, in UTF-8 and other than those taken, which it joins."""
    plain = _in_utf8(path).replace('/', '_').replace('\ufffd', '_')
    name, number = plain, 1
    while name.lower() in taken:  # left/1 beside left_1
        number += 1
        name = f'{plain}-{number}'
    taken.add(name.lower())
    return name


def _import_video(source: Path, folder: Path, rate: float, report: Report) -> Iterator[Entry]:
    capture = cv2.VideoCapture(_in_utf8(source))
    frames = capture.get(cv2.CAP_PROP_FPS)
    if not capture.isOpened():
        raise ImageError(f'{source} is not a video that OpenCV can read')
    frames = frames if 0 < frames < 1e4 else 30.0
    announced = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    number = taken = unreadable = 0
    while capture.grab():
        if not rate or number >= taken * frames / rate:
            read, image = capture.retrieve()
            if read:
                taken += 1
                name = f'{number:06d}.jpg'
                _write(folder / name, image)
                yield Entry(name, round(number / frames * 1e9))
            else:
                unreadable += 1
        number += 1
    capture.release()
    if unreadable:
        report(f'{source}: {unreadable} frames left out: they cannot be decoded')
    if number < _COMPLETE * announced - 1:
        report(f'{source} ends after {number} of about {announced:.0f} frames: is it damaged or truncated?')


def _import_bag(source: Path, folder: Path, topic: str, rate: float, report: Report) -> Iterator[Entry]:
    with open_recording(source, report) as recording:
        topic = only_topic(recording, IMAGES, topic, 'images')
        deserialise = recording.decoder(recording.topics[topic])
        due, taken = None, set()
        for number, (_, moment, raw) in enumerate(recording.messages({topic}), 1):
            try:
                message = deserialise(raw)
                stamp = to_nanoseconds(message.header.stamp) or moment
                if rate and due is not None and due - 1e9 / rate <= stamp < due:
                    continue
                image = to_array(message)
            except EdgePoint2Error as error:
                report(f'{source}: image {number} of {topic} left out: {error}')
                continue
            if stamp in taken:
                report(f'{source}: image {number} of {topic} left out: another one has its stamp')
                continue
            taken.add(stamp)
            # From this frame, not from when it was due: after lost frames, the next is not taken at once.
            due = stamp + round(1e9 / rate) if rate else None
            seconds, nanoseconds = divmod(stamp, 1_000_000_000)
            name = f'{seconds}_{nanoseconds:09d}.jpg'  # without a dot, at which some tools cut names
            _write(folder / name, image)
            yield Entry(name, stamp)


def read_focal(source: Path, topic: str, image_size: tuple[int, int], report: Report) -> float | None:
    """Return the focal length in pixels from the camera_info beside a bag's images, or None.

    Args:
        source: the bag.
        topic: of the images; may be empty if it has only one.
        image_size: width, height of the images, which camera_info must describe.
        report: called with a message about a camera_info that cannot be used.
    """
    with open_recording(source) as recording:
        topic = only_topic(recording, IMAGES, topic, 'images').removesuffix('/compressed')
        beside = f'{topic.rpartition("/")[0]}/camera_info'
        found = recording.topics.get(beside)
        if found is None or found.type != _CAMERA_INFO or found.fault:
            return None
        decode = recording.decoder(found)
        for _, _, raw in recording.messages({beside}):
            try:
                return _focal_of(decode(raw), image_size)
            except EdgePoint2Error as error:
                report(f'{beside} is not used, the focal length is estimated: {error}')
                return None
    return None


def _focal_of(info: Any, image_size: tuple[int, int]) -> float:
    """Return fx of the images that a CameraInfo of ROS 1 or 2 describes; a ROI does not change it, binning does."""
    _, window, binning = image_window(info)
    size = tuple(window // binning)
    if size != image_size:
        raise EdgePoint2Error(
            f'expected one of images of {image_size[0]}x{image_size[1]} pixels, got {size[0]}x{size[1]}: '
            f'{info.width}x{info.height} with a ROI of {info.roi.width}x{info.roi.height} and binning '
            f'{info.binning_x}x{info.binning_y}'
        )
    focal = float(info.k[0] if hasattr(info, 'k') else info.K[0])
    if not 0 < focal < 10 * info.width:
        raise EdgePoint2Error(f'expected a focal length K[0] between 0 and {10 * info.width} pixels, got {focal}')
    return focal / float(binning[0])


def _write(path: Path, image: np.ndarray) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if path.suffix == '.jpg' else []
    encoded, data = cv2.imencode(path.suffix, image, options)
    if not encoded:
        raise ImageError(f'{path} cannot be encoded')
    path.write_bytes(data.tobytes())
