import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')

from edgepoint2_ros.distillation.muon import Muon, orthogonalise  # noqa: E402


@pytest.mark.parametrize('shape', [(8, 16), (16, 8), (24, 24), (8, 144)])
def test_orthogonal_matrices_have_singular_values_about_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_orthogonal_matrices_keep_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(12, 20)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix) @ vh.T
    torch.testing.assert_close(inside, inside.diagonal().diag(), atol=1e-4, rtol=0)


def test_no_gradient_is_no_direction():
    assert torch.isfinite(orthogonalise(torch.zeros(4, 6))).all()


def test_learns_a_convolution():
    torch.manual_seed(0)
    convolution, wanted = (torch.nn.Conv2d(4, 6, 3, bias=False) for _ in range(2))
    optimiser = Muon(convolution.parameters(), lr=0.02, weight_decay=0)
    for step in range(300):
        optimiser.param_groups[0]['lr'] = 0.02 * (1 - step / 300)
        x = torch.randn(4, 4, 8, 8)
        loss = (convolution(x) - wanted(x).detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(convolution.weight, wanted.weight, atol=0.01, rtol=0)


def test_a_weight_without_a_gradient_stays():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(2, 3))
