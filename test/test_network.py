import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: models cannot be made')

import cv2  # noqa: E402

from edgepoint2_ros.errors import ModelError  # noqa: E402
from edgepoint2_ros.models import open_model  # noqa: E402
from edgepoint2_ros.models.variants import VARIANTS, find_variant  # noqa: E402
from edgepoint2_ros.network import EdgePoint2  # noqa: E402
from edgepoint2_ros.network.export import export_model  # noqa: E402
from edgepoint2_ros.network.weights import load_network, restore_network, weights_digest  # noqa: E402

# From the table of the paper's reference implementation.
PARAMETERS = {
    'T': {32: 27_524, 48: 28_308},
    'S': {32: 43_780, 48: 44_820, 64: 45_860},
    'M': {32: 85_516, 48: 87_068, 64: 88_620},
    'L': {32: 144_396, 48: 146_460, 64: 148_524},
    'E': {32: 150_500, 48: 152_564, 64: 154_628},
}


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_parameters_and_maps_are_those_of_the_definition(variant):
    network = EdgePoint2(variant).eval()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == PARAMETERS[variant.size][variant.descriptor_size]
    scores, descriptors = network(torch.rand(2, 1, 96, 128))
    assert scores.shape == (2, 1, 96, 128)
    assert descriptors.shape == (2, variant.descriptor_size, 24, 32)


@pytest.fixture
def state_file(tmp_path):
    """Return a function that saves an object as a file of weights."""

    def save(state, name='weights.pth'):
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return save


def test_a_state_dict_tells_its_variant(state_file):
    network = EdgePoint2(find_variant('M-48'))
    loaded = load_network(state_file(network.state_dict()))
    assert loaded.variant.name == 'M-48'
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), loaded.state_dict().values()))


def test_weights_of_another_variant_are_refused(state_file):
    path = state_file(EdgePoint2(find_variant('S-64')).state_dict())
    with pytest.raises(ModelError, match='holds weights of S-64, but T-32 was asked for'):
        load_network(path, find_variant('T-32'))


def test_weights_of_another_size_are_refused(state_file):
    state = EdgePoint2(find_variant('T-32')).state_dict()
    state['desc_head.2.weight'] = torch.zeros(33, 48, 1, 1)
    with pytest.raises(ModelError, match='not those of any of the 14'):
        load_network(state_file(state))


def test_weights_that_are_not_finite_are_refused(state_file):
    state = EdgePoint2(find_variant('T-32')).state_dict()
    state['conv1.bias'][0] = float('nan')
    with pytest.raises(ModelError, match='not finite'):
        load_network(state_file(state))


def test_files_that_are_no_state_dict_are_refused(state_file, tmp_path):
    with pytest.raises(ModelError, match='no file'):
        load_network(tmp_path / 'missing.pth')
    with pytest.raises(ModelError, match='expected a state dict'):
        load_network(state_file([1, 2, 3]))
    (tmp_path / 'text.pth').write_text('not weights')
    with pytest.raises(ModelError, match='not a state dict that torch can load'):
        load_network(tmp_path / 'text.pth')
    whole = state_file(EdgePoint2(find_variant('T-32')).state_dict()).read_bytes()
    (tmp_path / 'half.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match='not a state dict that torch can load'):
        load_network(tmp_path / 'half.pth')


class Trap:
    """Pickles to a call; loading it must not make the call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_a_file_of_weights_can_not_run_code(state_file, tmp_path):
    with pytest.raises(ModelError, match='not a state dict that torch can load'):
        load_network(state_file({'conv1.bias': Trap(tmp_path / 'sprung')}))
    assert not (tmp_path / 'sprung').exists()


@pytest.fixture(scope='module')
def photograph():
    """A gray image (1, 1, 480, 640) in 0..1."""
    data = pytest.importorskip('skimage.data')
    gray = cv2.resize(cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2GRAY), (640, 480))
    return torch.from_numpy(gray).float()[None, None] / 255


@pytest.mark.parametrize('name', ['T-32', 'S-64', 'M-48'])
def test_a_model_gives_its_network_back(name, tmp_path, photograph):
    torch.manual_seed(0)
    network = EdgePoint2(find_variant(name))
    network.train()(photograph)  # statistics and, as after a training, scales of batch normalisation that are not 1
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    model = open_model(export_model(network.eval(), tmp_path / f'{name}.onnx'))
    trainable = restore_network(model, trainable=True)
    with torch.no_grad():
        scores, descriptors = network(photograph)
        for restored in (restore_network(model), trainable):
            assert weights_digest(restored) == model.digest == weights_digest(network)
            same_scores, same_descriptors = restored(photograph)
            assert torch.allclose(scores, same_scores, atol=1e-4 * scores.std())
            assert torch.cosine_similarity(descriptors, same_descriptors).min() > 1 - 1e-6
        # Training can go on from it: batch normalisation by the batch changes little, as it does in a trained network.
        moved = (trainable.train()(photograph)[0] - scores).std()
    assert moved < scores.std()
    trainable.conv1.bias.data += 1
    assert weights_digest(trainable) != model.digest
    model.path.unlink()
    with pytest.raises(ModelError, match='export the model again'):
        restore_network(model)
