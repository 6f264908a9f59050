import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from exif import store

from edgepoint2_ros import __version__
from edgepoint2_ros.cli import main
from edgepoint2_ros.engines.check import compare
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.images import to_array
from edgepoint2_ros.official import find_weights
from edgepoint2_ros.variants import find_variant


@pytest.fixture
def image_file(photograph, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), photograph)
    return tmp_path / 'photo.png'


def test_extract_writes_features_and_an_overlay(official_model, image_file, tmp_path, capsys):
    official_model('T-32')
    arguments = [
        'extract',
        image_file,
        '--max-keypoints',
        500,
        '--output',
        tmp_path / 'out',
        '--overlay',
        tmp_path / 'out',
    ]
    assert main([str(word) for word in arguments]) == 0
    features = np.load(tmp_path / 'out' / 'photo.npz')
    assert features['xy'].shape == (500, 2)
    assert features['descriptors'].shape == (500, 32)
    assert tuple(features['image_size']) == (640, 480)
    assert str(features['model']) == 'T-32'
    overlay = cv2.imread(str(tmp_path / 'out' / 'photo.png'))
    assert overlay.shape == (480, 640, 3)
    assert np.any(overlay != cv2.imread(str(image_file)))
    assert 'photo.png: 500 keypoints' in capsys.readouterr().out


def test_extract_obeys_a_mask(official_model, image_file, tmp_path):
    official_model('T-32')
    mask = np.zeros((480, 640), np.uint8)
    mask[:, 320:] = 255
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    assert main(['extract', str(image_file), '--mask', str(tmp_path / 'mask.png'), '--output', str(tmp_path)]) == 0
    assert np.load(tmp_path / 'photo.npz')['xy'][:, 0].min() >= 319


def test_extract_scales_a_mask_to_each_image_as_the_node_does(official_model, image_file, tmp_path):
    official_model('T-32')
    cv2.imwrite(str(tmp_path / 'half.png'), cv2.imread(str(image_file))[:240])
    mask = np.zeros((24, 32), np.uint16)
    mask[:, 16:] = 1  # of 16 bits, and small: it is not black
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    files = str(image_file), str(tmp_path / 'half.png')
    assert main(['extract', *files, '--mask', f'file://{tmp_path}/mask.png', '--output', str(tmp_path)]) == 0
    for name in ('photo', 'half'):
        x = np.load(tmp_path / f'{name}.npz')['xy'][:, 0]
        assert len(x) > 100
        assert x.min() >= 319


def test_extract_sees_in_a_thermal_image_what_the_node_sees(official_model, photograph, tmp_path):
    official_model('T-32')
    thermal = 7000 + cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 100 // 255
    cv2.imwrite(str(tmp_path / 'thermal.png'), thermal)
    assert main(['extract', str(tmp_path / 'thermal.png'), '--output', str(tmp_path)]) == 0
    found = np.load(tmp_path / 'thermal.npz')
    message = SimpleNamespace(
        height=480, width=640, encoding='mono16', is_bigendian=0, step=1280, data=thermal.tobytes()
    )
    expected = Extractor('T-32').extract(to_array(message))
    assert len(expected) > 500
    share, cosine = compare(
        (found['xy'], found['scores'], found['descriptors']), (expected.xy, expected.scores, expected.descriptors)
    )
    assert share > 0.98
    assert cosine > 0.99


def test_extract_says_which_way_up_it_reads_a_photograph(official_model, photograph, tmp_path, capsys):
    official_model('T-32')
    store(tmp_path / 'phone.jpg', photograph, 6)
    command = ['extract', str(tmp_path / 'phone.jpg'), '--output', str(tmp_path), '--overlay', str(tmp_path)]
    for option, size, way in (
        ([], (640, 480), ''),
        (['--as-stored'], (480, 640), ', in the pixels of the file as it is stored'),
    ):
        assert main([*command, *option]) == 0
        assert f' keypoints, turned upright as EXIF says (orientation 6){way}\n' in capsys.readouterr().out
        assert tuple(np.load(tmp_path / 'phone.npz')['image_size']) == size
        assert cv2.imread(str(tmp_path / 'phone.png')).shape[1::-1] == size


def test_an_unreadable_image_is_named_and_the_others_are_extracted(official_model, image_file, tmp_path, capsys):
    official_model('T-32')
    (tmp_path / 'broken.png').write_bytes(b'no image')
    files = [str(tmp_path / 'missing.png'), str(tmp_path / 'broken.png'), str(image_file)]
    assert main(['extract', *files]) == 1
    out, err = capsys.readouterr()
    assert 'missing.png' in err
    assert 'broken.png' in err
    assert 'photo.png: ' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'T-64'], 'unknown model'),
        (['--weights', '/nowhere/T-32.onnx'], 'no file /nowhere/T-32.onnx'),
        (['--backend', 'tpu'], 'unknown backend'),
        (['--precision', 'fp8'], 'unknown precision'),
        (['--max-keypoints', '0'], 'max_keypoints: expected 1 to 2048'),
        (['--output', '/dev/null/features'], "Not a directory: '/dev/null/features'"),
    ],
)
def test_errors_are_one_line(official_model, image_file, capsys, arguments, message):
    official_model('T-32')
    assert main(['extract', str(image_file), *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith('edgepoint2: ')
    assert message in err
    assert err.count('\n') == 1


def test_models_are_imported_and_listed(nothing_shipped, monkeypatch, tmp_path, capsys):
    pytest.importorskip('torch', reason='torch is not installed: models cannot be made')
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    assert main(['models', 'list']) == 0
    assert 'no models in' in capsys.readouterr().out
    weights = find_weights(find_variant('T-32'))
    if weights is None:
        pytest.skip('no official weights of T-32')
    (tmp_path / 'other.pth').write_bytes(b'something')
    assert main(['models', 'import', str(weights), str(tmp_path / 'other.pth'), '--max-keypoints', '300']) == 1
    assert 'other.pth is not one of the 14 official files' in capsys.readouterr().err
    assert main(['models', 'list']) == 0
    assert 'T-32' in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_runs_as_a_process():
    done = subprocess.run([sys.executable, '-m', 'edgepoint2_ros.cli', '--version'], capture_output=True, text=True)
    assert done.stdout.strip() == __version__
