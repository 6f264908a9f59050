"""A map from images: features, pairs, verified matches, and COLMAP's incremental mapping, resumable step by step.

The folder of a map is laid out as gaussian-splatting's tools make and read theirs:

    input/                the original images, upright
    features/             the features of each image (.npz)
    distorted/            database.db and sparse/0 of COLMAP, with lens distortion
    images/, sparse/0/    undistorted images and model: what those tools open
    poses.tum, poses/     the cameras; poses/ is a bag, if the images came from one
    index.html            a page that shows it all
    map.json              the job, and its progress

A finished step leaves its result under its final name in one move; after an interruption the same call continues with
what is missing. Only the mapping itself restarts. A map that failed starts again if it is asked for otherwise.
"""

import fcntl
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edgepoint2_ros.bridges.colmap import match_pairs, sequential_pairs, write_features
from edgepoint2_ros.bridges.mapping.page import write_page
from edgepoint2_ros.bridges.mapping.poses import Pose, write_bag, write_tum
from edgepoint2_ros.bridges.mapping.sources import Entry, fingerprint, import_images, kind_of, read_focal
from edgepoint2_ros.errors import EdgePoint2Error, ImageError
from edgepoint2_ros.extractor import DEFAULTS, Extractor, ExtractorSettings, extract_shrunk
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import make_folder, refuse_existing
from edgepoint2_ros.images import read_image
from edgepoint2_ros.places import Vocabulary, most_similar, open_vocabulary
from edgepoint2_ros.progress import Report, show_progress
from edgepoint2_ros.storage import drafting, write_whole

FORMAT = 1  # of map.json
LONG_SIDE = 1024  # of an image for extraction, pixels
RATE = 2.0  # images taken per second of a video or a bag
WINDOW = 10  # images that each one of a video or a bag is matched with, following it
SIMILAR = 20  # most similar images that each one is matched with
MIN_IMAGES = 3  # of a map; two have no third to confirm them
# Of the mapping, until half of the images are registered: triangulation angle in degrees of the first two images, for
# which COLMAP requires 16 and which a camera moving forward never reaches; and inliers of each further image.
ATTEMPTS = ((16.0, 30), (4.0, 20))
MIN_POINTS = 10  # of a map per image
MADE = ('input', 'features', 'distorted')  # by a map that fails
MOVE = 'The camera must move aside, not only turn'


@dataclass(frozen=True)
class Job:
    """One map to make.

    Attributes:
        source: folder of photographs, video, or bag.
        output: folder of the map.
        topic: of the images in a bag; may be empty if it has only one.
        extractor: the settings of the extractor.
        resize: long side that images are shrunk to before extraction, pixels; 0 leaves them as they are.
        rate: images taken per second of a video or a bag; 0 takes all.
        window: images following each one that it is matched with; by default WINDOW for a video or a bag, else 0.
        similar: most similar images that each one is matched with.
        one_camera: all photographs are from one camera, as those of a video or a bag always are.
        focal: focal length of that camera in pixels; by default from EXIF or the bag's camera_info, else estimated,
            starting from a guess.
    """

    source: Path
    output: Path
    topic: str = ''
    extractor: ExtractorSettings = DEFAULTS
    resize: int = LONG_SIDE
    rate: float = RATE
    window: int | None = None
    similar: int = SIMILAR
    one_camera: bool = False
    focal: float | None = None


@dataclass(frozen=True)
class Summary:
    """The outcome of making a map.

    Attributes:
        images: number of usable images.
        registered: those of them whose pose was found.
        pairs, matched: pairs of images that were matched, and those of them that passed verification.
        points: 3D points.
        track_length: mean number of images that see a point.
        error: mean reprojection error of a point, pixels of the images.
        left_out: names of the images that are not in the map.
    """

    images: int
    registered: int
    pairs: int
    matched: int
    points: int
    track_length: float
    error: float
    left_out: tuple[str, ...]


