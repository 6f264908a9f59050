"""The training loop: pairs in, weights out; it can be killed and resumed at any moment."""

import csv
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from edgepoint2_ros.distillation.blocks import block_losses
from edgepoint2_ros.distillation.losses import (
    contrastive_loss,
    cosine_distance,
    detection_loss,
    low_rank,
    orthogonal_procrustes_loss,
    principal_basis,
    relational_loss,
)
from edgepoint2_ros.distillation.matches import MatchedPhotos
from edgepoint2_ros.distillation.muon import Muon
from edgepoint2_ros.distillation.pairs import HEIGHT, WIDTH, Pair, PairDataset, correspond
from edgepoint2_ros.distillation.photos import Photos
from edgepoint2_ros.distillation.student import Student, descriptor_rows
from edgepoint2_ros.distillation.teacher import (
    RememberingTeacher,
    Teacher,
    TeacherNetwork,
    autocast,
    descriptor_size,
    look,
    name_networks,
    project,
    to_gray,
)
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.network import EdgePoint2
from edgepoint2_ros.network.reference import best_places, sample
from edgepoint2_ros.network.weights import weights_digest
from edgepoint2_ros.storage import replacing, sha256

log = logging.getLogger(__name__)

PAPER = {'procrustes': 4.0, 'similarity': 1.0, 'detection': 1.0, 'contrastive': 0.3}
BLOCKS = {'block1': 1.0, 'block2': 1.0, 'block3': 1.0, 'descriptors': 8.0, 'detection': 0.25}
SCENES = {'regression': 4.0, 'map': 2.0, 'similarity': 1.0, 'detection': 1.0}
# With the relational loss more matches are right, but poses may be less accurate, where E is behind its teacher.
RELATIONAL = {'T': 1.0, 'S': 1.0, 'M': 1.0, 'L': 1.0, 'E': 0.0}
# The contrastive loss helps on homographies and hurts on real scenes, more so for larger networks.
CONTRASTIVE = {'T': 0.15, 'S': 0.1, 'M': 0.05, 'L': 0.0, 'E': 0.0}
# Between matched photographs it did not hurt on real scenes, unlike between views of one photograph.
MATCHING = {'matching': 1.0}
RECIPES = ('scenes', 'paper', 'blocks')
BASIS_VIEWS = 64  # views that determine the fixed basis of the teacher's descriptors
HEAD_VIEWS = 300  # views that determine the last layers at the end
TEACHER_POINTS = 256  # per pair, at keypoints of the teacher
RANDOM_POINTS = 192  # and anywhere, so that descriptors are good between keypoints, too
RELATED = 4  # pixels of the descriptor map: one cell of so many squared is compared with the points of the other view
MIN_POINTS = 96  # a pair with fewer common points says little about a rotation of 64 dimensions
MIN_COMMON_MATCHES = 16  # of matched photographs, which stand in for points
CHECKPOINT = 'checkpoint.pt'  # in the output folder, as log.csv is
CLIP_NORM = 5.0


class TrainingError(EdgePoint2Error):
    """A training that cannot start or continue."""


