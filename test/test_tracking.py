"""Tracks of points that are known, and of a real photograph before a camera that turns as it is told."""

import dataclasses

import cv2
import numpy as np
import pytest
from test_odometry import MATRIX, SIZE, Cloud, go

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.odometry import Camera
from edgepoint2_ros.tracking import Tracker, Tracks

RATE = 20  # images per second
LENS = Camera(MATRIX, np.array([-0.25, 0.08, 0.001, -0.001, 0.0]))


class Scene(Cloud):
    """A cloud of points whose numbers can be told from the features."""

    def see(self, k: float, **kwargs) -> Features:
        """Return what a hand-held camera sees in image k."""
        return self.look(*go(k / RATE), **kwargs)[0]

    def points_of(self, features: Features, keypoints: np.ndarray) -> np.ndarray:
        """Return the numbers of the points that keypoints show."""
        return (features.descriptors[keypoints] @ self.rows.T).argmax(axis=1)


def without(features: Features, hidden: np.ndarray) -> Features:
    return dataclasses.replace(
        features, xy=features.xy[~hidden], scores=features.scores[~hidden], descriptors=features.descriptors[~hidden]
    )


def first(features: Features, count: int) -> Features:
    return without(features, np.arange(len(features)) >= count)


def follow(tracker: Tracker, scene: Scene, images) -> list[tuple[Features, Tracks]]:
    views = ((scene.see(k), k / RATE) for k in images)
    return [(features, tracker.track(features, stamp)) for features, stamp in views]


def check_identity(scene: Scene, seen: list[tuple[Features, Tracks]]) -> None:
    """Check that each number stands for one point, and each point of an image for one number."""
    point_of = {}
    for features, tracks in seen:
        points = scene.points_of(features, tracks.keypoints)
        assert len(set(points)) == len(points) == len(set(tracks.ids.tolist()))
        for number, point in zip(tracks.ids.tolist(), points):
            assert point_of.setdefault(number, point) == point


def test_a_track_shows_one_point_for_as_long_as_it_is_seen():
    scene = Scene(noise=0.2)
    seen = follow(Tracker(Camera(MATRIX)), scene, range(60))
    check_identity(scene, seen)
    for (features, tracks), (after, tracks_after) in zip(seen[5:], seen[6:]):
        assert len(tracks) > 200
        np.testing.assert_array_equal(tracks.xy, features.xy[tracks.keypoints])
        np.testing.assert_array_equal(tracks.scores, features.scores[tracks.keypoints])
        visible = np.isin(scene.points_of(features, tracks.keypoints), scene.points_of(after, np.arange(len(after))))
        assert np.isin(tracks.ids[visible], tracks_after.ids).mean() > 0.9


def test_keypoints_that_jitter_by_a_pixel_stay_tracks():
    scene, shares = Scene(noise=0.5), []
    seen = follow(Tracker(Camera(MATRIX)), scene, range(40))
    check_identity(scene, seen)
    for (features, tracks), (after, tracks_after) in zip(seen[5:], seen[6:]):
        visible = np.isin(scene.points_of(features, tracks.keypoints), scene.points_of(after, np.arange(len(after))))
        shares.append(np.isin(tracks.ids[visible], tracks_after.ids).mean())
    assert np.mean(shares) > 0.95


def test_ages_count_the_images_and_the_longest_followed_come_first():
    counts = {}
    for images, (_, tracks) in enumerate(follow(Tracker(Camera(MATRIX), max_tracks=50), Scene(), range(30)), 1):
        assert tracks.ids.dtype == np.uint64
        assert len(tracks) == 50
        assert np.all(np.diff(tracks.ages) <= 0)
        for number, age in zip(tracks.ids.tolist(), tracks.ages.tolist()):
            assert age > counts.get(number, 0)
            counts[number] = age
        assert tracks.ages[0] == images


