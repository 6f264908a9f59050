"""Recordings: what rosbag2 and ROS 1 write is read, whatever lies beside it, and whether they came to an end or not."""

import shutil
import sqlite3
import struct

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from mcap_writer import Channel, write_mcap
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from ruamel.yaml import YAML
from test_bags import IMAGE, START, STRANGERS, TYPES, image, record

from edgepoint2_ros.bridges.recordings import open_recording
from edgepoint2_ros.errors import BagError, MessageError

TOPIC = '/camera/image_raw'


@pytest.fixture(scope='module')
def frames() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (12, 64, 96), np.uint8))


@pytest.fixture(scope='module')
def image_channel() -> Channel:
    text, _ = TYPES[2].generate_msgdef(IMAGE, ros_version=2)
    return Channel(TOPIC, IMAGE, text.encode(), metadata={'topic_type_hash': TYPES[2].hash_rihs01(IMAGE)})


def moment(number: int) -> int:
    return (START + number) * 1_000_000_000


def raw_image(number: int, pixels: np.ndarray) -> bytes:
    return bytes(TYPES[2].serialize_cdr(image(TYPES[2].types, number, pixels), IMAGE))


def read_images(path, topic=TOPIC) -> tuple[list[int], list[str]]:
    """Return the numbers of the images on a topic, checked against their stamps, and what was noted."""
    notes = []
    with open_recording(path, notes.append) as recording:
        decode = recording.decoder(recording.topics[topic])
        stamps = [decode(raw).header.stamp.sec - START for _, _, raw in recording.messages({topic})]
    return stamps, notes


@pytest.mark.parametrize('kind', ['mcap', 'sqlite3', 'ros1'])
@pytest.mark.parametrize('alone', [False, True])
def test_a_bag_of_every_kind_is_read_as_rosbags_reads_it(kind, alone, frames, tmp_path):
    bag = record(tmp_path / 'office', frames, kind, temperature=True)
    bag = next(bag.glob('office*')) if alone and bag.is_dir() else bag
    with AnyReader([bag]) as reader, open_recording(bag, pytest.fail) as recording:
        assert {topic.name: (topic.type, topic.count) for topic in recording.topics.values()} == {
            connection.topic: (connection.msgtype, connection.msgcount) for connection in reader.connections
        }
        assert (recording.count, recording.end - recording.start) == (24, 11_000_000_001)
        assert [(name, time, bytes(raw)) for name, time, raw in recording.messages(set(recording.topics))] == [
            (connection.topic, time, bytes(raw)) for connection, time, raw in reader.messages()
        ]
        decoders = {name: recording.decoder(topic) for name, topic in recording.topics.items()}
        for connection, _, raw in reader.messages():
            ours = decoders[connection.topic](raw)
            assert ours.header.stamp.sec == reader.deserialize(raw, connection.msgtype).header.stamp.sec


@pytest.mark.parametrize('what', STRANGERS)
def test_a_topic_that_nobody_can_read_leaves_the_others_alone(what, image_channel, frames, tmp_path):
    stranger = STRANGERS[what]
    messages = [(0, moment(number), raw_image(number, pixels)) for number, pixels in enumerate(frames)]
    messages += [(1, moment(number), b'\0\1\0\0') for number in range(12)]
    bag = write_mcap(tmp_path / 'office.mcap', [image_channel, stranger], messages)
    assert read_images(bag) == (list(range(12)), [])
    with open_recording(bag) as recording:
        assert recording.topics[stranger.topic].count == 12
        assert len(list(recording.messages({stranger.topic}))) == 12
        with pytest.raises(BagError, match=f'{stranger.topic} .*cannot be read: '):
            recording.decoder(recording.topics[stranger.topic])


def test_in_a_database_too(frames, tmp_path):
    bag = record(tmp_path / 'office', frames, 'sqlite3', temperature=True)
    with sqlite3.connect(next(bag.glob('*.db3'))) as database:
        database.execute("UPDATE message_definitions SET encoding = 'unknown' WHERE topic_type LIKE '%Temperature'")
        database.execute("UPDATE topics SET type = 'acme_msgs/msg/Motor' WHERE name = '/temperature'")
    metadata = (bag / 'metadata.yaml').read_text()
    (bag / 'metadata.yaml').write_text(metadata.replace('serialization_format: cdr', 'serialization_format: json', 1))
    assert read_images(bag) == (list(range(12)), [])


def test_a_topic_of_two_types_is_not_read(image_channel, tmp_path):
    other = image_channel._replace(type='sensor_msgs/msg/Temperature')
    bag = write_mcap(tmp_path / 'a.mcap', [image_channel, other], [(0, 1, b'\0\1\0\0'), (1, 2, b'\0\1\0\0')])
    with (
        open_recording(bag) as recording,
        pytest.raises(BagError, match='it has two types, the other is .*/Temperature'),
    ):
        recording.decoder(recording.topics[TOPIC])


