import re
import sys

import pytest

pytest.importorskip('openvino')

from edgepoint2_ros.bench import profile
from edgepoint2_ros.models.variants import find_variant


def test_t_32_takes_the_arithmetic_that_its_authors_state():
    pytest.importorskip('torch', reason='torch is not installed')
    assert sum(layer[1] for layer in profile.convolutions(find_variant('T-32'))) == pytest.approx(0.97e9, rel=0.01)


def test_every_convolution_is_counted_in_its_stage():
    pytest.importorskip('torch', reason='torch is not installed')
    layers = profile.convolutions(find_variant('M-48'))
    stages = [stage for stage, _, _ in layers]
    assert {stage: stages.count(stage) for stage in stages} == {
        'block1': 4,
        'block2': 3,
        'block3': 3,
        'detection': 6,
        'description': 3,
    }
    # The first one makes 8 channels of 4x4 gray pixels at half the size.
    assert layers[0] == ('block1', 2 * 16 * 8 * 320 * 240, 640 * 480 + 8 * 320 * 240)
    # 3x3 in groups of 16 channels, it reads and writes 96 channels at a quarter of the size.
    assert ('description', 2 * 9 * 16 * 96 * 160 * 120, 2 * 96 * 160 * 120) in layers


@pytest.mark.slow
def test_the_table_has_every_stage_and_adds_up(official_model, monkeypatch, capsys):
    pytest.importorskip('torch', reason='torch is not installed')
    official_model('T-32')
    monkeypatch.setattr(profile, 'FRAMES', 4)
    monkeypatch.setattr(profile, 'SIDE', 8)
    monkeypatch.setattr(sys, 'argv', ['profile', 'T-32', '--threads', '1'])
    profile.main()
    rows = dict(re.findall(r'^\| (\w+) \| (.*) \|$', capsys.readouterr().out, re.MULTILINE))
    table = {stage: [float(value) for value in rows[stage].split(' | ')] for stage in (*profile.STAGES, 'sum')}
    total = table.pop('sum')
    assert [sum(column) for column in zip(*table.values())] == pytest.approx(total, abs=0.06)
    for stage in ('block1', 'detection', 'description', 'keypoints'):
        assert table[stage][1] > 0, stage
    assert not any(table['layouts'][2:])  # OpenVINO's passes belong to stages, whatever they are called