def test_what_was_returned_stays_as_it_was():
    tracker, scene = Tracker(LENS, RIGHT, BASELINE), Scene()
    returned = [tracker.track(scene.see(k, camera=LENS), k / RATE, see_right(scene, k)) for k in range(2)]
    copies = [
        {field.name: getattr(tracks, field.name).copy() for field in dataclasses.fields(tracks)} for tracks in returned
    ]
    for k in range(2, 5):
        tracker.track(scene.see(k, camera=LENS), k / RATE, see_right(scene, k))
    for tracks, copy in zip(returned, copies):
        for name, array in copy.items():
            np.testing.assert_array_equal(getattr(tracks, name), array)


def test_rays_have_no_distortion_and_velocities_are_their_change_per_second():
    scene, tracker = Scene(), Tracker(LENS)
    last = {}
    for k in range(20):
        features = scene.see(k, camera=LENS)
        tracks = tracker.track(features, k / RATE)
        pose = scene.look(*go(k / RATE))[1]
        seen = (scene.points[scene.points_of(features, tracks.keypoints)] - pose[:3, 3]) @ pose[:3, :3]
        np.testing.assert_allclose(tracks.rays, seen[:, :2] / seen[:, 2:], atol=1e-4)
        for number, age, ray, velocity in zip(tracks.ids, tracks.ages, tracks.rays, tracks.velocities):
            if age == 1:
                assert velocity.tolist() == [0, 0]
            if number in last:
                np.testing.assert_allclose(velocity, (ray - last[number]) * RATE, atol=1e-9)
        last = dict(zip(tracks.ids, tracks.rays))
    assert max(tracks.ages) > 15


def test_without_a_camera_there_are_tracks_but_no_rays():
    for _, tracks in follow(Tracker(), Scene(), range(5)):
        assert np.isnan(tracks.rays).all()
        assert np.isnan(tracks.velocities).all()
    assert max(tracks.ages) == 5


@pytest.mark.parametrize('images', [3, 6], ids=['as long as it is searched', 'for longer'])
def test_a_track_that_was_hidden_is_found_again(images):
    scene, tracker = Scene(), Tracker(Camera(MATRIX), max_tracks=1500, max_lost=3)
    seen = follow(tracker, scene, range(10))
    hidden = set(scene.points_of(seen[-1][0], seen[-1][1].keypoints)[::4].tolist())
    numbers = dict(zip(scene.points_of(seen[-1][0], seen[-1][1].keypoints).tolist(), seen[-1][1].ids.tolist()))
    for k in range(10, 10 + images):
        features = scene.see(k)
        points = scene.points_of(features, np.arange(len(features)))
        tracker.track(without(features, np.isin(points, list(hidden))), k / RATE)
    features = scene.see(10 + images)
    tracks = tracker.track(features, (10 + images) / RATE)
    after = dict(zip(scene.points_of(features, tracks.keypoints).tolist(), tracks.ids.tolist()))
    again = [numbers[point] == after[point] for point in hidden if point in after]
    assert len(again) > 20
    assert np.mean(again) > 0.9 if images == 3 else not any(again)


def test_after_blind_images_the_tracks_go_on():
    scene, tracker = Scene(), Tracker(Camera(MATRIX))
    before = follow(tracker, scene, range(10))[-1][1]
    for k in range(10, 14):
        assert len(tracker.track(first(scene.see(k), 0), k / RATE)) == 0
    seen = follow(tracker, scene, range(14, 18))
    assert np.isin(before.ids, seen[0][1].ids).mean() > 0.7
    check_identity(scene, seen)


def test_a_camera_that_jerks_and_drops_images_is_followed():
    scene, tracker = Scene(), Tracker(Camera(MATRIX))
    rng, seen = np.random.default_rng(0), []
    for k in range(0, 60, 3):
        position, turn = go(k / RATE)
        features, _ = scene.look(position, np.add(turn, rng.normal(0, 0.06, 3)))  # 30 pixels and more
        seen.append((features, tracker.track(features, k / RATE)))
    check_identity(scene, seen)
    shares = [np.isin(tracks.ids, after.ids).mean() for (_, tracks), (_, after) in zip(seen[1:], seen[2:])]
    assert np.mean(shares) > 0.7


