import argparse
import csv
import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('poselib', reason='poselib is not installed')

from edgepoint2_ros.cli import evaluate as command
from edgepoint2_ros.errors import EdgePoint2Error, ImageError, ModelError
from edgepoint2_ros.evaluation.benchmark import run_benchmark
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
    from edgepoint2_ros.models.variants import find_variant
    from edgepoint2_ros.network import EdgePoint2
    from edgepoint2_ros.network.export import export_model

    torch.manual_seed(0)
    return export_model(EdgePoint2(find_variant('T-32')).eval(), tmp_path_factory.mktemp('model') / 'T-32.onnx')


class TestOpenCVMethods:
    @pytest.mark.parametrize('name', ['ORB', 'SIFT'])
    def test_match_an_image_with_itself_perfectly(self, name, photograph):
        pair = HomographyPair('same', 'viewpoint', photograph, photograph, np.eye(3))
        (result,), _ = run_benchmark('self', [pair], [OpenCVMethod(name, 500)], 0)
        assert result.repeatability == 1
        assert result.accuracy[0] > 0.98
        assert result.errors[0] < 0.01
        assert 300 < result.keypoints <= 510

    @pytest.mark.parametrize('name', ['ORB', 'SIFT'])
    def test_an_image_without_features_scores_nothing(self, name):
        flat = np.full((240, 320), 128, np.uint8)
        (result,), _ = run_benchmark(
            'flat', [HomographyPair('flat', 'light', flat, flat, np.eye(3))], [OpenCVMethod(name, 500)], 0
        )
        assert (result.keypoints, result.matches, result.right, result.repeatability) == (0, 0, 0, 0)
        assert result.errors.tolist() == [np.inf]


