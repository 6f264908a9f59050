import re
import sys

import cv2
import numpy as np
import pytest

from edgepoint2_ros.bench import fidelity
from edgepoint2_ros.errors import ImageError
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.features import Features


def features(xy, rows=None):
    xy = np.array(xy, np.float32).reshape(-1, 2)
    rows = np.eye(max(1, len(xy)), dtype=np.float32)[: len(xy)] if rows is None else rows
    return Features(xy, np.arange(len(xy), 0, -1, dtype=np.float32), rows, (640, 480), 'T-32', 'a')


class TestFindAgain:
    wanted = features([[10, 10], [50, 50], [90, 90], [200, 200]])

    def test_counts_what_lies_within_each_distance(self):
        moved = features(self.wanted.xy + [[0, 0], [0.8, 0], [0, 1.2], [0, 0]], self.wanted.descriptors)
        shares, cosine = fidelity.find_again(moved, self.wanted, 4)
        assert shares.tolist() == [0.5, 0.75]
        assert cosine == 1

    def test_looks_for_the_best_among_all(self):
        shares, _ = fidelity.find_again(features(self.wanted.xy[::-1]), self.wanted, 2)
        assert shares.tolist() == [1, 1]
        shares, _ = fidelity.find_again(features(self.wanted.xy[:2], self.wanted.descriptors[:2]), self.wanted, 2)
        assert shares.tolist() == [1, 1]

    def test_finds_nothing_among_nothing(self):
        for found, wanted in ((features([]), self.wanted), (self.wanted, features([]))):
            shares, cosine = fidelity.find_again(found, wanted, 4)
            assert (shares.tolist(), cosine) == ([0, 0], 0)


class TestScale:
    def test_takes_the_middle(self, photograph):
        image = fidelity.scale(photograph, 320, 200)
        assert image.shape == (200, 320, 3)
        expected = cv2.resize(photograph, (320, 240), interpolation=cv2.INTER_AREA)[20:220]
        np.testing.assert_array_equal(image, expected)

    def test_turns_an_upright_photograph(self, photograph):
        upright = np.ascontiguousarray(photograph[:, :300])
        assert fidelity.scale(upright, 400, 200).shape == (200, 400, 3)

    def test_never_enlarges(self, photograph):
        with pytest.raises(ImageError, match='640x480: expected at least 1920x1080'):
            fidelity.scale(photograph, 1920, 1080)


@pytest.mark.parametrize('seed', range(3))
def test_the_view_from_aside_is_where_the_homography_says(photograph, seed):
    view, homography = fidelity.step_aside(photograph, seed)
    back = cv2.warpPerspective(view, np.linalg.inv(homography), (640, 480))
    middle = np.s_[180:300, 240:400]
    corners = np.array([[240.0, 180], [400, 180], [240, 300], [400, 300]])
    assert metrics.inside(metrics.transform(corners, homography), (640, 480)).all()
    assert np.corrcoef(back[middle].ravel(), photograph[middle].ravel())[0, 1] > 0.95
    assert np.corrcoef(view[middle].ravel(), photograph[middle].ravel())[0, 1] < 0.9


def test_the_table_tells_precisions_apart(official_model, tmp_path, photograph, monkeypatch, capsys):
    openvino = pytest.importorskip('openvino', reason='OpenVINO is not installed')
    from edgepoint2_ros.engines.openvino import capabilities

    fast = [name for name in ('int8', 'bf16') if name in capabilities(openvino.Core())]
    if not fast:
        pytest.skip('this CPU has no fast precision')
    official_model('T-32')
    cv2.imwrite(str(tmp_path / 'a.png'), photograph)
    cv2.imwrite(str(tmp_path / 'small.png'), photograph[:200, :200])
    arguments = ['--models', 'T-32', '--precision', fast[0], '--sizes', '320x240', '640x480', '--best', '100']
    monkeypatch.setattr(sys, 'argv', ['fidelity', str(tmp_path), *arguments])
    assert fidelity.main() == 0
    printed = capsys.readouterr()
    assert printed.err.count('small.png: 200x200: expected at least') == 2
    rows = re.findall(r'^\| T-32 \| ([\d.]+) \([\d.]+\) \| ([\d.]+) .*\| (\d+) \| (\d+) \(', printed.out, re.MULTILINE)
    assert len(rows) == 2
    for near, far, exact, other in rows:
        assert 90 < float(near) <= float(far) <= 100
        assert int(other) == pytest.approx(int(exact), rel=0.1)
        assert int(exact) > 50


def test_photographs_that_are_all_too_small_are_named(tmp_path, photograph, monkeypatch, capsys):
    cv2.imwrite(str(tmp_path / 'a.png'), photograph)
    monkeypatch.setattr(sys, 'argv', ['fidelity', str(tmp_path), '--sizes', '1920x1080'])
    assert fidelity.main() == 1
    assert 'none of the photographs can be used at 1920x1080' in capsys.readouterr().err