def build_map(job: Job, report: Report = lambda text: None) -> Summary:
    """Make a map, or continue an interrupted one; a complete one is left unchanged.

    Args:
        job: what to make.
        report: called with a message about each image that cannot be used.

    Raises:
        EdgePoint2Error: the source cannot be read, no map can be made from it, or the output belongs to another job.
    """
    for name, least in (('resize', 0), ('rate', 0), ('window', 0), ('similar', 1)):
        value = getattr(job, name)
        if value is not None and not value >= least:
            raise EdgePoint2Error(f'{name}: expected {least} or more, got {value}')
    if job.focal is not None and not 0 < job.focal < np.inf:
        raise EdgePoint2Error(f'focal: expected a length in pixels, more than 0, got {job.focal}')
    kind = kind_of(job.source)
    if job.topic and kind != 'bag':
        raise EdgePoint2Error(f'topic: {job.source} is no bag: expected none, got {job.topic!r}')
    if job.output.resolve() in (job.source.resolve(), *job.source.resolve().parents):
        raise EdgePoint2Error(f'{job.source} lies in {job.output}: choose another path for the map')
    extractor = Extractor(job.extractor)
    vocabulary = open_vocabulary(extractor.model)
    with _open_folder(job, kind, extractor.digest, report) as state:
        if 'summary' not in state.content:
            try:
                _build(job, kind, extractor, vocabulary, state, report)
            except (RuntimeError, ValueError) as error:  # of pycolmap
                raise EdgePoint2Error(f'{job.output}: {" ".join(str(error).split())}') from error
        summary = state.content['summary']
        return Summary(**{**summary, 'left_out': tuple(summary['left_out'])})


def _build(job: Job, kind: str, extractor: Extractor, vocabulary: Vocabulary, state: '_State', report: Report) -> None:
    output = job.output
    entries = _import(job, state, report)
    _need_enough(job, len(entries))
    features = _extract(job, extractor, [entry.name for entry in entries], report)
    names = list(features)
    _need_enough(job, len(names))
    window = job.window if job.window is not None else (0 if kind == 'photographs' else WINDOW)
    pairs = choose_pairs(features, vocabulary, window, job.similar)

    database = output / 'distorted' / 'database.db'
    if not database.exists():
        focals = _know_focals(job, kind, entries, features, report)
        with drafting(database) as draft:
            write_features(draft, features, focals, one_camera=job.one_camera or kind != 'photographs')
    inliers = list(show_progress(match_pairs(database, features, pairs), 'pairs', len(pairs)))
    matched = sum(count > 0 for count in inliers)
    if not matched:
        raise EdgePoint2Error(
            f'{job.source}: no two of the {len(names)} images overlap, as far as {len(pairs)} pairs were matched: take '
            f'them closer together, so that consecutive images overlap by half'
        )
    if not (output / 'distorted' / 'sparse' / '0').exists():
        map_images(database, output / 'input', output / 'distorted' / 'sparse' / '0', len(names))
    model = pycolmap.Reconstruction(output / 'distorted' / 'sparse' / '0')
    registered = {image.name for image in model.images.values() if image.has_pose}
    if len(registered) < MIN_IMAGES or model.num_points3D() < MIN_POINTS * len(registered):
        alone = kind == 'photographs' and not job.one_camera
        advice = '; if one camera took them all, say so: --one-camera' if alone else ''
        raise EdgePoint2Error(
            f'{job.source}: the reconstruction failed: it has {len(registered)} of {len(names)} images and '
            f'{model.num_points3D()} points, at least {MIN_IMAGES} images and {MIN_POINTS} points for each are needed; '
            f'{matched} of {len(pairs)} pairs overlap. {MOVE}{advice}'
        )
    _undistort(output)
    _write_poses(output, entries, model, kind)
    state.content['summary'] = {
        'images': len(names),
        'registered': len(registered),
        'pairs': len(pairs),
        'matched': matched,
        'points': model.num_points3D(),
        'track_length': model.compute_mean_track_length(),
        'error': model.compute_mean_reprojection_error(),
        'left_out': [name for name in names if name not in registered],
    }
    write_page(output / 'index.html', job.source.name, extractor.description, state.content['summary'], output)
    state.content.pop('failed', None)
    state.save()


def choose_pairs(
    features: Mapping[str, Features], vocabulary: Vocabulary, window: int, similar: int
) -> list[tuple[str, str]]:
    """Return the pairs of images worth matching: neighbours in time, and similar ones.

    Args:
        features: by name, in order of time if ``window`` is not 0.
        vocabulary: of the model that they come from.
        window: each image is paired with this many after it,
        similar: and with this many of the most similar ones outside the window.
    """
    names = list(features)
    number_of = {name: number for number, name in enumerate(names)}
    places = np.stack([vocabulary.describe(features[name]) for name in names])
    numbers = np.arange(len(names))
    chosen = {(number_of[a], number_of[b]) for a, b in sequential_pairs(names, window)}
    for number, place in enumerate(places):
        outside = numbers[np.abs(numbers - number) > window]
        for other in outside[most_similar(places[outside], place, similar)]:
            chosen.add((min(number, int(other)), max(number, int(other))))
    return [(names[a], names[b]) for a, b in sorted(chosen)]


