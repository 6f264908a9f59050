"""The images behind a bag of keypoints: no two of one name, and each file the image that it is called after."""

import re
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from test_bags import START, record

from edgepoint2_ros.bridges.bag_contents import Frame, read_frames
from edgepoint2_ros.bridges.bag_images import name_frames, remarks
from edgepoint2_ros.bridges.bags import Job, extract
from edgepoint2_ros.cli import main
from edgepoint2_ros.features import Features

NOTHING = Features(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 32)), (128, 96), 'T-32', 'a')


@pytest.fixture(scope='module')
def frames(photograph) -> list[np.ndarray]:
    """Gray images (96, 128) of a camera that pans."""
    return [np.ascontiguousarray(photograph[:96, 9 * i : 9 * i + 128, 1]) for i in range(6)]


@pytest.fixture(autouse=True)
def model(official_model):
    official_model('T-32')


def recorded(number: int) -> str:
    return f'{START + number}.128456789.png'


def stamped(number: int) -> str:
    return f'{START + number}.123456789.png'


def export(*arguments) -> int:
    pytest.importorskip('h5py', reason='h5py is not installed')
    return main(['bag', 'export', *map(str, arguments)])


def names(features) -> list[str]:
    h5py = pytest.importorskip('h5py', reason='h5py is not installed')
    with h5py.File(features) as file:
        return sorted(file)


class TestNames:
    def test_are_the_stamps(self):
        frames = [Frame(stamp, 7, NOTHING) for stamp in (1_700_000_000_123_456_789, 5_000_000_001)]
        named = list(name_frames(frames))
        assert [frame.name for frame in named] == ['1700000000.123456789.png', '5.000000001.png']
        assert remarks(named) == []

    def test_are_moments_of_recording_where_there_is_no_stamp(self):
        named = list(name_frames([Frame(0, 1_000_000_002, NOTHING), Frame(3_000_000_000, 9, NOTHING)]))
        assert [frame.name for frame in named] == ['1.000000002.png', '3.000000000.png']
        assert remarks(named) == ['1 of 2 images have no stamp: called by their moment of recording']

    def test_have_a_number_where_another_has_the_name_already(self):
        frames = [Frame(4_000_000_000, 1, NOTHING), Frame(0, 4_000_000_000, NOTHING), Frame(4_000_000_000, 1, NOTHING)]
        named = list(name_frames(frames))
        assert [frame.name for frame in named] == ['4.000000000.png', '4.000000000-2.png', '4.000000000-3.png']
        assert [frame.number for frame in named] == [0, 0, 1]
        assert '2 of 3 images are of the same moment as one before: called by a number, too' in remarks(named)


