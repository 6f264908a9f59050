"""The benchmark of the node prints its figures; whether they are good is for people to say, on a quiet machine."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip('rclpy', reason='ROS 2 is not installed')

pytestmark = pytest.mark.slow


def test_the_figures_are_printed(official_model):
    official_model('T-32')
    official_model('E-64')
    command = [sys.executable, str(ROOT / 'test' / 'node_cost.py'), '--seconds', '2']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r'\d+ of 60 images answered: .* ms beyond extraction .*\n'
        r'a node that answers at once: [\d.]+ ms\n'
        r'from publisher to reader: median [\d.]+ ms, 99th percentile [\d.]+ ms\n'
        r'at twice the load: \d+ images/s in, \d+ out, .*\n',
        done.stdout,
    ), done.stdout
