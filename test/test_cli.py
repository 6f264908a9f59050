import os
import re
import shutil
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
from edgepoint2_ros.models.official import find_weights
from edgepoint2_ros.models.variants import find_variant


@pytest.fixture
def image_file(photograph, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), photograph)
    return tmp_path / 'photo.png'


def skip_without_packages_of(command: str):
    packages = {'evaluate': ('poselib', 'matplotlib'), 'map': ('pycolmap', 'rosbags'), 'train': ('torch', 'onnx')}
    for package in packages.get(command, ()):
        pytest.importorskip(package, reason=f'{package} is not installed')


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
    for option, size, way in (
        ([], (640, 480), ''),
        (['--as-stored'], (480, 640), ', in the pixels of the file as it is stored'),
    ):
        out = tmp_path / f'out{len(option)}'
        assert main(['extract', str(tmp_path / 'phone.jpg'), '--output', str(out), '--overlay', str(out), *option]) == 0
        assert f' keypoints, turned upright as EXIF says (orientation 6){way}\n' in capsys.readouterr().out
        assert tuple(np.load(out / 'phone.npz')['image_size']) == size
        assert cv2.imread(str(out / 'phone.png')).shape[1::-1] == size


def test_images_of_one_name_have_files_of_their_own(official_model, photograph, tmp_path):
    official_model('T-32')
    images = [tmp_path / name for name in ('left/000001.jpg', 'right/000001.jpg', 'right/000002.jpg')]
    for number, image in enumerate(images):
        image.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(image), photograph[: 200 + 32 * number])
    out = tmp_path / 'out'
    assert main(['extract', *map(str, images), str(images[0]), '--output', str(out), '--overlay', str(out)]) == 0
    heights = {str(path.relative_to(out)): np.load(path)['image_size'][1] for path in out.rglob('*.npz')}
    assert heights == {'left/000001.npz': 200, 'right/000001.npz': 232, 'right/000002.npz': 264}
    assert len(list(out.rglob('*.png'))) == 3


def test_extract_writes_over_nothing(official_model, image_file, tmp_path, capsys):
    official_model('T-32')
    before = image_file.read_bytes()
    assert main(['extract', str(image_file), '--overlay', str(image_file.parent)]) == 1
    assert f'{image_file} already exists: choose another path, or remove it' in capsys.readouterr().err
    assert image_file.read_bytes() == before
    for code in (0, 1):  # the second call may be another camera's image of the same name
        assert main(['extract', str(image_file), '--output', str(tmp_path / 'out')]) == code
    assert 'photo.npz already exists' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--output', '--overlay'])
def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(option, official_model, image_file, tmp_path, capsys):
    official_model('T-32')
    assert main(['extract', str(image_file), option, '/proc/nowhere']) == 1
    error = capsys.readouterr().err
    assert error.startswith('edgepoint2: ')
    assert '/proc/nowhere' in error
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    'command',
    [
        ['extract', 'PHOTO', '--output', 'OUT'],
        ['match', 'PHOTO', 'PHOTO', '--output', 'OUT/matches.png'],
        ['evaluate', 'T-32', '--models-only', '--synthetic', 'FOLDER', '--output', 'OUT'],
        ['train', 'T-32', '--images', 'FOLDER', '--output', 'OUT'],
        ['map', 'FOLDER', 'OUT'],
        ['demo', '--no-ros', '--picture', 'OUT/demo.png'],
        ['bench', '--models', 'T-32', '--report', 'OUT/report.md'],
    ],
    ids=lambda command: command[0],
)
def test_what_cannot_be_written_is_said_before_any_work(command, official_model, image_file, tmp_path, capsys):
    skip_without_packages_of(command[0])
    official_model('T-32')
    (tmp_path / 'text').write_text('precious')
    for number in range(3):
        shutil.copy(image_file, tmp_path / f'{number}.png')
    for output in (tmp_path / 'text', tmp_path / 'text' / 'below'):
        places = {'PHOTO': image_file, 'FOLDER': tmp_path, 'OUT': output}
        words = ['/'.join(str(places.get(part, part)) for part in word.split('/')) for word in command]
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert out == ''
        assert re.fullmatch(r'edgepoint2: .*(already exists|expected a folder|cannot be written).*\n', err)
        assert str(output) in err
    assert (tmp_path / 'text').read_text() == 'precious'


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        (['evaluate', 'T-32', '--synthetic', '.', '--output', 'out', '--seed', '-1'], '--seed: expected 0 or more'),
        (['train', 'T-32', '--images', '.', '--output', 'out', '--seed', '-1'], '--seed: expected 0 or more'),
        (['models', 'vocabulary', 'T-32', '--images', '.', '--seed', '-1'], '--seed: expected 0 or more'),
        (
            ['models', 'calibrate', 'T-32', '--synthetic', '.', '--photographs', '0'],
            '--photographs: expected 1 or more',
        ),
        (
            ['models', 'calibrate', 'T-32', '--synthetic', '.', '--scene-pairs', '-1'],
            '--scene-pairs: expected 1 or more',
        ),
        (['demo', '--no-ros', '--seconds', '0'], '--seconds: expected more than 0'),
        (['demo', '--no-ros', '--seconds', 'nan'], '--seconds: expected more than 0'),
        (['match', 'a.png', 'b.png', 'c.png'], 'expected two images, got 3'),
    ],
)
def test_numbers_out_of_range_are_named(command, message, monkeypatch, tmp_path, capsys):
    skip_without_packages_of(command[0])
    monkeypatch.chdir(tmp_path)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count('\n') == 1
    assert os.listdir(tmp_path) == []


