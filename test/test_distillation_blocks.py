import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')

from test_distillation_pairs import textured  # noqa: E402

from edgepoint2_ros.distillation.blocks import block_losses, relative_error  # noqa: E402
from edgepoint2_ros.distillation.pairs import PairDataset  # noqa: E402
from edgepoint2_ros.distillation.photos import Photos  # noqa: E402
from edgepoint2_ros.models import find_model  # noqa: E402
from edgepoint2_ros.models.variants import find_variant  # noqa: E402
from edgepoint2_ros.network import EdgePoint2  # noqa: E402
from edgepoint2_ros.network.weights import restore_network  # noqa: E402

PARTS = {  # what each loss depends on
    'block1': ('block1.',),
    'block2': ('block2.',),
    'block3': ('block3.',),
    'descriptors': ('desc_head.',),
    'detection': ('conv1.', 'conv2.', 'conv3.', 'score_head.'),
}


@pytest.fixture(scope='module')
def views():
    level = textured(640, 480)
    return PairDataset(Photos(['a'], [[level.shape]], level.ravel()), 0, 1)[0].clean


@pytest.fixture(scope='module')
def teacher():
    return restore_network(find_model('S-64', 'shipped')).eval().requires_grad_(False)


def random_student():
    torch.manual_seed(0)
    return EdgePoint2(find_variant('S-64')).eval()


def losses_of(student, teacher, views):
    return block_losses(student, teacher, views, torch.Generator().manual_seed(0))


class TestBlockLosses:
    def test_are_zero_for_the_teacher_itself(self, teacher, views):
        losses = losses_of(teacher, teacher, views)
        assert list(losses) == list(PARTS)
        for name, loss in losses.items():
            assert loss == pytest.approx(0, abs=1e-5), name

    def test_a_part_learns_from_its_own_loss_alone(self, teacher, views):
        student = random_student()
        names = [name for name, _ in student.named_parameters()]
        for loss, value in losses_of(student, teacher, views).items():
            gradients = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
            learning = {name for name, gradient in zip(names, gradients) if gradient is not None}
            assert learning == {name for name in names if name.startswith(PARTS[loss])}, loss

    def test_a_part_learns_as_well_whatever_the_blocks_before_it_are(self, teacher, views):
        student = random_student()
        before = losses_of(student, teacher, views)
        with torch.no_grad():
            for parameter in student.block1.parameters():
                parameter.normal_()
        after = losses_of(student, teacher, views)
        assert after.pop('block1') != before.pop('block1')
        assert after == before


class TestRelativeError:
    def test_is_one_for_the_mean_of_each_channel(self):
        target = (
            torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
            * torch.tensor([1, 2, 4.0])[:, None, None]
        )
        mean = target.mean(dim=(0, 2, 3), keepdim=True).expand_as(target)
        assert relative_error(mean, target) == pytest.approx(1, abs=0.01)
        assert relative_error(target, target) == 0

    def test_a_constant_channel_does_not_dominate(self):
        target = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
        target[:, 1] = 3
        assert relative_error(target + 0.01, target) < 1
