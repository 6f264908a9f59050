import argparse
import csv
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepoint2_ros.errors import EdgePoint2Error, ImageError, ModelError
from edgepoint2_ros.evaluation import command
from edgepoint2_ros.evaluation.benchmark import run_benchmark, summarise
from edgepoint2_ros.evaluation.methods import OpenCVMethod
from edgepoint2_ros.evaluation.pairs import HomographyPair

ROOT = Path(__file__).parents[1]


def run(*args):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(arg) for arg in args]))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The path of a T-32 model with random weights."""
    torch = pytest.importorskip('torch', reason='torch is not installed: no model can be made')
    pytest.importorskip('onnx', reason='onnx is not installed: no model can be made')
    from edgepoint2_ros.network import EdgePoint2
    from edgepoint2_ros.network.export import export_model
    from edgepoint2_ros.variants import find_variant

    torch.manual_seed(0)
    return export_model(EdgePoint2(find_variant('T-32')).eval(), tmp_path_factory.mktemp('model') / 'T-32.onnx')


class TestOpenCVMethods:
    @pytest.mark.parametrize('name', ['ORB', 'SIFT'])
    def test_match_an_image_with_itself_perfectly(self, name, photograph):
        pair = HomographyPair('same', 'viewpoint', photograph, photograph, np.eye(3))
        (result,), _ = run_benchmark('self', [pair], [OpenCVMethod(name, 500)], 0)
        assert result.repeatability == 1
        assert result.accuracy[0] > 0.98
        assert result.error < 0.01
        assert 300 < result.keypoints <= 510

    @pytest.mark.parametrize('name', ['ORB', 'SIFT'])
    def test_an_image_without_features_scores_nothing(self, name):
        flat = np.full((240, 320), 128, np.uint8)
        (result,), _ = run_benchmark(
            'flat', [HomographyPair('flat', 'light', flat, flat, np.eye(3))], [OpenCVMethod(name, 500)], 0
        )
        assert (result.keypoints, result.matches, result.repeatability, result.error) == (0, 0, 0, np.inf)


def test_summary_has_groups_and_their_whole(photograph):
    pairs = [HomographyPair(group, group, photograph, photograph, np.eye(3)) for group in ('viewpoint', 'light')]
    results, _ = run_benchmark('self', pairs, [OpenCVMethod('ORB', 200)], 0)
    rows = summarise(results)
    assert [(row['group'], row['pairs']) for row in rows] == [('all', 2), ('viewpoint', 1), ('light', 1)]
    assert rows[0]['MMA@3'] == pytest.approx((rows[1]['MMA@3'] + rows[2]['MMA@3']) / 2)


class TestCommand:
    def test_writes_a_table_a_csv_file_and_a_page(self, tmp_path, model, photograph, capsys):
        (tmp_path / 'photos').mkdir()
        cv2.imwrite(str(tmp_path / 'photos' / 'one.png'), photograph)
        cv2.imwrite(str(tmp_path / 'a.png'), photograph)
        camera, pose = '500 0 320 0 500 240 0 0 1', '1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1'
        (tmp_path / 'pairs.txt').write_text(f'a.png a.png 0 0 {camera} {camera} {pose}\n')
        output = tmp_path / 'out'
        code = run(
            *(f'T-32@{model}', '--synthetic', tmp_path / 'photos', '--pairs', tmp_path / 'pairs.txt'),
            *('--output', output, '--resize', '320', '--max-keypoints', '300'),
        )
        assert code == 0
        table = (output / 'table.txt').read_text()
        assert table in capsys.readouterr().out
        for title in ('synthetic (5 pairs)', 'synthetic, viewpoint (3 pairs)', 'synthetic, light (2 pairs)'):
            assert title in table
        assert 'relative pose (1 pairs)' in table
        assert re.search(r'^  SIFT +\d+ +\d+( +\d+\.\d){7}$', table, re.MULTILINE)

        with (output / 'results.csv').open(newline='') as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6 * 3
        assert {row['method'] for row in rows} == {f'T-32 {model}', 'ORB', 'SIFT'}
        sift = [row for row in rows if row['method'] == 'SIFT' and row['group'] == 'light']
        assert all(float(row['accuracy_3px']) > 0.6 for row in sift)

        page = (output / 'report.html').read_text()
        assert page.count('<svg') == 3 * 2 + 1
        assert page.count('data:image/jpeg;base64,') == 3 * 2
        assert 'USAC_MAGSAC' in page
        assert not re.search(r'(src|href)="(?!data:)', page), 'the page must need no other file'

    def test_photographs_of_one_name_are_told_apart(self, tmp_path, model, photograph):
        for folder in ('left', 'right'):
            (tmp_path / folder).mkdir()
            cv2.imwrite(str(tmp_path / folder / 'one.png'), photograph)
        photos = ['--synthetic', tmp_path / 'left', tmp_path / 'right', tmp_path]  # the last holds the others
        assert run(f'T-32@{model}', *photos, '--output', tmp_path / 'out', '--resize', '200') == 0
        with (tmp_path / 'out' / 'results.csv').open(newline='') as file:
            pairs = [row['pair'] for row in csv.DictReader(file) if row['method'] == 'ORB']
        assert len(pairs) == len(set(pairs)) == 10
        assert {pair.split()[0] for pair in pairs} == {'left/one', 'right/one'}

    def test_a_model_is_named_once(self, model, tmp_path):
        with pytest.raises(EdgePoint2Error, match='is named twice: its results would be added up'):
            run(f'T-32@{model}', f't32@{model}', '--synthetic', tmp_path)

    @pytest.mark.parametrize('name', ['table.txt', 'results.csv', 'report.html'])
    def test_writes_over_nothing(self, name, model, tmp_path):
        (tmp_path / name).write_text('precious')
        with pytest.raises(EdgePoint2Error, match=f'{name} exists already'):
            run(f'T-32@{model}', '--synthetic', tmp_path, '--output', tmp_path)

    def test_nothing_to_evaluate_on(self, model):
        with pytest.raises(EdgePoint2Error, match='give --synthetic DIR, --rooms DIR, --hpatches DIR or --pairs FILE'):
            run(f'T-32@{model}')

    def test_options_out_of_range(self, model, tmp_path):
        with pytest.raises(EdgePoint2Error, match='expected --max-keypoints from 1'):
            run(f'T-32@{model}', '--synthetic', tmp_path, '--max-keypoints', '0')

    def test_an_unknown_model(self, tmp_path):
        with pytest.raises(ModelError, match="unknown model 'T-99'"):
            run('T-99', '--synthetic', tmp_path)

    def test_no_images(self, model, tmp_path):
        with pytest.raises(ImageError, match='no images found'):
            run(f'T-32@{model}', '--synthetic', tmp_path)

    def test_no_usable_images(self, model, tmp_path):
        (tmp_path / 'broken.png').write_bytes(b'no image')
        with pytest.raises(EdgePoint2Error, match='synthetic: none of the pairs could be read'):
            run(f'T-32@{model}', '--synthetic', tmp_path)

    def test_needs_no_torch(self):
        code = (
            "import sys, edgepoint2_ros.evaluation.command; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
        )
        assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
