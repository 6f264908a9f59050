"""Print the environment and parameters with which RTAB-Map uses EdgePoint2, ready to paste.

RTAB-Map must be built with -DWITH_PYTHON=ON, for the Python that runs this command.
"""

import argparse
import os
import shlex
import site
import sys
from importlib.util import find_spec
from pathlib import Path

import edgepoint2_ros
from edgepoint2_ros.bridges.rtabmap_plugin import DEFAULTS, PREFIX
from edgepoint2_ros.cli.arguments import add_extractor_arguments
from edgepoint2_ros.engines import BACKENDS
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import Extractor, ExtractorSettings
from edgepoint2_ros.models import WEIGHTS
from edgepoint2_ros.places import open_vocabulary

PLUGIN = 'edgepoint2_rtabmap.py'
# What RTAB-Map imports with the plugin, if installed; a backend is named after its runtime's package.
PACKAGES = ('edgepoint2_ros', 'numpy', 'cv2', *BACKENDS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``edgepoint2 rtabmap``."""
    add_extractor_arguments(parser, DEFAULTS.max_keypoints)
    parser.add_argument(
        '--places', action='store_true', help='close loops by global descriptor instead of bag of words'
    )


def run(options: argparse.Namespace) -> int:
    """Print the environment and the parameters and return the exit code.

    Raises:
        EdgePoint2Error: the extractor cannot be opened with these settings, the plugin is not
            installed, or the model has no vocabulary of places.
    """
    settings = ExtractorSettings.of(options)
    extractor = Extractor(settings)  # better to fail here than in RTAB-Map
    size = open_vocabulary(extractor.model).size if options.places else 0
    parameters = to_parameters(find_plugin(), size)
    arguments = ' '.join(f'--{name} {shlex.quote(value)}' for name, value in parameters.items())
    quoted = arguments.replace('\\', r'\\').replace('"', r'\"').replace('$', r'\$').replace('`', r'\`')
    print(f'# {extractor.description}')
    print(f'# RTAB-Map must be built with -DWITH_PYTHON=ON and Python {sys.version_info[0]}.{sys.version_info[1]}.')
    print('\n# Environment\n' + '\n'.join(f'export {line}' for line in to_environment(settings)))
    print(f'\n# Arguments of rtabmap and its tools\n{arguments}')
    print(f'\n# With ROS 2\nros2 launch rtabmap_launch rtabmap.launch.py args:="{quoted}"')
    print('\n# rtabmap.ini\n[Core]')
    for name, value in parameters.items():
        print('{} = {}'.format(name.replace('/', '\\'), value))
    return 0


def to_parameters(plugin: Path, size: int) -> dict[str, str]:
    """Return RTAB-Map's parameters by name: our detector for odometry and map, our matcher, global descriptor.

    Args:
        plugin: the file that it loads.
        size: of a global descriptor; 0 leaves it out.
    """
    path = str(plugin)
    features = {
        'Vis/FeatureType': '15',
        'Kp/DetectorStrategy': '15',
        'PyDetector/Path': path,
        'Vis/CorNNType': '6',
        'PyMatcher/Path': path,
    }
    places = {
        'Mem/GlobalDescriptorStrategy': '1',
        'Kp/TfIdfLikelihoodUsed': 'false',
        'PyDescriptor/Path': path,
        'PyDescriptor/Dim': str(size),
    }
    return {**features, **places} if size else features


def to_environment(settings: ExtractorSettings) -> list[str]:
    """Return NAME=VALUE, quoted for a shell, for the search path and the settings of RTAB-Map's Python."""
    lines = []
    folders = search_path()
    if folders:
        lines.append(f'PYTHONPATH={shlex.quote(os.pathsep.join(folders))}${{PYTHONPATH:+:$PYTHONPATH}}')
    for name, value in vars(settings).items():
        if name == 'weights' and value not in WEIGHTS:
            value = os.path.abspath(os.path.expanduser(value))  # RTAB-Map runs elsewhere
        if value != getattr(DEFAULTS, name):
            lines.append(f'{PREFIX}{name.upper()}={shlex.quote(str(value))}')
    return lines


def search_path() -> list[str]:
    """Return the folders of packages that a bare interpreter, as in RTAB-Map, would not search."""
    known = site.getsitepackages([sys.base_prefix])
    if sys.prefix == sys.base_prefix:
        known.append(site.getusersitepackages())
    found = []
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            found.append(str(folder.parent if spec.submodule_search_locations else folder))
    return [folder for folder in dict.fromkeys(found) if folder not in known]


def find_plugin() -> Path:
    """Return the file that RTAB-Map loads: beside the package in a checkout, else in share/ of the installation.

    Raises:
        EdgePoint2Error: there is none.
    """
    package = Path(os.path.abspath(edgepoint2_ros.__file__)).parent
    for parent in package.parents:
        for folder in (parent / 'share' / 'edgepoint2_ros' / 'rtabmap', parent / 'rtabmap'):
            if (folder / PLUGIN).is_file():
                return folder / PLUGIN
    raise EdgePoint2Error(f'{PLUGIN} is in no share/edgepoint2_ros/rtabmap above {package}: install the package again')
