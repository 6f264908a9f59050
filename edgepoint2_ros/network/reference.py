"""The dense reference: EdgePoint2's definition step by step in torch, with every intermediate map at full size.

It shares nothing with the exported model but the network. Tests compare the model with it, the benchmark times it, and
training picks its points with the same functions.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgepoint2_ros.models import BORDER, NMS_RADIUS
from edgepoint2_ros.network.edgepoint2 import EdgePoint2


@torch.inference_mode()
def extract_dense(
    network: EdgePoint2, image: np.ndarray, top_k: int = 2048, score_threshold: float = -8.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return xy (N, 2), scores (N,) and unit descriptors (N, D), float32, best score first, of one image.

    Args:
        network: the network, in evaluation mode.
        image: uint8 (H, W) or (H, W, 3).
        top_k: maximum number of keypoints.
        score_threshold: keypoints score above it (raw logits).
    """
    gray = network_input(image)
    size = (gray.shape[3], gray.shape[2])
    scores, descriptor_map = network(gray)
    xy = best_places(scores[0, 0], top_k, score_threshold)
    column, row = xy.long().T
    descriptors = F.normalize(sample(descriptor_map[0], xy, size), dim=1)
    scale = torch.tensor([image.shape[1] / size[0], image.shape[0] / size[1]])
    return (xy * scale).numpy(), scores[0, 0, row, column].numpy(), descriptors.numpy()


def network_input(image: np.ndarray) -> Tensor:
    """Return a uint8 image (H, W) or (H, W, 3) in gray, (1, 1, h, w) from 0 to 1, reduced to multiples of 32."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(image.reshape(height, width, -1))).permute(2, 0, 1)[None]
    gray = (pixels.float() / 255).mean(dim=1, keepdim=True)
    size = (height // 32 * 32, width // 32 * 32)
    if size != (height, width):
        gray = F.interpolate(gray, size, mode='bilinear', align_corners=True)
    return gray


def best_places(scores: Tensor, count: int, threshold: float = -torch.inf) -> Tensor:
    """Return the pixels (N, 2), float, N at most ``count``, of the best 5x5 maxima of a score map (H, W), best first.

    They score above ``threshold`` and keep away from the border.
    """
    highest = F.max_pool2d(scores[None], 2 * NMS_RADIUS + 1, stride=1, padding=NMS_RADIUS)[0]
    inside = torch.zeros_like(scores, dtype=torch.bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    y, x = torch.nonzero((scores == highest) & (scores > threshold) & inside, as_tuple=True)
    best = scores[y, x].topk(min(count, len(y))).indices
    return torch.stack([x[best], y[best]], dim=1).float()


def sample(descriptor_map: Tensor, xy: Tensor, size: tuple[int, int]) -> Tensor:
    """Return bilinear samples (N, D) of a descriptor map (D, h, w) at pixels (N, 2) of an image of (width, height)."""
    grid = (xy + 0.5) / torch.tensor(size, device=xy.device) * 2 - 1
    return F.grid_sample(descriptor_map[None], grid[None, None], align_corners=False)[0, :, 0].T
