"""Maps: photographs, videos and bags of a hall whose cameras are known, and what cannot become a map."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from exif import store

pycolmap = pytest.importorskip('pycolmap', reason='pycolmap is not installed')
pytest.importorskip('rosbags', reason='rosbags is not installed')

from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

from edgepoint2_ros.bridges.colmap import write_features
from edgepoint2_ros.bridges.mapping.build import choose_pairs
from edgepoint2_ros.bridges.mapping.sources import import_images, kind_of, read_focal
from edgepoint2_ros.bridges.recordings import open_recording
from edgepoint2_ros.cli import main
from edgepoint2_ros.distillation.matches import read_matches
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.places import open_vocabulary
from edgepoint2_ros.scenes.walk import Walk

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / 'shared' / 'images' / 'photos'
STEP = 6  # frames of the walk between two images
QUICK = ['--backend', 'onnxruntime', '--threads', '1', '--max-keypoints', '700', '--resize', '640']


@pytest.fixture(scope='module')
def walk() -> Walk:
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    photographs = [data.astronaut(), data.coffee(), data.rocket(), data.chelsea(), data.camera(), data.brick()]
    return Walk([image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in photographs])


@pytest.fixture(scope='module')
def frames(walk) -> list[np.ndarray]:
    return [walk.image(STEP * k) for k in range(12)]


@pytest.fixture
def photographs(frames, tmp_path) -> Path:
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for number, image in enumerate(frames):
        cv2.imwrite(str(folder / f'{number:02d}.png'), image)
    return folder


def make(*arguments) -> int:
    return main(['map', *QUICK, *map(str, arguments)])


def error_of(poses: np.ndarray, walk: Walk, frames: list[int]) -> float:
    """Return how far the places of a TUM file are from the true ones, metres, in the mean, once they are aligned."""
    found, true = poses[:, 1:4], np.array([walk.pose(frame)[:3, 3] for frame in frames])
    found, true = found - found.mean(axis=0), true - true.mean(axis=0)
    u, s, v = np.linalg.svd(true.T @ found)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ v))])
    scale = (s * flip.diagonal()).sum() / (found**2).sum()
    return float(np.linalg.norm(true - scale * found @ (u @ flip @ v).T, axis=1).mean())


@pytest.mark.slow
def test_photographs_become_a_map_with_the_true_cameras(photographs, walk, tmp_path, capsys):
    (photographs / 'broken.jpg').write_bytes(b'no image')
    cv2.imwrite(str(photographs / 'tiny.png'), np.zeros((40, 90), np.uint8))
    cv2.imwrite(str(photographs / 'wall.png'), np.full((480, 640), 200, np.uint8))
    out = tmp_path / 'hall'
    assert make(photographs, out, '--one-camera') == 0
    output = capsys.readouterr()
    assert 'left out: expected an image' in output.err
    assert 'tiny.png left out: image: expected at least 64 x 64 pixels' in output.err
    assert '12 of 13 images' in output.out
    assert 'not in the map: wall.png' in output.out  # which has no keypoints
    assert error_of(np.loadtxt(out / 'poses.tum'), walk, range(0, 12 * STEP, STEP)) < 0.05  # of 2 metres

    # What gaussian-splatting opens: images without distortion, by the names in the model.
    model = pycolmap.Reconstruction(out / 'sparse' / '0')
    assert {camera.model.name for camera in model.cameras.values()} == {'PINHOLE'}
    for image in model.images.values():
        pixels = cv2.imread(str(out / 'images' / image.name))
        assert pixels.shape[1::-1] == (image.camera.width, image.camera.height)
    assert model.num_points3D() > 150
    assert model.compute_mean_reprojection_error() < 1

    # What a training takes: matches, by the names of the input.
    matches, _ = read_matches(out / 'distorted' / 'database.db')
    assert len(matches) > 12
    assert {name for match in matches for name in (match.a, match.b)} <= {p.name for p in (out / 'input').iterdir()}

    page = (out / 'index.html').read_text()
    assert '12 of 13' in page
    assert not re.findall(r'\{\{\w+\}\}', page)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # loads nothing
    view = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page)[1])
    assert len(view['cameras']) == len(view['images']) == 12
    assert all(image['sees'] for image in view['images'])

    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert make(photographs, out, '--one-camera') == 0  # it is complete: nothing is done again
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert capsys.readouterr().out == output.out
    assert make(photographs, out) == 1
    assert 'holds another map: one_camera was True, now False' in capsys.readouterr().err
    os.utime(photographs / 'wall.png', (1, 1))
    assert make(photographs, out, '--one-camera') == 1
    assert f'{photographs} has changed since: 15 files then, 15 now' in capsys.readouterr().err
    (photographs / 'wall.png').unlink()
    assert make(photographs, out, '--one-camera') == 1
    assert f'{photographs} has changed since: 15 files then, 14 now' in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


@pytest.mark.slow
def test_a_map_goes_on_where_it_was_killed(photographs, tmp_path, capsys):
    out = tmp_path / 'hall'
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'map', photographs, out, '--one-camera', *QUICK]
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / 'distorted' / 'database.db').exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / 'sparse').exists()
    features = {path: path.stat().st_mtime_ns for path in (out / 'features').iterdir()}
    assert len(features) == 12
    assert make(photographs, out, '--one-camera') == 0
    assert {path: path.stat().st_mtime_ns for path in (out / 'features').iterdir()} == features
    assert '12 of 12 images' in capsys.readouterr().out


@pytest.mark.slow
def test_a_bag_becomes_a_map_with_poses_by_its_stamps(walk, frames, tmp_path, capsys):
    from test_bags import record

    bag = record(tmp_path / 'bag', frames)
    out = tmp_path / 'hall'
    assert make(bag, out, '--rate', '0') == 0
    with open_recording(bag) as recording:
        [(name, topic)] = recording.topics.items()
        decode = recording.decoder(topic)
        stamps = [to_nanoseconds(decode(raw).header.stamp) for _, _, raw in recording.messages({name})]
    poses = np.loadtxt(out / 'poses.tum')
    assert len(poses) >= 11
    lines = (out / 'poses.tum').read_text().splitlines()[1:]
    known = {f'{stamp // 10**9}.{stamp % 10**9:09d}': k for k, stamp in enumerate(stamps)}
    numbers = [known[line.split()[0]] for line in lines]
    assert error_of(poses, walk, [STEP * number for number in numbers]) < 0.05
    with open_recording(out / 'poses') as recording:
        assert recording.topics['/poses'].type == 'geometry_msgs/msg/PoseStamped'
        decode = recording.decoder(recording.topics['/poses'])
        messages = [decode(raw) for _, _, raw in recording.messages({'/poses'})]
    assert [to_nanoseconds(message.header.stamp) for message in messages] == [stamps[number] for number in numbers]
    assert {message.header.frame_id for message in messages} == {'map'}
    place = messages[3].pose.position
    np.testing.assert_allclose([place.x, place.y, place.z], poses[3, 1:4], atol=1e-6)
    assert np.linalg.norm(poses[:, 4:], axis=1) == pytest.approx(1, abs=1e-6)


def test_a_video_is_sampled_by_its_own_clock(frames, tmp_path):
    path = tmp_path / 'hall.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (640, 480))
    for image in frames:
        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()
    found = list(import_images(path, tmp_path, '', 2, print))
    assert [entry.stamp for entry in found] == [0, 500_000_000, 1_000_000_000]
    assert [entry.name for entry in found] == ['000000.jpg', '000005.jpg', '000010.jpg']
    assert len(list(import_images(path, tmp_path, '', 0, print))) == 12


@pytest.mark.parametrize('suffix', ['avi', 'mkv'])
def test_a_truncated_video_is_reported(frames, tmp_path, suffix):
    path = tmp_path / f'hall.{suffix}'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (640, 480))
    for image in frames * 3:
        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()
    reports = []
    assert len(list(import_images(path, tmp_path, '', 0, reports.append))) == 36
    assert reports == []
    os.truncate(path, path.stat().st_size // 2)
    assert len(list(import_images(path, tmp_path, '', 0, reports.append))) < 34
    assert re.search(r'ends after 1\d of about 36 frames: is it damaged or truncated\?', ''.join(reports))


def test_photographs_in_several_folders_have_files_of_their_own(frames, tmp_path):
    source, folder = tmp_path / 'source', tmp_path / 'input'
    folder.mkdir()
    names = [b'left_1.png', b'left/1.png', b'right/1.png', b'caf\xe9.png', b'z.png']
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.path.join(os.fsencode(source), name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode('.png', frames[number])[1].tobytes())
    found = [entry.name for entry in import_images(source, folder, '', 2, print)]
    assert sorted(found) == ['caf_.png', 'left_1-2.png', 'left_1.png', 'right_1.png', 'z.png']
    kept = {(folder / name).read_bytes() for name in found}
    assert kept == {path.read_bytes() for path in source.rglob('*.png')}


def test_photographs_are_kept_as_they_are_or_turned_upright(frames, tmp_path):
    source, folder = tmp_path / 'source', tmp_path / 'input'
    (source / 'left').mkdir(parents=True)
    folder.mkdir()
    colour = cv2.cvtColor(frames[0], cv2.COLOR_GRAY2BGR)
    cv2.imwrite(str(source / 'plain.png'), colour)
    store(source / 'turned.jpg', colour, 6)
    cv2.imwrite(str(source / 'left' / 'plain.png'), frames[1].astype(np.uint16) * 257)
    found = list(import_images(source, folder, '', 2, print))
    assert sorted(entry.name for entry in found) == ['left_plain.png', 'plain.png', 'turned.jpg']
    assert sorted(entry.stamp for entry in found) == [0, 1, 2]
    assert (folder / 'plain.png').read_bytes() == (source / 'plain.png').read_bytes()
    turned = cv2.imread(str(folder / 'turned.jpg'), cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_COLOR)
    assert turned.shape == colour.shape
    assert np.abs(turned.astype(int) - colour).mean() < 6
    assert cv2.imread(str(folder / 'left_plain.png'), cv2.IMREAD_UNCHANGED).dtype == np.uint8


@pytest.mark.parametrize(
    ('name', 'orientation', 'mode', 'expected'),
    [
        ('upright.jpg', 1, 'RGB', 'upright.jpg'),
        ('turned.jpg', 6, 'RGB', 'turned.jpg'),
        ('scan.tif', 8, 'RGB', 'scan.png'),
        ('seethrough.png', 1, 'RGBA', 'seethrough.png'),
    ],
)
def test_the_focal_length_of_a_photograph_is_that_of_its_exif(name, orientation, mode, expected, frames, tmp_path):
    image_module = pytest.importorskip('PIL.Image', reason='Pillow is not installed')
    source, folder = tmp_path / 'source', tmp_path / 'input'
    source.mkdir()
    folder.mkdir()
    exif = image_module.Exif()
    exif[274] = orientation
    exif.get_ifd(0x8769)[0xA405] = 28  # millimetres of a 35 mm film
    exif[0x8769] = dict(exif.get_ifd(0x8769))  # for TIFF
    image_module.fromarray(frames[0]).convert(mode).save(source / name, exif=exif)
    (entry,) = import_images(source, folder, '', 2, print)
    assert entry.name == expected
    # COLMAP takes it for that of the diagonal, 43.3 mm.
    assert entry.focal == pytest.approx(28 / np.hypot(36, 24) * np.hypot(640, 480), rel=0.01)
    assert [path.name for path in folder.iterdir()] == [expected]


def test_a_file_is_what_its_content_says(frames, tmp_path):
    source, folder = tmp_path / 'source', tmp_path / 'input'
    source.mkdir()
    folder.mkdir()
    colour = cv2.cvtColor(frames[0], cv2.COLOR_GRAY2BGR)
    for name, kind in (('web.jpg', '.webp'), ('photo.png', '.jpg'), ('drawing.jpeg', '.png')):
        (source / name).write_bytes(cv2.imencode(kind, colour)[1].tobytes())
    names = [entry.name for entry in import_images(source, folder, '', 2, print)]
    assert names == ['drawing.png', 'photo.jpg', 'web.png']
    assert (folder / 'drawing.png').read_bytes() == (source / 'drawing.jpeg').read_bytes()
    for name in names:
        pycolmap.infer_camera_from_image(folder / name)  # which COLMAP reads


def test_one_camera_has_the_focal_length_of_the_first_image_that_knows_it(frames, official_model, tmp_path):
    official_model('T-32')
    extractor = Extractor('T-32', max_keypoints=50)
    features = {name: extractor.extract(frames[0]) for name in 'abc'}
    for one_camera, expected in ((True, [500.0] * 3), (False, [1.2 * 640, 500.0, 600.0])):
        path = tmp_path / f'{one_camera}.db'
        write_features(path, features, {'b': 500.0, 'c': 600.0}, one_camera)
        with pycolmap.Database.open(path) as database:
            cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
            images = sorted(database.read_all_images(), key=lambda image: image.name)
        assert [cameras[image.camera_id].mean_focal_length() for image in images] == pytest.approx(expected)


@pytest.mark.slow
def test_a_folder_whose_name_is_not_in_utf8_becomes_a_map(photographs, tmp_path):
    source = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9'))
    photographs.rename(source)
    assert make(source, tmp_path / 'map', '--one-camera') == 0
    assert 'caf\\udce9' in (tmp_path / 'map' / 'index.html').read_text()


def test_what_pycolmap_refuses_is_an_error_and_the_map_may_start_again(photographs, tmp_path, monkeypatch, capsys):
    def refuse(*args, **options):
        raise ValueError('[images.cc:80] Check failed:\n  bitmap.Read')

    with monkeypatch.context() as patched:
        patched.setattr('edgepoint2_ros.bridges.mapping.build.map_images', refuse)
        assert make(photographs, tmp_path / 'map', '--one-camera') == 1
    assert 'map: [images.cc:80] Check failed: bitmap.Read' in capsys.readouterr().err
    assert json.loads((tmp_path / 'map' / 'map.json').read_text())['failed']


def test_pairs_are_neighbours_and_what_looks_alike(frames, official_model):
    official_model('T-32')
    extractor = Extractor('T-32', backend='onnxruntime', threads=1, max_keypoints=300)
    shown = [*frames[:4], frames[0]]  # the last is where the first was
    features = {f'{k}': extractor.extract(image) for k, image in enumerate(shown)}
    vocabulary = open_vocabulary(extractor.model)
    assert choose_pairs(features, vocabulary, 0, 9) == [(a, b) for k, a in enumerate('01234') for b in '01234'[k + 1 :]]
    sequence = choose_pairs(features, vocabulary, 1, 1)
    assert {('0', '1'), ('1', '2'), ('2', '3'), ('3', '4'), ('0', '4')} <= set(sequence)


def record_with_camera_info(bag: Path, images, **changes) -> Path:
    """Write a bag of images and one CameraInfo of 64x64 pixels with a focal length of 500, or with other fields."""
    types = get_typestore(Stores.ROS2_HUMBLE)
    make = types.types
    time = make['builtin_interfaces/msg/Time']
    region = make['sensor_msgs/msg/RegionOfInterest'](
        **{'x_offset': 0, 'y_offset': 0, 'height': 0, 'width': 0, 'do_rectify': False, **changes.pop('roi', {})}
    )
    focal = changes.pop('focal', 500.0)
    header = make['std_msgs/msg/Header'](stamp=time(sec=1, nanosec=0), frame_id='camera')
    values = {'height': 64, 'width': 64, 'binning_x': 0, 'binning_y': 0, **changes}
    info = make['sensor_msgs/msg/CameraInfo'](
        header=header, distortion_model='plumb_bob', d=np.zeros(5), r=np.eye(3).ravel(), p=np.zeros(12), roi=region,
        k=np.array([focal, 0, 32, 0, focal, 32, 0, 0, 1]), **values,
    )  # fmt: skip
    messages = [('/left/camera_info', info)]
    for number, pixels in enumerate(images):
        height, width = pixels.shape
        header = make['std_msgs/msg/Header'](stamp=time(sec=1 + number, nanosec=0), frame_id='camera')
        image = make['sensor_msgs/msg/Image'](
            header=header, height=height, width=width, encoding='mono8', is_bigendian=0, step=width, data=pixels.ravel()
        )
        messages.append(('/left/image_raw', image))
    with Writer(bag, version=8) as writer:
        connections = {}
        for moment, (topic, message) in enumerate(messages, 1):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=types)
            writer.write(connections[topic], moment, types.serialize_cdr(message, message.__msgtype__))
    return bag


BLANK = np.zeros((64, 64), np.uint8)


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, 500.0),
        ({'binning_x': 1, 'binning_y': 1}, 500.0),
        ({'width': 128, 'height': 128, 'binning_x': 2, 'binning_y': 2}, 250.0),
        ({'width': 640, 'height': 480, 'roi': {'x_offset': 100, 'y_offset': 50, 'width': 64, 'height': 64}}, 500.0),
        (
            {'width': 640, 'height': 480, 'binning_x': 4, 'binning_y': 2, 'roi': {'width': 256, 'height': 128}},
            125.0,
        ),
    ],
    ids=['whole', 'binning of one', 'binning', 'ROI', 'binning and ROI'],
)
def test_the_focal_length_is_that_of_the_bag(changes, expected, tmp_path):
    notes = []
    bag = record_with_camera_info(tmp_path / 'bag', [BLANK], **changes)
    assert read_focal(bag, '', (64, 64), notes.append) == expected
    assert not notes


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'width': 128, 'height': 96}, 'expected one of images of 64x64 pixels, got 128x96'),
        (
            {'binning_x': 2, 'binning_y': 2},
            'got 32x32: 64x64 with a ROI of 0x0 and binning 2x2',
        ),
        (
            {'roi': {'width': 40, 'height': 30}},
            'got 40x30: 64x64 with a ROI of 40x30 and binning 0x0',
        ),
        (
            {'roi': {'x_offset': 32, 'width': 64, 'height': 64}},
            'ROI and binning: expected a part of 64x64 pixels, got 64x64 at (32, 0)',
        ),
        ({'focal': 0.0}, 'expected a focal length K[0] between 0 and 640 pixels, got 0.0'),
        ({'focal': float('nan')}, 'expected a focal length K[0] between 0 and 640 pixels, got nan'),
        ({'focal': 1e5}, 'expected a focal length K[0] between 0 and 640 pixels, got 100000.0'),
    ],
    ids=['size', 'binning', 'ROI', 'ROI outside', 'zero', 'NaN', 'too long'],
)
def test_a_camera_info_that_cannot_be_that_of_the_images_is_named_and_not_used(changes, words, tmp_path):
    notes = []
    bag = record_with_camera_info(tmp_path / 'bag', [BLANK], **changes)
    assert read_focal(bag, '', (64, 64), notes.append) is None
    [note] = notes
    assert note.startswith('/left/camera_info is not used, the focal length is estimated: ')
    assert words in note


def test_without_camera_info_there_is_no_focal_length(tmp_path):
    from test_bags import record

    notes = []
    assert read_focal(record(tmp_path / 'bag', [BLANK]), '', (64, 64), notes.append) is None
    assert not notes


@pytest.mark.slow
@pytest.mark.parametrize(('width', 'expected'), [(1280, 500.0), (320, None)], ids=['binning', 'other size'])
def test_a_map_of_a_bag_begins_with_the_focal_length_of_its_images(width, expected, frames, tmp_path, capsys):
    bag = record_with_camera_info(
        tmp_path / 'bag', frames[:4], width=width, height=width * 3 // 4, focal=1000.0, binning_x=2, binning_y=2
    )
    make(bag, tmp_path / 'hall', '--rate', '0')
    words = (
        'camera_info is not used, the focal length is estimated: expected one of images of 640x480 pixels, got 160x120'
    )
    assert (words in capsys.readouterr().err) == (expected is None)
    with pycolmap.Database.open(tmp_path / 'hall' / 'distorted' / 'database.db') as database:
        [camera] = database.read_all_cameras()
    assert camera.has_prior_focal_length == (expected is not None)
    assert camera.mean_focal_length() == (expected or 1.2 * 640)


def test_one_image_is_no_map(photographs, tmp_path, capsys):
    for count in (2, 1, 0):  # two have no third to confirm them
        for path in sorted(photographs.iterdir())[count:]:
            path.unlink()
        assert make(photographs, tmp_path / 'out') == 1
        assert f'a map needs at least 3 images that overlap, got {count}' in capsys.readouterr().err


@pytest.mark.slow
def test_images_that_do_not_overlap_are_no_map(tmp_path, capsys):
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    folder = tmp_path / 'different'
    folder.mkdir()
    for name in ('coffee', 'rocket', 'chelsea', 'camera', 'coins'):
        cv2.imwrite(str(folder / f'{name}.png'), getattr(data, name)())
    assert make(folder, tmp_path / 'out') == 1
    assert 'no two of the 5 images overlap' in capsys.readouterr().err

    # What failed stands in no one's way: with other images or options it starts again, and says so.
    (folder / 'coins.png').unlink()
    assert make(folder, tmp_path / 'out') == 1
    complaint = capsys.readouterr().err
    assert 'starting again: the earlier map failed, and' in complaint
    assert 'no two of the 4 images overlap' in complaint
    assert make(folder, tmp_path / 'out', '--one-camera') == 1
    assert 'one_camera was False, now True' in capsys.readouterr().err
    assert len(list((tmp_path / 'out' / 'input').iterdir())) == 4

    # But what others have put there stays, and what is not of this map is not taken for it.
    for other in ('sparse', 'input/more.png'):
        (tmp_path / 'out' / other).mkdir()
        assert make(folder, tmp_path / 'out') == 1
        assert f'{other} does not come from the map that failed' in capsys.readouterr().err
        assert (tmp_path / 'out' / other).exists()
        (tmp_path / 'out' / other).rmdir()
    assert make(tmp_path / 'out' / 'input', tmp_path / 'out') == 1
    assert 'choose another path for the map' in capsys.readouterr().err
    assert len(list((tmp_path / 'out' / 'input').iterdir())) == 4

    # A mistyped option does not make a map a failed one, nor an interrupted one an empty one.
    state = tmp_path / 'out' / 'map.json'
    content = json.loads(state.read_text())
    del content['failed']
    state.write_text(json.dumps(content))
    for path in (tmp_path / 'out' / 'features').iterdir():
        path.unlink()
    before = set((tmp_path / 'out').rglob('*'))
    for options in (('--threads', 999), ('--precision', 'fp8'), ('--resize', 300)):
        assert make(folder, tmp_path / 'out', '--one-camera', *options) == 1
        assert set((tmp_path / 'out').rglob('*')) == before
        assert json.loads(state.read_text()) == content


@pytest.mark.slow
def test_a_camera_that_stands_still_is_no_map(frames, tmp_path, capsys):
    folder = tmp_path / 'still'
    folder.mkdir()
    for k in range(4):
        cv2.imwrite(str(folder / f'{k}.png'), frames[0])
    assert make(folder, tmp_path / 'out', '--one-camera') == 1
    assert 'The camera must move aside, not only turn' in capsys.readouterr().err


def test_what_is_no_source_is_refused(tmp_path, capsys):
    (tmp_path / 'notes.txt').write_text('no images')
    for source, complaint in (
        (tmp_path / 'nowhere', 'there is no such folder, video or bag'),
        (tmp_path / 'notes.txt', 'expected a folder of photographs, a video'),
    ):
        assert make(source, tmp_path / 'out') == 1
        assert complaint in capsys.readouterr().err
    (tmp_path / 'film.mp4').write_text('no film')
    assert make(tmp_path / 'film.mp4', tmp_path / 'out') == 1
    assert 'is not a video that OpenCV can read' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('--max-keypoints', 0),
        ('--resize', -1),
        ('--rate', -2),
        ('--rate', 'nan'),
        ('--similar', 0),
        ('--focal', 0),
        ('--focal', 'nan'),
    ],
)
def test_options_out_of_range_are_refused(option, value, photographs, tmp_path, capsys):
    assert make(photographs, tmp_path / 'out', option, value) == 1
    assert re.search(f'more.*, got {value}', capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


def test_files_beside_the_images_and_other_ways_to_write_a_path_change_no_map(photographs, tmp_path):
    from edgepoint2_ros.bridges.mapping.sources import fingerprint

    inside = photographs / 'out'
    before = fingerprint(photographs, inside)
    assert before['count'] == 12
    (photographs / 'notes.txt').touch()
    (inside / 'input').mkdir(parents=True)
    shutil.copy(photographs / sorted(os.listdir(photographs))[0], inside / 'input')
    assert fingerprint(photographs, photographs / '..' / photographs.name / 'out') == before
    (tmp_path / 'link').symlink_to(inside)
    assert fingerprint(photographs, tmp_path / 'link') == before

    bag = tmp_path / 'bag'
    bag.mkdir()
    (bag / 'bag_0.db3').write_bytes(b'1')
    before = fingerprint(bag, tmp_path)
    (bag / 'bag_0.db3-shm').touch()  # by SQLite, as it reads
    (bag / 'metadata.yaml').touch()
    assert fingerprint(bag, tmp_path) == before
    (bag / 'bag_1.db3').touch()
    assert fingerprint(bag, tmp_path)['count'] == 2


@pytest.mark.parametrize('options', [('--model', 'X'), ('--resize', 20), ('--topic', '/image')])
def test_a_mistyped_option_leaves_nothing_behind(options, photographs, tmp_path):
    assert make(photographs, tmp_path / 'out', *options) == 1
    assert not (tmp_path / 'out').exists()


def test_nothing_is_overwritten(photographs, tmp_path, capsys):
    out = tmp_path / 'thesis'
    out.mkdir()
    (out / 'chapter.txt').write_text('precious')
    assert make(photographs, out) == 1
    assert 'already exists' in capsys.readouterr().err
    (out / 'map.json').write_text('{"coordinates": []}')
    assert make(photographs, out) == 1
    assert 'does not belong to a map' in capsys.readouterr().err
    assert sorted(os.listdir(out)) == ['chapter.txt', 'map.json']


def test_kinds_of_sources(tmp_path):
    bag = tmp_path / 'bag'
    bag.mkdir()
    assert kind_of(bag) == 'photographs'
    (bag / 'metadata.yaml').touch()
    assert kind_of(bag) == 'bag'
    with pytest.raises(EdgePoint2Error, match='there is no such'):
        kind_of(tmp_path / 'x.mcap')


@pytest.mark.slow
def test_tourists_photographs_become_a_map(tmp_path, capsys):
    found = sorted(PHOTOS.glob('*_*.jpg'))[:8]
    if not found:
        pytest.skip(f'no photographs in {PHOTOS}')
    folder = tmp_path / 'photos'
    folder.mkdir()
    for photo, orientation in zip(found, (6, 8, 1, 3, 1, 1, 8, 1)):
        store(folder / photo.name, cv2.imread(str(photo)), orientation)
    assert main(['map', str(folder), str(tmp_path / 'out'), *QUICK[:4], '--resize', '800']) == 0
    model = pycolmap.Reconstruction(tmp_path / 'out' / 'sparse' / '0')
    assert model.num_reg_images() >= 6
    assert model.num_points3D() > 150


@pytest.mark.slow
def test_the_example_maps_the_same_images_by_sift(photographs, tmp_path):
    example = ROOT / 'examples' / 'map_beside_sift.py'
    command = [sys.executable, example, tmp_path / 'out', photographs, '--one-camera', *QUICK[:2], *QUICK[4:]]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([str(word) for word in command], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == ['features', '---', 'T-32', 'SIFT']
    assert rows[2][2] == rows[3][2] == '12 of 12'
