"""Bags: every format in, a rosbag2 of keypoints out, whatever is in the way."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from mcap_writer import Channel, write_mcap
from rosbags.highlevel import AnyReader
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from edgepoint2_ros.bridges import bag_output
from edgepoint2_ros.bridges.bag_contents import describe, read_features
from edgepoint2_ros.bridges.bags import Job, extract
from edgepoint2_ros.bridges.recordings import KEYPOINTS, open_recording
from edgepoint2_ros.cli import main
from edgepoint2_ros.errors import BagError
from edgepoint2_ros.extractor import Extractor, ExtractorSettings

ROOT = Path(__file__).parents[1]
IMAGE, COMPRESSED, STRING = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage', 'std_msgs/msg/String'
TYPES = {version: get_typestore(store) for version, store in ((1, Stores.ROS1_NOETIC), (2, Stores.ROS2_HUMBLE))}
START = 1_700_000_000
# As rosbag2 of Jazzy writes the events of a service: the text of a .srv file under the name of a message.
SERVICE = b'MSG: example_interfaces/srv/AddTwoInts_Event\nint64 a\nint64 b\n---\nint64 sum\n'
STRANGERS = {
    'json': Channel('/rpc', 'Request', b'{"type": "object"}', 'jsonschema', 'json'),
    'protobuf': Channel('/points', 'foxglove.PointCloud', bytes(range(256)), 'protobuf', 'protobuf'),
    'service events': Channel('/add/_service_event', 'example_interfaces/srv/AddTwoInts_Event', SERVICE),
    'no definition': Channel('/motor', 'acme_msgs/msg/Motor', b'', ''),
    'unknown definition': Channel('/motor', 'acme_msgs/msg/Motor', b'', 'unknown'),
    'a definition that is none': Channel('/motor', 'acme_msgs/msg/Motor', b'}{ struct', 'ros2idl'),
    'a definition without its parts': Channel('/motor', 'acme_msgs/msg/Motor', b'acme_msgs/Gear gear\n'),
    'no schema at all': Channel('/motor', '', b'', ''),
}


@pytest.fixture(scope='module')
def frames(photograph_small) -> list[np.ndarray]:
    """Gray images (96, 128) of a camera that pans."""
    return [np.ascontiguousarray(photograph_small[:96, 3 * i : 3 * i + 128]) for i in range(12)]


@pytest.fixture(scope='module')
def photograph_small() -> np.ndarray:
    data = pytest.importorskip('skimage.data', reason='scikit-image, which ships photographs, is not installed')
    return cv2.cvtColor(data.astronaut()[:200, 100:400], cv2.COLOR_RGB2GRAY)


@pytest.fixture(autouse=True)
def model(official_model):
    official_model('T-32')


def header(types, number: int):
    stamp = types['builtin_interfaces/msg/Time'](sec=START + number, nanosec=123_456_789)
    extra = {'seq': number} if 'seq' in types['std_msgs/msg/Header'].__dataclass_fields__ else {}
    return types['std_msgs/msg/Header'](stamp=stamp, frame_id='camera', **extra)


def image(types, number: int, pixels: np.ndarray, **changes):
    fields = {
        'height': pixels.shape[0],
        'width': pixels.shape[1],
        'encoding': 'mono8',
        'is_bigendian': 0,
        'step': pixels.shape[1],
        'data': pixels.reshape(-1),
    }
    return types[IMAGE](header=header(types, number), **{**fields, **changes})


def record(
    path: Path,
    frames,
    kind: str = 'mcap',
    topics=('/camera/image_raw',),
    damage=(),
    temperature=False,
    latched=(),
    stamp=None,
    delay=5_000_000,
) -> Path:
    """Write a bag, recorded ``delay`` ns after the stamps. Images with a number in ``damage`` have no pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    version = 1 if kind == 'ros1' else 2
    path = path.with_suffix('.bag') if version == 1 else path
    store = TYPES[version]
    types = store.types
    writer = Writer1(path) if version == 1 else Writer(path, version=8, storage_plugin=StoragePlugin[kind.upper()])
    serialise = store.serialize_ros1 if version == 1 else store.serialize_cdr
    with writer:
        connections = [writer.add_connection(topic, IMAGE, typestore=store) for topic in topics]
        for topic in latched:
            connection = writer.add_connection(topic, STRING, typestore=store, latching=1)
            writer.write(connection, START * 1_000_000_000, serialise(types[STRING]('as it is'), STRING))
        if temperature:
            extra = writer.add_connection('/temperature', 'sensor_msgs/msg/Temperature', typestore=store)
        for number, pixels in enumerate(frames):
            recorded = (START + number) * 1_000_000_000 + 123_456_789 + delay
            message = image(types, number, pixels, **({'data': pixels.reshape(-1)[:7]} if number in damage else {}))
            if stamp is not None:
                message.header.stamp.sec, message.header.stamp.nanosec = stamp, 0
            for connection in connections:
                writer.write(connection, recorded, serialise(message, IMAGE))
            if temperature:
                value = types['sensor_msgs/msg/Temperature'](header(types, number), 20.0 + number, 0.0)
                writer.write(extra, recorded + 1, serialise(value, 'sensor_msgs/msg/Temperature'))
    return path


