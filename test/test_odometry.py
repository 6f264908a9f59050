"""Odometry on points that are known, on a rendered walk whose path is known, and on a real camera's images."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.odometry import Camera, VisualOdometry
from edgepoint2_ros.odometry.bundle import adjust
from edgepoint2_ros.odometry.monocular import MAX_LOST
from edgepoint2_ros.scenes import walk

ROOT = Path(__file__).parents[1]
TUM = ROOT.parent / 'shared' / 'images' / 'tum20'
MATRIX = np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]])
SIZE = (640, 480)


class Cloud:
    """Points in space with a descriptor each, and cameras that see them."""

    def __init__(self, seed: int = 0, noise: float = 0.0):
        rng = np.random.default_rng(seed)
        self._rng, self._noise = rng, noise
        self.points = rng.uniform((-6, -3, 3), (6, 3, 14), (1500, 3))
        self.rows = rng.normal(size=(1500, 32)).astype(np.float32)
        self.rows /= np.linalg.norm(self.rows, axis=1, keepdims=True)

    def look(self, position, turn=(0, 0, 0), camera: Camera | None = None) -> tuple[Features, np.ndarray]:
        """Return what a camera sees and its pose (4, 4), camera to world."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(np.array(turn, float))[0], position
        seen = (self.points - pose[:3, 3]) @ pose[:3, :3]
        if camera is None:
            xy = seen[:, :2] / seen[:, 2:] * 500 + MATRIX[:2, 2]
        else:
            xy = cv2.projectPoints(seen, np.zeros(3), np.zeros(3), camera.matrix, camera.distortion)[0][:, 0]
        inside = (seen[:, 2] > 0.5) & ((xy >= 0) & (xy < SIZE)).all(axis=1)
        # Distortion is a polynomial that comes back far outside of the image.
        inside &= (np.abs(seen[:, :2]) < np.abs(seen[:, 2:]) * 0.8).all(axis=1)
        xy = (xy[inside] + self._rng.normal(0, self._noise, (np.count_nonzero(inside), 2))).astype(np.float32)
        return Features(xy, np.zeros(len(xy), np.float32), self.rows[inside], SIZE, 'T-32', 'a'), pose


def go(t: float) -> tuple:
    """Return position and turn of a hand-held camera at second t."""
    return (1.5 * np.sin(0.6 * t), 0.2 * np.sin(t), 1.2 * t), (0.1 * np.sin(t), 0.4 * np.sin(0.5 * t), 0.05 * np.sin(t))


def align(estimated: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the scale and the remaining distances (N,) of positions (N, 3), by Umeyama's method."""
    a, b = estimated - estimated.mean(0), truth - truth.mean(0)
    u, values, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = np.trace(np.diag(values) @ sign) / (a**2).sum()
    return scale, np.linalg.norm(scale * a @ (u @ sign @ vt).T - b, axis=1)


def follow(odometry: VisualOdometry, views) -> tuple[np.ndarray, np.ndarray]:
    """Return estimated and true poses of the images that were placed."""
    estimated, truth = [], []
    for features, pose in views:
        found = odometry.track(features)
        if found is not None:
            estimated.append(found)
            truth.append(pose)
    return np.array(estimated), np.array(truth)


def test_a_camera_among_known_points_is_followed_exactly():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX))
    estimated, truth = follow(odometry, [cloud.look(*go(k / 20)) for k in range(80)])
    assert len(estimated) > 70
    assert (odometry.state, odometry.starts) == ('tracking', 1)
    _, distances = align(estimated[:, :3, 3], truth[:, :3, 3])
    assert distances.max() < 1e-3
    turned = np.linalg.inv(estimated[0, :3, :3]) @ estimated[-1, :3, :3]
    np.testing.assert_allclose(turned, np.linalg.inv(truth[0, :3, :3]) @ truth[-1, :3, :3], atol=1e-4)


def test_noise_of_half_a_pixel_drifts_by_less_than_a_percent():
    cloud, odometry = Cloud(noise=0.5), VisualOdometry(Camera(MATRIX))
    estimated, truth = follow(odometry, [cloud.look(*go(k / 15)) for k in range(80)])
    _, distances = align(estimated[:, :3, 3], truth[:, :3, 3])
    length = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    assert distances.max() < 0.01 * length


