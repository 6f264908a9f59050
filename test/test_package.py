"""The package as others meet it: its metadata, its layers, and its installation by colcon and by pip."""

import ast
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import edgepoint2_ros

ROOT = Path(__file__).parents[1]
ROS_IMPORT = re.compile(r'^ *(?:from|import) (rclpy|launch\w*|\w+_msgs|\w+_interfaces)\b', re.MULTILINE)
REQUIREMENTS = sorted((ROOT / 'requirements').glob('*.txt'))


def run(command: list, **options) -> str:
    """Run a command and return what it printed; a failure shows it."""
    result = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of the sources without anything that was built, in a folder of its own."""
    ignored = shutil.ignore_patterns('.*', 'build', 'install', 'log', '__pycache__', '*.egg-info')
    return shutil.copytree(ROOT, tmp_path_factory.mktemp('src') / 'edgepoint2_ros', ignore=ignored)


def test_all_versions_agree():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    newest = re.search(r'^(\d+\.\d+\.\d+)( \(.*\))?\n-+$', (ROOT / 'CHANGELOG.rst').read_text(), re.MULTILINE)
    assert package.findtext('version') == newest[1] == edgepoint2_ros.__version__


def test_ros_picks_cmake_and_finds_the_messages():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    assert package.findtext('export/build_type') == 'ament_cmake'
    assert package.findtext('member_of_group') == 'rosidl_interface_packages'


def test_every_ros_package_that_is_imported_is_a_dependency():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    dependencies = {element.text for element in package if element.tag.endswith('depend')}
    imported = set()
    for folder in ('edgepoint2_ros', 'launch'):
        for path in (ROOT / folder).rglob('*.py'):
            imported |= set(
                re.findall(r'^ *(?:from|import) (rclpy|launch\w*|\w+_msgs|\w+_interfaces)\b', path.read_text(), re.M)
            )
    assert imported - dependencies == set()


@pytest.mark.parametrize('path', REQUIREMENTS, ids=lambda path: path.name)
def test_every_requirement_is_pinned(path):
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith(('#', '-r '))]
    assert all(re.match(r'[\w.-]+==[\w.]+(;|$)', line) for line in lines), lines


def test_tests_reach_no_private_members():
    def private(name: str) -> bool:
        return name.startswith('_') and not name.startswith('__') and name[1:].isidentifier()

    reached = []
    for path in (ROOT / 'test').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ('self', 'cls'):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom):
                names = [*node.module.split('.'), *(alias.name for alias in node.names)]
            elif isinstance(node, (ast.Call, ast.Tuple)):  # setattr(module, '_name', ...), or as a parameter of a test
                parts = node.args if isinstance(node, ast.Call) else node.elts
                names = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
            found = [name for name in names if private(name) and name != '_replace']  # that of a named tuple is public
            reached += [f'{path.name}:{node.lineno}: {name}' for name in found]
    assert reached == []


def test_what_runs_models_needs_neither_ros_nor_torch():
    code = 'import sys, edgepoint2_ros.messages, edgepoint2_ros.tracking\n'
    code += 'from edgepoint2_ros import Extractor, Features, match, match_pair\n'
    code += 'print({"rclpy", "torch", "onnx", "edgepoint2_ros.msg"} & set(sys.modules))'
    assert run([sys.executable, '-c', code], cwd=ROOT) == 'set()\n'


@pytest.mark.slow
@pytest.mark.parametrize('options', [[], ['--symlink-install']], ids=['plain', 'linked'])
def test_colcon_builds_it(options, source, tmp_path):
    pytest.importorskip('colcon_core', reason='colcon is not installed')
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    environment = dict(os.environ)
    if not environment.get('AMENT_PREFIX_PATH'):  # a ROS 2 from pip
        environment['CMAKE_PREFIX_PATH'] = sys.prefix
    colcon = [sys.executable, '-m', 'colcon', 'build', '--base-paths', source, *options]
    run([*colcon, '--cmake-args', f'-DPython3_EXECUTABLE={sys.executable}'], cwd=tmp_path, env=environment)

    prefix = tmp_path / 'install' / 'edgepoint2_ros'
    for name in ('launch/extractor.launch.py', 'config/extractor.yaml', 'msg/KeypointArray.msg'):
        assert (prefix / 'share' / 'edgepoint2_ros' / name).is_file()
    assert (prefix / 'include').is_dir()

    def installed(command: str) -> str:
        """Run a shell command in the environment of the installation, far from the checkout."""
        return run(['sh', '-c', f'. {prefix.parent}/local_setup.sh && {command}'], cwd='/', env=environment)

    where = installed(f'{sys.executable} -c "import edgepoint2_ros.msg; print(edgepoint2_ros.msg.__file__)"')
    assert where.strip().startswith(str(prefix))
    node = f'{prefix}/lib/edgepoint2_ros/extractor --ros-args -p model:=T-64'
    assert "unknown model 'T-64'" in installed(f'! {node}')  # it comes as far as looking for the model
    assert 'models' in installed('edgepoint2 --help')


@pytest.mark.slow
def test_pip_installs_the_library_and_the_command_without_ros(source, tmp_path):
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--no-index']
    run([*pip, '--target', tmp_path, source])
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    where = run([sys.executable, '-c', 'import edgepoint2_ros as e; print(e.__file__)'], cwd='/', env=environment)
    assert where.strip().startswith(str(tmp_path))
    assert 'models' in run([tmp_path / 'bin' / 'edgepoint2', '--help'], cwd='/', env=environment)
