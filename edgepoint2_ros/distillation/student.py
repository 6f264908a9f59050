"""The student: one network size that learns its descriptor sizes together, on one backbone with one detector."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.network import EdgePoint2
from edgepoint2_ros.variants import Variant


class DescriptorHeads(nn.ModuleDict):
    """Descriptor heads of several sizes side by side; returns their maps joined along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.values()], dim=1)


class Student(nn.Module):
    """Variants of one size that share everything but the descriptor head, and so detect the same keypoints.

    Args:
        variants: variants of one network size, for example T-32 and T-48.

    Raises:
        ModelError: the variants are of different network sizes.
    """

    def __init__(self, variants: Sequence[Variant]):
        super().__init__()
        if len({variant.size for variant in variants}) != 1:
            names = ', '.join(str(variant) for variant in variants)
            raise ModelError(f'variants that learn together must share one size (such as T-32 T-48); got: {names}')
        self.variants = tuple(variants)
        self.network = EdgePoint2(variants[0])
        self.network.desc_head = DescriptorHeads(
            {str(variant.descriptor_size): EdgePoint2(variant).desc_head for variant in variants}
        )
        # Keypoints are rare: a detector that begins with "nowhere" does not spend its first steps on learning that.
        nn.init.constant_(self.network.score_head[-1].bias, -6.0)

    def forward(self, gray: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the score map (B, 1, H, W) and one descriptor map (B, D, H/4, W/4) a variant; see `EdgePoint2`."""
        scores, descriptors = self.network(gray)
        return scores, descriptors.split([variant.descriptor_size for variant in self.variants], dim=1)

    def start_from(self, network: EdgePoint2) -> None:
        """Take over the weights of a network of the same size; the head too where its descriptor size is learnt here.

        Raises:
            ModelError: the network is of another size.
        """
        given = network.variant
        if given.size != self.variants[0].size:
            raise ModelError(
                f'weights to start from are of {given}, expected a variant of size {self.variants[0].size}'
            )
        own = str(given.descriptor_size)
        state = {}
        for name, value in network.state_dict().items():
            if not name.startswith('desc_head.'):
                state[name] = value
                continue
            inner = name.removeprefix('desc_head.')
            if own in self.network.desc_head:
                state[f'desc_head.{own}.{inner}'] = value
            # The head's first layers do not depend on the descriptor size: every other head starts from them too.
            for size, head in self.network.desc_head.items():
                if size != own and head.state_dict()[inner].shape == value.shape:
                    state[f'desc_head.{size}.{inner}'] = value
        self.network.load_state_dict(state, strict=False)

    def extract(self, variant: Variant) -> EdgePoint2:
        """Return one variant as a network of its own, on the CPU, in evaluation mode."""
        state = {}
        for name, value in self.network.state_dict().items():
            if name.startswith('desc_head.'):
                _, size, inner = name.split('.', 2)
                if size == str(variant.descriptor_size):
                    state[f'desc_head.{inner}'] = value
            else:
                state[name] = value
        network = EdgePoint2(variant)
        network.load_state_dict({name: value.cpu() for name, value in state.items()})
        return network.eval()
