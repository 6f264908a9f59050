"""Train variants of one size on your own images by distillation from a larger network."""

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before torch is loaded: how long an OpenMP thread spins while waiting for the others. The default, 150 times as long,
# is a tenth faster alone, but beside one busy process it cut 6.4 steps per second to 0.2; this cuts 5.8 to 2.9.
os.environ.setdefault('GOMP_SPINCOUNT', '2000')

import cv2
import torch

from edgepoint2_ros.cli.arguments import check_minimum
from edgepoint2_ros.distillation.aliked import Aliked
from edgepoint2_ros.distillation.matches import MatchedPhotos, load_matched_photos
from edgepoint2_ros.distillation.photos import Photos, load_photos
from edgepoint2_ros.distillation.student import Student
from edgepoint2_ros.distillation.teacher import TeacherNetwork, name_networks
from edgepoint2_ros.distillation.train import CHECKPOINT, RECIPES, Schedule, TrainingError, train
from edgepoint2_ros.files import make_folder, refuse_existing
from edgepoint2_ros.image_files import find_images
from edgepoint2_ros.models import card_path, find_model, is_shipped
from edgepoint2_ros.models.official import find_weights
from edgepoint2_ros.models.variants import find_variant
from edgepoint2_ros.network import EdgePoint2
from edgepoint2_ros.network.export import export_model
from edgepoint2_ros.network.weights import load_network, restore_network
from edgepoint2_ros.progress import show_progress
from edgepoint2_ros.storage import cache_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``edgepoint2 train``."""
    add = parser.add_argument
    add('variants', nargs='+', metavar='VARIANT', help='variants of one size, trained jointly: T-32 T-48')
    add('--images', nargs='+', type=Path, required=True, metavar='DIR', help='training images')
    add(
        '--matches',
        nargs=2,
        type=Path,
        metavar=('DATABASE', 'DIR'),
        help='a COLMAP database and the folder of its images: every second pair is of two images with verified matches',
    )
    add(
        '--teacher',
        nargs='+',
        default=['E-64'],
        metavar='WEIGHTS',
        help='weights of a larger variant: a name (E-64, E-64@official) or a .pth file. Of several, the first teaches '
        'keypoints, all of them descriptors; others may be ALIKED: E-64 aliked-n16 (default: E-64)',
    )
    add(
        '--start',
        metavar='WEIGHTS',
        help='initial weights, of this size: a name (T-32, T-32@official) or a .pth file (default: random)',
    )
    add('--output', type=Path, required=True, metavar='DIR', help='output folder: checkpoint, log, weights, models')
    add(
        '--recipe',
        choices=RECIPES,
        default=RECIPES[0],
        help='losses: scenes for real scenes, paper for those of the paper, blocks to learn one by one the blocks of a '
        'teacher of the same variant (default: %(default)s)',
    )
    add('--steps', type=int, default=12000, help='optimiser steps (default: %(default)s)')
    add('--pairs', type=int, default=2, help='image pairs per step (default: %(default)s)')
    add(
        '--layouts',
        type=int,
        default=0,
        metavar='N',
        help='make N different pairs and show each repeatedly under new light, so that the teacher, the slowest part '
        'for a small student, sees each only once; 3.4 MB of disk each (default: every pair is new)',
    )
    add('--learning-rate', type=float, help='peak of the schedule (default: 3e-3, with --start 1e-3)')
    add('--seed', type=int, default=0, help='random seed (default: %(default)s)')
    add('--device', choices=('cpu', 'cuda'), default='cpu', help='(default: %(default)s)')
    add('--threads', type=int, default=0, help='CPU threads, 0 uses every core (default: %(default)s)')
    add('--workers', type=int, default=0, help='data loader processes (default: %(default)s)')
    add('--checkpoint-every', type=int, default=250, metavar='STEPS', help='checkpoint interval (default: %(default)s)')
    add('--cache', type=Path, metavar='DIR', help='folder for decoded images (default: in the user cache)')
    add('--data-note', default='', metavar='TEXT', help='sources and licences of the images, for the model card')


def run(options: argparse.Namespace) -> int:
    """Train, or resume a killed run of the same command, and write weights and models.

    Raises:
        EdgePoint2Error: options out of range, unusable images or weights, a training that cannot continue, or models in
            the output folder that are not from a training there.
    """
    rate = options.learning_rate or (1e-3 if options.start else 3e-3)
    schedule = _schedule(options, rate)
    variants = [find_variant(name) for name in options.variants]
    if len(set(variants)) != len(variants):
        raise TrainingError(f'each variant is trained once, got {" ".join(options.variants)}')
    if options.device == 'cuda' and not torch.cuda.is_available():
        raise TrainingError('--device cuda: torch sees no CUDA device here')
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)

    if not (options.output / CHECKPOINT).exists():
        outputs = [options.output / f'{variant}.{end}' for variant in variants for end in ('pth', 'onnx')]
        refuse_existing([*outputs, *map(card_path, outputs[1::2])])
    make_folder(options.output)

    torch.manual_seed(options.seed)  # decides the random weights
    student = Student(variants)
    start = _load(options.start, trainable=True) if options.start else None
    if start:
        student.start_from(start)
    teachers = [load_teacher(name) for name in options.teacher]
    paths = find_images(options.images)
    cache = options.cache or cache_directory() / 'training'
    matched = None
    if options.matches:
        database, folder = options.matches
        matched = load_matched_photos(database, folder, cache, lambda items: show_progress(items, 'matched image'))
    photos = load_photos(paths, cache, lambda items: show_progress(items, 'image', len(paths)))
    teaching = ', '.join(str(teacher.variant) for teacher in teachers)
    pairs = f' and {len(matched.pairs)} matched pairs of {len(matched.photos)} others' if matched else ''
    print(
        f'{" ".join(map(str, variants))} learn from {teaching} on {len(photos)} of {len(paths)} images{pairs}, '
        f'{schedule.steps} steps of {schedule.pairs} pairs on {options.device}'
    )
    train(
        student,
        teachers,
        photos,
        schedule,
        options.output,
        options.device,
        options.workers,
        options.checkpoint_every,
        lambda steps, done: show_progress(steps, 'step', schedule.steps, done),
        matched,
    )
    for variant in variants:
        network = student.extract(variant)
        torch.save(network.state_dict(), options.output / f'{variant}.pth')
        model = export_model(
            network, options.output / f'{variant}.onnx', card=_card(options, schedule, start, teachers, photos, matched)
        )
        print(f'{variant}: {model}')
    return 0


def load_teacher(name: str) -> TeacherNetwork:
    """Return a network as ``--teacher`` names it.

    Raises:
        EdgePoint2Error: there are no such weights, or what ALIKED needs is not installed.
    """
    return Aliked(name) if name.startswith('aliked-') else _load(name)


def _load(weights: str, trainable: bool = False) -> EdgePoint2:
    """Return the network of a weights file, or of a variant's weights: T-32, T-32@official, T-32@folder."""
    path = Path(weights)
    if path.suffix in ('.pth', '.pt') or path.exists():
        return load_network(path)
    name, _, source = weights.partition('@')
    variant = find_variant(name)
    source = source or ('shipped' if is_shipped(variant) else 'official')
    official = find_weights(variant) if source == 'official' else None
    if official is not None:
        return load_network(official, variant)
    return restore_network(find_model(name, source), trainable)


