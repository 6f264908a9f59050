"""The README's code is run as it stands there."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from std_msgs.msg import Header

from edgepoint2_ros.features import Features
from edgepoint2_ros.messages import encode
from edgepoint2_ros.msg import KeypointArray

ROOT = Path(__file__).parents[1]


def test_all_readers_of_keypoints_that_are_shown_are_reliable():
    # The middleware loses best-effort messages that exceed its buffers.
    files = [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    for folder, suffixes in (('edgepoint2_ros', '.py'), ('examples', '.py .cpp'), ('include', '.hpp')):
        files += [file for file in (ROOT / folder).rglob('*') if file.suffix in suffixes.split()]
    reader = re.compile(r'create_subscription\b[^;]{0,200}?["\']keypoints["\']\s*,.{0,120}', re.DOTALL)
    readers = [text for file in files for text in reader.findall(file.read_text(encoding='utf-8'))]
    assert len(readers) >= 4
    assert [text for text in readers if re.search('sensor_?data|best_?effort', text, re.IGNORECASE)] == []


@pytest.mark.slow
def test_the_python_reader_finds_matches(tmp_path):
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL)
    [code] = [block for block in blocks if 'class Reader' in block]
    (tmp_path / 'reader.py').write_text(f'import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}', encoding='utf-8')
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('writer', context=context)
    publisher = node.create_publisher(KeypointArray, 'keypoints', 10)
    rows = np.eye(20, 32, dtype=np.float32)
    log = tmp_path / 'log.txt'
    with open(log, 'w') as file:
        process = subprocess.Popen([sys.executable, tmp_path / 'reader.py'], stdout=file, stderr=subprocess.STDOUT)
    try:
        end, shift = time.monotonic() + 30, 0.0
        while 'matches' not in log.read_text() and time.monotonic() < end:
            shift += 2
            xy = np.full((20, 2), 100 + shift, np.float32)
            features = Features(xy, np.zeros(20, np.float32), rows, (640, 480), 'T-32', 'a')
            publisher.publish(encode(features, Header(), 'int8'))
            time.sleep(0.1)
        assert '20 matches' in log.read_text()
    finally:
        process.kill()
        process.wait()
        node.destroy_node()
        rclpy.shutdown(context=context)
