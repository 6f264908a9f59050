import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from edgepoint2_ros.storage import cache_directory, data_directory, drafting, replacing, sha256, write_whole


@pytest.mark.parametrize(
    ('directory', 'variable', 'default'),
    [(cache_directory, 'XDG_CACHE_HOME', '.cache'), (data_directory, 'XDG_DATA_HOME', '.local/share')],
)
def test_folders_follow_the_xdg_rules(monkeypatch, tmp_path, directory, variable, default):
    monkeypatch.setenv(variable, str(tmp_path))
    assert directory() == tmp_path / 'edgepoint2'
    monkeypatch.setenv('HOME', str(tmp_path))
    for value in ('', 'not/absolute'):
        monkeypatch.setenv(variable, value)
        assert directory() == tmp_path / default / 'edgepoint2'
    monkeypatch.delenv(variable)
    assert directory() == tmp_path / default / 'edgepoint2'
    monkeypatch.delenv('HOME')
    monkeypatch.setattr('pwd.getpwuid', lambda uid: {}[uid])  # as for a user that the system does not know
    assert directory() == Path('/nonexistent') / default / 'edgepoint2'


def test_sha256_is_that_of_the_standard():
    assert sha256(b'abc') == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / 'made' / 'file'
    for content in (b'old', b'new'):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / 'model', b'')
    finally:
        os.umask(before)
    assert (tmp_path / 'model').stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize('error', [None, RuntimeError('full'), KeyboardInterrupt()])
def test_what_a_library_writes_is_there_as_a_whole_or_not_at_all(tmp_path, error):
    path = tmp_path / 'made' / 'file.db'
    with pytest.raises(type(error)) if error else nullcontext(), drafting(path) as draft:
        assert draft.name == path.name
        draft.write_bytes(b'all')
        draft.with_suffix('.db-journal').write_bytes(b'what it keeps beside')
        if error:
            raise error
    assert [file.read_bytes() for file in path.parent.iterdir()] == ([] if error else [b'all'])


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    write_whole(tmp_path / 'file', b'old')
    with pytest.raises(type(error)), replacing(tmp_path / 'file') as file:
        file.write(b'half')
        raise error
    assert (tmp_path / 'file').read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [tmp_path / 'file']


def test_what_has_not_reached_the_disk_takes_no_place(tmp_path, monkeypatch):
    write_whole(tmp_path / 'file', b'old')

    def full_disk(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match='No space'):
        write_whole(tmp_path / 'file', b'new')
    assert (tmp_path / 'file').read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [tmp_path / 'file']


def test_a_file_is_not_there_before_it_is_whole(tmp_path):
    with replacing(tmp_path / 'file') as file:
        file.write(b'all')
        file.flush()
        assert not (tmp_path / 'file').exists()
    assert (tmp_path / 'file').read_bytes() == b'all'


def test_a_link_stays_a_link_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / 'file').write_bytes(b'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'file')
    write_whole(tmp_path / 'link', b'new')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'file').read_bytes() == b'new'
