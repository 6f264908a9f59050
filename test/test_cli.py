import subprocess
import sys

import cv2
import numpy as np
import pytest

from edgepoint2_ros import __version__
from edgepoint2_ros.cli import main
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
        (['--max-keypoints', '0'], 'max_keypoints: expected 1 or more, got 0'),
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
