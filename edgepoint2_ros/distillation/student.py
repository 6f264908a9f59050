"""The student: one network size that learns its descriptor sizes jointly, on one backbone with one detector."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models.variants import Variant
from edgepoint2_ros.network import EdgePoint2


class DescriptorHeads(nn.Module):
    """Descriptor heads that share all but the last layer; returns their maps concatenated along the channels.

    Attributes:
        shared: the layers before the last one.
        last: the last layer of each descriptor size, by its name.
    """

    def __init__(self, variants: Sequence[Variant]):
        super().__init__()
        heads = [EdgePoint2(variant).desc_head for variant in variants]
        self.shared = nn.Sequential(*list(heads[0].children())[:-1])
        self.last = nn.ModuleDict({str(v.descriptor_size): [*h.children()][-1] for v, h in zip(variants, heads)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        return torch.cat([layer(x) for layer in self.last.values()], dim=1)


class Student(nn.Module):
    """Variants of one size that share everything but the last layer of the descriptor head.

    They detect the same keypoints.

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
        self.network.desc_head = DescriptorHeads(variants)
        # Keypoints are rare: a detector that starts with "nowhere" need not spend its first steps on learning that.
        nn.init.constant_(self.network.get_parameter('score_head.4.bias'), -6.0)

    @property
    def heads(self) -> DescriptorHeads:
        """The descriptor heads, which replace the network's own."""
        assert isinstance(self.network.desc_head, DescriptorHeads)
        return self.network.desc_head

    def forward(self, gray: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the score map (B, 1, H, W) and one descriptor map (B, D, H/4, W/4) per variant; see `EdgePoint2`."""
        scores, descriptors = self.network(gray)
        return scores, descriptors.split([variant.descriptor_size for variant in self.variants], dim=1)

    def start_from(self, network: EdgePoint2) -> None:
        """Load the weights of a network of the same size; also its head, if its descriptor size is learned here.

        Raises:
            ModelError: the network is of another size.
        """
        given = network.variant
        if given.size != self.variants[0].size:
            raise ModelError(
                f'weights to start from are of {given}, expected a variant of size {self.variants[0].size}'
            )
        state = {_joint_name(name, given): value for name, value in network.state_dict().items()}
        own = self.state_dict()
        self.load_state_dict({**own, **{name: value for name, value in state.items() if name in own}})

    @torch.no_grad()
    def fit_last_layers(self, views: Iterable[tuple[Tensor, Sequence[Tensor]]]) -> None:
        """Set the last layer of each head to the least-squares solution for its target descriptors.

        Args:
            views: batches of gray images (B, 1, H, W), as for `EdgePoint2`, and for each variant the target descriptor
                map (B, D, H/4, W/4).
        """
        training = self.training
        self.eval()
        inputs: list[Tensor] = []
        hook = self.heads.shared.register_forward_hook(lambda _, __, output: inputs.append(output))
        sums: list[Tensor] = []  # of the products of the rows with themselves, and with the targets of each variant
        for gray, targets in views:
            self.network(gray)
            rows = descriptor_rows(inputs.pop()).double()
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
            products = [rows.T @ rows, *(rows.T @ descriptor_rows(target).double() for target in targets)]
            sums = [before + product for before, product in zip(sums, products, strict=True)] if sums else products
        hook.remove()
        self.train(training)
        gram, *products = sums
        gram.diagonal().add_(1e-6 * gram.diagonal().mean())
        for layer, product in zip(self.heads.last.values(), products, strict=True):
            weight, bias = layer.parameters()
            solution = torch.linalg.solve(gram, product).float()  # (inputs + 1, D)
            weight.copy_(solution[:-1].T[:, :, None, None])
            bias.copy_(solution[-1])

    def extract(self, variant: Variant) -> EdgePoint2:
        """Return one variant as a separate network, on the CPU, in evaluation mode."""
        joint = self.state_dict()
        network = EdgePoint2(variant)
        network.load_state_dict({name: joint[_joint_name(name, variant)].cpu() for name in network.state_dict()})
        return network.eval()


def _joint_name(name: str, variant: Variant) -> str:
    """Return the name in the student's state of a weight or buffer of one variant's network."""
    if name.startswith('desc_head.2.'):
        return name.replace('desc_head.2', f'network.desc_head.last.{variant.descriptor_size}')
    return f'network.{name}'.replace('network.desc_head.', 'network.desc_head.shared.')


def descriptor_rows(descriptor_map: Tensor) -> Tensor:
    """Return the descriptors of a map (B, D, H, W) as rows (B * H * W, D)."""
    return descriptor_map.permute(0, 2, 3, 1).flatten(0, 2)
