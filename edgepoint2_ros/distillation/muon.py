"""The optimiser of the convolutions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the source's coefficients of the quintic iteration
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps, for weights (O, I, ...) seen as matrices (O, I * ...).

    Orthogonal steps move every direction of a layer alike, whether its gradient is strong or weak. Source: Jordan
    et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the steps are scaled to the size of
    AdamW's as in Liu et al., arXiv 2502.16982. Unlike ``torch.optim.Muon`` it takes convolutions.

    Args:
        parameters: weights of at least two dimensions.
        lr: learning rate, on the scale of AdamW's.
        momentum: of the gradients.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ):
        super().__init__(parameters, {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no loss to return
        """Take one step with the current gradients."""
        assert closure is None
        for group in self.param_groups:
            for weight in group['params']:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault('average', torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group['momentum'])
                nesterov = weight.grad.lerp(average, group['momentum']).flatten(1)
                direction = orthogonalise(nesterov).reshape(weight.shape)
                scale = 0.2 * max(nesterov.shape) ** 0.5  # AdamW's steps have a root mean square of 0.2
                weight.mul_(1 - group['lr'] * group['weight_decay']).sub_(direction, alpha=group['lr'] * scale)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return approximately the nearest matrix (M, N) whose singular values are all 1 (here 0.7 to 1.2)."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
