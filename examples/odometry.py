"""Visual odometry with EdgePoint2 beside the same odometry with ORB, measured with evo.

    pip install evo scikit-image
    python examples/odometry.py                            # rendered walks whose paths are known exactly
    python examples/odometry.py --sequence DIR [DIR ...]    # recorded sequences

DIR has the layout of one of three benchmarks:

    TUM RGB-D       rgb.txt (`stamp file` a line), the images, groundtruth.txt (`stamp tx ty tz qx qy qz qw` a line)
    KITTI odometry  calib.txt, image_0/ (or image_l/), poses.txt (12 numbers a line)
    7-Scenes        frame-000000.color.png (or .jpg) and frame-000000.pose.txt (4x4), and so on

Without --camera, that of TUM is freiburg1's, and that of 7-Scenes the one which its authors state. The trajectories are
aligned in position, rotation and scale, as one camera cannot know the scale.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # before numpy is loaded, as in the node

import cv2
import numpy as np
from evo.core import metrics, sync
from evo.core.trajectory import PoseTrajectory3D
from evo.tools import file_interface

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation.methods import OpenCVMethod
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import own_names, refuse_existing
from edgepoint2_ros.images import read_image
from edgepoint2_ros.odometry import Camera, VisualOdometry
from edgepoint2_ros.scenes import walk

FRAMES = 240  # of a walk
STEP = 10  # images between the two poses of a relative error


def extract_orb(count: int) -> Callable[[np.ndarray], Features]:
    """Return a function that finds ORB features, as rows of +-1/16: their cosine is 1 - Hamming distance / 128."""
    orb = OpenCVMethod('ORB', count)

    def extract(image: np.ndarray) -> Features:
        found = orb.extract(image)
        return replace(found, descriptors=np.unpackbits(found.descriptors, axis=1).astype(np.float32) / 8 - 1 / 16)

    return extract


def render(seed: int) -> tuple[list[tuple[float, np.ndarray]], PoseTrajectory3D, list[float]]:
    """Return the stamped images of a walk, its true trajectory, and fx, fy, cx, cy of its camera."""
    from skimage import data

    photographs = [data.astronaut(), data.coffee(), data.rocket(), data.brick(), data.chelsea(), data.camera()]
    scene = walk.Walk([photo[..., ::-1] if photo.ndim == 3 else photo for photo in photographs], seed)
    stamps = np.arange(FRAMES) / walk.FRAME_RATE
    truth = PoseTrajectory3D(poses_se3=[scene.pose(k) for k in range(FRAMES)], timestamps=stamps)
    return (
        [(stamp, scene.image(k)) for k, stamp in enumerate(stamps)],
        truth,
        [walk.MATRIX[k] for k in ((0, 0), (1, 1), (0, 2), (1, 2))],
    )


def trajectory(poses: list[np.ndarray], stamps: list[float]) -> PoseTrajectory3D:
    """Return the path through poses (4, 4) whose rotations, written with few digits, are made rotations again."""
    poses = np.array(poses)
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = u @ vt
    return PoseTrajectory3D(poses_se3=list(poses), timestamps=np.array(stamps))


def read_sequence(folder: Path) -> tuple[Iterator[tuple[float, np.ndarray]], PoseTrajectory3D, list[float]]:
    """Return the stamped images of a sequence, its true trajectory, and fx, fy, cx, cy of its camera."""
    if (folder / 'rgb.txt').exists():
        lines = [line.split() for line in (folder / 'rgb.txt').read_text().splitlines() if not line.startswith('#')]
        stamps, files = [float(stamp) for stamp, _ in lines], [folder / name for _, name in lines]
        truth = file_interface.read_tum_trajectory_file(folder / 'groundtruth.txt')
        camera = [517.3, 516.5, 318.6, 255.3]
    elif (folder / 'calib.txt').exists():
        files = sorted([*folder.glob('image_0/*'), *folder.glob('image_l/*')])
        stamps = [number / 10 for number in range(len(files))]
        poses = file_interface.read_kitti_poses_file(folder / 'poses.txt').poses_se3
        truth = trajectory(poses[: len(files)], stamps)
        first = (folder / 'calib.txt').read_text().splitlines()[0].removeprefix('P0:').split()
        camera = [float(first[k]) for k in (0, 5, 2, 6)]
    else:
        files = sorted(folder.glob('frame-*.color.*'))
        if not files:
            sys.exit(f'{folder}: expected rgb.txt, calib.txt or frame-*.color.*, found none')
        stamps = [number / 30 for number in range(len(files))]
        poses = [np.loadtxt(str(file).split('.color.')[0] + '.pose.txt') for file in files]
        truth = trajectory(poses, stamps)
        camera = [585, 585, 320, 240]
    grey = (cv2.cvtColor(read_image(file), cv2.COLOR_BGR2GRAY) for file in files)
    return zip(stamps, grey), truth, camera


def align(truth: PoseTrajectory3D, path: PoseTrajectory3D) -> tuple[PoseTrajectory3D, PoseTrajectory3D, float]:
    """Return both paths where both have a pose, the second aligned with the true one, and its ATE (rmse), metres."""
    truth, path = sync.associate_trajectories(truth, path, max_diff=0.02)
    path.align(truth, correct_scale=True)
    error = metrics.APE(metrics.PoseRelation.translation_part)
    error.process_data((truth, path))
    return truth, path, error.get_statistic(metrics.StatisticsType.rmse)


def measure(
    features: list[tuple[float, Features]], truth: PoseTrajectory3D, odometry: VisualOdometry
) -> tuple[str, PoseTrajectory3D | None]:
    """Follow the camera and return the figures as a line of a table, and the path, aligned with the true one."""
    poses, stamps, times = [], [], []
    first = None
    for number, (stamp, found) in enumerate(features):
        begin = time.perf_counter()
        pose = odometry.track(found)
        times.append(time.perf_counter() - begin)
        if pose is not None:
            first = number if first is None else first
            poses.append(pose)
            stamps.append(stamp)
    if not poses:
        return 'never started', None
    followed = len(poses) / (len(features) - first)
    truth, estimate, error = align(truth, PoseTrajectory3D(poses_se3=poses, timestamps=np.array(stamps)))
    relative = []
    for relation in (metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg):
        metric = metrics.RPE(relation, delta=STEP, delta_unit=metrics.Unit.frames, all_pairs=True)
        metric.process_data((truth, estimate))
        relative.append(metric.get_statistic(metrics.StatisticsType.rmse))
    line = (
        f'{followed:7.1%} followed   {odometry.starts} start   ATE {error * 1e3:6.1f} mm of '
        f'{truth.path_length:.2f} m   RPE {relative[0] * 1e3:6.1f} mm {relative[1]:5.2f} deg in {STEP} images   '
        f'{np.median(times) * 1e3:4.1f} ms'
    )
    return line, estimate


def draw(paths: dict[str, dict[str, PoseTrajectory3D]], file: Path) -> None:
    """Draw the paths of each sequence, seen along the axis in which the true one extends least."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(paths), 4.5), layout='constrained')
    for axes, (sequence, found) in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths.items()):
        across, along = np.sort(np.argsort(np.ptp(found['true path'].positions_xyz, axis=0))[1:])
        for name, path in found.items():
            style = {'color': 'black', 'linestyle': ':'} if name == 'true path' else {}
            axes.plot(path.positions_xyz[:, across], path.positions_xyz[:, along], label=name, **style)
        axes.set(title=sequence, xlabel='m', ylabel='m', aspect='equal', adjustable='datalim')
        axes.legend()
    figure.savefig(file, dpi=100)