class TestExport:
    @pytest.mark.parametrize(
        ('stamp', 'expected', 'remark'),
        [
            (0, [recorded(i) for i in range(6)], '6 of 6 images have no stamp'),
            (5, ['5.000000000.png', *(f'5.000000000-{i}.png' for i in range(2, 7))], '5 of 6 images are of the same'),
            (None, [stamped(i) for i in range(6)], ''),
        ],
        ids=['no stamp', 'one stamp for all', 'stamps'],
    )
    def test_every_image_is_there(self, stamp, expected, remark, frames, tmp_path, capsys):
        list(extract(Job(record(tmp_path / 'office', frames, stamp=stamp), tmp_path / 'keypoints')))
        assert export(tmp_path / 'keypoints', tmp_path / 'features.h5') == 0
        assert names(tmp_path / 'features.h5') == sorted(expected)
        assert remark in capsys.readouterr().err

    @pytest.mark.parametrize('stamp', [None, 0, 5])
    @pytest.mark.parametrize('kept', [True, False])
    @pytest.mark.parametrize('kind', ['mcap', 'ros1'])
    def test_writes_the_images_that_it_names(self, kind, kept, stamp, frames, tmp_path):
        bag = record(tmp_path / 'office', frames, kind, topics=('/left/image', '/right/image'), stamp=stamp)
        job = Job(bag, tmp_path / 'keypoints', topics=('/right/image',), keep=('/right/image',) if kept else ())
        list(extract(job))
        source = [] if kept else ['--source', bag]
        assert export(job.output, tmp_path / 'a.h5', '--images', tmp_path / 'files', '--every', 2, *source) == 0
        files = sorted(path.name for path in (tmp_path / 'files').iterdir())
        assert files == names(tmp_path / 'a.h5')
        assert len(files) == 3
        order = [frame.name for frame in name_frames(read_frames(job.output))][::2]
        for name, pixels in zip(order, frames[::2]):
            np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'files' / name), cv2.IMREAD_UNCHANGED), pixels)

    def test_finds_images_by_their_stamps_where_the_keypoints_were_recorded_later(self, frames, tmp_path):
        bag = record(tmp_path / 'office', frames)
        list(extract(Job(bag, tmp_path / 'keypoints')))
        other = record(tmp_path / 'later', frames, topics=('/other/image', '/camera/image_raw'), delay=30_000_000)
        assert export(tmp_path / 'keypoints', tmp_path / 'a.h5', '--images', tmp_path / 'files', '--source', other) == 0
        assert sorted(path.name for path in (tmp_path / 'files').iterdir()) == [stamped(i) for i in range(6)]

    def test_says_which_images_are_missing(self, frames, tmp_path, capsys):
        bag = record(tmp_path / 'office', frames)
        list(extract(Job(bag, tmp_path / 'keypoints')))
        part = record(tmp_path / 'part', frames[:4], damage=(2,))
        assert export(tmp_path / 'keypoints', tmp_path / 'a.h5', '--images', tmp_path / 'files', '--source', part) == 1
        error = capsys.readouterr().err
        assert 'image 3 of /camera/image_raw left out: image has 7 bytes' in error
        assert re.search('3 of 6 images are not in .*part, or not to be read there', error)
        assert len(list((tmp_path / 'files').iterdir())) == 3
        assert len(names(tmp_path / 'a.h5')) == 6

    def test_does_not_take_an_image_of_another_size(self, frames, tmp_path, capsys):
        list(extract(Job(record(tmp_path / 'office', frames), tmp_path / 'keypoints')))
        other = record(tmp_path / 'other', [np.ascontiguousarray(frame[:, :100]) for frame in frames])
        assert export(tmp_path / 'keypoints', tmp_path / 'a.h5', '--images', tmp_path / 'files', '--source', other) == 1
        assert 'its size is (100, 96), keypoints are of (128, 96)' in capsys.readouterr().err
        assert list((tmp_path / 'files').iterdir()) == []

    def test_writes_over_nothing(self, frames, tmp_path, capsys):
        bag = record(tmp_path / 'office', frames)
        list(extract(Job(bag, tmp_path / 'keypoints', keep=('*',))))
        (tmp_path / 'files').mkdir()
        (tmp_path / 'files' / stamped(4)).write_text('precious')
        assert export(tmp_path / 'keypoints', tmp_path / 'a.h5', '--images', tmp_path / 'files') == 1
        assert f'{stamped(4)} already exists' in capsys.readouterr().err
        assert [path.read_text() for path in (tmp_path / 'files').iterdir()] == ['precious']
        assert not (tmp_path / 'a.h5').exists()

    @pytest.mark.parametrize('name', ['a.h5', 'a.db'])
    def test_writes_no_image_where_the_rest_cannot_follow(self, name, frames, tmp_path, monkeypatch, capsys):
        list(extract(Job(record(tmp_path / 'office', frames), tmp_path / 'keypoints', keep=('*',))))
        (tmp_path / 'file').write_text('')
        assert export(tmp_path / 'keypoints', tmp_path / 'file' / name, '--images', tmp_path / 'files') == 1
        monkeypatch.setitem(sys.modules, {'a.h5': 'h5py', 'a.db': 'pycolmap'}[name], None)
        files = ['--images', str(tmp_path / 'files')]
        assert main(['bag', 'export', str(tmp_path / 'keypoints'), str(tmp_path / name), *files]) == 1
        assert 'Traceback' not in capsys.readouterr().err
        assert not (tmp_path / 'files').exists()

    def test_asks_where_it_is_not_clear_what_is_meant(self, frames, tmp_path, capsys):
        bag = record(tmp_path / 'office', frames, topics=('/left/image', '/right/image'))
        job = Job(bag, tmp_path / 'both', topics=('/left/image', '/right/image'))
        list(extract(job))
        for arguments, words in (
            ([], 'name the topic of keypoints; it has /left/keypoints, /right/keypoints'),
            (
                ['--topic', '/left/keypoints', '--topic', '/right/keypoints'],
                'expected one at a time, got /left/keypoints',
            ),
            (['--topic', '/left/keypoints', '--images', tmp_path / 'files'], 'both has no images on /left/image'),
            (
                ['--topic', '/left/keypoints', '--images', tmp_path / 'f', '--source', bag, '--image-topic', '/up'],
                'on /up',
            ),
        ):
            assert export(job.output, tmp_path / 'a.h5', *arguments) == 1
            assert words in capsys.readouterr().err
            assert not (tmp_path / 'a.h5').exists()
        assert export(job.output, tmp_path / 'a.h5', '--topic', '/left/keypoints') == 0
