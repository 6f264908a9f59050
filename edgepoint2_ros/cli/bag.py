"""Extract bags of keypoints from bags of images, inspect bags, and export keypoints to COLMAP and hloc; without ROS."""

import argparse
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from edgepoint2_ros.bridges.bag_contents import describe, read_frames
from edgepoint2_ros.bridges.bag_images import find_image_topic, name_frames, remarks, write_images
from edgepoint2_ros.bridges.bag_output import STORAGES, Progress
from edgepoint2_ros.bridges.bags import PART, Job, extract
from edgepoint2_ros.cli.arguments import add_extractor_arguments, check_minimum
from edgepoint2_ros.errors import EdgePoint2Error, in_words
from edgepoint2_ros.extractor import ExtractorSettings
from edgepoint2_ros.files import make_folder, own_names, refuse_unwritable
from edgepoint2_ros.messages import ENCODINGS
from edgepoint2_ros.progress import show_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``edgepoint2 bag``."""
    actions = parser.add_subparsers(title='actions', required=True, metavar='ACTION')

    extracting = actions.add_parser(
        'extract', help='extract bags of keypoints from bags of images; resumes after an interruption'
    )
    add = extracting.add_argument
    add('bags', nargs='+', type=Path, metavar='BAG', help='rosbag2 folder, .mcap, .db3 or .bag')
    add('output', type=Path, metavar='OUT', help='output bag; for several bags, the folder of the output bags')
    add('--topic', action='append', default=[], help='image topic (default: the only one); may be repeated')
    add(
        '--keypoints-topic',
        action='append',
        default=[],
        metavar='TOPIC',
        help='output topic for each --topic (default: its sibling keypoints)',
    )
    add('--keep', action='append', default=[], metavar='TOPIC', help="topic to copy to the output; '*' for all")
    add_extractor_arguments(extracting)
    add('--encoding', choices=ENCODINGS, default='float32', help='descriptor encoding (default: %(default)s)')
    add('--storage', choices=STORAGES, default='mcap', help='storage plugin (default: %(default)s)')
    add('--part', type=int, default=PART, help='images per file of the output bag (%(default)s)')
    add('--jobs', type=int, default=1, help='bags to process in parallel (%(default)s)')
    add('--dask', metavar='ADDRESS', help='run on the workers of this Dask scheduler instead')
    extracting.set_defaults(run_action=_extract)

    info = actions.add_parser('info', help='show the topics of bags and the model of their keypoints')
    info.add_argument('bags', nargs='+', type=Path, metavar='BAG')
    info.set_defaults(run_action=_info)

    export = actions.add_parser(
        'export', help='export keypoints as a COLMAP database (.db) or in the HDF5 layout of hloc (.h5)'
    )
    add = export.add_argument
    add('bag', type=Path, metavar='BAG')
    add('output', type=Path, metavar='OUT', help='output file, .db or .h5')
    add('--topic', action='append', default=[], help='keypoint topic (default: the only one)')
    add('--every', type=int, default=1, metavar='N', help='take every Nth image (%(default)s)')
    add('--window', type=int, default=10, metavar='N', help='match each image with the next N (%(default)s; .db)')
    add('--focal', type=float, help='focal length in pixels (default: 1.2 x the long side; .db)')
    add('--images', type=Path, metavar='DIR', help='also write the images to this folder')
    add('--source', type=Path, metavar='BAG', help='bag that holds the images (default: the bag itself)')
    add('--image-topic', default='', metavar='TOPIC', help='image topic (default: the one that was extracted)')
    export.set_defaults(run_action=_export)


def run(options: argparse.Namespace) -> int:
    """Run the action and return the exit code.

    Raises:
        EdgePoint2Error: bad arguments, or the only bag cannot be read or written.
    """
    return options.run_action(options)


def _extract(options: argparse.Namespace) -> int:
    check_minimum(options, part=1, jobs=1)
    jobs = [_job(options, source, output) for source, output in _outputs(options.bags, options.output).items()]
    if len(jobs) == 1 and not options.dask:
        return _report(jobs[0], extract_with_progress(jobs[0]))
    failed = 0
    with _executor(options) as executor:
        running = {executor.submit(extract_quietly, job): job for job in jobs}
        for future in show_progress(as_completed(running), 'bags', len(jobs)):
            job = running[future]
            try:
                progress, warnings = future.result()
                print(*warnings, sep='\n', end='\n' * bool(warnings), file=sys.stderr)
                failed += _report(job, progress)
            except Exception as error:  # whatever happens to one bag, the others are extracted
                failed += 1
                print(f'edgepoint2: {job.source}: {in_words(error)}', file=sys.stderr)
    return 1 if failed else 0


def _job(options: argparse.Namespace, source: Path, output: Path) -> Job:
    # Bags extracted in parallel share the cores.
    threads = options.threads or (max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else 0)
    return Job(
        source,
        output,
        tuple(options.topic),
        tuple(options.keypoints_topic),
        tuple(options.keep),
        replace(ExtractorSettings.of(options), threads=threads),
        options.encoding,
        options.storage,
        options.part,
    )


def _outputs(bags: list[Path], output: Path) -> dict[Path, Path]:
    if len(bags) == 1:
        return {bags[0]: output}
    return {bag: output / name for bag, name in own_names(bags).items()}


@contextmanager
def _executor(options: argparse.Namespace) -> Iterator[Executor]:
    if options.dask:
        try:
            from distributed import Client
        except ImportError:
            raise EdgePoint2Error('--dask needs the package distributed: pip install "edgepoint2_ros[fleet]"') from None
        try:
            client = Client(options.dask, timeout=10)
        except OSError as error:
            raise EdgePoint2Error(f'no Dask scheduler answers at {options.dask}: {error}') from None
        with client, client.get_executor(pure=False) as executor:
            yield executor
    else:
        # Forking would copy the threads of the runtimes in an unknown state.
        context = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(options.jobs, mp_context=context) as executor:
            yield executor


def extract_with_progress(job: Job) -> Progress:
    """Extract one bag while a line on stderr shows the progress."""
    steps = extract(job, _warn)
    progress = next(steps)  # one object, which the steps update
    done = progress.images
    if done and not progress.complete:
        print(f'{job.output}: resumes after image {done}', file=sys.stderr)
    for _ in show_progress(steps, 'images', progress.total, done):
        pass
    return progress


def extract_quietly(job: Job) -> tuple[Progress, list[str]]:
    """Extract one bag; return the final progress and the warnings. Runs in a separate process or on another machine."""
    warnings: list[str] = []
    *_, progress = extract(job, warnings.append)
    return progress, warnings


def _report(job: Job, progress: Progress) -> int:
    """Print the outcome of a bag; return 1 if it has images and none could be used, else 0."""
    bad = f', {progress.bad} of them left out' if progress.bad else ''
    print(f'{job.output}: {progress.images} images{bad}')
    return int(0 < progress.images == progress.bad)


def _info(options: argparse.Namespace) -> int:
    for bag in options.bags:
        for line in describe(bag):
            print(line)
    return 0


def _export(options: argparse.Namespace) -> int:
    from edgepoint2_ros.bridges.colmap import sequential_pairs, write_colmap, write_hloc

    if options.output.suffix not in ('.db', '.h5'):
        raise EdgePoint2Error(f'{options.output}: expected a name that ends in .db (COLMAP) or .h5 (hloc)')
    check_minimum(options, every=1, window=1)
    if options.focal is not None and not 0 < options.focal < math.inf:
        raise EdgePoint2Error(f'--focal: expected a length in pixels, more than 0, got {options.focal}')
    if len(options.topic) > 1:
        raise EdgePoint2Error(f'--topic: expected one at a time, got {" and ".join(options.topic)}')
    # What is missing or cannot be written is told before anything is.
    import_module('h5py' if options.output.suffix == '.h5' else 'pycolmap')
    make_folder(options.output.parent)
    refuse_unwritable([options.output])
    topic = ''.join(options.topic)
    source = options.source or options.bag
    image_topic = find_image_topic(source, options.image_topic, options.bag, topic) if options.images else ''
    named = name_frames(read_frames(options.bag, topic, _warn))
    frames = [frame for number, frame in enumerate(named) if number % options.every == 0]
    for remark in remarks(frames):
        _warn(remark)
    missing = len(frames) - write_images(frames, source, image_topic, options.images, _warn) if options.images else 0
    images = {frame.name: frame.features for frame in frames}
    if options.output.suffix == '.h5':
        write_hloc(options.output, images)
        print(f'{options.output}: features of {len(images)} images')
    else:
        pairs = sequential_pairs(list(images), options.window)
        matched = write_colmap(options.output, images, show_progress(pairs, 'pairs', len(pairs)), options.focal)
        print(f'{options.output}: {len(images)} images, {matched} of {len(pairs)} pairs match')
    if missing:
        raise EdgePoint2Error(f'{missing} of {len(images)} images are not in {source}, or not to be read there')
    return 0


def _warn(text: str) -> None:
    print(f'edgepoint2: {text}', file=sys.stderr)
