import http.server
import shutil
import threading
from pathlib import Path

import pytest

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import find_model, official
from edgepoint2_ros.models.official import (
    DIRECTORY_VARIABLE,
    SHA256,
    download_weights,
    file_name,
    find_weights,
    import_weights,
)
from edgepoint2_ros.models.variants import VARIANTS, find_variant

T32 = find_variant('T-32')


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """The official T32.pth; models go to a folder of the test's own."""
    path = find_weights(T32)
    if path is None:
        pytest.skip(f'no official weights of T-32: name their folder in ${DIRECTORY_VARIABLE}')
    pytest.importorskip('torch', reason='torch is not installed: models cannot be made')
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    return path


def test_the_official_files_of_all_14_variants_are_known():
    assert {file_name(variant) for variant in VARIANTS} == {f'{name}.pth' for name in SHA256}
    assert all(len(digest) == 64 for digest in SHA256.values())


def test_official_files_are_found_beside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    checkout = Path(__file__).parents[1]
    copy = tmp_path / 'checkout' / Path(official.__file__).relative_to(checkout)
    monkeypatch.setattr(official, '__file__', str(copy))
    file = tmp_path / 'shared' / 'official_weights' / 'T32.pth'
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_weights(T32) == file


def test_an_official_file_becomes_a_model_with_its_source_and_licence(weights):
    model = import_weights(weights)
    assert model == find_model('T-32', 'official')
    assert model.card['weights'] == 'official'
    assert 'MIT' in model.card['licence']


def test_the_name_of_an_official_file_does_not_matter(weights, tmp_path):
    shutil.copy(weights, tmp_path / 'renamed.bin')
    assert import_weights(tmp_path / 'renamed.bin').variant == T32


def test_other_weights_need_an_explicit_word(weights, tmp_path):
    import torch

    state = torch.load(weights, map_location='cpu', weights_only=True)
    state['conv1.bias'] += 0.1
    torch.save(state, tmp_path / 'mine.pth')
    with pytest.raises(ModelError, match='--custom'):
        import_weights(tmp_path / 'mine.pth')
    model = import_weights(tmp_path / 'mine.pth', custom=True)
    assert model.card['weights'] == 'custom'
    assert model.path.name == 'mine.onnx'
    assert model.digest != import_weights(weights).digest


def test_custom_weights_of_one_name_do_not_take_each_others_place(weights, tmp_path):
    import torch

    state = torch.load(weights, map_location='cpu', weights_only=True)
    paths = [tmp_path / folder / 'best.pth' for folder in ('monday', 'friday')]
    for path in paths:
        state['conv1.bias'] += 0.1
        path.parent.mkdir()
        torch.save(state, path)
    first = import_weights(paths[0], custom=True)
    with pytest.raises(ModelError, match=r'best\.onnx already exists, made from another file: rename .*friday'):
        import_weights(paths[1], custom=True)
    assert import_weights(paths[0], custom=True, max_keypoints=100).digest == first.digest  # the same file, again
    part = paths[1].rename(tmp_path / 'best.int8.pth')
    with pytest.raises(ModelError, match=r'best\.int8\.onnx already exists'):
        import_weights(part, custom=True)


def test_a_corrupt_official_file_is_not_official(weights, tmp_path):
    data = bytearray(weights.read_bytes())
    data[5000] ^= 1
    (tmp_path / 'T32.pth').write_bytes(data)
    with pytest.raises(ModelError, match='not one of the 14 official files'):
        import_weights(tmp_path / 'T32.pth')
    with pytest.raises(ModelError, match='cannot be read'):
        import_weights(tmp_path / 'missing.pth')


def test_weights_are_looked_for_in_the_named_folder_first(weights, monkeypatch, tmp_path):
    shutil.copy(weights, tmp_path / 'T32.pth')
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    assert find_weights(T32) == tmp_path / 'T32.pth'


@pytest.fixture
def upstream(monkeypatch, tmp_path):
    """A web server on this machine in the place of GitHub; returns the folder that it serves."""
    folder = tmp_path / 'upstream'
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(official, 'UPSTREAM', f'http://127.0.0.1:{server.server_port}/')
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_weights_are_downloaded_and_checked(weights, upstream):
    shutil.copy(weights, upstream / 'T32.pth')
    path = download_weights(T32)
    assert path.read_bytes() == weights.read_bytes()
    assert import_weights(path).variant == T32


def test_what_is_not_the_official_file_is_not_kept(weights, upstream):
    (upstream / 'T32.pth').write_bytes(b'something else')
    with pytest.raises(ModelError, match='is not the official file'):
        download_weights(T32)
    assert not list((upstream.parent / 'data').rglob('T32*'))


def test_a_failed_download_says_what_to_do(weights, upstream):
    with pytest.raises(ModelError, match=DIRECTORY_VARIABLE):
        download_weights(T32)
