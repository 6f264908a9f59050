import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed: training cannot be tested')
pytest.importorskip('onnx', reason='onnx is not installed: trained models cannot be exported')

from test_distillation_pairs import textured  # noqa: E402

from edgepoint2_ros.cli import main  # noqa: E402
from edgepoint2_ros.distillation.matches import load_matched_photos  # noqa: E402
from edgepoint2_ros.distillation.pairs import Pair, PairDataset  # noqa: E402
from edgepoint2_ros.distillation.photos import Photos, load_photos  # noqa: E402
from edgepoint2_ros.distillation.student import Student  # noqa: E402
from edgepoint2_ros.distillation.teacher import Teacher, look, project, to_gray  # noqa: E402
from edgepoint2_ros.distillation.train import (  # noqa: E402
    Schedule,
    TrainingError,
    fit_basis,
    fit_heads,
    pair_losses,
    taught_columns,
    train,
)
from edgepoint2_ros.errors import EdgePoint2Error, ImageError, ModelError  # noqa: E402
from edgepoint2_ros.image_files import find_images  # noqa: E402
from edgepoint2_ros.models import find_model  # noqa: E402
from edgepoint2_ros.models.official import SHA256  # noqa: E402
from edgepoint2_ros.models.variants import find_variant  # noqa: E402
from edgepoint2_ros.network import EdgePoint2  # noqa: E402
from edgepoint2_ros.network.weights import load_network  # noqa: E402
from edgepoint2_ros.storage import sha256  # noqa: E402

ROOT = Path(__file__).parents[1]
VIEWS = 16  # for basis and last layers; the usual number would take most of the time of trainings as short as these
PROGRAM = f"""
import argparse, sys
from edgepoint2_ros.cli import train as command
from edgepoint2_ros.distillation import train
train.BASIS_VIEWS = train.HEAD_VIEWS = {VIEWS}
parser = argparse.ArgumentParser()
command.add_arguments(parser)
sys.exit(command.run(parser.parse_args()))
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with images and a teacher of random weights."""
    place = tmp_path_factory.mktemp('training')
    (place / 'images').mkdir()
    for seed in range(3):
        cv2.imwrite(str(place / 'images' / f'{seed}.png'), textured(640, 480, seed))
    torch.manual_seed(0)
    torch.save(EdgePoint2(find_variant('S-64')).state_dict(), place / 'teacher.pth')
    return place


@pytest.fixture(scope='module')
def matches(tmp_path_factory):
    """A COLMAP database of two images, and their folder, as `--matches` takes them."""
    from test_distillation_matches import write_database  # skips without pycolmap

    folder = tmp_path_factory.mktemp('matched')
    scene = textured(700, 500, 7)
    for name, view in (('a.png', scene[20:, 60:]), ('b.png', scene[:480, :640])):
        cv2.imwrite(str(folder / name), view)
    write_database(folder / 'matches.db', folder, ['a.png', 'b.png'])
    return str(folder / 'matches.db'), str(folder)


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.fixture(autouse=True)
def _few_views(monkeypatch):
    for name in ('BASIS_VIEWS', 'HEAD_VIEWS'):
        monkeypatch.setattr(f'edgepoint2_ros.distillation.train.{name}', VIEWS)


def arguments(place, output, *more):
    return [
        *('T-32', 'T-48', '--images', str(place / 'images'), '--teacher', str(place / 'teacher.pth')),
        *('--output', str(output), '--cache', str(place / 'cache'), '--threads', '1', *more),
    ]


def start(*args):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *args],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*args):
    import argparse

    from edgepoint2_ros.cli import train as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(args)))