def _schedule(options: argparse.Namespace, rate: float) -> Schedule:
    check_minimum(options, steps=1, pairs=1, layouts=0, seed=0, checkpoint_every=1, threads=0, workers=0)
    if not 0 < rate < 1:
        raise TrainingError(f'--learning-rate: expected more than 0 and less than 1, got {rate}')
    return Schedule(
        steps=options.steps,
        pairs=options.pairs,
        learning_rate=rate,
        warm_up=min(300, options.steps // 10),
        seed=options.seed,
        recipe=options.recipe,
        # Trained weights come with better averages than a few images per step would give.
        frozen=1.0 if options.start and options.recipe == 'scenes' else Schedule.frozen,
        layouts=options.layouts,
    )


def _card(
    options: argparse.Namespace,
    schedule: Schedule,
    start: EdgePoint2 | None,
    teachers: Sequence[TeacherNetwork],
    photos: Photos,
    matched: MatchedPhotos | None,
) -> dict[str, Any]:
    """Return what the model card says about the training."""
    return {
        'weights': 'trained',
        'trained': {
            'teacher': name_networks(teachers),
            'start': name_networks([start]) if start else 'random weights',
            'images': len(photos),
            **({'matched_pairs': len(matched.pairs)} if matched else {}),
            'data': options.data_note,
            'recipe': schedule.recipe,
            'steps': schedule.steps,
            'pairs_per_step': schedule.pairs,
            'learning_rate': schedule.learning_rate,
            'seed': schedule.seed,
            'command': _command(sys.argv[1:], options.data_note),
            'date': datetime.date.today().isoformat(),
        },
    }


def _command(arguments: list[str], data_note: str) -> str:
    """Return the command line without the note on the data, which the card has beside it."""
    left = [
        argument for argument in arguments if argument not in ('--data-note', data_note, f'--data-note={data_note}')
    ]
    return shlex.join(['edgepoint2', *left])