def run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'edgepoint2_ros.cli', 'bag', *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize('kind', ['mcap', 'sqlite3', 'ros1'])
def test_every_image_gets_the_features_that_the_extractor_finds(kind, frames, tmp_path):
    bag = record(tmp_path / 'office', frames, kind)
    *_, progress = extract(Job(bag, tmp_path / 'keypoints'))
    assert (progress.images, progress.bad, progress.complete) == (12, 0, True)
    extractor = Extractor('T-32')
    found = list(read_features(tmp_path / 'keypoints'))
    assert [stamp for stamp, _ in found] == [(START + i) * 1_000_000_000 + 123_456_789 for i in range(12)]
    for (_, features), pixels in zip(found, frames):
        expected = extractor.extract(pixels)
        assert len(features) == len(expected) > 20
        np.testing.assert_allclose(features.xy, expected.xy, atol=1e-3)
        assert (features.digest, features.image_size) == (expected.digest, (128, 96))


def test_the_bag_keeps_the_headers_and_the_moments_of_recording(frames, tmp_path):
    bag = record(tmp_path / 'office', frames)
    list(extract(Job(bag, tmp_path / 'keypoints', encoding='int8')))
    with AnyReader([tmp_path / 'keypoints']) as reader:
        messages = list(reader.messages())
        assert [(c.topic, c.msgtype) for c in reader.connections] == [('/camera/keypoints', KEYPOINTS)]
        assert [time for _, time, _ in messages] == [(START + i) * 1_000_000_000 + 128_456_789 for i in range(12)]
        first = reader.deserialize(messages[0][2], KEYPOINTS)
        assert (first.header.frame_id, first.header.stamp.sec) == ('camera', START)
        assert (first.descriptor_encoding, len(first.descriptors)) == (2, 32 * len(first.x))


def test_several_topics_go_into_one_bag(frames, tmp_path):
    bag = record(tmp_path / 'office', frames, topics=('/left/image', '/right/image', '/rear/image'), damage=(3,))
    job = Job(
        bag, tmp_path / 'keypoints', topics=('/right/image', '/left/image'), keypoints_topics=('/b', '/a'), part=5
    )
    warnings = []
    *_, progress = extract(job, warnings.append)
    assert (progress.images, progress.total, progress.bad) == (24, 24, 2)
    assert [warning.split(': ')[1] for warning in warnings] == [
        'image 4 of /left/image left out',
        'image 4 of /right/image left out',
    ]
    assert len(list(read_features(tmp_path / 'keypoints', '/a'))) == 11
    assert len(list(read_features(tmp_path / 'keypoints', '/b'))) == 11
    options = ['--topic', '/left/image', '--topic', '/right/image']
    assert main(['bag', 'extract', str(bag), str(tmp_path / 'by_name'), *options]) == 0
    with AnyReader([tmp_path / 'by_name']) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts == {'/left/keypoints': 11, '/right/keypoints': 11}


