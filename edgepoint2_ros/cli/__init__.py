"""The command `edgepoint2`: extraction, models, evaluation, training, demo and benchmark without writing code.

Each command imports what it needs when it is called: extraction starts without torch, and only the demo needs ROS.
"""

import argparse
import io
import os
import platform
import sys
from importlib import import_module

from edgepoint2_ros import __version__
from edgepoint2_ros.errors import EdgePoint2Error

# The module of each command offers add_arguments(parser) and run(options) -> exit code.
_COMMANDS = {
    'extract': ('edgepoint2_ros.cli.extract', 'extract features from image files'),
    'models': ('edgepoint2_ros.cli.models', 'list, import, download and calibrate models'),
    'bag': ('edgepoint2_ros.cli.bag', 'extract keypoints from bags, and export them to COLMAP and hloc'),
    'map': ('edgepoint2_ros.cli.map', 'reconstruct cameras and points from photographs, a video or a bag'),
    'build-engine': ('edgepoint2_ros.cli.build_engine', 'build TensorRT plans ahead of time'),
    'doctor': ('edgepoint2_ros.cli.doctor', 'show what is installed, what is missing, and whether it works'),
    'evaluate': ('edgepoint2_ros.cli.evaluate', 'compare the accuracy of models with ORB and SIFT, with a report'),
    'match': ('edgepoint2_ros.cli.match', 'match two images and draw the matches'),
    'rtabmap': ('edgepoint2_ros.cli.rtabmap', 'print the environment and parameters for EdgePoint2 in RTAB-Map'),
    'train': ('edgepoint2_ros.cli.train', 'train a variant on your own images'),
    'demo': ('edgepoint2_ros.cli.demo', 'run camera, extractor and consumer as three processes over DDS'),
    'bench': ('edgepoint2_ros.cli.bench', 'time the models against ORB, SIFT and the dense reference'),
}


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 for an error, which is printed in one line."""
    args = sys.argv[1:] if args is None else args
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # for file names that it cannot encode
    try:
        options = _parser(args[0] if args else '').parse_args(args)
        return options.run(options)
    except BrokenPipeError:  # the reader, say `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ImportError as error:
        print(f'edgepoint2: `edgepoint2 {args[0]}` lacks a package: {error}{_advice(error)}', file=sys.stderr)
        return 1
    except (EdgePoint2Error, OSError) as error:  # OSError: say a folder that cannot be written, a full disk
        print(f'edgepoint2: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _advice(error: ImportError) -> str:
    """Say how to get a missing package if that is not obvious from its name."""
    if error.name != 'pycolmap':
        return ''
    if platform.machine() in ('x86_64', 'AMD64'):
        return ': pip install pycolmap'
    return f': there are no wheels of it for Linux on {platform.machine()}; run this on x86-64, or build it with COLMAP'


def _parser(called: str) -> argparse.ArgumentParser:
    """Return the parser; only the called command is imported and has its arguments."""
    parser = argparse.ArgumentParser(prog='edgepoint2', description='EdgePoint2 keypoints and compact descriptors')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')

    for name, (path, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == called:
            module = import_module(path)
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
