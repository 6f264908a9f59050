"""The EdgePoint2 network in torch: a gray image in, a dense score map and a dense descriptor map out.

Module names follow the reference state dicts (block1.*, desc_head.*, ...), so that the official weights load by name.
Source of the architecture: Yao et al., "EdgePoint2", arXiv 2504.17280.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgepoint2_ros.models.variants import Variant


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ResNet(nn.Module):
    """Two 3x3 convolutions beside a skip: the identity, or a 1x1 convolution where the channels differ."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + self.skip(x))


class EdgePoint2(nn.Module):
    """One of the 14 variants."""

    def __init__(self, variant: Variant):
        super().__init__()
        self.variant = variant
        self.digests: dict[str, str] = {}  # of the model that these weights were restored from, by their own
        c1, c2, c3, c4, cdetect = variant.c1, variant.c2, variant.c3, variant.c4, variant.cdetect
        self.normalise = nn.InstanceNorm2d(1)
        self.block1 = nn.Sequential(ConvBlock(1, c1, kernel=4, stride=2), ConvBlock(c1, c2), ResNet(c2, c2))
        self.block2 = ResNet(c2, c3)
        self.block3 = ResNet(c3, c4)
        self.desc_head: nn.Module = nn.Sequential(
            nn.Conv2d(variant.csum, variant.csum, 1),
            ConvBlock(variant.csum, variant.csum, groups=variant.csum // 16),
            nn.Conv2d(variant.csum, variant.descriptor_size, 1),
        )
        self.conv1 = nn.Conv2d(c2, cdetect, 1)
        self.conv2 = nn.Conv2d(c3, cdetect, 1)
        self.conv3 = nn.Conv2d(c4, cdetect, 1)
        self.score_head = nn.Sequential(
            nn.Conv2d(cdetect, cdetect, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(cdetect, cdetect, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(cdetect, 4, 3, padding=1),
        )

    def forward(self, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Return the raw score map and the descriptor map of a batch of gray images.

        Args:
            gray: (B, 1, H, W) float in 0..1; H and W are multiples of 32.

        Returns:
            Scores (B, 1, H, W), raw logits, and descriptors (B, D, H/4, W/4), not normalised.
        """
        features = self.encode(gray)
        return self.detect(*features), self.describe(*features)

    def encode(self, gray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of the three blocks, at H/2, H/8 and H/32."""
        x1 = self.block1(self.normalise(gray))
        x2 = self.block2(F.avg_pool2d(x1, 4))
        return x1, x2, self.block3(F.avg_pool2d(x2, 4))

    def detect(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        """Return the score map of the features of the three blocks, at H/2, H/8 and H/32."""
        detection = self.conv1(x1) + _enlarge(self.conv2(x2), 4) + _enlarge(self.conv3(x3), 16)
        return F.pixel_shuffle(self.score_head(detection), 2)

    def describe(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        """Return the descriptor map of the features of the three blocks, at H/2, H/8 and H/32."""
        descriptors: Tensor = self.desc_head(torch.cat([F.avg_pool2d(x1, 2), _enlarge(x2, 2), _enlarge(x3, 8)], dim=1))
        return descriptors


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode='bilinear', align_corners=False)