@pytest.mark.parametrize(
    ('topics', 'targets', 'keep', 'words'),
    [
        (('/left', '/right'), (), (), '/left and /right would both be written to /keypoints: name a keypoints topic'),
        (('/left', '/left'), (), (), '/left is named twice'),
        (('/left', '/right'), ('/a',), (), '2 image topics, but 1 keypoints topics: name one for each'),
        (('/left', '/right'), ('/a', '/a'), (), '/left and /right would both be written to /a'),
        (('/left',), ('/right',), ('/right',), '/right is to be copied and to be written: name another'),
    ],
)
def test_no_topic_is_written_over_another(topics, targets, keep, words, frames, tmp_path):
    bag = record(tmp_path / 'office', frames[:1], topics=('/left', '/right'))
    with pytest.raises(BagError, match=words):
        list(extract(Job(bag, tmp_path / 'out', topics, targets, keep)))
    assert not (tmp_path / 'out').exists()


def test_the_type_hash_is_the_one_that_ros_generated(frames, tmp_path):
    json = pytest.importorskip('json')
    share = [Path(prefix) / 'share/edgepoint2_ros/msg/KeypointArray.json' for prefix in _prefixes()]
    generated = next((file for file in share if file.is_file()), None)
    if generated is None:
        pytest.skip('the messages are not built, or by a ROS 2 without type hashes')
    list(extract(Job(record(tmp_path / 'office', frames[:1]), tmp_path / 'keypoints')))
    with AnyReader([tmp_path / 'keypoints']) as reader:
        assert reader.connections[0].digest == json.loads(generated.read_text())['type_hashes'][0]['hash_string']


def _prefixes() -> list[str]:
    return [sys.prefix, *filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(':'))]


@pytest.mark.slow
def test_a_node_receives_what_a_player_publishes(frames, tmp_path):
    rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    from edgepoint2_ros.messages import decode
    from edgepoint2_ros.msg import KeypointArray

    list(extract(Job(record(tmp_path / 'office', frames), tmp_path / 'keypoints')))
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('reader', context=context)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    received = []
    node.create_subscription(KeypointArray, '/camera/keypoints', received.append, 50)
    player = subprocess.Popen([sys.executable, Path(__file__).with_name('play_bag.py'), tmp_path / 'keypoints'])
    try:
        end = time.monotonic() + 30
        while len(received) < 12 and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
        assert player.wait(10) == 0
        for message, (stamp, expected) in zip(received, read_features(tmp_path / 'keypoints'), strict=True):
            assert message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec == stamp
            np.testing.assert_array_equal(decode(message).xy, expected.xy)
            np.testing.assert_array_equal(decode(message).descriptors, expected.descriptors)
    finally:
        player.kill()
        rclpy.shutdown(context=context)


def test_compressed_images_are_read(photograph_small, tmp_path):
    store = TYPES[2]
    good = cv2.imencode('.png', photograph_small)[1].reshape(-1)
    with Writer(tmp_path / 'office', version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/camera/image/compressed', COMPRESSED, typestore=store)
        for number, data in enumerate((good, good[:50], good[:0])):
            message = store.types[COMPRESSED](header(store.types, number), 'png', data)
            writer.write(connection, number, store.serialize_cdr(message, COMPRESSED))
    warnings = []
    *_, progress = extract(Job(tmp_path / 'office', tmp_path / 'keypoints'), warnings.append)
    assert (progress.images, progress.bad) == (3, 2)
    assert all('of /camera/image/compressed left out: ' in warning for warning in warnings)
    [(_, features)] = read_features(tmp_path / 'keypoints')
    assert len(features) == len(Extractor('T-32').extract(photograph_small))


def test_an_image_that_cannot_be_used_is_named_and_left_out(frames, tmp_path):
    warnings = []
    job = Job(record(tmp_path / 'office', frames, damage=(3, 7)), tmp_path / 'keypoints')
    *_, progress = extract(job, warnings.append)
    assert (progress.images, progress.bad) == (12, 2)
    assert re.search(r'image 4 of /camera/image_raw left out: image has 7 bytes: expected 12288', warnings[0])
    assert len(list(read_features(tmp_path / 'keypoints'))) == 10


def test_a_bag_of_which_no_image_can_be_used_is_a_failure(frames, tmp_path, capsys):
    some = record(tmp_path / 'some', frames, damage=(3,))
    none = record(tmp_path / 'none', frames, damage=tuple(range(12)))
    assert main(['bag', 'extract', str(some), str(tmp_path / 'a')]) == 0
    assert main(['bag', 'extract', str(none), str(tmp_path / 'b')]) == 1
    assert '12 images, 12 of them left out' in capsys.readouterr().out


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('damage', [(0, 1), (4, 5), (0, 1, 4, 5, 10, 11)])
def test_parts_without_a_message_have_no_part_in_the_times_of_the_bag(damage, storage, frames, tmp_path):
    bag = record(tmp_path / 'office', frames, damage=damage)
    list(extract(Job(bag, tmp_path / 'out', storage=storage, part=2), lambda text: None))
    info = bag_output.load_metadata(tmp_path / 'out')
    with open_recording(tmp_path / 'out') as recording:
        moments = [moment for _, moment, _ in recording.messages({'/camera/keypoints'})]
    assert info['message_count'] == len(moments) == 12 - len(damage)
    assert info['starting_time']['nanoseconds_since_epoch'] == min(moments)
    assert info['duration']['nanoseconds'] == max(moments) - min(moments)


@pytest.mark.parametrize('topic', ['a b', '', '/1bad', '/bad//x', 'bad/', '/ünders'])
def test_a_keypoints_topic_is_one_that_ros_accepts(topic, frames, tmp_path, capsys):
    bag = record(tmp_path / 'office', frames)
    assert main(['bag', 'extract', str(bag), str(tmp_path / 'out'), '--keypoints-topic', topic]) == 1
    assert f'keypoints topic {topic!r}: expected names of letters' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['mcap', 'sqlite3', 'ros1'])
