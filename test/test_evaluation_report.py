import re

import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import report
from edgepoint2_ros.evaluation.benchmark import MATCH_THRESHOLDS, Result

OPTIONS = {'resize': 640, 'score_threshold': -8.0}


def results(method, gain=0.0, pairs=3, scenes=('street', 'room')):
    rng = np.random.default_rng(0)
    return [
        Result(
            *('relative pose', scene, f'{k}', method, (f'{k}.png', f'{k + 1}.png'), 2048.0, int(400 + 100 * gain)),
            *(0.123456789 + gain, None, None, rng.gamma(2, 3, 2)),
        )
        for scene in scenes
        for k in range(pairs)
    ]


def homographies(method):
    rng = np.random.default_rng(1)
    accuracy = np.sort(rng.uniform(size=len(MATCH_THRESHOLDS)))
    return [
        Result(*('synthetic', 'light', f'{k}', method, (f'{k}',), 99.5, 7, 0.5, 1 / 3, accuracy), np.array([np.inf]))
        for k in range(2)
    ]


class TestTable:
    def test_columns_are_aligned_whatever_stands_in_them(self):
        both = results('E-64 official') + results('E-64 /some/long/path', gain=-0.1)
        for block in report.format_table(both, [('E-64 /some/long/path', 'E-64 official')]).split('\n\n'):
            title, *lines = block.strip().splitlines()
            ends = {len(line) for line in lines if 'standard error' not in line}
            assert len(ends) == 1, block
            assert not any(line != line.rstrip() for line in lines)

    def test_a_difference_names_the_variant_once(self):
        both = results('E-64 mine') + results('E-64 official') + results('ALIKED-n16')
        table = report.format_table(both, [('E-64 mine', 'E-64 official'), ('E-64 mine', 'ALIKED-n16')])
        assert re.search(r'^  E-64 mine - official +\+0 \(0\)', table, re.MULTILINE)
        assert re.search(r'^  E-64 mine - ALIKED-n16 +\+0 \(0\)', table, re.MULTILINE)

    def test_there_is_no_minus_zero_and_no_error_of_a_single_pair(self):
        both = results('A', gain=-1e-6, pairs=1) + results('B', pairs=1)
        table = report.format_table(both, [('A', 'B')])
        assert '-0.0' not in table
        assert 'nan' not in table
        assert '+0.0 (-)' in table

    def test_without_rivals_there_are_no_differences(self):
        assert 'difference' not in report.format_table(results('A'), [])


class TestCsv:
    def test_comes_back_as_it_was(self, tmp_path):
        written = results('A') + homographies('A')
        report.write_csv(tmp_path / 'results.csv', written, OPTIONS)
        read = report.read_csv(tmp_path / 'results.csv', OPTIONS)
        assert len(read) == len(written)
        for one, other in zip(read, written):
            for name in ('benchmark', 'group', 'pair', 'method', 'sources', 'keypoints', 'matches', 'right'):
                assert getattr(one, name) == getattr(other, name), name
            assert one.repeatability == other.repeatability
            np.testing.assert_array_equal(one.accuracy, other.accuracy)
            np.testing.assert_array_equal(one.errors, other.errors)

    @pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'resize,score_threshold\n640,\n', '\x00'])
    def test_another_file_is_refused(self, tmp_path, text):
        (tmp_path / 'other.csv').write_text(text)
        with pytest.raises(EdgePoint2Error, match=r'other\.csv: expected results\.csv'):
            report.read_csv(tmp_path / 'other.csv', OPTIONS)
