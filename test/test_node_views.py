"""The layouts for Foxglove and RViz name topics and fields that the node has."""

import json
import re
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[1] / 'config'
TOPICS = {'/overlay', '/stats', '/diagnostics'}


def test_the_foxglove_layout_plots_fields_that_exist():
    messages = pytest.importorskip('edgepoint2_ros.msg', reason='ROS 2 is not installed')
    text = (CONFIG / 'foxglove_layout.json').read_text()
    layout = json.loads(text)
    paths = [path['value'] for panel in layout['configById'].values() for path in panel.get('paths', [])]
    assert paths
    for path in paths:
        topic, field = path.split('.')
        assert topic == '/stats'
        assert field in messages.CameraStats.get_fields_and_field_types()
    assert set(re.findall(r'"(/\w+)"', text)) <= TOPICS
    shown = set(re.findall(r'"(\w+!\w+)"', json.dumps(layout['layout'])))
    assert shown == set(layout['configById'])


def test_the_rviz_config_shows_the_overlay():
    yaml = pytest.importorskip('yaml', reason='PyYAML is not installed')
    config = yaml.safe_load((CONFIG / 'extractor.rviz').read_text())
    (display,) = config['Visualization Manager']['Displays']
    assert display['Class'] == 'rviz_default_plugins/Image'
    assert display['Topic']['Value'] == 'overlay'
    assert display['Topic']['Reliability Policy'] == 'Reliable'