def test_what_moves_by_itself_is_not_followed():
    scene, tracker = Scene(), Tracker(Camera(MATRIX))
    moving = np.arange(len(scene.points)) % 10 == 0
    for k in range(25):
        features = scene.see(k)
        mine = moving[scene.points_of(features, np.arange(len(features)))]
        features.xy[mine] += [0, 4 * (k % 2)]
        tracks = tracker.track(features, k / RATE)
    old = tracks.ages > 5
    assert np.count_nonzero(old) > 100
    assert moving[scene.points_of(features, tracks.keypoints[old])].mean() < 0.02


@pytest.mark.parametrize(
    ('changes', 'stamp'),
    [
        ({'digest': 'b'}, 0.5),
        ({'model': 'T-48'}, 0.5),
        ({'image_size': (320, 240)}, 0.5),
        ({}, -3.0),
    ],
    ids=['weights', 'model', 'image size', 'stamp that goes back'],
)
def test_it_starts_anew_and_the_numbers_go_on(changes, stamp):
    scene, tracker = Scene(), Tracker(Camera(MATRIX))
    used = np.concatenate([tracks.ids for _, tracks in follow(tracker, scene, range(10))])
    features = dataclasses.replace(scene.see(10), **changes)
    features = without(features, (features.xy >= features.image_size).any(axis=1))
    tracks = tracker.track(features, stamp)
    assert len(tracks) > 50
    assert set(tracks.ages) == {1}
    assert min(tracks.ids) > max(used)
    assert max(tracker.track(features, stamp + 0.05).ages) == 2


def test_images_of_one_stamp_are_followed_without_velocity():
    tracker, scene = Tracker(Camera(MATRIX)), Scene()
    for k in range(4):
        tracks = tracker.track(scene.see(k), 7.0)
    assert max(tracks.ages) == 4
    assert not tracks.velocities.any()