def test_the_start_depth_gives_the_scale():
    scales = []
    for depth in (1.0, 8.0):
        cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX), start_depth=depth)
        estimated, truth = follow(odometry, [cloud.look(*go(k / 20)) for k in range(60)])
        scales.append(align(estimated[:, :3, 3], truth[:, :3, 3])[0])
    assert scales[0] / scales[1] == pytest.approx(8, rel=0.01)
    assert scales[1] == pytest.approx(1, rel=0.3)  # the points lie 3 to 14 away


def test_lenses_are_taken_into_account():
    camera = Camera(MATRIX, np.array([-0.25, 0.08, 0.001, -0.001, 0.0]))
    cloud, odometry = Cloud(), VisualOdometry(camera)
    estimated, truth = follow(odometry, [cloud.look(*go(k / 20), camera) for k in range(80)])
    assert len(estimated) > 70
    assert align(estimated[:, :3, 3], truth[:, :3, 3])[1].max() < 1e-2


def test_a_matrix_that_is_part_of_a_larger_one_will_do():
    cloud, odometry = Cloud(), VisualOdometry(Camera(np.c_[MATRIX, np.zeros(3)][:, :3]))  # as P of a CameraInfo
    estimated, _ = follow(odometry, [cloud.look(*go(k / 20)) for k in range(30)])
    assert len(estimated) > 15


@pytest.mark.parametrize('fifth', [[], [0.0]])
def test_fisheye_lenses_are_undistorted(fifth):
    camera = Camera(MATRIX, np.array([-0.05, 0.01, 0.0, 0.0, *fifth]), 'equidistant')
    points = np.array([[[0.3, -0.2, 1.0], [-0.5, 0.4, 1.0]]])
    seen = cv2.fisheye.projectPoints(points, np.zeros(3), np.zeros(3), MATRIX, camera.distortion[:4])[0][0]
    np.testing.assert_allclose(camera.undistort(seen), points[0, :, :2] * 500 + MATRIX[:2, 2], atol=1e-3)


def test_a_camera_that_only_turns_gives_no_pose():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX))
    estimated, _ = follow(odometry, [cloud.look((0, 0, 0), (0, 0.01 * k, 0)) for k in range(30)])
    assert len(estimated) == 0
    assert odometry.state == 'starting'


def test_after_some_blind_images_the_camera_is_found_again():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX))
    views = [cloud.look(*go(k / 20)) for k in range(80)]
    empty = Features(np.zeros((0, 2), np.float32), np.zeros(0, np.float32), cloud.rows[:0], SIZE, 'T-32', 'a')
    for k in range(50, 55):
        views[k] = (empty, views[k][1])
    estimated, truth = follow(odometry, views)
    assert (odometry.state, odometry.starts) == ('tracking', 1)
    assert align(estimated[:, :3, 3], truth[:, :3, 3])[1].max() < 1e-3


def test_a_camera_that_stays_lost_starts_anew_where_it_was_last_seen():
    here, elsewhere = Cloud(0), Cloud(1)
    odometry = VisualOdometry(Camera(MATRIX))
    estimated, _ = follow(odometry, [here.look(*go(k / 20)) for k in range(40)])
    assert [odometry.track(elsewhere.look(*go(2 + k / 20))[0]) for k in range(MAX_LOST)] == [None] * MAX_LOST
    again, _ = follow(odometry, [elsewhere.look(*go(3 + k / 20)) for k in range(40)])
    assert (odometry.state, odometry.starts) == ('tracking', 2)
    assert np.linalg.norm(again[0, :3, 3] - estimated[-1, :3, 3]) < 1.0


def test_adjusting_brings_disturbed_poses_and_points_back():
    rng = np.random.default_rng(0)
    cloud = Cloud()
    cameras = np.array([np.linalg.inv(cloud.look(*go(k / 2))[1]) for k in range(5)])
    points = rng.uniform((-2, -2, 5), (2, 2, 9), (200, 3))
    camera, point = np.repeat(np.arange(5), 200), np.tile(np.arange(200), 5)
    seen = np.einsum('cij,pj->cpi', cameras[:, :3, :3], points) + cameras[:, None, :3, 3]
    xy = (seen[..., :2] / seen[..., 2:] * 500 + MATRIX[:2, 2]).reshape(-1, 2)
    disturbed = cameras.copy()
    disturbed[2:, :3, 3] += rng.normal(0, 0.05, (3, 3))
    poses, found = adjust(disturbed, points + rng.normal(0, 0.1, points.shape), camera, point, xy, MATRIX, 2, 20)
    np.testing.assert_allclose(poses, cameras, atol=1e-4)
    np.testing.assert_allclose(found, points, atol=1e-3)
    np.testing.assert_array_equal(poses[:2], cameras[:2])


