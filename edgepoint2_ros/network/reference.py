"""The dense reference: EdgePoint2's definition step by step in torch, with every intermediate map at full size.

It shares nothing with the exported model but the network. Tests hold the model against it and the benchmark names it.
"""

import numpy as np
import torch
import torch.nn.functional as F

from edgepoint2_ros.network.edgepoint2 import EdgePoint2


@torch.inference_mode()
def extract_dense(
    network: EdgePoint2, image: np.ndarray, top_k: int = 2048, score_threshold: float = -5.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return xy (N, 2), scores (N,) and unit descriptors (N, D), float32, best score first, of one image.

    Args:
        network: the network, in evaluation mode.
        image: uint8 (H, W) or (H, W, 3).
        top_k: most keypoints to return.
        score_threshold: keypoints score above it (raw logits).
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(image.reshape(height, width, -1))).permute(2, 0, 1)[None]
    gray = (pixels.float() / 255).mean(dim=1, keepdim=True)
    size = (height // 32 * 32, width // 32 * 32)
    if size != (height, width):
        gray = F.interpolate(gray, size, mode='bilinear', align_corners=True)

    scores, descriptor_map = network(gray)
    scores = scores[0, 0]
    is_keypoint = (scores == F.max_pool2d(scores[None, None], 5, stride=1, padding=2)[0, 0]) & (
        scores > score_threshold
    )
    inside = torch.zeros_like(is_keypoint)
    inside[4:-4, 4:-4] = True
    y, x = torch.nonzero(is_keypoint & inside, as_tuple=True)
    order = scores[y, x].argsort(descending=True)[:top_k]
    xy = torch.stack([x, y], dim=1)[order].float()

    grid = (xy + 0.5) / torch.tensor([size[1], size[0]]) * 2 - 1
    descriptors = F.grid_sample(descriptor_map, grid[None, None], mode='bilinear', align_corners=False)[0, :, 0].T
    descriptors = F.normalize(descriptors, dim=1)
    scale = torch.tensor([width / size[1], height / size[0]])
    return (xy * scale).numpy(), scores[y, x][order].numpy(), descriptors.numpy()