def test_new_tracks_start_from_the_best_keypoints_and_are_spread():
    rng = np.random.default_rng(0)
    crowd, rest = rng.uniform((100, 100), (140, 140), (500, 2)), rng.uniform((0, 0), SIZE, (500, 2))
    rows = rng.normal(size=(1000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores = np.sort(rng.normal(size=1000).astype(np.float32))[::-1]
    features = Features(np.float32(np.concatenate([crowd, rest])), scores, rows, SIZE, 'T-32', 'a')
    tracks = Tracker(max_tracks=200).track(features, 0.0)
    in_crowd = tracks.keypoints < 500
    assert 3 < np.count_nonzero(in_crowd) < 40
    apart = np.linalg.norm(tracks.xy[in_crowd][:, None] - tracks.xy[in_crowd][None], axis=2)
    assert np.median(apart[~np.eye(len(apart), dtype=bool)]) > 10
    assert 0 in tracks.keypoints  # the best of all


@pytest.mark.parametrize('gap', [0.0, 1e-9, 2e-6, 1e-4])
def test_images_a_moment_apart_are_followed_and_say_nothing_of_velocities(gap):
    scene, tracker = Scene(), Tracker(LENS, RIGHT, BASELINE)
    stamp, last = 0.0, {}
    for k in range(12):
        stamp += gap if k == 6 else 1 / RATE
        tracks = tracker.track(scene.see(k, camera=LENS), stamp, see_right(scene, k))
        assert max(tracks.ages) == k + 1
        assert np.count_nonzero(tracks.ages > 1) > (300 if k else -1)
        for number, age, velocity in zip(tracks.ids, tracks.ages, tracks.velocities):
            if k == 6 and age > 1:
                np.testing.assert_array_equal(velocity, last.get(number, velocity))
        assert np.abs(tracks.velocities).max() < 5
        assert np.nanmax(np.abs(tracks.right_velocities)) < 5
        last = dict(zip(tracks.ids, tracks.velocities))


@pytest.mark.parametrize('counts', [(0, 0, 5), (1, 1, 1), (7, 3, 7), (8, 8, 8), (9, 0, 9), (300, 2, 300)])
def test_few_keypoints_are_followed_as_far_as_can_be(counts):
    scene, tracker = Scene(), Tracker(Camera(MATRIX))
    for k, count in enumerate(counts):
        tracks = tracker.track(first(scene.see(k), count), k / RATE)
        assert len(tracks) <= count
        assert (len(tracks) > 0) == (count > 0)


@pytest.mark.parametrize('kind', ['one place', 'one line', 'one descriptor', 'noise', 'outside'])
def test_features_that_no_camera_sees_break_nothing(kind):
    rng, tracker = np.random.default_rng(0), Tracker(Camera(MATRIX))
    for k in range(8):
        count = int(rng.integers(0, 60))
        xy = rng.uniform(0, SIZE, (count, 2))
        rows = rng.normal(size=(60, 32))[:count]
        if kind == 'one place':
            xy[:] = 100, 50
        elif kind == 'one line':
            xy[:, 1] = 2 * xy[:, 0]
        elif kind == 'one descriptor':
            rows[:] = 1
        elif kind == 'outside':
            xy -= 5000 * (k % 2)
        rows = np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        features = Features(np.float32(xy), np.zeros(count, np.float32), rows, SIZE, 'T-32', 'a')
        tracks = tracker.track(features, k / RATE)
        assert len(set(tracks.keypoints.tolist())) == len(tracks) <= count


BASELINE = np.eye(4)
BASELINE[:3, :3], BASELINE[:3, 3] = cv2.Rodrigues(np.array([0.01, -0.02, 0.015]))[0], [-0.3, 0.01, 0.005]
RIGHT = Camera(np.array([[480.0, 0, 330], [0, 482, 250], [0, 0, 1]]), np.array([-0.2, 0.05, 0.0, 0.0]))


def see_right(scene: Scene, k: float) -> Features:
    """Return what a right camera sees, which stands at BASELINE beside the left one of image k."""
    pose = scene.look(*go(k / RATE))[1] @ np.linalg.inv(BASELINE)
    seen = (scene.points - pose[:3, 3]) @ pose[:3, :3]
    xy = cv2.projectPoints(seen, np.zeros(3), np.zeros(3), RIGHT.matrix, RIGHT.distortion)[0][:, 0]
    inside = (seen[:, 2] > 0.5) & ((xy >= 0) & (xy < SIZE)).all(axis=1)
    inside &= (np.abs(seen[:, :2]) < np.abs(seen[:, 2:]) * 0.8).all(axis=1)
    count = np.count_nonzero(inside)
    return Features(np.float32(xy[inside]), np.zeros(count, np.float32), scene.rows[inside], SIZE, 'T-32', 'a')


def test_the_right_camera_sees_the_same_points():
    scene, tracker = Scene(), Tracker(LENS, RIGHT, BASELINE)
    last = {}
    for k in range(8):
        left, right = scene.see(k, camera=LENS), see_right(scene, k)
        tracks = tracker.track(left, k / RATE, right)
        both = tracks.right_keypoints >= 0
        points = scene.points_of(left, tracks.keypoints)
        assert np.array_equal(points[both], scene.points_of(right, tracks.right_keypoints[both]))
        assert both[np.isin(points, scene.points_of(right, np.arange(len(right))))].mean() > 0.95
        np.testing.assert_array_equal(tracks.right_xy[both], right.xy[tracks.right_keypoints[both]])
        pose = scene.look(*go(k / RATE))[1] @ np.linalg.inv(BASELINE)
        seen = (scene.points[points[both]] - pose[:3, 3]) @ pose[:3, :3]
        np.testing.assert_allclose(tracks.right_rays[both], seen[:, :2] / seen[:, 2:], atol=1e-3)
        for array in (tracks.right_xy, tracks.right_rays, tracks.right_velocities):
            assert np.array_equal(np.isnan(array).any(axis=1), ~both)
        for number, ray, velocity in zip(tracks.ids[both], tracks.right_rays[both], tracks.right_velocities[both]):
            expected = (ray - last[number]) * RATE if number in last else [0, 0]
            np.testing.assert_allclose(velocity, expected, atol=1e-9)
        last = dict(zip(tracks.ids[both], tracks.right_rays[both]))


def test_what_the_right_camera_sees_before_it_has_no_partner_behind_it():
    scene = Scene()
    tracker = Tracker(Camera(MATRIX), Camera(MATRIX), np.linalg.inv(BASELINE))  # as if the cameras had changed places
    tracks = tracker.track(scene.see(0), 0.0, see_right(scene, 0))
    assert np.count_nonzero(tracks.right_keypoints >= 0) < 0.1 * len(tracks)


def test_far_points_that_jitter_beyond_infinity_have_no_partner():
    scene, shift = Scene(), np.eye(4)
    shift[0, 3] = -0.5
    tracker, left = Tracker(Camera(MATRIX), Camera(MATRIX), shift), scene.see(0)
    disparity = np.random.default_rng(0).choice([-1.0, -0.01, 0.0, 0.01, 1.0, 30.0], len(left))
    right = dataclasses.replace(left, xy=np.float32(left.xy - np.outer(disparity, [1, 0])))
    tracks = tracker.track(left, 0.0, right)
    assert len(tracks) > 300
    paired = tracks.right_keypoints >= 0
    disparity = disparity[tracks.keypoints]
    assert not paired[disparity <= 0].any()
    assert paired[disparity > 0].mean() > 0.9
    assert (tracks.xy - tracks.right_xy)[paired, 0].min() > 0


def test_an_image_without_its_right_one_has_no_partners():
    scene, tracker = Scene(), Tracker(LENS, RIGHT, BASELINE)
    for k, right in enumerate([see_right(scene, 0), None, see_right(scene, 2)]):
        tracks = tracker.track(scene.see(k, camera=LENS), k / RATE, right)
        assert (tracks.right_keypoints >= 0).any() == (right is not None)
    assert max(tracks.ages) == 3


def test_keypoints_beyond_90_degrees_of_a_fisheye_pair_are_tracked_without_a_ray():
    fisheye = Camera([[200, 0, 320], [0, 200, 240], [0, 0, 1]], np.array([-0.01, 0.0, 0.0, 0.0]), 'equidistant')
    corners = np.array([[2.0, 2.0], [637.0, 477.0]], np.float32)

    def bend(features: Features) -> Features:
        rays = (LENS.undistort(features.xy) - LENS.matrix[:2, 2]) / LENS.matrix.diagonal()[:2]
        bent = cv2.fisheye.distortPoints(rays[None], fisheye.matrix, fisheye.distortion)[0].astype(np.float32)
        return dataclasses.replace(features, xy=np.concatenate([corners, bent[2:]]))

    scene, tracker = Scene(), Tracker(fisheye, fisheye, BASELINE)
    for k in range(4):
        tracks = tracker.track(bend(scene.see(k, camera=LENS)), k / RATE, bend(scene.see(k, camera=LENS)))
    beyond = np.isin(tracks.keypoints, [0, 1])
    assert np.isnan(tracks.rays[beyond]).all()
    assert np.isfinite(tracks.rays[~beyond]).all()
    assert (tracks.right_keypoints[beyond] == -1).all()
    assert max(tracks.ages) == 4


def test_a_right_image_of_other_weights_is_refused():
    scene, tracker = Scene(), Tracker(LENS, RIGHT, BASELINE)
    with pytest.raises(EdgePoint2Error, match=r'T-32 \[b\]'):
        tracker.track(scene.see(0), 0.0, dataclasses.replace(see_right(scene, 0), digest='b'))


@pytest.mark.parametrize(('name', 'value'), [('xy', np.nan), ('descriptors', np.nan), ('descriptors', 1e30)])
@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('number', [0, 3])
def test_features_that_are_not_finite_are_refused_and_change_nothing(number, side, name, value):
    scene, tracker, expected = Scene(), *(Tracker(LENS, RIGHT, BASELINE) for _ in range(2))
    for k in range(5):
        seen = {'left': scene.see(k, camera=LENS), 'right': see_right(scene, k)}
        if k == number:
            values = getattr(seen[side], name).copy()
            values[7] = value
            broken = seen | {side: dataclasses.replace(seen[side], **{name: values})}
            with pytest.raises(EdgePoint2Error, match='that are not finite'):
                tracker.track(broken['left'], k / RATE, broken['right'])
        tracks, others = (each.track(seen['left'], k / RATE, seen['right']) for each in (tracker, expected))
        np.testing.assert_array_equal(tracks.ids, others.ids)
        np.testing.assert_array_equal(tracks.xy, others.xy)


def test_descriptors_of_another_size_reset_the_tracks():
    scene, tracker = Scene(), Tracker(LENS, RIGHT, BASELINE)
    for k, size in enumerate([16, 32, 32, 16, 32]):
        features = scene.see(k, camera=LENS)
        tracks = tracker.track(with_size(features, size), k / RATE)
        assert max(tracks.ages) == (2 if k == 2 else 1)
    with pytest.raises(EdgePoint2Error, match='descriptors to be tracked: expected at least 1 number each, got 0'):
        tracker.track(with_size(features, 0), 1.0)
    with pytest.raises(EdgePoint2Error, match='descriptors of 32 numbers cannot be compared with descriptors of 16'):
        tracker.track(features, 1.0, with_size(see_right(scene, 20), 16))


def with_size(features: Features, size: int) -> Features:
    """Return features with the first numbers of each descriptor."""
    return dataclasses.replace(features, descriptors=np.ascontiguousarray(features.descriptors[:, :size]))


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'max_tracks': 0}, 'expected max_tracks from 1 and max_lost from 0, got 0 and 5'),
        ({'max_lost': -1}, 'expected max_tracks from 1 and max_lost from 0, got 400 and -1'),
        ({'right': RIGHT}, 'a right camera needs the left one and where it stands'),
        ({'camera': LENS, 'right': RIGHT}, 'a right camera needs the left one and where it stands'),
        ({'camera': LENS, 'right': RIGHT, 'right_from_left': np.eye(4)}, 'a right camera needs the left one'),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(EdgePoint2Error, match=words):
        Tracker(**arguments)