def test_bad_cameras_and_scales_are_refused():
    with pytest.raises(EdgePoint2Error, match="'cylindrical' is unknown: expected plumb_bob"):
        Camera(MATRIX, model='cylindrical')
    with pytest.raises(EdgePoint2Error, match='start_depth: expected a positive distance, got 0'):
        VisualOdometry(Camera(MATRIX), start_depth=0)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    for place in np.ndindex(3, 3):
        matrix = MATRIX.copy()
        matrix[place] = value
        with pytest.raises(EdgePoint2Error, match='camera matrix: expected .* finite numbers'):
            Camera(matrix)
    for place in range(5):
        distortion = np.zeros(5)
        distortion[place] = value
        with pytest.raises(EdgePoint2Error, match='distortion: expected finite coefficients'):
            Camera(MATRIX, distortion)


@pytest.mark.parametrize(
    'matrix', [np.zeros((3, 3)), -MATRIX, MATRIX.T, MATRIX[:2], 2 * MATRIX, MATRIX * [[0], [1], [1]], np.eye(4)]
)
def test_what_is_no_camera_matrix_is_refused(matrix):
    with pytest.raises(EdgePoint2Error, match=r'camera matrix: expected \(3, 3\) with positive focal lengths'):
        Camera(matrix)


@pytest.mark.parametrize(
    ('model', 'counts', 'words'),
    [
        ('plumb_bob', (0, 4, 5, 8, 12, 14), '0, 4, 5, 8, 12 or 14'),
        ('rational_polynomial', (0, 4, 5, 8, 12, 14), '0, 4, 5, 8, 12 or 14'),
        ('equidistant', (0, 4), '4 [(]equidistant; a fifth may be 0[)]'),
    ],
)
def test_coefficients_that_no_lens_has_are_refused(model, counts, words):
    for count in range(16):
        distortion = np.full(count, 1e-3)
        if count in counts:
            assert Camera(MATRIX, distortion, model).undistort(np.ones((3, 2))).shape == (3, 2)
        else:
            with pytest.raises(EdgePoint2Error, match=f'distortion: expected {words} coefficients, got {count}'):
                Camera(MATRIX, distortion, model)


def test_features_of_other_weights_are_refused():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX))
    follow(odometry, [cloud.look(*go(k / 20)) for k in range(40)])
    features, _ = cloud.look(*go(2))
    other = Features(features.xy, features.scores, features.descriptors, SIZE, 'T-32', 'b')
    with pytest.raises(EdgePoint2Error, match=r'T-32 \[b\]'):
        odometry.track(other)
    assert odometry.track(features) is not None


@pytest.mark.parametrize(
    ('name', 'change', 'words'),
    [
        ('xy', lambda values: values * np.nan, 'keypoints to be tracked hold numbers that are not finite'),
        ('descriptors', lambda values: values * np.inf, 'descriptors to be tracked hold numbers that are not finite'),
        ('descriptors', lambda values: values * np.float32(1e30), 'descriptors to be tracked .* too large to multiply'),
        ('descriptors', lambda values: values[:, :0], 'descriptors to be tracked: expected at least 1 number each'),
    ],
)
@pytest.mark.parametrize('number', [0, 1, 12])
def test_features_that_cannot_be_tracked_are_refused_and_change_nothing(number, name, change, words):
    cloud, odometry, expected = Cloud(), *(VisualOdometry(Camera(MATRIX)) for _ in range(2))
    for k in range(16):
        features = cloud.look(*go(k / 10))[0]
        if k == number:
            broken = dataclasses.replace(features, **{name: change(getattr(features, name))})
            with np.errstate(invalid='ignore'), pytest.raises(EdgePoint2Error, match=words):
                odometry.track(broken)
        poses = [each.track(features) for each in (odometry, expected)]
        np.testing.assert_array_equal(*poses)
    assert odometry.state == 'tracking'


def test_descriptors_of_another_size_than_the_ones_before_are_refused():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX))
    features = cloud.look(*go(0))[0]
    odometry.track(features)
    with pytest.raises(EdgePoint2Error, match='descriptors of 32 numbers cannot be compared with descriptors of 16'):
        odometry.track(dataclasses.replace(features, descriptors=features.descriptors[:, :16]))


