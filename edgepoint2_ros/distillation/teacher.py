"""What the student learns from: the teacher's maps of the views."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.distillation.aliked import Aliked
from edgepoint2_ros.distillation.pairs import HEIGHT, WIDTH, Pair
from edgepoint2_ros.network import EdgePoint2
from edgepoint2_ros.network.weights import state_digest, weights_digest

TeacherNetwork = EdgePoint2 | Aliked
MAPS = 'teacher.maps'  # in the output folder while a training runs
BF16 = {'avx512_bf16', 'amx_bf16', 'bf16'}  # what a CPU needs, by the kernel's names


class Teacher:
    """Frozen networks applied to the views of pairs: the first finds the keypoints, all of them describe.

    Args:
        networks: in evaluation mode. The descriptors of several are joined, see `look`.
        clean: they see the clean views instead of the augmented ones.
        basis: (C, D) that the joined descriptors are projected onto; None: they are left as they are.
    """

    def __init__(self, networks: Sequence[TeacherNetwork], clean: bool, basis: Tensor | None = None):
        self._networks = networks
        self._clean = clean
        self._basis = basis

    @torch.no_grad()
    def maps(self, batch: Pair) -> tuple[Tensor, Tensor]:
        """Return scores (2 B, 1, H, W) and descriptor maps (2 B, D, H/4, W/4) of the B pairs of a batch."""
        views = batch.clean if self._clean else batch.views
        with autocast(views.device):
            scores, descriptors = look(self._networks, to_gray(views))
        if self._basis is not None:
            descriptors = project(descriptors, self._basis)
        return scores, descriptors


class RememberingTeacher(Teacher):
    """A teacher that sees the clean views of each layout once: 3.4 MB of disk per layout for 64 values a descriptor.

    Args:
        networks: in evaluation mode.
        layouts: number of layouts of the pairs.
        folder: for the file of the maps. It is deleted at once and its space freed when the training ends.
        basis: as of `Teacher`.
    """

    def __init__(self, networks: Sequence[TeacherNetwork], layouts: int, folder: Path, basis: Tensor | None = None):
        super().__init__(networks, clean=True, basis=basis)
        self._known: set[int] = set()
        self._stored = []
        size = descriptor_size(networks) if basis is None else basis.shape[1]
        for shape in ((2, 1, HEIGHT, WIDTH), (2, size, HEIGHT // 4, WIDTH // 4)):
            count = layouts * torch.Size(shape).numel()
            maps = torch.from_file(str(folder / MAPS), shared=True, size=count, dtype=torch.bfloat16)
            (folder / MAPS).unlink()
            self._stored.append(maps.view(layouts, *shape))

    def maps(self, batch: Pair) -> tuple[Tensor, Tensor]:
        """Return the maps of a batch, from memory if each of its layouts was seen before."""
        layouts = batch.layout.tolist()
        if not self._known.issuperset(layouts):
            for stored, maps in zip(self._stored, super().maps(batch), strict=True):
                stored[layouts] = maps.view(len(layouts), *stored.shape[1:]).to('cpu', stored.dtype)
            self._known.update(layouts)
        scores, descriptors = (stored[layouts].flatten(0, 1).to(batch.views.device) for stored in self._stored)
        return scores, descriptors


def look(networks: Sequence[TeacherNetwork], gray: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score map (B, 1, H, W) of the first network and the joined descriptor map (B, C, H/4, W/4) of all.

    A joined descriptor is the unit descriptors of all networks in turn: the cosine of two is the mean of the cosines
    that the networks find.
    """
    maps = [network(gray) for network in networks]
    return maps[0][0], torch.cat([F.normalize(descriptors.float(), dim=1) for _, descriptors in maps], dim=1)


def project(descriptors: Tensor, basis: Tensor) -> Tensor:
    """Return a map (B, C, H, W) projected onto a basis (C, D): (B, D, H, W)."""
    return torch.einsum('bchw,cd->bdhw', descriptors, basis)


def descriptor_size(networks: Sequence[TeacherNetwork]) -> int:
    """Return the number of values of a joined descriptor."""
    return sum(network.variant.descriptor_size for network in networks)


def name_networks(networks: Sequence[TeacherNetwork]) -> str:
    """Return the variants of networks and the digests of their weights, as model cards name them."""
    return ', '.join(f'{network.variant} [{_digest(network)}]' for network in networks)


def _digest(network: TeacherNetwork) -> str:
    if isinstance(network, EdgePoint2):
        return weights_digest(network)
    return state_digest(network.variant.name, network.state_dict())


def to_gray(views: Tensor) -> Tensor:
    """Return views (..., H, W) uint8 as the input of a network: (N, 1, H, W) from 0 to 1."""
    gray = views.reshape(-1, 1, *views.shape[-2:]).float().div(255)
    return gray.contiguous(memory_format=torch.channels_last)


def autocast(device: torch.device) -> torch.autocast:
    """Return the precision of a training: bfloat16, but fp32 on a CPU that would emulate it, many times slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != 'cpu' or has_bf16())


@functools.cache
def has_bf16() -> bool:
    """Tell whether this CPU multiplies bfloat16; asked several times in each step."""
    return not BF16.isdisjoint(find_cpu().flags)