@dataclass(frozen=True)
class Schedule:
    """What determines the outcome of a training besides the images, the teacher and the initial weights.

    Attributes:
        recipe: ``scenes``: the student regresses the teacher's descriptors of the clean views in one fixed basis;
            ``paper``: those of the same views as the student's, up to a low-rank approximation per pair and a rotation
            per view; ``blocks``: each block learns what the same block of a teacher of the same variant does.
        steps: optimiser steps.
        pairs: image pairs per step.
        learning_rate: the maximum; reached after the warm-up, then falling to zero along a cosine.
        warm_up: steps.
        seed: of the pairs, the points and the initial weights.
        frozen: share of the steps, at the end, with frozen batch normalisation, as in extraction.
        layouts: number of different pairs, each shown repeatedly under new light; 0: every pair is new.
    """

    steps: int
    pairs: int = 2
    learning_rate: float = 3e-3
    warm_up: int = 300
    seed: int = 0
    recipe: str = 'scenes'
    frozen: float = 0.2
    layouts: int = 0

    def weights(self, size: str, matched: bool = False) -> dict[str, float]:
        """Return the weight of each loss for a student of a network size.

        Args:
            size: of the student, such as E.
            matched: it also learns from matched photographs.
        """
        if self.recipe == 'paper':
            return PAPER
        if self.recipe == 'blocks':
            return BLOCKS
        by_size = {'relational': RELATIONAL[size], 'contrastive': CONTRASTIVE[size]}
        return SCENES | {name: weight for name, weight in by_size.items() if weight} | (MATCHING if matched else {})

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.learning_rate * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def train(
    student: Student,
    teachers: Sequence[TeacherNetwork],
    photos: Photos,
    schedule: Schedule,
    output: Path,
    device: str = 'cpu',
    workers: int = 0,
    checkpoint_every: int = 250,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda steps, done: steps,
    matched: MatchedPhotos | None = None,
) -> Student:
    """Train ``student`` in place and return it; a checkpoint in ``output`` from the same schedule is resumed.

    Writes ``checkpoint.pt`` and ``log.csv`` (one row per step) to ``output``.

    Args:
        teachers: the first one teaches keypoints, all of them descriptors.
        device: ``cpu`` or ``cuda``.
        workers: processes that make pairs; 0 makes them between the steps.
        checkpoint_every: steps; a kill loses at most this many.
        progress: wraps the iteration over steps, also given the number of steps already done.
        matched: every second pair is of these photographs; with the recipe ``scenes`` only.

    Raises:
        TrainingError: the first teacher is no EdgePoint2; the teachers' descriptors together are smaller than the
            student's; the recipe is ``blocks`` and the teacher is not one of the student's only variant; the checkpoint
            is from another training; log.csv is not a training log; there are matched photographs and the recipe is
            another or the number of layouts odd; or a loss is not finite: the message names the step
            and the images.
    """
    largest = max(student.variants, key=lambda variant: variant.descriptor_size)
    given = ', '.join(str(teacher.variant) for teacher in teachers)
    if not isinstance(teachers[0], EdgePoint2):
        raise TrainingError(
            f'the first teacher finds the keypoints: expected a variant of EdgePoint2, got {teachers[0].variant}'
        )
    if descriptor_size(teachers) < largest.descriptor_size:
        raise TrainingError(
            f'the teacher {given} has smaller descriptors than {largest}: expected at least {largest.descriptor_size} '
            'values, such as E-64'
        )
    if schedule.recipe == 'blocks' and [*student.variants] != [teacher.variant for teacher in teachers]:
        raise TrainingError(
            'with the recipe blocks one variant learns from a teacher of the same variant, such as E-64@official; '
            f'got {", ".join(map(str, student.variants))} from {given}'
        )
    if matched is not None and schedule.recipe != 'scenes':
        raise TrainingError(f'matched photographs are for the recipe scenes, got {schedule.recipe}')
    if matched is not None and schedule.layouts % 2:
        raise TrainingError(
            f'every second layout is of matched photographs: expected an even number of layouts, got {schedule.layouts}'
        )
    identity = _identity(student, teachers, photos, schedule, matched)
    torch.manual_seed(schedule.seed)
    output.mkdir(parents=True, exist_ok=True)
    for network in (student, *teachers):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    student.train()
    for teacher in teachers:
        teacher.eval().requires_grad_(False)
    norms = [module for module in student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.01  # few images per step: average over many steps
    optimisers = make_optimisers(student, schedule)
    checkpoint = output / CHECKPOINT
    weights = schedule.weights(student.variants[0].size, matched is not None)
    columns = taught_columns(student, teachers) if schedule.recipe == 'scenes' else None
    start, basis = _resume(checkpoint, student, optimisers, identity)
    if not start and schedule.recipe == 'scenes':
        views = PairDataset(photos, schedule.seed + 1, BASIS_VIEWS // 2)
        basis = fit_basis(student, teachers, (views[i].clean for i in range(len(views))))

    dataset = PairDataset(photos, schedule.seed, schedule.steps * schedule.pairs, schedule.layouts, matched)
    remaining = Subset(dataset, range(start * schedule.pairs, len(dataset)))
    loader = DataLoader(remaining, schedule.pairs, num_workers=workers, pin_memory=device == 'cuda')
    if schedule.recipe == 'scenes' and dataset.layouts < len(dataset):
        tutor: Teacher = RememberingTeacher(teachers, dataset.layouts, output, basis)
    else:
        tutor = Teacher(teachers, clean=schedule.recipe == 'scenes', basis=basis)
    with _open_log(output / 'log.csv', start, list(weights)) as file:
        rows = csv.writer(file)
        for step, batch in zip(progress(range(start, schedule.steps), start), loader, strict=True):
            for norm in norms:
                norm.train(step < schedule.steps * (1 - schedule.frozen))
            for group in (group for optimiser in optimisers for group in optimiser.param_groups):
                group['lr'] = schedule.rate(step)
            # The points of a step depend only on the seed and the step, so that a resumed training repeats them.
            generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
            pairs = Pair(*(part.to(device) for part in batch))
            if schedule.recipe == 'blocks':
                losses = block_losses(student.network, teachers[0], pairs.clean, generator)
            else:
                losses = pair_losses(student, tutor.maps(pairs), pairs, generator, weights, columns)
            total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
            if not torch.isfinite(total):
                parts = ', '.join(f'{name} {value.item():.4g}' for name, value in losses.items())
                every = [*photos.names, *(matched.photos.names if matched else ())]
                names = sorted({every[i] for i in batch.photos.flatten().tolist() if i >= 0})
                raise TrainingError(f'the loss is not finite at step {step} ({parts}); its images: {", ".join(names)}')
            student.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
            for optimiser in optimisers:
                optimiser.step()
            rows.writerow([step, f'{schedule.rate(step):.3g}', *(f'{losses[name].item():.5f}' for name in weights)])
            if (step + 1) % checkpoint_every == 0 or step + 1 == schedule.steps:
                file.flush()
                _save(checkpoint, step + 1, student, optimisers, identity, basis)
    if basis is not None:
        views = PairDataset(photos, schedule.seed + 2, HEAD_VIEWS // 2)
        fit_heads(student, teachers, basis, (views[i].clean for i in range(len(views))))
    return student.eval()


@torch.no_grad()
def fit_basis(student: Student, teachers: Sequence[TeacherNetwork], views: Iterable[Tensor]) -> Tensor:
    """Return the basis (C of the teachers, D) in which the student's descriptors are the teachers'.

    Its first columns, as many as the largest variant has values, span the principal subspace of the teachers' joined
    unit descriptors over the views, the largest last. If a variant is as large as the first teacher, more columns
    follow: that teacher's own descriptor, since more than it does not fit into as many values without loss. See
    `taught_columns`. The last layer of each of the student's heads is set to the least-squares solution for them, so
    that what a student has already learned is kept.

    Args:
        views: batches of gray images (B, H, W) uint8.
    """
    largest = max(variant.descriptor_size for variant in student.variants)
    views = list(views)
    rows = torch.cat([descriptor_rows(_look_at(teachers, view)[1])[::7] for view in views])
    basis = principal_basis(rows, largest)
    if any(columns.start for columns in taught_columns(student, teachers)):
        own = torch.eye(len(basis), teachers[0].variant.descriptor_size, device=basis.device)
        basis = torch.cat([basis, own], dim=1)
    basis = basis.contiguous()
    fit_heads(student, teachers, basis, views)
    return basis


def taught_columns(student: Student, teachers: Sequence[TeacherNetwork]) -> list[slice]:
    """Return the columns of the basis of `fit_basis` that teach each variant; one of d values learns the last d."""
    largest = max(variant.descriptor_size for variant in student.variants)
    own = teachers[0].variant.descriptor_size
    return [
        slice(largest, None) if variant.descriptor_size == own else slice(0, largest) for variant in student.variants
    ]


@torch.no_grad()
def fit_heads(student: Student, teachers: Sequence[TeacherNetwork], basis: Tensor, views: Iterable[Tensor]) -> None:
    """Set the last layer of each of the student's heads to the least-squares solution for the teachers' descriptors.

    Least squares shrink what a student cannot predict, which the cosine of the training does not: fewer matches, and
    more of them right.

    Args:
        basis: of `fit_basis`.
        views: batches of gray images (B, H, W) uint8.
    """
    taught = [
        (columns, variant.descriptor_size)
        for columns, variant in zip(taught_columns(student, teachers), student.variants)
    ]

    def lessons() -> Iterable[tuple[Tensor, list[Tensor]]]:
        for gray, joined in (_look_at(teachers, view) for view in views):
            projected = project(joined, basis)
            yield gray, [F.normalize(projected[:, columns][:, -size:], dim=1) for columns, size in taught]

    student.fit_last_layers(lessons())


def _look_at(teachers: Sequence[TeacherNetwork], view: Tensor) -> tuple[Tensor, Tensor]:
    """Return views (B, H, W) uint8 as the input of a network, and the map of the teachers' joined unit descriptors."""
    gray = to_gray(view.to(next(teachers[0].parameters()).device))
    with autocast(gray.device):
        return gray, F.normalize(look(teachers, gray)[1], dim=1)


def make_optimisers(student: Student, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a recipe: Muon for convolutions and AdamW for the rest, or AdamW for everything."""
    if schedule.recipe == 'paper':
        return [torch.optim.AdamW(student.parameters(), lr=schedule.learning_rate)]
    weights = [parameter for parameter in student.parameters() if parameter.ndim == 4]
    others = [parameter for parameter in student.parameters() if parameter.ndim != 4]
    return [Muon(weights, schedule.learning_rate), torch.optim.AdamW(others, lr=schedule.learning_rate)]


def pair_losses(
    student: Student,
    taught: tuple[Tensor, Tensor],
    batch: Pair,
    generator: torch.Generator,
    weights: Iterable[str],
    columns: Sequence[slice] | None = None,
) -> dict[str, Tensor]:
    """Return the losses of a batch of pairs, each averaged over pairs, views and descriptor sizes.

    Views of one photograph have no loss ``matching`` and those of matched photographs none ``contrastive``: it counts
    as 0 in the average.

    Args:
        taught: the teacher's scores and descriptor maps of the batch, see `Teacher.maps`; for the losses ``regression``
            and ``map`` in the basis of `fit_basis`.
        batch: :class:`Pair` with a batch axis first.
        generator: a CPU generator that draws the random points.
        weights: names of the losses to compute.
        columns: of the teacher's descriptors, those that teach each variant (`taught_columns`); None: all of them.
    """
    device = batch.views.device
    with autocast(device):
        scores, maps = student(to_gray(batch.views))
    scores, maps = scores.float(), [m.float() for m in maps]
    teacher_scores, teacher_map = (m.float() for m in taught)
    columns = columns or [slice(None)] * len(maps)

    sums = {name: scores.new_zeros(()) for name in weights if name not in ('map', 'detection')}
    counted = 0
    for index in range(len(batch.views)):
        pair = Pair(*(part[index] for part in batch))
        matched = pair.matches[pair.matches[:, 0, 0].isfinite()]
        if len(matched):
            xy, enough, contrast = (matched[:, 0], matched[:, 1]), MIN_COMMON_MATCHES, 'matching'
        else:
            places = best_places(teacher_scores[2 * index, 0], TEACHER_POINTS)
            anywhere = torch.rand(RANDOM_POINTS, 2, generator=generator).to(device)
            places = torch.cat([places, anywhere * torch.tensor([WIDTH - 1, HEIGHT - 1], device=device)])
            moved, visible = correspond(places, pair)
            xy, enough, contrast = (places[visible], moved[visible]), MIN_POINTS, 'contrastive'
        if len(xy[0]) < enough:
            continue
        if 'relational' in sums:
            y, x = torch.randint(RELATED, (2,), generator=generator).tolist()
            cells = (..., slice(y, None, RELATED), slice(x, None, RELATED))

        def sampled(
            descriptor_map: Tensor, index: int = index, xy: tuple[Tensor, Tensor] = xy
        ) -> tuple[Tensor, Tensor]:
            a, b = (sample(descriptor_map[2 * index + view], xy[view], (WIDTH, HEIGHT)) for view in (0, 1))
            return a, b

        lesson = sampled(teacher_map)
        if 'procrustes' in sums:
            # One subspace for both views, so that a point keeps the teacher's similarity across them.
            rows = torch.cat([F.normalize(part, dim=1) for part in lesson])
        for descriptor_map, taught_by in zip(maps, columns):
            learnt = sampled(descriptor_map)
            shown = [part[:, taught_by] for part in lesson]
            size = descriptor_map.shape[1]
            if 'regression' in sums:
                targets = (part[:, -size:] for part in shown)
                sums['regression'] += sum(map(cosine_distance, targets, learnt)) / 2
            if 'procrustes' in sums:
                target = low_rank(rows, size).split(len(xy[0]))
                sums['procrustes'] += sum(map(orthogonal_procrustes_loss, target, learnt)) / 2
            sums['similarity'] += cosine_distance(*learnt)
            if 'relational' in sums:
                for view, other in ((0, 2 * index + 1), (1, 2 * index)):
                    own, teachers = (descriptor_rows(m[other, None][cells]) for m in (descriptor_map, teacher_map))
                    sums['relational'] += relational_loss(learnt[view], own, shown[view], teachers[:, taught_by]) / 2
            if contrast in sums:
                sums[contrast] += contrastive_loss(*learnt, *xy)
            counted += 1
    losses = {name: value / max(1, counted) for name, value in sums.items()}
    if 'map' in weights:
        y, x = torch.randint(2, (2,), generator=generator).tolist()
        taught_cells = descriptor_rows(teacher_map[..., y::2, x::2])
        distances = [
            cosine_distance(
                taught_cells[:, taught_by][:, -descriptor_map.shape[1] :],
                descriptor_rows(descriptor_map[..., y::2, x::2]),
            )
            for descriptor_map, taught_by in zip(maps, columns)
        ]
        losses['map'] = torch.stack(distances).mean()
    losses['detection'] = detection_loss(scores, teacher_scores)
    return losses


def _identity(
    student: Student,
    teachers: Sequence[TeacherNetwork],
    photos: Photos,
    schedule: Schedule,
    matched: MatchedPhotos | None,
) -> dict[str, str | float]:
    """Return what must not change when a training is resumed."""
    return {
        'variants': ' '.join(variant.name for variant in student.variants),
        'teacher': name_networks(teachers),
        'images': sha256('\n'.join(photos.names).encode())[:16],
        'matches': matched.digest() if matched else 'none',
        'first weights': ' '.join(weights_digest(student.extract(variant)) for variant in student.variants),
        **asdict(schedule),
    }


def _resume(
    checkpoint: Path, student: Student, optimisers: Sequence[torch.optim.Optimizer], identity: dict[str, Any]
) -> tuple[int, Tensor | None]:
    """Load the checkpoint if there is one and return the step to resume at, and the basis."""
    if not checkpoint.exists():
        return 0, None
    try:
        state = torch.load(checkpoint, map_location='cpu', weights_only=True)
        before = {'matches': 'none', **state['identity']}
    except Exception as error:  # whatever torch raises for a damaged file
        raise TrainingError(f'{checkpoint} is not the checkpoint of a training: {error}') from error
    # What a checkpoint of an earlier version does not contain counts as unchanged.
    changed = [
        f'{name} was {before[name]}, now {now}' for name, now in identity.items() if before.get(name, now) != now
    ]
    if changed:
        raise TrainingError(
            f'{checkpoint} is from another training ({"; ".join(changed)}): choose another output folder'
        )
    if not {'optimisers', 'basis'} <= state.keys():
        raise TrainingError(f'{checkpoint} is from an earlier version: choose another output folder')
    student.load_state_dict(state['student'])
    for optimiser, own in zip(optimisers, state['optimisers'], strict=True):
        optimiser.load_state_dict(own)
    log.info('continuing %s at step %d', checkpoint, state['step'])
    device = next(student.parameters()).device
    return state['step'], None if state['basis'] is None else state['basis'].to(device)


def _save(
    checkpoint: Path,
    step: int,
    student: Student,
    optimisers: Sequence[torch.optim.Optimizer],
    identity: dict[str, Any],
    basis: Tensor | None,
) -> None:
    """Write the checkpoint so that a kill at any moment leaves either the old or the new one."""
    state = {
        'step': step,
        'identity': identity,
        'student': student.state_dict(),
        'optimisers': [optimiser.state_dict() for optimiser in optimisers],
        'basis': basis,
    }
    with replacing(checkpoint) as file:
        torch.save(state, file)


def _open_log(path: Path, start: int, names: list[str]) -> TextIO:
    """Open the log for appending, without the rows that a killed training wrote after its last checkpoint."""
    header = ['step', 'learning_rate', *names]
    kept = []
    if path.exists():
        with path.open(newline='') as file:
            rows = list(csv.reader(file))
        if rows and rows[0] != header:
            raise TrainingError(f'{path} is no log of a training: choose another output folder')
        kept = [row for row in rows if row and row[0].isdigit() and int(row[0]) < start]
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([header, *kept])
    return path.open('a', newline='')