def map_images(database: Path, images: Path, model: Path, total: int) -> None:
    """Reconstruct cameras and points from a database and write the largest resulting model.

    Args:
        database: of COLMAP, with verified matches.
        images: folder of the images, for the colours of the points.
        model: new folder; not created if the images cannot be registered.
        total: number of images, for the progress line.
    """
    trials = model.with_name('trials')
    shutil.rmtree(trials, ignore_errors=True)
    best, most = None, (0, 0)
    for number, (angle, least) in enumerate(ATTEMPTS):
        attempt = trials / str(number)
        attempt.mkdir(parents=True)
        options = pycolmap.IncrementalPipelineOptions(min_model_size=MIN_IMAGES, random_seed=0)
        options.mapper.init_min_tri_angle = angle
        options.mapper.abs_pose_min_num_inliers = least
        for key, found in _reconstruct(database, images, attempt, options, total).items():
            if (found.num_reg_images(), found.num_points3D()) > most:
                best, most = attempt / str(key), (found.num_reg_images(), found.num_points3D())
        if most[0] >= total / 2:
            break
    if best is not None:
        best.rename(model)
    shutil.rmtree(trials)
    if best is None:
        raise EdgePoint2Error(
            f'{images}: the images cannot be connected: pairs overlap, but no third image confirms any. {MOVE}'
        )


