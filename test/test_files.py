import os

import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.files import make_folder, own_names, refuse_existing, refuse_unwritable, write_image


@pytest.mark.parametrize(
    ('files', 'names'),
    [
        (['a/1.png', 'a/2.png'], ['1', '2']),
        (['left/1.png', 'right/1.png', 'right/2.png'], ['left/1', 'right/1', 'right/2']),
        (['run/left/1.png', 'run/right/1.png'], ['left/1', 'right/1']),
        (['1.png', '1.jpg'], ['1.png', '1.jpg']),
        (['left/1.png', 'left/1.jpg', 'right/1.png'], ['left/1.png', 'left/1.jpg', 'right/1.png']),
        (['frame_12.5.png', 'frame_12.6.png'], ['frame_12.5', 'frame_12.6']),
        (['1.png'], ['1']),
        ([], []),
    ],
)
def test_files_have_names_of_their_own(files, names, tmp_path):
    paths = [tmp_path / file for file in files]
    assert own_names(paths) == dict(zip(paths, names))


def test_folders_keep_what_looks_like_a_suffix(tmp_path):
    folders = [tmp_path / name for name in ('2024.05.01-12.30.15', '2024.05.01-12.30.45')]
    for folder in folders:
        folder.mkdir()
    assert list(own_names(folders).values()) == [folder.name for folder in folders]


def test_relative_and_absolute_paths_may_be_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative, absolute = tmp_path.relative_to(tmp_path) / 'a' / '1.png', tmp_path / 'b' / '1.png'
    assert own_names([relative, absolute]) == {relative: 'a/1', absolute: 'b/1'}
    same = [relative, tmp_path / 'a' / '1.png']
    assert set(own_names(same).values()) == {'1'}


def test_what_is_there_is_not_written_over(tmp_path):
    new, old = tmp_path / 'new', tmp_path / 'old'
    old.touch()
    refuse_existing([new])
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(EdgePoint2Error, match='link already exists'):
        refuse_existing([tmp_path / 'link'])
    with pytest.raises(EdgePoint2Error, match='old already exists: choose another path, or remove it'):
        refuse_existing([new, old])
    with pytest.raises(EdgePoint2Error, match='new would be written twice'):
        refuse_existing([new, new])


def test_a_folder_is_made_or_there_or_refused(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / 'a' / 'b')
    assert (tmp_path / 'a' / 'b').is_dir()
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'c'):
        with pytest.raises(EdgePoint2Error, match=f"expected a folder, or room for one: .*: '{path}'"):
            make_folder(path)


def test_files_are_tried_before_the_work(tmp_path):
    refuse_unwritable([tmp_path / 'new.png'])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'old.png').touch()
    for name, complaint in (
        ('old.png', 'already exists'),
        ('old.png/new.png', 'cannot be written: Not a directory'),
        ('no/folder.png', 'cannot be written: No such file'),
        ('n' * 300, 'cannot be written: File name too long'),
    ):
        with pytest.raises(EdgePoint2Error, match=complaint):
            refuse_unwritable([tmp_path / name])


def test_an_image_may_have_a_name_that_is_not_utf8(tmp_path):
    write_image(tmp_path / 'caf\udce9.png', np.zeros((8, 8), np.uint8))
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [b'caf\xe9.png']


@pytest.mark.parametrize('name', ['no/such/folder.png', 'picture.without_a_known_suffix'])
def test_an_image_that_cannot_be_written_is_an_error(name, tmp_path):
    with pytest.raises(EdgePoint2Error, match=f'{name} cannot be written'):
        write_image(tmp_path / name, np.zeros((8, 8), np.uint8))