def test_topics_that_are_kept_are_copied(kind, frames, tmp_path):
    bag = record(tmp_path / 'office', frames, kind, temperature=True)
    job = Job(bag, tmp_path / 'out', keep=('*',), part=5)
    list(extract(job))
    with AnyReader([tmp_path / 'out']) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
        assert counts == {'/camera/keypoints': 12, '/camera/image_raw': 12, '/temperature': 12}
        order = [connection.topic for connection, _, _ in reader.messages()]
        assert order[:4] == ['/camera/image_raw', '/camera/keypoints', '/temperature', '/camera/image_raw']
        values = [
            reader.deserialize(raw, connection.msgtype)
            for connection, _, raw in reader.messages([c for c in reader.connections if c.topic == '/temperature'])
        ]
        assert [value.temperature for value in values] == [20.0 + number for number in range(12)]
        assert values[3].header.stamp.sec == START + 3


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_what_cannot_be_copied_is_named_and_everything_else_is(storage, frames, tmp_path):
    stranger = STRANGERS['json']
    raw = [bytes(TYPES[2].serialize_cdr(image(TYPES[2].types, i, frame), IMAGE)) for i, frame in enumerate(frames)]
    text, _ = TYPES[2].generate_msgdef(IMAGE, ros_version=2)
    service = STRANGERS['service events']
    channels = [
        Channel('/camera/image', IMAGE, text.encode()),
        stranger,
        service._replace(metadata={'topic_type_hash': 'RIHS01_' + 'a' * 64}),
        STRANGERS['no definition'],
    ]
    messages = [(number, 10 * i + number, raw[i] if number == 0 else b'{}') for i in range(12) for number in range(4)]
    bag = write_mcap(tmp_path / 'office.mcap', channels, messages)
    warnings = []
    *_, progress = extract(Job(bag, tmp_path / 'some', keep=('/camera/image',)), warnings.append)
    assert (progress.images, progress.bad) == (12, 0)
    [warning] = warnings
    assert (
        'left out: /rpc (its messages are in json); /add/_service_event (it holds the events of a service)' in warning
    )

    warnings.clear()
    assert '/rpc  Request  12 messages, not read: its messages are in json' in describe(bag)
    list(extract(Job(bag, tmp_path / 'all', keep=('*',), storage=storage), warnings.append))
    assert re.fullmatch(
        r'.*office.mcap: left out: /rpc .* cannot be read: its messages are in json; '
        r'/motor .* cannot be read: the recording holds no definition of its type',
        warnings[0],
    )
    with open_recording(tmp_path / 'all') as recording:
        copy = recording.topics['/add/_service_event']
        assert (copy.definition, copy.count) == (service.definition.decode(), 12)
        assert [data for _, _, data in recording.messages({'/add/_service_event'})] == [b'{}'] * 12
        assert set(recording.topics) == {'/camera/keypoints', '/camera/image', '/add/_service_event'}
    for topic, words in (('/rpc', 'its messages are in json'), ('/motor', 'no definition of its type')):
        with pytest.raises(BagError, match=f'{topic} .*{words}'):
            list(extract(Job(bag, tmp_path / 'other', keep=(topic,))))
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_latched_topics_stay_so(storage, frames, tmp_path):
    bag = record(tmp_path / 'office', frames[:2], 'ros1', latched=('/map',))
    list(extract(Job(bag, tmp_path / 'out', keep=('*',), storage=storage)))
    with AnyReader([tmp_path / 'out']) as reader:
        durability = {c.topic: [qos.durability.name for qos in c.ext.offered_qos_profiles] for c in reader.connections}
        assert durability == {'/camera/keypoints': [], '/camera/image_raw': [], '/map': ['TRANSIENT_LOCAL']}
        [(connection, _, raw)] = reader.messages([c for c in reader.connections if c.topic == '/map'])
        assert reader.deserialize(raw, connection.msgtype).data == 'as it is'


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_the_parts_are_one_bag(storage, frames, tmp_path):
    list(extract(Job(record(tmp_path / 'office', frames), tmp_path / 'out', storage=storage, part=5)))
    assert len(list((tmp_path / 'out').glob('out_*'))) == 3
    assert len(list(read_features(tmp_path / 'out'))) == 12