def test_a_long_way_takes_no_more_memory_than_a_short_one():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX))
    sizes = []
    for k in range(240):  # to and fro before the same points
        t = 2 + 1.9 * np.sin(k / 15)
        odometry.track(cloud.look(*go(t))[0])
        sizes.append(len(odometry.points))
    assert odometry.state == 'tracking'
    assert max(sizes[120:]) <= 1.2 * max(sizes[:120])


@pytest.mark.slow
def test_a_rendered_walk_is_followed_to_the_end(official_model):
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    official_model('T-32')
    photographs = [data.astronaut(), data.coffee(), data.rocket(), data.brick(), data.chelsea(), data.camera()]
    scene = walk.Walk([photo[..., ::-1] if photo.ndim == 3 else photo for photo in photographs])
    extractor, odometry = Extractor('T-32', max_keypoints=800), VisualOdometry(Camera(walk.MATRIX))
    views = ((extractor.extract(scene.image(k)), scene.pose(k)) for k in range(118))
    estimated, truth = follow(odometry, views)
    assert len(estimated) >= 100
    assert (odometry.state, odometry.starts) == ('tracking', 1)
    _, distances = align(estimated[:, :3, 3], truth[:, :3, 3])
    assert np.sqrt((distances**2).mean()) < 0.02  # metres, of 4


@pytest.mark.slow
def test_a_real_camera_is_followed(official_model):
    files = sorted(TUM.glob('*.png'))
    if not files:
        pytest.skip(f'no images in {TUM}')
    official_model('T-32')
    extractor = Extractor('T-32', max_keypoints=1000)
    camera = Camera(np.array([[517.3, 0, 318.6], [0, 516.5, 255.3], [0, 0, 1]]))
    odometry = VisualOdometry(camera)
    found = [odometry.track(extractor.extract(cv2.imread(str(file)))) for file in files]
    placed = [k for k, pose in enumerate(found) if pose is not None]
    assert placed == list(range(placed[0], len(files)))
    assert odometry.tracked > 100


@pytest.mark.parametrize('layout', ['tum', 'kitti', '7-scenes'])
def test_the_example_reads_sequences_of_three_benchmarks(layout, import_example, tmp_path):
    pytest.importorskip('evo')
    read_sequence = import_example('odometry').read_sequence

    poses = [cloud_pose for _, cloud_pose in (Cloud().look(*go(k)) for k in range(3))]
    picture = np.full((48, 64, 3), 90, np.uint8)
    if layout == 'tum':
        (tmp_path / 'rgb.txt').write_text('# stamp file\n' + ''.join(f'{k}.5 {k}.png\n' for k in range(3)))
        lines = [f'{k}.5 {" ".join(map(str, pose[:3, 3]))} 0 0 0 1' for k, pose in enumerate(poses)]
        (tmp_path / 'groundtruth.txt').write_text('\n'.join(lines))
        names = [f'{k}.png' for k in range(3)]
    elif layout == 'kitti':
        (tmp_path / 'image_0').mkdir()
        (tmp_path / 'calib.txt').write_text('P0: 700 0 30 0 0 701 20 0 0 0 1 0\nP1: 1 0 0 0 0 1 0 0 0 0 1 0\n')
        np.savetxt(tmp_path / 'poses.txt', [pose[:3].ravel() for pose in poses])
        names = [f'image_0/{k:06d}.png' for k in range(3)]
    else:
        for k, pose in enumerate(poses):
            np.savetxt(tmp_path / f'frame-{k:06d}.pose.txt', pose, fmt='%.6f')
        names = [f'frame-{k:06d}.color.png' for k in range(3)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), picture)
    images, truth, camera = read_sequence(tmp_path)
    images = list(images)
    assert [image.shape for _, image in images] == [(48, 64)] * 3
    np.testing.assert_allclose([stamp for stamp, _ in images], truth.timestamps)
    np.testing.assert_allclose(truth.positions_xyz, [pose[:3, 3] for pose in poses], atol=1e-5)
    assert camera == {'tum': [517.3, 516.5, 318.6, 255.3], 'kitti': [700, 701, 30, 20]}.get(
        layout, [585, 585, 320, 240]
    )