def main() -> int:
    """Print a line for each sequence and kind of features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='T-32')
    parser.add_argument('--max-keypoints', type=int, default=1000, help='of both (default: %(default)s)')
    parser.add_argument('--walks', type=int, default=3, help='rendered walks (default: %(default)s)')
    parser.add_argument('--sequence', type=Path, nargs='+', metavar='DIR', help='recorded sequences')
    parser.add_argument('--camera', help='FX,FY,CX,CY of a recorded sequence')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw the paths (.png, .svg, .pdf)')
    parser.add_argument('--distortion', default='0,0,0,0', help='k1,k2,p1,p2,... (default: none)')
    options = parser.parse_args()
    try:
        refuse_existing(filter(None, [options.plot]))
        extractor = Extractor(options.model, max_keypoints=options.max_keypoints)
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1
    # ORB's descriptors of one place differ by up to about 50 of 256 bits: a cosine of 0.6.
    contenders = {
        options.model: (extractor.extract, {}),
        'ORB': (extract_orb(options.max_keypoints), {'min_cosine': 0.6}),
    }
    sequences = own_names(options.sequence or ())
    loads = {name: lambda folder=folder: read_sequence(folder) for folder, name in sequences.items()}
    loads = loads or {f'walk {seed}': lambda seed=seed: render(seed) for seed in range(options.walks)}
    paths = {}
    for name, load in loads.items():
        images, truth, numbers = load()
        images = list(images)
        fx, fy, cx, cy = [float(number) for number in options.camera.split(',')] if options.camera else numbers
        distortion = np.array([float(number) for number in options.distortion.split(',')])
        camera = Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), distortion)
        paths[name] = {'true path': truth}
        for contender, (extract, matching) in contenders.items():
            features = [(stamp, extract(image)) for stamp, image in images]
            line, path = measure(features, truth, VisualOdometry(camera, **matching))
            print(f'{name:16} {contender:5} {line}', flush=True)
            if path is not None:
                paths[name][contender] = path
    if options.plot:
        draw(paths, options.plot)
    return 0


if __name__ == '__main__':
    sys.exit(main())
