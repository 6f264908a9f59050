import pytest

from edgepoint2_ros.bench import _table
from edgepoint2_ros.cli import main


def test_the_table_gives_ratios_to_orb_and_to_the_dense_reference():
    results = {
        'orb': {'times': [0.004] * 3, 'keypoints': 2000.0},
        'dense T-32': {'times': [0.040] * 3, 'keypoints': 1900.0},
        'openvino T-32 fp32': {'times': [0.008, 0.010, 0.012], 'keypoints': 1900.0},
        'openvino T-32 bf16': {'error': 'this CPU has no bf16'},
    }
    lines = _table(results).splitlines()
    assert lines[2].startswith('| ORB (OpenCV) | 4.0 |')
    assert lines[4] == '| T-32, OpenVINO fp32 | 10.0 | 8.4 to 11.6 | 1900 | 2.50 | 4.0x |'
    assert 'this CPU has no bf16' in lines[5]


@pytest.mark.slow
def test_a_model_that_is_not_to_be_had_is_left_out(nothing_shipped, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    monkeypatch.setattr('edgepoint2_ros.official.find_weights', lambda variant: None)
    monkeypatch.setattr('edgepoint2_ros.official.UPSTREAM', 'http://127.0.0.1:9/')
    assert main(['bench', '--models', 'T-32', '--frames', '2', '--rounds', '1']) == 0
    out, err = capsys.readouterr()
    assert 'T-32 is left out' in err
    assert 'ORB' in out


@pytest.mark.slow
def test_every_contender_runs_in_a_process_of_its_own(official_model, capsys):
    official_model('T-32')
    assert main(['bench', '--models', 'T-32', '--frames', '3', '--rounds', '2', '--keypoints', '500']) == 0
    table = capsys.readouterr().out
    for name in ('ORB', 'SIFT', 'T-32, dense reference', 'T-32, ONNX Runtime fp32', 'T-32, OpenVINO fp32'):
        assert name in table
