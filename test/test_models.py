import json
from pathlib import Path

import pytest

from edgepoint2_ros.errors import ModelError
from edgepoint2_ros.models import SHIPPED, find_model, list_models, open_model, read_part
from edgepoint2_ros.models.variants import VARIANTS
from edgepoint2_ros.storage import data_directory


@pytest.fixture
def copy(official_model, tmp_path) -> Path:
    """A T-32 model with its card, in a folder of its own, to be damaged."""
    model = official_model('T-32')
    for suffix in ('.onnx', '.json'):
        (tmp_path / f'T-32{suffix}').write_bytes(model.path.with_suffix(suffix).read_bytes())
    return tmp_path / 'T-32.onnx'


def test_a_user_without_a_home_has_no_models_of_his_own(official_model, monkeypatch):
    monkeypatch.delenv('XDG_DATA_HOME')
    monkeypatch.delenv('HOME')
    monkeypatch.setattr('pwd.getpwuid', lambda uid: {}[uid])  # as for a user that the system does not know
    assert data_directory() == Path('/nonexistent/.local/share/edgepoint2')
    assert list_models()
    with pytest.raises(ModelError, match='no official model of T-32 in /nonexistent/'):
        find_model('T-32', 'official')
    with pytest.raises(ModelError, match='there is no file ~/T-32.onnx'):
        find_model('T-32', '~/T-32.onnx')


def test_a_model_is_found_by_the_name_of_its_weights_by_its_path_and_by_its_folder(official_model, copy):
    model = official_model('T-32')
    assert find_model('t32') == model
    for weights in (str(copy), str(copy.parent)):
        assert find_model('T-32', weights).digest == model.digest
        assert find_model('T-32', weights).path == copy


def test_all_variants_ship_in_less_than_12_megabytes():
    assert [find_model(str(variant), 'shipped').variant for variant in VARIANTS] == list(VARIANTS)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 12e6


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_a_card_lists_each_file_of_its_model_as_it_is(variant):
    onnx = pytest.importorskip('onnx', reason='onnx is not installed')
    model = find_model(str(variant), 'shipped')
    assert {f'{variant}{end}' for end in model.card['files']} == {f.name for f in SHIPPED.glob(f'{variant}.*onnx')}
    for end, entry in model.card['files'].items():
        graph = onnx.load_from_string(read_part(model, end.removesuffix('.onnx').removeprefix('.'))).graph
        inputs, outputs = entry['interface'].split(' -> ')
        assert inputs.split(', ') == [value.name for value in graph.input]
        assert outputs.split(', ') == [value.name for value in graph.output]
        kinds = {'int8': onnx.TensorProto.INT8, 'fp16': onnx.TensorProto.FLOAT16, 'fp32': onnx.TensorProto.FLOAT}
        (weight,) = (tensor for tensor in graph.initializer if tensor.name == 'block2.layer.0.weight')
        assert weight.data_type == kinds[entry['precision']]
    (scores,) = (value for value in graph.output if value.name == 'scores')
    assert scores.type.tensor_type.shape.dim[0].dim_value == model.max_keypoints


def test_the_documentation_has_digest_and_sizes_of_every_shipped_model():
    page = (Path(__file__).parents[1] / 'docs' / 'start' / 'models.md').read_text()
    for variant in VARIANTS:
        sizes = (str((SHIPPED / f'{variant}{end}').stat().st_size) for end in ('.onnx', '.int8.onnx', '.tensorrt.onnx'))
        digest = find_model(str(variant), 'shipped').digest
        assert f'| {variant} | `{digest}` | {" / ".join(sizes)} |' in page


def test_auto_takes_the_shipped_model_and_else_the_official_one(monkeypatch, tmp_path):
    assert find_model('E-64').digest == find_model('E-64', 'shipped').digest
    (tmp_path / 'T-32.onnx').touch()
    monkeypatch.setattr('edgepoint2_ros.models.SHIPPED', tmp_path)
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    with pytest.raises(ModelError, match='no official model of E-64'):
        find_model('E-64')
    with pytest.raises(ModelError, match='E-64 does not ship with the package, T-32 do: choose one of these'):
        find_model('E-64', 'shipped')


def test_a_missing_model_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    with pytest.raises(ModelError, match='edgepoint2 models download E-64'):
        find_model('E-64', 'official')
    with pytest.raises(ModelError, match='no file /nowhere/x.onnx'):
        find_model('E-64', '/nowhere/x.onnx')
    with pytest.raises(ModelError, match='holds weights, not a model'):
        find_model('E-64', 'E64.pth')


def test_a_model_of_another_variant_is_refused(copy):
    with pytest.raises(ModelError, match='is a model of T-32, expected M-48'):
        find_model('M-48', str(copy))


def test_a_corrupt_model_is_refused(copy):
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(ModelError, match='is corrupt: its SHA-256'):
        open_model(copy)
    copy.write_bytes(data[:1000])
    with pytest.raises(ModelError, match='is corrupt'):
        open_model(copy)


def test_a_missing_or_damaged_card_is_refused(copy):
    card = copy.with_suffix('.json')
    entries = json.loads(card.read_text())
    for text, message in (
        ('{', 'is not a model card'),
        ('[]', 'is not a model card'),
        (json.dumps({**entries, 'format': 99}), 'expected card format 3, got 99'),
        (json.dumps({key: value for key, value in entries.items() if key != 'digest'}), "KeyError: 'digest'"),
        (json.dumps({**entries, 'model': 'X-1'}), 'unknown model'),
        (json.dumps({**entries, 'files': {}}), "KeyError: '.tensorrt.onnx'"),
        (json.dumps({**entries, 'files': {**entries['files'], '.onnx': 5}}), 'is not a model card'),
        (json.dumps({**entries, 'files': 5}), 'is not a model card'),
    ):
        card.write_text(text)
        with pytest.raises(ModelError, match=message):
            open_model(copy)
    card.unlink()
    with pytest.raises(ModelError, match='has no card'):
        open_model(copy)


def test_the_list_names_models_and_broken_ones(official_model, nothing_shipped, monkeypatch, tmp_path):
    model = official_model('T-32')
    folder = tmp_path / 'edgepoint2' / 'models' / 'official'
    folder.mkdir(parents=True)
    for name in ('T-32', 'M-48'):
        for suffix in ('.onnx', '.json'):
            (folder / f'{name}{suffix}').write_bytes(model.path.with_suffix(suffix).read_bytes())
    (folder / 'M-48.json').write_text('{}')
    (folder / 'T-32.fp16.onnx').touch()  # left by an earlier version
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    good, broken = list_models()
    assert good.digest == model.digest
    assert isinstance(broken, ModelError)
