import re
import sys

import pytest

pytest.importorskip('openvino')

from edgepoint2_ros.bench import profile
from edgepoint2_ros.variants import VARIANTS, find_variant


@pytest.mark.parametrize('variant', VARIANTS, ids=str)
def test_the_arithmetic_is_that_of_the_network(variant):
    torch = pytest.importorskip('torch', reason='torch is not installed')
    from edgepoint2_ros.network.edgepoint2 import EdgePoint2

    counted = []

    def count(module, inputs, output):
        inner = module.in_channels / module.groups * module.kernel_size[0] * module.kernel_size[1]
        counted.append((2 * inner * output.numel(), inputs[0].numel() + output.numel()))

    network = EdgePoint2(variant).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 1, profile.HEIGHT, profile.WIDTH))
    expected = sorted((operations, numbers) for _, operations, numbers in profile.convolutions(variant))
    assert len(counted) == len(expected)
    for found, wanted in zip(sorted(counted), expected):
        assert found == pytest.approx(wanted, rel=1e-9)


def test_t_32_takes_the_arithmetic_that_its_authors_state():
    assert sum(layer[1] for layer in profile.convolutions(find_variant('T-32'))) == pytest.approx(0.97e9, rel=0.01)


@pytest.mark.slow
def test_the_table_has_every_stage_and_adds_up(official_model, monkeypatch, capsys):
    official_model('T-32')
    monkeypatch.setattr(profile, 'FRAMES', 4)
    monkeypatch.setattr(profile, 'SIDE', 64)
    monkeypatch.setattr(sys, 'argv', ['profile', 'T-32', '--threads', '1'])
    profile.main()
    rows = dict(re.findall(r'^\| (\w+) \| (.*) \|$', capsys.readouterr().out, re.MULTILINE))
    table = {stage: [float(value) for value in rows[stage].split(' | ')] for stage in (*profile.STAGES, 'sum')}
    total = table.pop('sum')
    assert [sum(column) for column in zip(*table.values())] == pytest.approx(total, abs=0.06)
    for stage in ('block1', 'detection', 'description', 'keypoints'):
        assert table[stage][1] > 0, stage