def _reconstruct(
    database: Path, images: Path, folder: Path, options: pycolmap.IncrementalPipelineOptions, total: int
) -> dict[int, pycolmap.Reconstruction]:
    """Return the models that COLMAP makes, by the names of their folders; a line shows the number of cameras."""
    cameras = show_progress(itertools.repeat(None), 'cameras', total)
    next(cameras)

    def count() -> None:
        next(cameras, None)

    models = pycolmap.incremental_mapping(
        database, images, folder, options, initial_image_pair_callback=count, next_image_callback=count
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return models


def _import(job: Job, state: '_State', report: Report) -> list[Entry]:
    if 'images' not in state.content:
        folder = job.output / 'input'
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted call
        folder.mkdir()
        found = import_images(job.source, folder, job.topic, job.rate, report)
        state.content['images'] = [list(entry) for entry in show_progress(found, 'images')]
        state.save()
    return [Entry(*entry) for entry in state.content['images']]


def _need_enough(job: Job, count: int) -> None:
    if count < MIN_IMAGES:
        raise EdgePoint2Error(f'{job.source}: a map needs at least {MIN_IMAGES} images that overlap, got {count}')


def _extract(job: Job, extractor: Extractor, names: Sequence[str], report: Report) -> dict[str, Features]:
    """Return the features of the images by name; those already in files are read from there."""
    features = {}
    for name in show_progress(names, 'features', len(names)):
        file = job.output / 'features' / f'{name}.npz'
        found = _read_features(file)
        if found is None or found.digest != extractor.digest:
            try:
                found = extract_shrunk(extractor, read_image(job.output / 'input' / name), job.resize)
            except ImageError as error:  # too small, or too large
                report(f'{name} left out: {error}')
                continue
            data = io.BytesIO()
            np.savez(data, **vars(found))
            write_whole(file, data.getvalue())
        features[name] = found
    return features


def _read_features(file: Path) -> Features | None:
    if not file.exists():
        return None
    with np.load(file) as kept:
        width, height = kept['image_size']
        return Features(
            kept['xy'],
            kept['scores'],
            kept['descriptors'],
            (int(width), int(height)),
            str(kept['model']),
            str(kept['digest']),
        )


def _know_focals(
    job: Job, kind: str, entries: Sequence[Entry], features: Mapping[str, Features], report: Report
) -> dict[str, float]:
    """Return the known focal lengths in pixels by image name."""
    if job.focal:
        return dict.fromkeys(features, job.focal)
    if kind == 'bag':
        sizes = {image.image_size for image in features.values()}
        focals = {size: read_focal(job.source, job.topic, size, report) for size in sizes}
        return {name: focal for name, image in features.items() if (focal := focals[image.image_size]) is not None}
    return {entry.name: entry.focal for entry in entries if entry.focal is not None and entry.name in features}


def _undistort(output: Path) -> None:
    """Write images/ and sparse/0/, undistorted."""
    draft = output / 'undistorted'
    for folder in (draft, output / 'images', output / 'sparse'):
        shutil.rmtree(folder, ignore_errors=True)
    pycolmap.undistort_images(draft, output / 'distorted' / 'sparse' / '0', output / 'input')
    (output / 'sparse').mkdir()
    (draft / 'sparse').rename(output / 'sparse' / '0')
    (draft / 'images').rename(output / 'images')
    shutil.rmtree(draft)


def _write_poses(output: Path, entries: Sequence[Entry], model: pycolmap.Reconstruction, kind: str) -> None:
    images = {image.name: image for image in model.images.values() if image.has_pose}
    poses = []
    for entry in entries:
        if entry.name in images:
            camera = images[entry.name].cam_from_world().inverse()
            poses.append(Pose(entry.stamp, camera.translation, camera.rotation.quat))
    write_tum(output / 'poses.tum', poses, stamped=kind != 'photographs')
    if kind == 'bag':
        shutil.rmtree(output / 'poses', ignore_errors=True)
        write_bag(output / 'poses', poses)


class _State:
    """The content of map.json."""

    def __init__(self, file: Path, content: dict[str, Any]):
        self._file = file
        self.content = content

    def save(self) -> None:
        write_whole(self._file, (json.dumps(self.content, indent=1) + '\n').encode())


@contextmanager
def _open_folder(job: Job, kind: str, digest: str, report: Report) -> Iterator[_State]:
    """Yield the state of a map's folder, which is created, or was begun by the same job, or by another that failed."""
    settings = {
        'source': os.path.abspath(job.source),
        'kind': kind,
        'topic': job.topic,
        'model': job.extractor.model,
        'weights': digest,
        'max_keypoints': job.extractor.max_keypoints,
        'score_threshold': job.extractor.score_threshold,
        'resize': job.resize,
        'rate': job.rate if kind != 'photographs' else None,
        'window': job.window,
        'similar': job.similar,
        'one_camera': job.one_camera if kind == 'photographs' else True,
        'focal': job.focal,
    }
    new: dict[str, Any] = {'format': FORMAT, 'settings': settings, 'files': fingerprint(job.source, job.output)}
    file = job.output / 'map.json'
    is_new = not file.exists()
    if is_new:
        refuse_existing([job.output])
        make_folder(job.output)
        _State(file, new).save()
    lock = os.open(job.output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgePoint2Error(f'{job.output} is being written by another process') from None
        try:
            content = json.loads(file.read_text())
            if content['format'] != FORMAT:
                raise ValueError
            change = _find_change(job, content, new)
        except (ValueError, KeyError, TypeError):
            raise EdgePoint2Error(f'{file} does not belong to a map: choose another path, or remove it') from None
        state = _State(file, content)
        if change and content.get('failed'):
            report(f'{job.output}: starting again: the earlier map failed, and {change}')
            _clear(job.output, state)
            state.content = new
            state.save()
        elif change:
            raise EdgePoint2Error(f'{job.output} holds another map: {change}; choose another path, or remove it')
        try:
            yield state
        except Exception:
            if any((job.output / 'features').glob('*')):
                state.content['failed'] = True
                state.save()
            elif is_new:  # a source without images leaves nothing behind
                shutil.rmtree(job.output / 'input', ignore_errors=True)
                file.unlink()
                with suppress(OSError):  # it holds something else
                    job.output.rmdir()
            raise
    finally:
        os.close(lock)


def _find_change(job: Job, known: dict[str, Any], new: dict[str, Any]) -> str:
    """Return in words what differs from the job that began a map, by the content of its map.json; empty if nothing."""
    for name, value in new['settings'].items():
        if known['settings'][name] != value:
            return f'{name} was {known["settings"][name]!r}, now {value!r}'
    if known['files'] != new['files']:
        return f'{job.source} has changed since: {known["files"]["count"]} files then, {new["files"]["count"]} now'
    return ''


def _clear(output: Path, state: _State) -> None:
    """Remove what a map that failed has left, apart from map.json.

    Raises:
        EdgePoint2Error: the folder holds something else, which stays, as does all the rest.
    """
    input_files = {f'input/{entry[0]}' for entry in state.content.get('images', ())}
    for path in (*output.iterdir(), *(output / 'input').glob('*')):
        name = str(path.relative_to(output))
        if name not in {'map.json', *MADE, *input_files}:
            raise EdgePoint2Error(f'{path} does not come from the map that failed in {output}: choose another path')
    # Should this be interrupted, the next call clears the rest.
    state.content['files'] = {'count': 0, 'digest': ''}
    state.save()
    for name in MADE:
        if (output / name).exists():
            shutil.rmtree(output / name)
