"""The plugin of RTAB-Map, called by its contract from a C++ program that embeds Python as RTAB-Map does."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from edgepoint2_ros.bridges.rtabmap import to_responses
from edgepoint2_ros.bridges.rtabmap_plugin import Plugin, read_settings
from edgepoint2_ros.cli import main
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.models import SHIPPED
from edgepoint2_ros.places import open_vocabulary

ROOT = Path(__file__).parents[1]
FILE = ROOT / 'rtabmap' / 'edgepoint2_rtabmap.py'


def test_settings_come_from_the_environment():
    settings = read_settings({'EDGEPOINT2_MODEL': 'S-64', 'EDGEPOINT2_THREADS': '2', 'EDGEPOINT2_PRECISION': ''})
    assert (settings.extractor.model, settings.extractor.threads, settings.extractor.precision) == ('S-64', 2, 'auto')
    assert read_settings({'EDGEPOINT2_MIN_COSINE': '0.7'}).min_cosine == 0.7
    assert read_settings({'EDGEPOINT2_MAX_KEYPOINTS': '50'}).extractor.max_keypoints == 50


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('THREADS', 'two', "EDGEPOINT2_THREADS: expected an integer, got 'two'"),
        ('SCORE_THRESHOLD', 'low', "EDGEPOINT2_SCORE_THRESHOLD: expected a number, got 'low'"),
        ('MIN_COSINE', 'nan', 'EDGEPOINT2_MIN_COSINE: expected -1 to 1, got nan'),
    ],
)
def test_a_setting_that_is_none_is_named(name, value, expected):
    with pytest.raises(EdgePoint2Error, match=expected):
        read_settings({f'EDGEPOINT2_{name}': value})


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('MODEL', 'X-99', 'X-99'),
        ('WEIGHTS', '/nowhere', '/nowhere'),
        ('BACKEND', 'abacus', "unknown backend 'abacus'"),
        ('THREADS', '-1', 'threads: expected 0'),
        ('MAX_KEYPOINTS', '0', 'max_keypoints: expected'),
        ('PRECISION', '1', 'unknown precision'),
        ('MIN_COSINE', 'high', 'MIN_COSINE: expected a number'),
    ],
)
def test_what_cannot_be_opened_gives_no_features_and_is_said_once(name, value, words, gray, capsys):
    plugin = Plugin({f'EDGEPOINT2_{name}': value})
    for _ in range(3):
        keypoints, descriptors = plugin.detect(gray)
        assert (keypoints.shape, descriptors.shape) == ((0, 3), (0, 32))
        assert plugin.match(*[keypoints[:, :2]] * 2, *[keypoints[:, 2]] * 2, *[descriptors] * 2, 640, 480).shape == (
            0,
            2,
        )
    printed = capsys.readouterr().err
    assert printed.count('edgepoint2: ') == 1, printed
    assert words in printed


def test_detector_and_global_descriptor_look_at_an_image_once(gray, monkeypatch):
    calls = []
    extract = Extractor.extract
    monkeypatch.setattr(Extractor, 'extract', lambda self, image: calls.append(image) or extract(self, image))
    plugin = Plugin({})
    keypoints, _ = plugin.detect(gray)
    place = plugin.extract(np.repeat(gray[:, :, None], 3, axis=2).view(np.int8))
    assert len(calls) == 1
    gray[:] = 0
    assert len(plugin.detect(gray)[0]) < len(keypoints)
    assert len(calls) == 2
    assert (place.shape, place.dtype) == ((1, 512), np.float32)
    np.testing.assert_allclose(np.linalg.norm(place), 1, rtol=1e-6)


def test_a_model_without_a_vocabulary_detects_and_matches(gray, capsys, tmp_path):
    for source in SHIPPED.glob('T-32.*'):
        shutil.copy(source, tmp_path)
    card = json.loads((tmp_path / 'T-32.json').read_text())
    (tmp_path / 'T-32.json').write_text(json.dumps({key: card[key] for key in card if key != 'places'}))
    plugin = Plugin({'EDGEPOINT2_WEIGHTS': str(tmp_path)})
    assert len(plugin.detect(gray)[0]) > 300
    assert plugin.extract(gray[:, :, None]).shape == (1, 512)
    assert capsys.readouterr().err.count('no vocabulary of places') == 1
    assert main(['rtabmap', '--weights', str(tmp_path)]) == 0
    assert main(['rtabmap', '--weights', str(tmp_path), '--places']) == 1
    assert 'no vocabulary of places' in capsys.readouterr().err


def test_a_failure_at_the_first_image_does_not_change_the_size_of_the_global_descriptor(gray, capsys):
    plugin = Plugin({})
    broken = plugin.extract(np.zeros((64, 64, 3), np.float64))
    assert broken.shape == plugin.extract(gray[:, :, None]).shape == (1, 512)
    assert 'no global descriptor' in capsys.readouterr().err


@pytest.mark.parametrize(('model', 'size'), [('', 512), ('T-48', 768), ('E-64', 1024), ('Z-9', 512)])
@pytest.mark.parametrize('broken', [{'EDGEPOINT2_THREADS': 'two'}, {'EDGEPOINT2_BACKEND': 'cuda'}])
def test_without_an_extractor_the_global_descriptor_has_the_size_of_its_model(broken, model, size, gray, capsys):
    plugin = Plugin({'EDGEPOINT2_MODEL': model, **broken})
    np.testing.assert_array_equal(plugin.extract(gray[:, :, None]), np.zeros((1, size), np.float32))
    assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize(('model', 'size'), [(None, 512), ('T-32', 512), ('T-48', 768), ('E-64', 1024), ('Z', 512)])
def test_without_the_package_the_global_descriptor_has_the_size_of_its_model(model, size, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'edgepoint2_ros.bridges.rtabmap_plugin', None)
    monkeypatch.delenv('EDGEPOINT2_MODEL', raising=False)
    if model:
        monkeypatch.setenv('EDGEPOINT2_MODEL', model)
    plugin = runpy.run_path(str(FILE))
    np.testing.assert_array_equal(plugin['extract'](None), np.zeros((1, size), np.float32))
    assert 'prints the PYTHONPATH' in capsys.readouterr().err


def test_the_command_names_weights_by_a_path_that_holds_everywhere(tmp_path, monkeypatch, capsys):
    for source in SHIPPED.glob('T-32.*'):
        shutil.copy(source, tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert main(['rtabmap', '--weights', tmp_path.name]) == 0
    assert f'export EDGEPOINT2_WEIGHTS={tmp_path}\n' in capsys.readouterr().out
    assert main(['rtabmap', '--weights', 'shipped']) == 0
    assert 'export EDGEPOINT2_WEIGHTS=shipped\n' in capsys.readouterr().out


def test_the_command_prints_parameters_that_name_the_file(capsys):
    assert main(['rtabmap', '--model', 'T-48', '--threads', '1']) == 0
    printed = capsys.readouterr().out
    assert f'--Vis/FeatureType 15 --Kp/DetectorStrategy 15 --PyDetector/Path {FILE}' in printed
    assert f'args:="--Vis/FeatureType 15 --Kp/DetectorStrategy 15 --PyDetector/Path {FILE}' in printed
    assert f'PyMatcher\\Path = {FILE}' in printed
    assert 'PyDescriptor' not in printed
    assert 'export EDGEPOINT2_MODEL=T-48\nexport EDGEPOINT2_THREADS=1\n' in printed
    assert main(['rtabmap', '--model', 'E-64', '--places']) == 0
    assert f'--PyDescriptor/Path {FILE} --PyDescriptor/Dim 1024' in capsys.readouterr().out
    assert main(['rtabmap', '--backend', 'onnxruntime', '--precision', 'int8']) == 1


@pytest.fixture(scope='module')
def host(tmp_path_factory):
    """Compile the program; return a function that runs it in the environment that `edgepoint2 rtabmap` prints."""
    variables = sysconfig.get_config_vars()
    compiler, header = shutil.which('c++'), Path(sysconfig.get_path('include')) / 'Python.h'
    if not compiler or not header.is_file() or not variables['Py_ENABLE_SHARED']:
        pytest.skip('a C++ compiler and a Python that can be embedded are needed')
    program = tmp_path_factory.mktemp('host') / 'rtabmap_host'
    command = [compiler, '-std=c++17', '-Wall', '-Wextra', '-Werror', ROOT / 'test' / 'cpp' / 'rtabmap_host.cpp']
    command += ['-isystem', header.parent, '-isystem', np.get_include(), '-pthread', '-o', program]
    command += [f'-L{variables["LIBDIR"]}', f'-Wl,-rpath,{variables["LIBDIR"]}', f'-lpython{variables["LDVERSION"]}']
    built = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert built.returncode == 0, built.stdout
    script = f'{sys.executable} -m edgepoint2_ros.cli rtabmap | grep "^export" > {program}.env'
    subprocess.run(['sh', '-c', script], cwd=ROOT, check=True, timeout=60)

    def run(*arguments, file: Path = FILE, **settings) -> tuple[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'EDGE'))}
        environment |= {f'EDGEPOINT2_{name.upper()}': str(value) for name, value in settings.items()}
        environment.setdefault('EDGEPOINT2_THREADS', '1')
        line = f'. {program}.env; exec "$@"'
        done = subprocess.run(
            ['sh', '-c', line, 'sh', program, file, *map(str, arguments)],
            cwd='/',
            env=environment,
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_rtabmap_gets_the_keypoints_of_the_extractor(backend, host, gray, tmp_path):
    pytest.importorskip(backend, reason=f'{backend} is not installed')
    file = tmp_path / 'image.raw'
    file.write_bytes(gray.tobytes())
    found, errors = host('detect', file, *gray.shape[::-1], model='T-48', backend=backend)
    assert errors == ''
    numbers = np.array([line.split() for line in found.splitlines()], np.float32)
    expected = Extractor('T-48', backend=backend, threads=1, max_keypoints=1000).extract(gray)
    assert len(numbers) == len(expected) > 300
    np.testing.assert_array_equal(numbers[:, :2], expected.xy)
    np.testing.assert_array_equal(numbers[:, 2], to_responses(expected.scores))
    np.testing.assert_array_equal(numbers[:, 3:], expected.descriptors)


@pytest.mark.slow
def test_unusual_images_give_keypoints_and_what_is_no_image_none_which_is_said_once(host):
    found, errors = host('detect-wrong')
    lines = [line.split(': ') for line in found.splitlines()]
    counts = {name: int(count) for name, count in lines}
    assert (len(lines), len(counts)) == (18, 9)
    assert counts['colour'] > 0 and counts['every third column'] > 0
    assert {name for name, count in counts.items() if count} == {'colour', 'every third column'}
    assert [line.split(':')[1] for line in errors.splitlines()] == [' no features'] * 7
    for words in ('at least 64', 'at most 16777216', 'got (1000,)', 'got float32', 'got NoneType', 'got str'):
        assert words in errors


@pytest.mark.slow
def test_rtabmap_gets_the_place_of_an_image(host, gray, tmp_path):
    file = tmp_path / 'image.raw'
    file.write_bytes(gray.tobytes())
    found, errors = host('extract', file, *gray.shape[::-1])
    extractor = Extractor('T-32', threads=1, max_keypoints=1000)
    expected = open_vocabulary(extractor.model).describe(extractor.extract(gray))
    np.testing.assert_allclose(np.array(found.split(), np.float32), expected, atol=1e-6)
    assert [line.split(':')[1] for line in errors.splitlines()] == [' no global descriptor'] * 3


@pytest.mark.slow
@pytest.mark.parametrize('model', ['T-32', 'E-64'])
def test_rtabmap_gets_the_mutual_nearest_neighbours(model, host):
    found, errors = host('match', 200, int(model[2:]), model=model)
    assert errors == ''
    assert np.array(found.split(), int).reshape(-1, 2).tolist() == [[i, 199 - i] for i in range(200)]


@pytest.mark.slow
def test_descriptors_that_cannot_be_matched_are_said_once(host):
    found, errors = host('match-wrong', 32)
    counts = [line.split(': ') for line in found.splitlines()]
    assert counts == [[name, '0'] for name in ('none', "another model's", 'of two sizes', 'not a number')] * 2
    assert errors.count('T-32 has descriptors of 32 numbers, got an array of (10, 16)') == 1
    assert errors.count('not finite') == 1


@pytest.mark.slow
@pytest.mark.parametrize('folder', ['plain', 'größer'])
def test_a_package_that_is_not_found_gives_no_features_and_says_why(folder, host, tmp_path):
    (tmp_path / folder / 'edgepoint2_ros').mkdir(parents=True)
    (tmp_path / folder / 'edgepoint2_ros' / '__init__.py').write_text('raise ImportError("no such package")')
    file = tmp_path / folder / FILE.name
    shutil.copy(FILE, file)
    file.write_text(f'import sys\nsys.path.insert(0, {str(tmp_path / folder)!r})\n' + file.read_text())
    code = f'import sys; sys.path.insert(0, {str(file.parent)!r}); import {file.stem}; print({file.stem}.match())'
    unread, stderr = os.pipe()
    os.close(unread)
    closed = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60)
    os.close(stderr)
    assert (closed.returncode, closed.stdout) == (0, '[]\n')
    found, errors = host('detect-wrong', file=file)
    assert {line.split(': ')[1] for line in found.splitlines()} == {'0'}
    assert 'ImportError: no such package' in errors
    assert 'prints the PYTHONPATH' in errors