def read_log(output):
    with (output / 'log.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def assert_learned(output, losses):
    """Each loss of a training of 40 steps has come down."""
    # Up to step 32, from which batch normalisation is frozen: its averages need more steps than these.
    log = read_log(output)[:32]
    for loss in losses:
        first, last = (sum(float(row[loss]) for row in rows) for rows in (log[:8], log[-8:]))
        assert last < first, loss


class TestStudent:
    def test_is_its_variants_side_by_side(self):
        torch.manual_seed(0)
        variants = [find_variant('S-32'), find_variant('S-64')]
        student = Student(variants).eval()
        gray = torch.rand(1, 1, 64, 96)
        with torch.no_grad():
            scores, maps = student(gray)
            for variant, joint_map in zip(variants, maps, strict=True):
                alone_scores, alone_map = student.extract(variant)(gray)
                torch.testing.assert_close(alone_scores, scores)
                torch.testing.assert_close(alone_map, joint_map)

    def test_learns_variants_of_one_size_only(self):
        with pytest.raises(ModelError, match='share one size .* got: T-32, S-32'):
            Student([find_variant('T-32'), find_variant('S-32')])

    def test_starts_from_given_weights(self):
        torch.manual_seed(0)
        given = EdgePoint2(find_variant('T-48')).eval()
        student = Student([find_variant('T-32'), find_variant('T-48')])
        student.start_from(given)
        gray = torch.rand(1, 1, 64, 64)
        with torch.no_grad():
            for ours, theirs in zip(student.extract(find_variant('T-48'))(gray), given(gray), strict=True):
                torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(student.extract(find_variant('T-32'))(gray)[0], given(gray)[0])

    def test_last_layers_are_fitted_to_what_the_heads_should_give(self):
        torch.manual_seed(0)
        student = Student([find_variant('T-32'), find_variant('T-48')]).eval()
        grays = torch.rand(2, 1, 1, 64, 96)
        with torch.no_grad():
            wanted = [[2 * m[:, :32] for m in student(gray)[1]] for gray in grays]
            wanted = [(one, torch.cat([other, -other[:, :16]], dim=1)) for one, other in wanted]
            student.fit_last_layers(zip(grays, wanted))
            for gray, targets in zip(grays, wanted):
                for given, target in zip(student(gray)[1], targets):
                    torch.testing.assert_close(given, target, atol=1e-3, rtol=1e-3)

    def test_does_not_start_from_another_size(self):
        with pytest.raises(ModelError, match='are of M-32, expected a variant of size T'):
            Student([find_variant('T-32')]).start_from(EdgePoint2(find_variant('M-32')))


class TestSchedule:
    def test_the_larger_the_network_the_less_contrast(self):
        weights = [Schedule(steps=1).weights(size).get('contrastive', 0) for size in 'TSMLE']
        assert weights == sorted(weights, reverse=True)
        assert weights[0] > weights[-1] == 0

    def test_the_largest_network_learns_no_relations(self):
        assert ['relational' in Schedule(steps=1).weights(size) for size in 'TSMLE'] == [True] * 4 + [False]

    def test_warms_up_then_falls_to_zero_along_a_cosine(self):
        schedule = Schedule(steps=1100, learning_rate=1.0, warm_up=100)
        assert schedule.rate(0) == pytest.approx(0.01)
        assert schedule.rate(99) == pytest.approx(1.0)
        assert schedule.rate(600) == pytest.approx(0.5)
        assert schedule.rate(1100) == pytest.approx(0.0)


class TestTraining:
    def test_writes_weights_models_and_a_log(self, place, tmp_path, capsys):
        assert run(*arguments(place, tmp_path, '--steps', '2', '--data-note', 'noise, CC0')) == 0
        assert 'learn from S-64 on 3 of 3 images' in capsys.readouterr().out
        assert [row['step'] for row in read_log(tmp_path)] == ['0', '1']
        for name in ('T-32', 'T-48'):
            assert load_network(tmp_path / f'{name}.pth').variant.name == name
            assert (tmp_path / f'{name}.onnx').is_file()
            card = (tmp_path / f'{name}.json').read_text()
            for entry in ('"teacher": "S-64 [', '"start": "random weights"', 'noise, CC0', '"steps": 2', '"seed": 0'):
                assert entry in card

    @pytest.mark.parametrize('note', [('--data-note', 'noise, CC0'), ('--data-note=noise, CC0',)])
    def test_the_card_holds_the_note_on_the_data_once(self, place, tmp_path, monkeypatch, note):
        options = arguments(place, tmp_path, '--steps', '1', '--pairs', '1')
        monkeypatch.setattr(sys, 'argv', ['edgepoint2', 'train', *options, *note, '--seed', '3'])
        run(*options, *note, '--seed', '3')
        trained = json.loads((tmp_path / 'T-32.json').read_text())['trained']
        assert trained['data'] == 'noise, CC0'
        assert trained['command'] == shlex.join(['edgepoint2', 'train', *options, '--seed', '3'])

    def test_the_card_names_shipped_weights_by_the_digests_of_their_models(self, place, tmp_path):
        run(*arguments(place, tmp_path, '--steps', '1', '--start', 'T-48', '--teacher', 'S-64'))
        trained = json.loads((tmp_path / 'T-32.json').read_text())['trained']
        for role, name in (('start', 'T-48'), ('teacher', 'S-64')):
            assert trained[role] == f'{name} [{find_model(name, "shipped").digest}]'

    def test_imported_weights_teach_and_start_a_training(self, place, tmp_path, monkeypatch):
        monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
        monkeypatch.setattr('edgepoint2_ros.cli.train.find_weights', lambda variant: None)
        torch.save(EdgePoint2(find_variant('T-48')).state_dict(), tmp_path / 'T48.pth')
        monkeypatch.setitem(SHA256, 'T48', sha256((tmp_path / 'T48.pth').read_bytes()))
        assert main(['models', 'import', str(tmp_path / 'T48.pth')]) == 0
        official = ('--teacher', 'T-48@official', '--start', 'T-48@official')
        assert run(*arguments(place, tmp_path / 'out', '--steps', '1', '--pairs', '1', *official)) == 0

    @pytest.mark.parametrize(
        ('recipe', 'losses'),
        [
            ('scenes', ('regression', 'map', 'relational', 'similarity', 'contrastive', 'detection')),
            ('paper', ('procrustes', 'similarity', 'contrastive', 'detection')),
        ],
    )
    def test_learns(self, place, tmp_path, recipe, losses):
        one_pair = ('--pairs', '1', '--layouts', '1', '--teacher', 'S-64')
        run(*arguments(place, tmp_path, '--steps', '40', '--recipe', recipe, *one_pair))
        assert_learned(tmp_path, losses)

    def test_learns_from_matched_photographs(self, place, matches, tmp_path, capsys):
        one_layout_of_each = ('--pairs', '2', '--layouts', '2', '--teacher', 'S-64', '--matches', *matches)
        run(*arguments(place, tmp_path, '--steps', '40', *one_layout_of_each))
        assert 'on 3 of 3 images and 1 matched pairs of 2 others, 40 steps' in capsys.readouterr().out
        assert_learned(
            tmp_path, ('regression', 'map', 'relational', 'similarity', 'contrastive', 'detection', 'matching')
        )
        assert json.loads((tmp_path / 'T-32.json').read_text())['trained']['matched_pairs'] == 1
        # Others, or none, are another training.
        with pytest.raises(TrainingError, match='matches was [0-9a-f]{16}, now none'):
            run(*arguments(place, tmp_path, '--steps', '40', *one_layout_of_each[:-3]))

    def test_learns_the_blocks_of_a_teacher_of_the_same_variant(self, place, tmp_path):
        options = ('--recipe', 'blocks', '--teacher', 'T-48', '--pairs', '1', '--layouts', '1', '--steps', '40')
        run('T-48', *arguments(place, tmp_path, *options)[2:])
        assert_learned(tmp_path, ('block1', 'block2', 'block3', 'descriptors', 'detection'))

    def test_the_basis_keeps_what_is_most_telling(self, place):
        torch.manual_seed(0)
        student = Student([find_variant('T-32'), find_variant('T-48')])
        teachers = [EdgePoint2(find_variant(name)).eval() for name in ('E-64', 'S-32')]
        views = [torch.randint(0, 256, (1, 96, 96), dtype=torch.uint8) for _ in range(4)]
        basis = fit_basis(student, teachers, views)
        assert basis.shape == (96, 48)
        torch.testing.assert_close(basis.T @ basis, torch.eye(48), atol=1e-4, rtol=0)
        rows = torch.cat([look(teachers, to_gray(view))[1].permute(0, 2, 3, 1).flatten(0, 2) for view in views])
        shares = (rows @ basis).square().sum(dim=0)
        assert shares[-32:].min() > shares[:-32].max()  # so T-32 learns the last 32

    def test_a_variant_as_large_as_the_first_teacher_learns_that_one_alone(self, monkeypatch):
        torch.manual_seed(0)
        student = Student([find_variant(name) for name in ('S-32', 'S-48', 'S-64')])
        teachers = [EdgePoint2(find_variant(name)).eval() for name in ('E-48', 'E-32')]
        views = [torch.randint(0, 256, (1, 96, 96), dtype=torch.uint8) for _ in range(2)]
        basis = fit_basis(student, teachers, views)
        assert basis.shape == (80, 64 + 48)
        assert taught_columns(student, teachers) == [slice(0, 64), slice(64, None), slice(0, 64)]
        joined = look(teachers, to_gray(views[0]))[1]
        taught = project(joined, basis)
        torch.testing.assert_close(taught[:, 64:], joined[:, :48])
        # A student that says just what it is taught has nothing to learn from losses that compare it with that.
        pair = PairDataset(Photos(['a'], [[(480, 640)]], textured(640, 480).ravel()), 0, 1)[0]
        batch = Pair(*(part[None] for part in pair))
        scores, maps = Teacher(teachers, clean=True, basis=basis).maps(batch)
        answer = [maps[:, 32:64], maps[:, 64:], maps[:, :64]]
        monkeypatch.setattr(student, 'forward', lambda gray: (scores, answer))
        columns = taught_columns(student, teachers)
        losses = pair_losses(student, (scores, maps), batch, torch.Generator(), Schedule(steps=1).weights('S'), columns)
        assert losses['regression'] < 1e-5
        assert losses['map'] < 1e-5

    def test_the_last_layers_end_as_those_that_fit_the_teacher_best(self):
        torch.manual_seed(0)
        teacher = EdgePoint2(find_variant('T-48')).eval()
        student = Student([find_variant('T-32'), find_variant('T-48')])
        student.start_from(teacher)
        student.eval()
        views = [torch.randint(0, 256, (2, 96, 96), dtype=torch.uint8) for _ in range(4)]
        basis = fit_basis(student, [teacher], views)
        for layer in student.heads.last.values():
            layer.weight.data.normal_()
        fit_heads(student, [teacher], basis, views)
        gray = to_gray(views[0])
        descriptors = torch.nn.functional.normalize(teacher(gray)[1], dim=1)
        small, whole = (torch.nn.functional.normalize(m, dim=1) for m in student(gray)[1])
        assert (whole * descriptors).sum(dim=1).mean() > 0.99
        reduced = torch.nn.functional.normalize(project(descriptors, basis)[:, 16:48], dim=1)
        assert (small * reduced).sum(dim=1).mean() > 0.99

    def test_several_teachers_are_named_in_the_card(self, place, tmp_path):
        teachers = ('--teacher', 'S-64', str(place / 'teacher.pth'))
        run(*arguments(place, tmp_path, '--steps', '2', '--pairs', '1', '--layouts', '1', *teachers))
        trained = json.loads((tmp_path / 'T-32.json').read_text())['trained']
        assert trained['teacher'].startswith(f'S-64 [{find_model("S-64", "shipped").digest}], S-64 [')
        with pytest.raises(TrainingError, match='teacher was S-64'):
            run(*arguments(place, tmp_path, '--steps', '2', '--pairs', '1', '--layouts', '1'))

    def test_trained_weights_keep_their_averages_of_batch_normalisation(self, place, tmp_path):
        start_weights = EdgePoint2(find_variant('T-48'))
        for module in start_weights.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
        torch.save(start_weights.state_dict(), tmp_path / 'start.pth')
        run(*arguments(place, tmp_path / 'on', '--steps', '2', '--start', str(tmp_path / 'start.pth')))
        run(*arguments(place, tmp_path / 'anew', '--steps', '2'))
        before = start_weights.state_dict()
        for name, value in load_network(tmp_path / 'on' / 'T-48.pth').state_dict().items():
            if 'running' in name:
                assert torch.equal(value, before[name]), name
        anew = load_network(tmp_path / 'anew' / 'T-48.pth').state_dict()
        assert anew['block1.0.layer.1.running_mean'].abs().max() > 0

    @pytest.mark.slow
    @pytest.mark.parametrize('layouts', ['0', '3'])
    def test_killed_and_started_again_it_does_the_same_as_without_the_kill(self, place, tmp_path, layouts):
        def options(name):
            steps = ('--steps', '16', '--pairs', '1', '--checkpoint-every', '4', '--layouts', layouts)
            return arguments(place, tmp_path / name, *steps)

        run(*options('whole'))
        process = start(*options('killed'))
        deadline = time.monotonic() + 60
        while not (tmp_path / 'killed' / 'checkpoint.pt').exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done = torch.load(tmp_path / 'killed' / 'checkpoint.pt', weights_only=True)['step']
        assert 4 <= done < 16

        run(*options('killed'))
        whole, resumed = read_log(tmp_path / 'whole'), read_log(tmp_path / 'killed')
        assert [row['step'] for row in resumed] == [str(step) for step in range(16)]
        for row, same in zip(whole, resumed, strict=True):
            assert row['learning_rate'] == same['learning_rate']
            for loss in ('regression', 'map', 'relational', 'similarity', 'contrastive', 'detection'):
                assert float(same[loss]) == pytest.approx(float(row[loss]), rel=0.02, abs=1e-3)

    def test_a_finished_training_started_again_does_nothing_more(self, place, tmp_path):
        options = arguments(place, tmp_path, '--steps', '2', '--pairs', '1')
        run(*options)
        before = (tmp_path / 'T-32.pth').read_bytes()
        run(*options)
        network, again = load_network(tmp_path / 'T-32.pth'), before
        (tmp_path / 'before.pth').write_bytes(again)
        for one, other in zip(
            network.state_dict().values(), load_network(tmp_path / 'before.pth').state_dict().values(), strict=True
        ):
            assert torch.equal(one, other)


class TestBadInput:
    def test_every_second_layout_is_of_matched_photographs(self, place, matches, tmp_path):
        with pytest.raises(TrainingError, match='expected an even number of layouts, got 3'):
            run(*arguments(place, tmp_path, '--layouts', '3', '--matches', *matches))

    @pytest.mark.parametrize('recipe', ['paper', 'blocks'])
    def test_matched_photographs_are_for_the_recipe_scenes(self, place, matches, tmp_path, recipe):
        options = ('T-48', *arguments(place, tmp_path, '--recipe', recipe, '--matches', *matches)[2:])
        with pytest.raises(TrainingError, match=f'matched photographs are for the recipe scenes, got {recipe}'):
            run(*options, '--teacher', 'T-48')

    def test_blocks_are_learned_from_a_teacher_of_the_same_variant(self, place, tmp_path):
        with pytest.raises(TrainingError, match='teacher of the same variant.*got T-32, T-48 from S-64'):
            run(*arguments(place, tmp_path, '--recipe', 'blocks'))

    def test_a_checkpoint_of_another_training_is_not_continued(self, place, tmp_path):
        run(*arguments(place, tmp_path, '--steps', '1', '--pairs', '1'))
        with pytest.raises(TrainingError, match=r'seed was 0, now 7.*choose another output folder'):
            run(*arguments(place, tmp_path, '--steps', '1', '--pairs', '1', '--seed', '7'))

    def test_other_weights_to_start_from_are_another_training(self, place, tmp_path):
        for seed in (1, 2):
            torch.manual_seed(seed)
            torch.save(EdgePoint2(find_variant('T-32')).state_dict(), tmp_path / f'{seed}.pth')
        options = arguments(place, tmp_path / 'out', '--steps', '1', '--pairs', '1')
        run(*options, '--start', str(tmp_path / '1.pth'))
        with pytest.raises(TrainingError, match=r'first weights was .*choose another output folder'):
            run(*options, '--start', str(tmp_path / '2.pth'))

    @pytest.mark.parametrize('name', ['T-32.pth', 'T-48.onnx', 'T-32.json', 'log.csv'])
    def test_what_is_not_of_the_training_is_not_written_over(self, place, tmp_path, name):
        (tmp_path / name).write_text('precious')
        with pytest.raises(EdgePoint2Error, match=rf'{name} (already exists|is no log of a training)'):
            run(*arguments(place, tmp_path, '--steps', '1', '--pairs', '1'))
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, 'precious')]

    def test_a_checkpoint_of_a_version_with_another_optimiser(self, place, tmp_path):
        options = arguments(place, tmp_path, '--steps', '2', '--pairs', '1', '--checkpoint-every', '1')
        run(*options)
        state = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
        state['optimiser'] = state.pop('optimisers')[0]
        torch.save(state, tmp_path / 'checkpoint.pt')
        with pytest.raises(TrainingError, match='is from an earlier version: choose another output folder'):
            run(*options)

    def test_a_damaged_checkpoint(self, place, tmp_path):
        (tmp_path / 'checkpoint.pt').write_bytes(b'half')
        with pytest.raises(TrainingError, match='is not the checkpoint of a training'):
            run(*arguments(place, tmp_path, '--steps', '1'))

    def test_no_images(self, place, tmp_path):
        (tmp_path / 'empty').mkdir()
        with pytest.raises(ImageError, match='no images found'):
            run(*arguments(place, tmp_path / 'out', '--images', str(tmp_path / 'empty')))

    def test_a_teacher_of_another_architecture(self, place, tmp_path):
        torch.save({'conv.weight': torch.zeros(3, 3)}, tmp_path / 'other.pth')
        with pytest.raises(ModelError, match=r'other\.pth.* not those of any of the 14 variants'):
            run(*arguments(place, tmp_path, '--teacher', str(tmp_path / 'other.pth')))

    def test_official_weights_that_are_not_on_this_machine(self, place, tmp_path, monkeypatch):
        monkeypatch.setattr('edgepoint2_ros.cli.train.find_weights', lambda variant: None)
        monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
        with pytest.raises(ModelError, match='no official model of E-64 .*: run `edgepoint2 models download E-64`'):
            run(*arguments(place, tmp_path / 'out', '--teacher', 'E-64@official'))

    def test_a_folder_that_has_no_model_of_the_variant(self, place, tmp_path):
        with pytest.raises(ModelError, match=r'there is no file .*E-64\.onnx'):
            run(*arguments(place, tmp_path, '--teacher', f'E-64@{place}'))

    def test_a_teacher_with_fewer_values_than_the_student(self, place, tmp_path):
        torch.save(EdgePoint2(find_variant('T-32')).state_dict(), tmp_path / 'T32.pth')
        with pytest.raises(TrainingError, match='teacher T-32 has smaller descriptors than T-48: expected at least 48'):
            run(*arguments(place, tmp_path, '--teacher', str(tmp_path / 'T32.pth')))

    def test_a_loss_that_is_not_finite_names_the_step_and_the_images(self, place, tmp_path):
        student = Student([find_variant('T-32')])
        teacher = load_network(place / 'teacher.pth')
        teacher.score_head[-1].bias.data.fill_(float('nan'))
        photos = load_photos(find_images([place / 'images']), place / 'cache')
        with pytest.raises(TrainingError, match=r'not finite at step 0 \(.*detection nan.*\); its images: .*\d\.png'):
            train(student, [teacher], photos, Schedule(steps=3), tmp_path)

    def test_a_loss_of_matched_photographs_that_is_not_finite_names_them_too(self, place, matches, tmp_path):
        teacher = load_network(place / 'teacher.pth')
        teacher.score_head[-1].bias.data.fill_(float('nan'))
        photos = load_photos(find_images([place / 'images']), place / 'cache')
        matched = load_matched_photos(*map(Path, matches), place / 'cache')
        with pytest.raises(TrainingError, match=r'its images: ') as raised:
            train(Student([find_variant('T-32')]), [teacher], photos, Schedule(steps=3), tmp_path, matched=matched)
        assert {*matched.photos.names} < {*str(raised.value).split('images: ')[1].split(', ')}

    @pytest.mark.parametrize(
        ('option', 'value', 'message'),
        [
            ('--steps', '0', '--steps: expected 1 or more, got 0'),
            ('--learning-rate', '2', '--learning-rate: expected more than 0'),
            ('--checkpoint-every', '-1', '--checkpoint-every: expected 1 or more'),
            ('--layouts', '-1', '--layouts: expected 0 or more'),
        ],
    )
    def test_options_out_of_range(self, place, tmp_path, option, value, message):
        with pytest.raises(EdgePoint2Error, match=message):
            run(*arguments(place, tmp_path, option, value))

    def test_a_device_that_is_not_there(self, place, tmp_path):
        if torch.cuda.is_available():
            pytest.skip('this machine has a CUDA device')
        with pytest.raises(TrainingError, match='no CUDA device'):
            run(*arguments(place, tmp_path, '--device', 'cuda'))