def test_the_example_keeps_sequences_of_one_name_apart_and_writes_over_nothing(
    official_model, import_example, tmp_path, monkeypatch, capsys
):
    pytest.importorskip('evo')
    official_model('T-32')
    odometry = import_example('odometry')

    sequences = [tmp_path / house / 'kitchen' for house in ('mine', 'yours')]
    for sequence in sequences:
        sequence.mkdir(parents=True)
        for k in range(3):
            cv2.imwrite(str(sequence / f'frame-{k:06d}.color.png'), np.full((96, 128, 3), 90, np.uint8))
            np.savetxt(sequence / f'frame-{k:06d}.pose.txt', Cloud().look(*go(k))[1], fmt='%.6f')
    command = ['odometry.py', '--plot', str(tmp_path / 'a.svg'), '--sequence', *map(str, sequences)]
    monkeypatch.setattr('sys.argv', command)
    assert odometry.main() == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines()] == ['mine/kitchen'] * 2 + ['yours/kitchen'] * 2
    assert 'yours/kitchen' in (tmp_path / 'a.svg').read_text() and 'mine/kitchen' in (tmp_path / 'a.svg').read_text()
    assert odometry.main() == 1
    assert 'a.svg already exists' in capsys.readouterr().err


@pytest.mark.parametrize('distortion', [(-0.01, 0.002, 0.0, 0.0), (0.1, -0.15, 0.02, 0.0)])
def test_what_a_fisheye_lens_sees_beyond_90_degrees_has_no_undistorted_position(distortion):
    camera = Camera([[250, 0, 320], [0, 250, 240], [0, 0, 1]], np.array(distortion), 'equidistant')
    angle = np.radians(np.arange(0, 180, 5))
    radius = 250 * angle * (1 + np.polyval([*distortion[::-1], 0], angle**2))
    grows = np.cumprod(np.diff(radius, prepend=-1) > 0).astype(bool)  # beyond, two directions share a pixel
    angle, radius = angle[grows], radius[grows]
    flat = camera.undistort(np.column_stack([320 + radius, np.full(len(radius), 240)]))
    ahead = angle < np.radians(89)
    assert np.isnan(flat[angle > np.radians(91)]).all()
    np.testing.assert_allclose(flat[ahead, 0], 320 + 250 * np.tan(angle[ahead]), rtol=1e-3)
    assert np.isnan(camera.undistort([[1e4, 240]])).all()


def test_keypoints_beyond_90_degrees_take_no_part():
    camera = Camera([[200, 0, 320], [0, 200, 240], [0, 0, 1]], np.array([-0.01, 0.0, 0.0, 0.0]), 'equidistant')
    cloud, odometry = Cloud(), VisualOdometry(camera)
    corner = np.array([[2.0, 2.0], [637.0, 477.0]], np.float32)
    assert np.isnan(camera.undistort(corner)).all()
    estimated = []
    for k in range(60):
        pose = go(k / 20)
        features, truth = cloud.look(*pose)  # of a pinhole camera, at the same matrix
        rays = (features.xy - MATRIX[:2, 2]) / MATRIX.diagonal()[:2]
        seen = cv2.fisheye.distortPoints(rays[None], camera.matrix, camera.distortion)[0].astype(np.float32)
        features = dataclasses.replace(
            features,
            xy=np.concatenate([corner, seen]),
            scores=np.concatenate([[0.0, 0.0], features.scores]),
            descriptors=np.concatenate([features.descriptors[:2], features.descriptors]),
        )
        if odometry.track(features) is not None:
            estimated.append(odometry.tracked)
    assert len(estimated) > 40
    assert min(estimated) > 60
    assert np.isfinite(odometry.points).all()


def test_after_a_loss_the_trajectory_keeps_its_unit():
    cloud, odometry = Cloud(), VisualOdometry(Camera(MATRIX), start_depth=1.0)
    # Towards the scene, so that its depth at the loss is another than at the start.
    there = [odometry.track(cloud.look((0.1 * np.sin(k / 3), 0, k / 30), (0, 0, 0))[0]) for k in range(180)]
    unit = np.linalg.norm(there[-1][:3, 3]) / 6
    seen = cloud.look((0, 0, 6), (0, 0, 0))[0]
    blind = dataclasses.replace(seen, xy=seen.xy[:0], scores=seen.scores[:0], descriptors=seen.descriptors[:0])
    for _ in range(MAX_LOST):
        odometry.track(blind)
    assert odometry.state == 'starting'
    again = [odometry.track(cloud.look((0.02 * k, 0, 6.0), (0, 0, 0))[0]) for k in range(40)]
    assert odometry.starts == 2
    first, last = (next(k for k in order if again[k] is not None) for order in (range(40), range(39, -1, -1)))
    moved = np.linalg.norm(again[last][:3, 3] - again[first][:3, 3])
    assert moved / (0.02 * (last - first)) == pytest.approx(unit, rel=0.25)