def test_an_interrupted_extraction_goes_on_and_ends_with_the_same_bytes(frames, tmp_path):
    bag = record(tmp_path / 'office', frames, temperature=True)
    whole, again = (
        Job(bag, tmp_path / 'a' / 'out', keep=('*',), part=3),
        Job(bag, tmp_path / 'b' / 'out', keep=('*',), part=3),
    )
    list(extract(whole))
    steps = extract(again)
    for _ in range(8):
        next(steps)
    _kill(steps, again.output)
    assert len(list(read_features(again.output))) == 6
    assert any(line.startswith('incomplete: 6 images of office') for line in describe(again.output))
    assert next(extract(again)).images == 6
    list(extract(again))
    assert contents(whole.output) == contents(again.output)


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize(
    ('owner', 'name', 'call'),
    [
        (Extractor, 'extract', 5),
        (Writer, 'write', 13),  # the fifth image is copied,
        (Writer, 'write', 14),  # its keypoints are written,
        (Writer, 'write', 15),  # and the temperature is copied
        (Writer, 'close', 2),
        (os, 'fsync', 5),  # the second part is on disk,
        (os, 'replace', 3),  # has its place,
        (os, 'fsync', 7),  # and is about to be named
    ],
)
def test_after_ctrl_c_anywhere_the_same_call_ends_with_the_same_bytes(
    owner, name, call, moment, frames, tmp_path, monkeypatch
):
    bag = record(tmp_path / 'office', frames[:10], temperature=True)
    whole, again = (Job(bag, tmp_path / folder / 'out', keep=('*',), part=3) for folder in 'ab')
    list(extract(whole))
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == call and moment == 'before':
            raise KeyboardInterrupt
        result = original(*arguments, **options)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        list(extract(again))
    assert [features.image_size for _, features in read_features(again.output)] == [(128, 96)] * 3
    list(extract(again))
    assert contents(whole.output) == contents(again.output)


