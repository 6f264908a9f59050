"""Run camera, extractor and consumer as three processes over DDS, or with `--no-ros` in a single one without ROS."""

import argparse
import math
import os
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from edgepoint2_ros.cli.arguments import add_extractor_arguments
from edgepoint2_ros.demo import alone
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.extractor import DEFAULTS, ExtractorSettings
from edgepoint2_ros.files import make_folder, refuse_unwritable
from edgepoint2_ros.messages import ENCODINGS
from edgepoint2_ros.models.official import provide_model
from edgepoint2_ros.models.variants import find_variant
from edgepoint2_ros.scenes.sources import open_source

PICTURE = 'demo_matches.png'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `edgepoint2 demo`."""
    add = parser.add_argument
    add_extractor_arguments(parser, max_keypoints=1000)
    add('--encoding', choices=ENCODINGS, default='int8', help="of the messages' descriptors (default: %(default)s)")
    add('--source', help='folder of images or video file (default: a virtual flight over photographs)')
    add('--no-ros', action='store_true', help='run in a single process, without ROS')
    add('--seconds', type=float, default=10.0, help='duration (default: %(default)s)')
    add('--picture', type=Path, help=f'picture of matches to write (default: {PICTURE}, overwritten)')


def run(options: argparse.Namespace) -> int:
    """Run the demo and return its exit code."""
    if not options.no_ros and (find_spec('rclpy') is None or find_spec('edgepoint2_ros.msg') is None):
        raise EdgePoint2Error(
            'the demo needs ROS 2 and the built messages: `make demo` sets both up; --no-ros does without them'
        )
    if not 0 < options.seconds < math.inf:
        raise EdgePoint2Error(f'--seconds: expected more than 0, got {options.seconds}')
    if options.picture:
        refuse_unwritable([options.picture])
    else:
        make_folder(Path(PICTURE).parent)
    open_source(options.source)  # says what is wrong with it before anything starts
    if options.weights == DEFAULTS.weights:
        provide_model(find_variant(options.model))
    if options.no_ros:
        alone.run(ExtractorSettings.of(options), options.source, options.seconds, options.picture or Path(PICTURE))
        return 0
    start = str(time.time_ns())
    source = ['--source', options.source] if options.source else []
    parameters = {**vars(ExtractorSettings.of(options)), 'descriptor_encoding': options.encoding}
    settings = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
    environment = _environment()
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for module, arguments in (
            (
                'demo.consumer',
                [
                    '--start',
                    start,
                    '--seconds',
                    str(options.seconds),
                    '--picture',
                    str(options.picture or PICTURE),
                    *source,
                ],
            ),
            ('node', ['--ros-args', *settings]),
            ('demo.camera', ['--start', start, *source]),
        ):
            command = [sys.executable, '-m', f'edgepoint2_ros.{module}', *arguments]
            # In their own sessions: Ctrl-C reaches only this process, which ends them in its own time.
            processes[module] = subprocess.Popen(command, env=environment, start_new_session=True)
        consumer = processes['demo.consumer']
        while consumer.poll() is None:
            for module, process in processes.items():
                if process is not consumer and process.poll() is not None:
                    raise EdgePoint2Error(
                        f'a process ended early with code {process.returncode}: edgepoint2_ros.{module}'
                    )
            time.sleep(0.1)
        return consumer.returncode
    except KeyboardInterrupt:
        return 0
    finally:
        _end(list(processes.values()))


def _environment() -> dict[str, str]:
    """Return an environment in which the demo communicates only with itself."""
    isolation = {'ROS_DOMAIN_ID': str(random.randint(1, 101)), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    if os.environ.get('ROS_DISTRO') == 'humble':  # newer ones warn about it
        isolation['ROS_LOCALHOST_ONLY'] = '1'
    return {**os.environ, **isolation}


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