@pytest.mark.parametrize('step', [1, 3])
def test_a_real_photograph_is_followed_while_the_camera_turns(step, official_model, photograph):
    official_model('T-32')
    extractor = Extractor('T-32')
    camera = Camera(MATRIX)
    tracker, places = Tracker(camera), []
    for k in range(0, 24, step):
        turn = cv2.Rodrigues(np.array([0.004, 0.008, 0.012]) * k + 0.01 * np.sin([k, 2 * k, 3 * k]))[0]
        homography = MATRIX @ turn @ np.linalg.inv(MATRIX)
        image = cv2.warpPerspective(photograph, homography, SIZE, flags=cv2.INTER_AREA)
        tracks = tracker.track(extractor.extract(image), k / 30)
        straight = np.column_stack([tracks.xy, np.ones(len(tracks))]) @ np.linalg.inv(homography).T
        places.append(dict(zip(tracks.ids.tolist(), straight[:, :2] / straight[:, 2:])))
    right = []
    for before, after in zip(places, places[1:]):
        both = before.keys() & after.keys()
        assert len(both) > 0.8 * len(before)
        away = [np.linalg.norm(before[number] - after[number]) for number in both]
        right.append(np.mean(np.array(away) < 2))
    assert np.mean(right) > 0.98
    assert min(right) > 0.96  # one track of 200 more or less is 0.005
    assert len(places[0].keys() & places[-1].keys()) > 0.4 * len(places[0])