@pytest.mark.parametrize('moment', ['before', 'after'])
@pytest.mark.parametrize(
    ('owner', 'name'),
    [(os, 'fsync'), (os, 'replace'), (bag_output, 'load_metadata'), (shutil, 'rmtree')],
)
def test_after_ctrl_c_around_the_first_part_too(owner, name, moment, frames, tmp_path, monkeypatch):
    bag = record(tmp_path / 'office', frames[:5])
    whole, again = (Job(bag, tmp_path / folder / 'out', part=3) for folder in 'ab')
    list(extract(whole))
    original = getattr(owner, name)

    def interrupted(*arguments, **options):
        if moment == 'before':
            raise KeyboardInterrupt
        original(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        steps = extract(again)
        next(steps)
        patch.setattr(owner, name, interrupted)
        list(steps)
    list(extract(again))
    assert contents(whole.output) == contents(again.output)


def _kill(steps, output: Path) -> None:
    """End an extraction as kill -9 would: nothing is tidied up, but for the lock, which the system takes back."""
    shutil.copytree(output, output.with_name('killed'))
    steps.close()
    shutil.rmtree(output)
    output.with_name('killed').rename(output)


@pytest.mark.slow
def test_after_kill_9_the_bag_can_be_read_and_the_same_call_completes_it(frames, tmp_path):
    bag, out = record(tmp_path / 'office', frames * 100), tmp_path / 'out'
    command = [sys.executable, '-m', 'edgepoint2_ros.cli', 'bag', 'extract', bag, out, '--part', '20', '--threads', '1']
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list(out.glob('out_*.mcap'))) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    saved = len(list(read_features(out)))
    assert 40 <= saved < 1200
    result = run('extract', bag, out, '--part', '20')
    assert result.returncode == 0, result.stderr
    assert f'resumes after image {saved}' in result.stderr
    assert '1200 images' in result.stdout
    assert len(list(read_features(out))) == 1200


@pytest.mark.slow
def test_a_full_disk_is_reported_and_what_was_written_stays(frames, tmp_path):
    bag, out = record(tmp_path / 'office', frames * 10), tmp_path / 'out'
    result = run(
        'extract', bag, out, '--part', '10',
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000)),
    )  # fmt: skip
    assert result.returncode == 1
    assert 'cannot be written' in result.stderr
    assert 'Traceback' not in result.stderr
    result = run('extract', bag, out, '--part', '10')
    assert result.returncode == 0, result.stderr
    assert len(list(read_features(out))) == 120


