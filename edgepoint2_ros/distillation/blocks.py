"""Block by block: each block of a student learns what the same block of a teacher of its own size makes of its input.

The blocks learn side by side, each from the teacher's features, so that none waits for the one before it.
Source: Romero et al., "FitNets: Hints for thin deep nets", arXiv 1412.6550, which trains one block after the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepoint2_ros.distillation.losses import cosine_distance, detection_loss
from edgepoint2_ros.distillation.teacher import autocast, to_gray
from edgepoint2_ros.network import EdgePoint2

CORNERS = {'block2': 2, 'block3': 6}  # where the coarse maps begin: from several corners a view has more places


def block_losses(
    student: EdgePoint2, teacher: EdgePoint2, views: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return how far the student's blocks and heads are from the teacher's, each given the features of the teacher.

    Args:
        student, teacher: of one variant.
        views: (..., H, W) uint8, gray.
        generator: a CPU generator that draws the corners.
    """
    gray = to_gray(views)
    with autocast(gray.device):
        with torch.no_grad():
            features = teacher.encode(gray)
            coarse = {
                name: torch.cat([_shrink(x, generator) for _ in range(CORNERS[name])])
                for name, x in zip(CORNERS, features)
            }
            taught = {'block1': features[0], **_parts(teacher, coarse, features)}
        learnt = {'block1': student.block1(student.normalise(gray)), **_parts(student, coarse, features)}
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]]
    distances = {'descriptors': cosine_distance, 'detection': detection_loss}
    losses = {}
    for name, target in taught.items():
        distance = distances.get(name, relative_error)
        losses[name] = distance(learnt[name].float(), target.float())
    return losses


def _parts(network: EdgePoint2, coarse: dict[str, Tensor], features: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return what the coarse blocks of a network and its heads make of their inputs."""
    blocks = {name: network.get_submodule(name)(given) for name, given in coarse.items()}
    return {**blocks, 'descriptors': network.describe(*features), 'detection': network.detect(*features)}


def relative_error(features: Tensor, target: Tensor) -> Tensor:
    """Return the mean square of the error of features (B, C, H, W), relative to the variance of each target channel."""
    variance = target.var(dim=(0, 2, 3), keepdim=True)
    # A channel that is nearly constant counts little instead of dominating.
    return ((features - target).square() / (variance + 1e-3 * target.var())).mean()


def _shrink(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return a map (B, C, H, W) averaged over squares of 4x4, the first of which begins at a random place."""
    top, left = torch.randint(4, (2,), generator=generator).tolist()
    height, width = x.shape[-2] - 4, x.shape[-1] - 4
    return F.avg_pool2d(x[..., top : top + height, left : left + width], 4)
