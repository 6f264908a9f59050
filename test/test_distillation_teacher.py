import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')

from test_distillation_pairs import textured  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

from edgepoint2_ros.cpu import Cpu  # noqa: E402
from edgepoint2_ros.distillation import teacher as module  # noqa: E402
from edgepoint2_ros.distillation.pairs import HEIGHT, WIDTH, Pair, PairDataset  # noqa: E402
from edgepoint2_ros.distillation.photos import Photos  # noqa: E402
from edgepoint2_ros.distillation.teacher import RememberingTeacher, Teacher, autocast, look, to_gray  # noqa: E402
from edgepoint2_ros.models.variants import find_variant  # noqa: E402
from edgepoint2_ros.network import EdgePoint2  # noqa: E402


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return EdgePoint2(find_variant('T-48')).eval()


@pytest.fixture(scope='module')
def batches():
    """Six pairs of three layouts, two pairs a batch."""
    level = textured(640, 480)
    dataset = PairDataset(Photos(['a'], [[level.shape]], level.ravel()), 0, 6, layouts=3)
    return [Pair(*default_collate([dataset[i], dataset[i + 1]])) for i in (0, 2, 4)]


@pytest.fixture(params=['avx2', 'amx_bf16'])
def cpu(request, monkeypatch):
    """A CPU without and one with bfloat16."""
    monkeypatch.setattr(module, 'find_cpu', lambda: Cpu('a CPU', frozenset({request.param})))
    module.has_bf16.cache_clear()
    yield request.param
    module.has_bf16.cache_clear()


def test_multiplies_in_bfloat16_only_where_the_hardware_does(cpu):
    with autocast(torch.device('cpu')):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {'avx2': torch.float32, 'amx_bf16': torch.bfloat16}[cpu]


def test_sees_the_clean_or_the_changed_views(network, batches):
    clean, changed = (Teacher([network], clean=clean).maps(batches[0]) for clean in (True, False))
    assert clean[0].shape == (4, 1, HEIGHT, WIDTH)
    assert clean[1].shape == (4, 48, HEIGHT // 4, WIDTH // 4)
    assert not torch.equal(clean[0], changed[0])
    same = batches[0]._replace(clean=batches[0].views)
    for maps, expected in zip(Teacher([network], clean=True).maps(same), changed, strict=True):
        assert torch.equal(maps, expected)


def test_remembers_what_it_saw(cpu, network, batches, tmp_path, monkeypatch):
    teacher = RememberingTeacher([network], 3, tmp_path)
    calls = []
    monkeypatch.setattr(
        EdgePoint2, 'forward', lambda self, gray, look=EdgePoint2.forward: calls.append(1) or look(self, gray)
    )
    for batch in batches:
        expected = Teacher([network], clean=True).maps(batch)
        calls.clear()
        for maps, wanted in zip(teacher.maps(batch), expected, strict=True):
            np.testing.assert_array_equal(maps.float().numpy(), wanted.bfloat16().float().numpy())
        assert len(calls) == (batch is not batches[2])  # the layouts of the third batch were in the two before


def test_teachers_join_their_unit_descriptors(network, batches):
    torch.manual_seed(1)
    other = EdgePoint2(find_variant('S-32')).eval()
    gray = to_gray(batches[0].clean)
    with torch.no_grad():
        scores, joined = look([network, other], gray)
        assert torch.equal(scores, network(gray)[0])  # the first one's
        for part, single in zip(joined.split([48, 32], dim=1), (network, other), strict=True):
            torch.testing.assert_close(part, torch.nn.functional.normalize(single(gray)[1], dim=1))


def test_projects_onto_a_basis(network, batches, tmp_path):
    basis = torch.linalg.qr(torch.rand(48, 32))[0]
    scores, whole = Teacher([network], clean=True).maps(batches[0])
    for teacher in (Teacher([network], True, basis), RememberingTeacher([network], 3, tmp_path, basis)):
        same, projected = teacher.maps(batches[0])
        expected = torch.einsum('bchw,cd->bdhw', whole.float(), basis)
        torch.testing.assert_close(projected.float(), expected, atol=0.01, rtol=0)
        torch.testing.assert_close(same.float(), scores.float(), atol=0.1, rtol=0.01)


def test_leaves_no_file_behind(network, tmp_path):
    teacher = RememberingTeacher([network], 3, tmp_path)
    assert teacher
    assert list(tmp_path.iterdir()) == []