def test_a_definition_that_is_not_that_of_the_messages_is_not_believed(image_channel, frames, tmp_path):
    wrong = image_channel._replace(definition=image_channel.definition.replace(b'uint32 step', b'uint64 step'))
    bag = write_mcap(tmp_path / 'a.mcap', [wrong], [(0, 1, raw_image(0, frames[0]))])
    with pytest.raises(BagError, match='its definition in the recording does not match its messages'):
        read_images(bag)


def test_nor_is_one_that_is_not_in_the_recording(image_channel, frames, tmp_path):
    bare = image_channel._replace(definition=b'', definition_encoding='unknown')
    bag = write_mcap(tmp_path / 'a.mcap', [bare], [(0, moment(0), raw_image(0, frames[0]))])
    assert read_images(bag) == ([0], [])
    newer = bare._replace(metadata={'topic_type_hash': 'RIHS01_' + 'a' * 64})
    write_mcap(bag, [newer], [(0, moment(0), raw_image(0, frames[0]))])
    with pytest.raises(BagError, match='its definition in ROS 2 Humble does not match its messages'):
        read_images(bag)


def test_an_mcap_file_made_of_a_ros1_bag_is_read(frames, tmp_path):
    text, _ = TYPES[1].generate_msgdef(IMAGE)
    channel = Channel(TOPIC, 'sensor_msgs/Image', text.encode(), 'ros1msg', 'ros1')
    raw = [bytes(TYPES[1].serialize_ros1(image(TYPES[1].types, i, frame), IMAGE)) for i, frame in enumerate(frames)]
    messages = [(0, moment(number), data) for number, data in enumerate(raw)]
    bag = write_mcap(tmp_path / 'a.mcap', [channel], messages, profile='ros1')
    assert read_images(bag) == (list(range(12)), [])


def test_bytes_that_are_no_message_are_refused_alone(image_channel, frames, tmp_path):
    bag = write_mcap(tmp_path / 'a.mcap', [image_channel], [(0, 1, b'\0\1\0\0half')])
    with open_recording(bag) as recording:
        decode = recording.decoder(recording.topics[TOPIC])
        [(_, _, raw)] = recording.messages({TOPIC})
        with pytest.raises(MessageError, match='8 bytes are no sensor_msgs/msg/Image'):
            decode(raw)


@pytest.mark.parametrize('kind', ['mcap', 'sqlite3'])
def test_metadata_that_describe_a_topic_otherwise_than_the_file_lose_no_message(kind, frames, tmp_path):
    """Bags that `ros2 bag` itself rewrote have quality of service in another form there, or no hash."""
    bag = record(tmp_path / 'office', frames, kind)
    metadata = YAML(typ='safe').load(bag / 'metadata.yaml')
    topic = metadata['rosbag2_bagfile_information']['topics_with_message_count'][0]['topic_metadata']
    topic['offered_qos_profiles'] = '- history: 3\n  depth: 0'
    del topic['type_description_hash']
    YAML(typ='safe').dump(metadata, bag / 'metadata.yaml')
    assert read_images(bag) == (list(range(12)), [])