@pytest.mark.slow
def test_the_installed_command_extracts_bags_side_by_side(frames, tmp_path):
    command = shutil.which('edgepoint2', path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip('the command edgepoint2 is not installed')
    bags = [str(record(tmp_path / name, frames[:3])) for name in ('one', 'two')]
    arguments = ['bag', 'extract', *bags, str(tmp_path / 'out'), '--jobs', '2', '--threads', '1']
    result = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for name in ('one', 'two'):
        assert len(list(read_features(tmp_path / 'out' / name))) == 3


@pytest.mark.slow
def test_bags_beside_each_other_give_the_bytes_of_one_after_the_other(frames, tmp_path):
    pytest.importorskip('distributed', reason='distributed is not installed')
    from distributed import LocalCluster

    bags = [record(tmp_path / name, frames[i:]) for i, name in enumerate(('one', 'two', 'three'))]
    bags.append(tmp_path / 'broken.bag')
    bags[-1].write_bytes(b'nothing')
    options = ['--threads', '1', '--encoding', 'int8']
    for bag in bags[:3]:
        assert main(['bag', 'extract', str(bag), str(tmp_path / 'single' / bag.name), *options]) == 0
    result = run('extract', *bags, tmp_path / 'jobs', '--jobs', 2, *options)
    assert result.returncode == 1
    assert re.search(r'broken.bag: .* cannot be read as a bag', result.stderr)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1') as cluster:
        result = run('extract', *bags, tmp_path / 'dask', '--dask', cluster.scheduler_address, *options)
    assert result.returncode == 1
    assert re.search(r'broken.bag: .* cannot be read as a bag', result.stderr)
    for bag in bags[:3]:
        expected = contents(tmp_path / 'single' / bag.name)
        assert contents(tmp_path / 'jobs' / bag.name) == expected
        assert contents(tmp_path / 'dask' / bag.name) == expected


@pytest.mark.parametrize('damage', ['truncated', 'garbage', 'empty', 'foreign'])
@pytest.mark.parametrize('kind', ['mcap', 'sqlite3', 'ros1'])
def test_a_damaged_bag_gives_an_error_and_keeps_what_was_read(kind, damage, frames, tmp_path):
    bag = record(tmp_path / 'office', frames, kind)
    file = bag if kind == 'ros1' else next(f for f in bag.iterdir() if f.suffix in ('.mcap', '.db3'))
    content = file.read_bytes()
    changed = {'truncated': content[: len(content) // 2], 'garbage': os.urandom(5000), 'empty': b''}
    file.write_bytes(changed.get(damage, b'%PDF-1.7\n' + content))
    with pytest.raises(BagError, match=re.escape(str(bag))):
        list(extract(Job(bag, tmp_path / 'out')))
    if (tmp_path / 'out').exists():
        list(read_features(tmp_path / 'out'))


def test_what_was_read_before_the_damage_is_kept(frames, tmp_path):
    bag = record(tmp_path / 'office', frames * 20, 'sqlite3')
    file = next(bag.glob('*.db3'))
    content = bytearray(file.read_bytes())
    middle = len(content) * 6 // 10
    content[middle : middle + 20_000] = b'\xff' * 20_000
    file.write_bytes(content)
    job = Job(bag, tmp_path / 'out')
    with pytest.raises(BagError, match='damaged'):
        list(extract(job))
    assert len(list(read_features(job.output))) > 50


def test_missing_bags_and_topics_are_named(frames, tmp_path):
    bag = record(tmp_path / 'office', frames, topics=('/left/image', '/right/image'))
    for job, words in (
        (Job(tmp_path / 'nothing', tmp_path / 'out'), 'there is no bag'),
        (Job(bag, tmp_path / 'out'), 'name the topic of images; it has /left/image, /right/image'),
        (
            Job(bag, tmp_path / 'out', topics=('/image',)),
            'has no images on /image: its topics of images are /left/image',
        ),
        (Job(bag, tmp_path / 'out', topics=('/left/image',), keep=('/tf',)), 'has no topic /tf to keep'),
    ):
        with pytest.raises(BagError, match=words):
            list(extract(job))
    list(extract(Job(bag, tmp_path / 'out', topics=('/left/image',))))
    with pytest.raises(BagError, match='name the topic of keypoints; it has none'):
        list(read_features(bag))


def test_a_bag_without_images_on_its_topic_becomes_an_empty_bag(tmp_path):
    bag = record(tmp_path / 'office', [])
    *_, progress = extract(Job(bag, tmp_path / 'out'))
    assert (progress.images, progress.complete) == (0, True)
    assert list(read_features(tmp_path / 'out')) == []


def test_an_output_that_holds_something_else_is_left_alone(frames, tmp_path):
    bag, out = record(tmp_path / 'office', frames), tmp_path / 'out'
    out.mkdir()
    (out / 'thesis.pdf').write_text('precious')
    with pytest.raises(BagError, match='is not empty and no bag of this command: it holds thesis.pdf'):
        list(extract(Job(bag, out)))
    assert [path.name for path in out.iterdir()] == ['thesis.pdf']
    with pytest.raises(BagError, match=r'no bag of this command: it holds metadata.yaml|it holds office'):
        list(extract(Job(bag, bag)))


@pytest.mark.parametrize('kind', ['mcap', 'sqlite3'])
def test_an_interrupted_recording_is_not_written_over(kind, frames, tmp_path):
    bag = record(tmp_path / 'office', frames)
    other = record(tmp_path / 'other', frames, kind)
    (other / 'metadata.yaml').unlink()
    suffix = {'mcap': '.mcap', 'sqlite3': '.db3'}[kind]
    precious = (other / f'other{suffix}').rename(other / f'other_0{suffix}').read_bytes()
    with pytest.raises(BagError, match=f'is not empty and no bag of this command: it holds other_0{suffix}'):
        list(extract(Job(bag, other, storage=kind)))
    assert contents(other) == {f'other_0{suffix}': precious}


def test_another_bag_of_the_same_name_does_not_count_as_done(frames, tmp_path):
    first, second = (record(tmp_path / day / 'office', frames[start:]) for day, start in (('monday', 0), ('friday', 2)))
    list(extract(Job(first, tmp_path / 'out')))
    with pytest.raises(BagError, match='was made with another number of messages: 12, now 10 is asked for'):
        list(extract(Job(second, tmp_path / 'out')))


def test_bags_get_names_of_their_own(frames, tmp_path):
    names = ['rosbag2_2024.05.01-12.30.15', 'rosbag2_2024.05.01-12.30.45']
    dated = [record(tmp_path / name, frames[:1]) for name in names]
    assert main(['bag', 'extract', *map(str, dated), str(tmp_path / 'dated')]) == 0
    assert sorted(path.name for path in (tmp_path / 'dated').iterdir()) == names
    same = [record(tmp_path / day / 'office', frames[:count], 'ros1') for day, count in (('monday', 1), ('friday', 2))]
    assert main(['bag', 'extract', *map(str, same), str(tmp_path / 'same')]) == 0
    assert len(list(read_features(tmp_path / 'same' / 'monday' / 'office'))) == 1
    assert len(list(read_features(tmp_path / 'same' / 'friday' / 'office'))) == 2


def test_a_message_that_cannot_be_converted_is_named_and_left_out(frames, tmp_path):
    bag = record(tmp_path / 'office', frames[:3], 'ros1', temperature=True)
    data = bytearray(bag.read_bytes())
    frame_id = b'\x06\0\0\0camera'
    data[data.index(frame_id, data.index(frame_id) + 1)] = 255  # of the first temperature: longer than its message
    bag.write_bytes(data)
    warnings = []
    *_, progress = extract(Job(bag, tmp_path / 'out', keep=('/temperature',)), warnings.append)
    assert (progress.images, progress.bad, progress.complete) == (3, 0, True)
    assert re.search('message 1 of /temperature not copied: SerdeError: ', warnings[0])


def test_an_interrupted_recording_is_extracted_and_described(frames, tmp_path, capsys):
    bag = record(tmp_path / 'office', frames, 'sqlite3')
    (bag / 'metadata.yaml').unlink()
    assert main(['bag', 'extract', str(bag), str(tmp_path / 'out')]) == 0
    assert 'office has no metadata.yaml: its recording was interrupted' in capsys.readouterr().err
    assert len(list(read_features(tmp_path / 'out'))) == 12
    assert any('its recording was interrupted' in line for line in describe(bag))


def test_another_job_does_not_go_on_with_a_bag(frames, tmp_path):
    bag = record(tmp_path / 'office', frames)
    list(extract(Job(bag, tmp_path / 'out')))
    assert next(extract(Job(bag, tmp_path / 'out'))).complete
    with pytest.raises(BagError, match="was made with another encoding: 'float32', now 'int8' is asked for"):
        list(extract(Job(bag, tmp_path / 'out', encoding='int8')))


def test_another_runtime_or_precision_does_not_go_on_with_a_bag(frames, tmp_path, monkeypatch):
    pytest.importorskip('openvino')
    from edgepoint2_ros.engines import openvino

    job = Job(
        record(tmp_path / 'office', frames),
        tmp_path / 'out',
        extractor=ExtractorSettings(backend='openvino', precision='fp32'),
    )
    list(extract(job))
    with pytest.raises(BagError, match="was made with another backend: 'openvino', now 'onnxruntime' is asked for"):
        list(extract(replace(job, extractor=replace(job.extractor, backend='onnxruntime'))))
    # `auto` is what it comes to on this machine.
    automatic = replace(job.extractor, precision='auto')
    monkeypatch.setattr(openvino, 'capabilities', lambda core: {'fp32'})
    assert next(extract(replace(job, extractor=automatic))).complete
    monkeypatch.setattr(openvino, 'capabilities', lambda core: {'fp32', 'bf16'})
    with pytest.raises(BagError, match="was made with another precision: 'fp32', now 'bf16' is asked for"):
        list(extract(replace(job, extractor=automatic)))


def test_two_processes_do_not_write_one_bag(frames, tmp_path):
    job = Job(record(tmp_path / 'office', frames), tmp_path / 'out')
    first = extract(job)
    next(first)
    with pytest.raises(BagError, match='is being written by another process'):
        next(extract(job))
    first.close()
    list(extract(job))


def test_the_command_describes_a_bag(frames, tmp_path, capsys):
    bag = record(tmp_path / 'office', frames)
    assert main(['bag', 'extract', str(bag), str(tmp_path / 'out'), '--encoding', 'int8', '--max-keypoints', '20']) == 0
    assert main(['bag', 'info', str(tmp_path / 'out')]) == 0
    output = capsys.readouterr().out
    assert '/camera/keypoints  edgepoint2_ros/msg/KeypointArray  12 messages' in output
    assert re.search(r'T-32 \[\w{16}\], int8, images 128x96', output)
    assert 'median 20 keypoints' in output