def test_a_photograph_beyond_the_limit_is_shrunk_on_demand(official_model, photograph, tmp_path, capsys):
    official_model('T-32')
    large, mask = cv2.resize(photograph, (5120, 3840)), np.zeros((3840, 5120), np.uint8)
    mask[:, 2560:] = 255
    cv2.imwrite(str(tmp_path / 'large.jpg'), large)
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    command = ['extract', str(tmp_path / 'large.jpg'), '--max-keypoints', '300', '--output', str(tmp_path / 'out')]
    assert main(command) == 1
    assert 'expected at most 16777216 pixels, got 5120 x 3840: shrink it (`edgepoint2 extract --resize`' in (
        capsys.readouterr().err
    )
    assert main([*command, '--resize', '-1']) == 1
    assert '--resize: expected 0 or more, got -1' in capsys.readouterr().err
    assert main([*command, '--resize', '1280', '--mask', str(tmp_path / 'mask.png')]) == 0
    features = np.load(tmp_path / 'out' / 'large.npz')
    assert tuple(features['image_size']) == (5120, 3840)
    assert len(features['xy']) == 300
    assert features['xy'][:, 0].min() >= 2550
    assert features['xy'].max(axis=0)[1] > 2000


def test_an_unreadable_image_is_named_and_the_others_are_extracted(official_model, image_file, tmp_path, capsys):
    official_model('T-32')
    (tmp_path / 'broken.png').write_bytes(b'no image')
    files = [str(tmp_path / 'missing.png'), str(tmp_path / 'broken.png'), str(image_file)]
    assert main(['extract', *files]) == 1
    out, err = capsys.readouterr()
    assert 'missing.png' in err
    assert 'broken.png' in err
    assert 'photo.png: ' in out


def test_an_image_too_narrow_to_be_shrunk_is_named_and_the_others_are_extracted(
    official_model, image_file, tmp_path, capsys
):
    official_model('T-32')
    cv2.imwrite(str(tmp_path / 'strip.png'), np.zeros((1, 3000), np.uint8))
    assert main(['extract', str(tmp_path / 'strip.png'), str(image_file), '--resize', '320']) == 1
    out, err = capsys.readouterr()
    assert 'strip.png: image: expected at least 64 x 64 pixels, got 320 x 1' in err
    assert 'photo.png: ' in out


@pytest.mark.parametrize(
    ('encoding', 'shown'), [('utf-8:strict', 'caf\\udce9.png: '), ('ascii:strict', 'caf\\udce9.png: ')]
)
def test_names_that_stdout_cannot_encode_are_escaped(official_model, image_file, tmp_path, encoding, shown):
    official_model('T-32')
    names = [os.fsencode(tmp_path) + b'/caf\xe9.png', str(tmp_path / 'über.png')]
    for name in names:
        shutil.copy(image_file, name)
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'extract', *names, '--output', str(tmp_path / 'out')]
    environment = {**os.environ, 'PYTHONIOENCODING': encoding}
    result = subprocess.run(
        [*command, '--overlay', str(tmp_path / 'out')], capture_output=True, env=environment, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert shown.encode() in result.stdout
    assert len(list((tmp_path / 'out').iterdir())) == 4


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model', 'T-64'], 'unknown model'),
        (['--weights', '/nowhere/T-32.onnx'], 'no file /nowhere/T-32.onnx'),
        (['--backend', 'tpu'], 'unknown backend'),
        (['--precision', 'fp8'], 'unknown precision'),
        (['--max-keypoints', '0'], 'max_keypoints: expected 1 or more, got 0'),
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


@pytest.mark.parametrize(
    ('machine', 'advice'), [('x86_64', 'pip install pycolmap'), ('aarch64', 'no wheels of it for')]
)
def test_a_command_that_lacks_a_package_says_so_in_one_line(machine, advice, monkeypatch, capsys):
    monkeypatch.setattr('platform.machine', lambda: machine)
    for name in [name for name in sys.modules if name.startswith(('pycolmap', 'edgepoint2_ros.cli.map'))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'pycolmap', None)
    assert main(['map', '--help']) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('edgepoint2: `edgepoint2 map` lacks a package: ')
    assert advice in line
