"""The example that measures what bad light, noise and blur cost."""

import re
import sys

import cv2
import pytest

pytest.importorskip('torch', reason='torch is not installed')


@pytest.fixture
def example(import_example):
    """The example, as a module."""
    return import_example('robustness')


@pytest.fixture
def run(example, monkeypatch, tmp_path):
    """Return a function that runs it and returns its exit code."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, 'argv', ['robustness.py', *map(str, arguments)])
        return example.main()

    return run


def test_spoiled_views_have_fewer_right_matches(run, photograph, official_model, tmp_path, capsys):
    official_model('T-32')
    (tmp_path / 'photographs').mkdir()
    cv2.imwrite(str(tmp_path / 'photographs' / 'a.png'), photograph)
    assert run('T-32', '--photographs', tmp_path / 'photographs', '--pairs', 6) == 0
    numbers = re.search(r'\| T-32 \| (\d+) / ([\d.]+) \| (\d+) / ([\d.]+) \|', capsys.readouterr().out)
    right, share, spoiled, spoiled_share = map(float, numbers.groups())
    assert 0 < spoiled < right
    assert 0 < spoiled_share < share <= 100


def test_without_photographs_it_says_so(run, official_model, tmp_path, capsys):
    official_model('T-32')
    assert run('T-32', '--photographs', tmp_path / 'nowhere') == 1
    assert 'no such folder or image' in capsys.readouterr().err
