"""What the student learns from: the teacher's maps of the views."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from edgepoint2_ros.cpu import find_cpu
from edgepoint2_ros.distillation.pairs import HEIGHT, WIDTH, Pair
from edgepoint2_ros.network import EdgePoint2

MAPS = 'teacher.maps'  # in the output folder while a training runs
BF16 = {'avx512_bf16', 'amx_bf16', 'bf16'}  # what a CPU needs, by the kernel's names


class Teacher:
    """A frozen network applied to the views of pairs.

    Args:
        network: in evaluation mode.
        clean: it sees the clean views instead of the augmented ones.
    """

    def __init__(self, network: EdgePoint2, clean: bool):
        self._network = network
        self._clean = clean

    @torch.no_grad()
    def maps(self, batch: Pair) -> tuple[Tensor, Tensor]:
        """Return scores (2 B, 1, H, W) and descriptor maps (2 B, D, H/4, W/4) of the B pairs of a batch."""
        views = batch.clean if self._clean else batch.views
        with autocast(views.device):
            scores, descriptors = self._network(to_gray(views))
        return scores, descriptors


class RememberingTeacher(Teacher):
    """A teacher that sees the clean views of each layout once: 3.4 MB of disk per layout for E-64.

    Args:
        network: in evaluation mode.
        layouts: number of layouts of the pairs.
        folder: for the file of the maps. It is deleted at once and its space freed when the training ends.
    """

    def __init__(self, network: EdgePoint2, layouts: int, folder: Path):
        super().__init__(network, clean=True)
        self._known: set[int] = set()
        self._stored = []
        for shape in ((2, 1, HEIGHT, WIDTH), (2, network.variant.descriptor_size, HEIGHT // 4, WIDTH // 4)):
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