@pytest.mark.parametrize('mode', ['MESSAGE', 'FILE'])
@pytest.mark.parametrize('kind', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('metadata', [True, False])
def test_compressed_bags_are_read(metadata, kind, mode, frames, tmp_path):
    writer = Writer(tmp_path / 'office', version=8, storage_plugin=StoragePlugin[kind.upper()])
    writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection(TOPIC, IMAGE, typestore=TYPES[2])
        for number, pixels in enumerate(frames):
            writer.write(connection, moment(number), raw_image(number, pixels))
    if not metadata:
        (tmp_path / 'office' / 'metadata.yaml').unlink()
    assert read_images(tmp_path / 'office')[0] == list(range(12))


@pytest.mark.parametrize('name', ['50% of it', 'what?', 'no. #1', 'with space & ümlaut'])
@pytest.mark.parametrize('kind', ['mcap', 'sqlite3', 'ros1'])
def test_a_bag_may_be_called_anything(kind, name, frames, tmp_path):
    bag = record(tmp_path / 'office', frames, kind)
    assert read_images(bag.rename(tmp_path / name)) == (list(range(12)), [])


class TestInterrupted:
    """A recorder that was killed leaves no metadata, and its last file as far as it had come."""

    def test_an_mcap_file_without_an_end_is_read_up_to_the_cut(self, image_channel, frames, tmp_path):
        bag, noted = tmp_path / 'office', r'has no metadata.yaml: its recording was interrupted'
        bag.mkdir()
        messages = [(0, moment(number), raw_image(number, pixels)) for number, pixels in enumerate(frames)]
        file = write_mcap(bag / 'office_0.mcap', [image_channel], messages, 1, closed=False)
        file.write_bytes(file.read_bytes()[:-1000])
        numbers, [note] = read_images(bag)
        assert (numbers, noted in note) == (list(range(11)), True)
        numbers, [note] = read_images(file)
        assert numbers == list(range(11))
        assert note.endswith('was not closed: reading up to the truncation; `mcap recover` repairs it')

    def test_a_cut_file_that_has_metadata_is_damaged(self, image_channel, frames, tmp_path):
        bag = record(tmp_path / 'office', frames)
        messages = [(0, moment(number), raw_image(number, pixels)) for number, pixels in enumerate(frames)]
        write_mcap(bag / 'office.mcap', [image_channel], messages[:7], 1, closed=False)
        with pytest.raises(BagError, match='holds 7 messages where its index names 12; `mcap recover`'):
            read_images(bag)

    def test_a_database_gives_also_what_lies_beside_it(self, frames, tmp_path):
        bag = record(tmp_path / 'office', frames[:8], 'sqlite3')
        file = next(bag.glob('*.db3'))
        with sqlite3.connect(file) as database:
            database.execute('PRAGMA journal_mode=WAL')
        writer = sqlite3.connect(file)  # a recorder in the preset `resilient`
        for number in range(8, 12):
            row = (1, moment(number), raw_image(number, frames[number]))
            writer.execute('INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)', row)
        writer.commit()
        killed = tmp_path / 'killed'
        killed.mkdir()
        for part in bag.glob('*.db3*'):
            shutil.copy(part, killed)
        writer.close()
        assert len(list(killed.iterdir())) == 3
        assert read_images(killed)[0] == list(range(12))
        assert read_images(killed / file.name)[0] == list(range(12))
        assert {path.name for path in killed.iterdir()} >= {file.name, f'{file.name}-wal'}  # all that it was

    def test_files_are_read_in_the_order_of_their_beginning(self, image_channel, frames, tmp_path):
        for number in range(12):  # sorted by name, 10 and 11 come before 2
            message = (0, moment(number), raw_image(number, frames[number]))
            write_mcap(tmp_path / f'office_{number}.mcap', [image_channel], [message], closed=number < 11)
        assert read_images(tmp_path)[0] == list(range(12))

    def test_a_last_file_without_content_is_named_and_left_out(self, image_channel, frames, tmp_path):
        write_mcap(tmp_path / 'office_0.mcap', [image_channel], [(0, moment(0), raw_image(0, frames[0]))])
        (tmp_path / 'office_1.mcap').touch()
        numbers, (_, note) = read_images(tmp_path)
        assert numbers == [0]
        assert 'left out: ' in note
        assert 'office_1.mcap cannot be read as a bag: it is empty' in note

    def test_a_file_that_the_metadata_do_not_name_is_named(self, image_channel, frames, tmp_path):
        bag = record(tmp_path / 'office', frames)
        write_mcap(bag / 'office_1.mcap', [image_channel], [(0, moment(12), raw_image(12, frames[0]))])
        numbers, [note] = read_images(bag)
        assert numbers == list(range(12))
        assert 'metadata.yaml does not name office_1.mcap: left out; `ros2 bag reindex` adds it' in note

    @pytest.mark.parametrize('content', ['', 'rosbag2_bagfile_information:\n  version: 8\n', '{'])
    def test_metadata_that_were_not_finished(self, content, frames, tmp_path):
        bag = record(tmp_path / 'office', frames)
        (bag / 'metadata.yaml').write_text(content)
        with pytest.raises(BagError, match=r'metadata.yaml .*`ros2 bag reindex'):
            read_images(bag)

    def test_a_ros1_bag_without_an_index(self, frames, tmp_path):
        bag = record(tmp_path / 'office', frames, 'ros1')
        data = bytearray(bag.read_bytes())
        place = data.index(b'index_pos=') + len(b'index_pos=')
        data[place : place + 8] = struct.pack('<Q', 0)  # as it is until the bag is closed
        for name in ('office.bag', 'office.bag.active'):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(BagError, match=r'not indexed.*if its recording was interrupted, `rosbag reindex`'):
                read_images(tmp_path / name)


def test_what_is_no_recording_is_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'thesis.mcap').write_bytes(b'%PDF-1.7')
    (tmp_path / 'nothing.db3').touch()
    for name, words in (
        ('missing', 'there is no bag'),
        ('empty', 'is no bag: it holds neither metadata.yaml nor an .mcap or .db3 file'),
        ('thesis.mcap', "cannot be read as a bag: it begins with b'%PDF-1.7'; expected a rosbag2 folder"),
        ('nothing.db3', 'cannot be read as a bag: it is empty'),
    ):
        with pytest.raises(BagError, match=words), open_recording(tmp_path / name):
            pass


def test_latched_publishers_of_ros1_are_transient_local(tmp_path):
    from rosbags.rosbag1 import Writer as Writer1

    with Writer1(tmp_path / 'a.bag') as writer:
        for name, latching in (('/tf_static', 1), ('/tf_static', 1), ('/tf', 0)):
            message = (name, 'std_msgs/msg/String')
            writer.add_connection(
                *message, typestore=TYPES[1], latching=latching, callerid=f'/{len(writer.connections)}'
            )
    with open_recording(tmp_path / 'a.bag') as recording:
        assert recording.topics['/tf'].qos == ()
        [qos] = recording.topics['/tf_static'].qos
        assert qos == Qos(
            QosHistory.KEEP_LAST,
            2,  # the last message of each
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL,
            QosTime(0, 0),
            QosTime(0, 0),
            QosLiveliness.AUTOMATIC,
            QosTime(0, 0),
            False,
        )
