"""The sums of the evaluation, on results that are written down here."""

import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('poselib', reason='poselib is not installed')

from edgepoint2_ros.evaluation.benchmark import Result, compare, run_benchmark, summarise
from edgepoint2_ros.evaluation.methods import OpenCVMethod
from edgepoint2_ros.evaluation.pairs import HomographyPair, PosePair


def pose(scene, pair, method, right=0.5, errors=(1.0,), sources=None):
    return Result(
        'relative pose', scene, pair, method, sources or (pair,), 100, 50, right, None, None, np.array(errors)
    )


def find(rows, **wanted):
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


class TestSummary:
    def test_has_groups_of_homographies_and_all_their_pairs(self, photograph):
        pairs = [HomographyPair(group, group, photograph, photograph, np.eye(3)) for group in ('viewpoint', 'light')]
        results, _ = run_benchmark('self', pairs, [OpenCVMethod('ORB', 200)], 0)
        rows = summarise(results)
        assert [(row['group'], row['pairs']) for row in rows] == [('all', 2), ('viewpoint', 1), ('light', 1)]
        assert rows[0]['MMA@3'] == pytest.approx((rows[1]['MMA@3'] + rows[2]['MMA@3']) / 2)

    def test_of_scenes_has_their_mean_however_many_pairs_they_have(self):
        results = [pose('street', str(k), 'A', right=0.2) for k in range(9)] + [pose('room', 'a', 'A', right=0.8)]
        rows = summarise(results)
        assert [(row['group'], row['pairs'], round(row['right'])) for row in rows] == [
            ('all', 10, 50),
            ('street', 9, 20),
            ('room', 1, 80),
        ]

    def test_of_one_scene_is_that_scene(self):
        assert [row['group'] for row in summarise([pose('street', 'a', 'A'), pose('street', 'b', 'A')])] == ['street']

    def test_poses_are_means_over_the_seeds(self):
        row = find(summarise([pose('street', 'a', 'A', errors=(0.0, 0.0, 180.0))]))
        assert row['AUC@5'] == pytest.approx(200 / 3)


class TestComparison:
    def test_is_the_mean_difference_pair_by_pair(self):
        ours, theirs = [0.5, 0.7, 0.3], [0.4, 0.5, 0.3]
        results = [pose('street', str(k), 'ours', right=right) for k, right in enumerate(ours)]
        results += [pose('street', str(k), 'theirs', right=right) for k, right in enumerate(theirs)]
        (row,) = compare(results, [('ours', 'theirs')])
        gain, error = row['right']
        assert gain == pytest.approx(10)
        assert error == pytest.approx(10 / np.sqrt(3))
        assert (row['method'], row['rival']) == ('ours', 'theirs')

    def test_agrees_with_the_difference_of_the_areas(self):
        rng = np.random.default_rng(0)
        results = [pose('street', str(k), name, errors=rng.gamma(2, 3, 3)) for k in range(200) for name in 'AB']
        a, b = summarise(results)
        (row,) = compare(results, [('A', 'B')])
        for column in ('AUC@5', 'AUC@10', 'AUC@20'):
            assert row[column][0] == pytest.approx(a[column] - b[column], abs=0.1)

    def test_of_several_scenes_is_the_mean_of_theirs(self):
        """Each scene counts the same, and so does what each of them is uncertain of."""
        rng = np.random.default_rng(0)
        results = []
        for scene, gain, pairs in (('street', 0.1, 50), ('room', 0.3, 20)):
            for k in range(pairs):
                results += [pose(scene, str(k), 'ours', right=0.5 + gain * rng.uniform(0, 2)), pose(scene, str(k), 'B')]
        rows = compare(results, [('ours', 'B')])
        assert [row['group'] for row in rows] == ['all', 'street', 'room']
        (mean, error), *scenes = (row['right'] for row in rows)
        assert mean == pytest.approx(np.mean([gain for gain, _ in scenes]))
        assert error == pytest.approx(np.hypot(*[error for _, error in scenes]) / 2)

    def test_pairs_that_share_an_image_tell_less(self):
        rng = np.random.default_rng(0)
        rights = rng.uniform(0.2, 0.8, 30)
        errors = []
        for sources in ([(str(k),) for k in range(30)], [(str(k // 5),) for k in range(30)]):
            results = [
                result
                for k, own in enumerate(sources)
                for result in (
                    pose('street', str(k), 'ours', right=rights[k // 5], sources=own),
                    pose('street', str(k), 'theirs', sources=own),
                )
            ]
            errors.append(compare(results, [('ours', 'theirs')])[0]['right'][1])
        assert errors[1] > 1.5 * errors[0]

    def test_of_homographies_compares_their_columns(self, photograph):
        pairs = [HomographyPair(f'{k}', 'light', photograph, photograph, np.eye(3)) for k in range(2)]
        results, _ = run_benchmark('self', pairs, [OpenCVMethod('ORB', 200)], 0)
        results += [replace(result, method='other', accuracy=result.accuracy / 2) for result in results]
        (row,) = compare(results, [('ORB', 'other')])
        assert row['MMA@3'] == pytest.approx((50, 0))
        assert row['homography@1'] == (0, 0)


class Counting(OpenCVMethod):
    """ORB that counts the images it gets."""

    images = 0

    def extract(self, image):
        self.images += 1
        return super().extract(image)


def test_an_image_of_several_pairs_is_extracted_once(photograph):
    camera = np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])
    pairs = [
        PosePair(f'{a} {b}', scene, photograph, photograph, camera, camera, np.eye(4), (a, b))
        for scene in ('street', 'room')
        for a, b in (('a', 'b'), ('a', 'c'), ('b', 'c'))
    ]
    method = Counting('ORB', 100)
    results, _ = run_benchmark('relative pose', pairs, [method], 0, seeds=2)
    assert method.images == 6
    assert [len(result.errors) for result in results] == [2] * 6


def test_without_estimations_matches_are_measured_all_the_same(photograph, monkeypatch):
    monkeypatch.setitem(sys.modules, 'poselib', None)
    pair = HomographyPair('same', 'light', photograph, photograph, np.eye(3))
    results, _ = run_benchmark('self', [pair], [OpenCVMethod('ORB', 200)], 0, seeds=0)
    (row,) = summarise(results)
    assert row['MMA@3'] > 95
    assert 'homography@3' not in row