class TestCommand:
    def test_writes_a_table_a_csv_file_and_a_page(self, tmp_path, model, photograph, capsys):
        (tmp_path / 'photos').mkdir()
        cv2.imwrite(str(tmp_path / 'photos' / 'one.png'), photograph)
        scene = self.scene(tmp_path, 'street', photograph)
        output = tmp_path / 'out'
        code = run(
            *(f'T-32@{model}', '--synthetic', tmp_path / 'photos', '--pairs', scene),
            *('--output', output, '--resize', '320', '--max-keypoints', '300', '--seeds', '2'),
        )
        assert code == 0
        table = (output / 'table.txt').read_text()
        assert table in capsys.readouterr().out
        for title in ('synthetic (5 pairs)', 'synthetic, viewpoint (3 pairs)', 'synthetic, light (2 pairs)'):
            assert title in table
        assert 'relative pose, street (1 pairs)' in table
        assert 'scenes' not in table
        assert re.search(r'^  SIFT +\d+ +\d+( +\d+\.\d){7}$', table, re.MULTILINE)
        assert re.search(r'^  SIFT +\d+ +\d+( +\d+\.\d){4}$', table, re.MULTILINE)

        with (output / 'results.csv').open(newline='') as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6 * 3
        assert {row['method'] for row in rows} == {f'T-32 {model}', 'ORB', 'SIFT'}
        sift = [row for row in rows if row['method'] == 'SIFT' and row['group'] == 'light']
        assert all(float(row['accuracy_3px']) == float(row['right']) > 0.6 for row in sift)
        assert all(row['error_0'] and row['error_1'] for row in rows)

        page = (output / 'report.html').read_text()
        assert page.count('<svg') == 3 * 2 + 1
        assert page.count('data:image/jpeg;base64,') == 3 * 2
        assert 'LO-RANSAC' in page
        assert not re.search(r'(src|href)="(?!data:|#)', page), 'the page must need no other file'

    def scene(self, folder, name, image):
        """Write a pairs file of one pair, an image and itself moved aside, and return its path."""
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / 'a.png'), image)
        cv2.imwrite(str(folder / name / 'b.png'), np.roll(image, 20, axis=1))
        camera, pose = '500 0 320 0 500 240 0 0 1', '1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1'
        (folder / name / 'pairs.txt').write_text(f'a.png b.png 0 0 {camera} {camera} {pose}\n')
        return folder / name / 'pairs.txt'

    def test_scenes_get_a_table_each_and_one_of_their_mean(self, tmp_path, model, photograph):
        scenes = [self.scene(tmp_path, name, photograph) for name in ('street', 'room')]
        run(f'T-32@{model}', '--pairs', *scenes, '--output', tmp_path, '--resize', '320', '--max-keypoints', '200')
        table = (tmp_path / 'table.txt').read_text()
        titles = re.findall(r'^relative pose.*$', table, re.MULTILINE)
        assert titles == [
            'relative pose, mean of 2 scenes (2 pairs)',
            'relative pose, street (1 pairs)',
            'relative pose, room (1 pairs)',
        ]
        page = (tmp_path / 'report.html').read_text()
        assert all(title in page for title in titles)

    def test_models_are_compared_with_the_last_one_of_their_variant(self, tmp_path, model, photograph):
        (tmp_path / 'photos').mkdir()
        cv2.imwrite(str(tmp_path / 'photos' / 'one.png'), photograph)
        shutil.copytree(model.parent, tmp_path / 'same')
        models = f'T-32@{model}', f'T-32@{tmp_path / "same"}'
        run(*models, '--models-only', '--synthetic', tmp_path / 'photos', '--output', tmp_path, '--resize', '320')
        table = (tmp_path / 'table.txt').read_text()
        first, last = (name.replace('@', ' ') for name in models)
        same = re.escape(f'{first} - {last.removeprefix("T-32 ")}') + r' +\+0 \(0\) +\+0 \(0\)( +\+0\.0 \(0\.0\)){7}$'
        assert len(re.findall(f'difference \\(standard error\\)\n  {same}', table, re.MULTILINE)) == 3
        assert 'SIFT' not in table
        assert 'difference (standard error)' in (tmp_path / 'report.html').read_text()

    def test_results_of_an_earlier_run_stand_beside_new_ones(self, tmp_path, model, photograph):
        street, room = (self.scene(tmp_path, name, photograph) for name in ('street', 'room'))
        (line,) = street.read_text().splitlines()
        street.write_text(f'{line}\n{line.replace("a.png b.png", "b.png a.png")}\n')
        shutil.copytree(model.parent, tmp_path / 'new')
        arguments = '--pairs', street, room, '--resize', '320', '--max-keypoints', '200'
        both = run(f'T-32@{tmp_path / "new"}', f'T-32@{model}', *arguments, '--output', tmp_path / 'both')
        # The order of the scenes does not matter.
        run(f'T-32@{model}', '--pairs', room, street, *arguments[3:], '--output', tmp_path / 'before')
        earlier = tmp_path / 'before' / 'results.csv'
        now = f'T-32@{tmp_path / "new"}', *arguments, '--models-only', '--with', earlier
        assert run(*now, '--output', tmp_path / 'after') == both == 0
        tables = [(tmp_path / name / 'table.txt').read_text() for name in ('after', 'both')]
        assert tables[0] == tables[1]

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (('--resize', '160'), r'results\.csv was made with --resize 320: expected 160'),
            (('--max-keypoints', '100'), r'results\.csv was made with --max-keypoints 200: expected 100'),
            (('--score-threshold', '-5'), r'results\.csv was made with --score-threshold -8\.0: expected -5\.0'),
            (('--seed', '1'), r'results\.csv was made with --seed 0: expected 1'),
            (('--pairs', 'room'), 'ORB was measured on other pairs: of 1 there and 1 here 0 are the same'),
            (('--with', 'table.txt'), 'expected results.csv of this version'),
            (('--with', 'none.csv'), r'none\.csv cannot be read: No such file'),
        ],
    )
    def test_results_that_cannot_be_compared(self, tmp_path, model, photograph, change, message):
        paths = {name: self.scene(tmp_path, name, photograph) for name in ('street', 'room')}
        paths.update({name: tmp_path / name for name in ('table.txt', 'none.csv')})
        arguments = f'T-32@{model}', '--output', tmp_path
        same = {'--pairs': paths['street'], '--resize': '320', '--max-keypoints': '200'}
        run(*arguments, *chain.from_iterable(same.items()))
        now = {**same, '--with': tmp_path / 'results.csv'}
        now[change[0]] = paths.get(change[1], change[1])
        with pytest.raises(EdgePoint2Error, match=message):
            run(*arguments, '--models-only', *chain.from_iterable(now.items()), '--output', tmp_path / 'now')

    @pytest.mark.parametrize('benchmark', ['--pairs', '--synthetic', '--rooms'])
    def test_results_of_other_images_of_the_same_names(self, tmp_path, model, photograph, benchmark, monkeypatch):
        monkeypatch.setattr('edgepoint2_ros.cli.evaluate.ROOMS', 1)
        scenes = [
            self.scene(tmp_path / part, 'street', image) for part, image in (('a', photograph), ('b', photograph[::-1]))
        ]
        scenes = scenes if benchmark == '--pairs' else [scene.parent for scene in scenes]
        arguments = f'T-32@{model}', '--resize', '320', '--max-keypoints', '200', '--seeds', '1'
        run(*arguments, benchmark, scenes[0], '--output', tmp_path / 'before')
        with pytest.raises(EdgePoint2Error, match=r'ORB was measured on other pairs: .* 0 are the same'):
            run(
                *(*arguments, '--models-only', benchmark, scenes[1], '--output', tmp_path / 'now'),
                *('--with', tmp_path / 'before' / 'results.csv'),
            )

    def test_scenes_of_one_name(self, tmp_path, model):
        paths = [tmp_path / 'a' / 'street' / 'pairs.txt', tmp_path / 'b' / 'street.txt']
        with pytest.raises(EdgePoint2Error, match='files or folders of different names, got street, street'):
            run(f'T-32@{model}', '--pairs', *paths)

    def test_needs_poselib_and_says_so_at_once(self, tmp_path, model, photograph, monkeypatch):
        monkeypatch.setitem(sys.modules, 'poselib', None)
        scene = self.scene(tmp_path, 'street', photograph)
        with pytest.raises(EdgePoint2Error, match='poselib'):
            run(f'T-32@{model}', '--pairs', scene, '--output', tmp_path / 'out')
        assert not (tmp_path / 'out').exists()

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
        with pytest.raises(EdgePoint2Error, match=f'{name} already exists'):
            run(f'T-32@{model}', '--synthetic', tmp_path, '--output', tmp_path)

    def test_nothing_to_evaluate_on(self, model):
        with pytest.raises(EdgePoint2Error, match='give --synthetic DIR, --rooms DIR, --hpatches DIR or --pairs FILE'):
            run(f'T-32@{model}')

    @pytest.mark.parametrize(('option', 'least'), [('--max-keypoints', 1), ('--resize', 0), ('--seeds', 1)])
    def test_options_out_of_range(self, model, tmp_path, option, least):
        with pytest.raises(EdgePoint2Error, match=f'{option}: expected {least} or more, got {least - 1}'):
            run(f'T-32@{model}', '--synthetic', tmp_path, option, str(least - 1))

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
        code = "import sys, edgepoint2_ros.cli.evaluate; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
        assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
