"""MCAP: every way in which a recorder may lay a file out, and every place at which it may be cut off."""

import random

import pytest

pytest.importorskip('rosbags', reason='rosbags is not installed')

from mcap_writer import Channel, write_mcap
from rosbags.rosbag2 import Reader

from edgepoint2_ros.bridges.mcap import MAGIC, McapFile

TEXT = Channel('/text', 'std_msgs/msg/String', b'string data\n')
MORE = Channel('/more', 'std_msgs/msg/String', b'string data\n', metadata={'offered_qos_profiles': '', 'more': 'yes'})
JSON = Channel('/rpc', 'Request', b'{"type": "object"}', 'jsonschema', 'json')
PROTOBUF = Channel('/points', 'foxglove.PointCloud', bytes(range(256)), 'protobuf', 'protobuf')
MESSAGES = [(number % 2, 1000 + 10 * number, b'\0\1\0\0message %02d' % number) for number in range(22)]


def read(path, topics=None) -> list[tuple[str, int, bytes]]:
    file = McapFile(path)
    wanted = [number for number, channel in file.channels.items() if topics is None or channel.topic in topics]
    found = [(file.channels[number].topic, moment, raw) for number, moment, raw in file.messages(wanted)]
    file.close()
    return found


def expected(channels=(TEXT, MORE), messages=MESSAGES) -> list[tuple[str, int, bytes]]:
    return [(channels[number].topic, moment, raw) for number, moment, raw in messages]


@pytest.mark.parametrize('summary', [True, False])
@pytest.mark.parametrize(
    ('per_chunk', 'compression'), [(0, ''), (1, ''), (5, ''), (5, 'zstd'), (5, 'lz4'), (99, 'zstd')]
)
def test_every_layout_is_read(per_chunk, compression, summary, tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', [TEXT, MORE], MESSAGES, per_chunk, compression, summary=summary)
    assert read(path) == expected()
    file = McapFile(path)
    assert (file.counts, file.start, file.end, file.closed) == ({0: 11, 1: 11}, 1000, 1210, True)
    assert file.channels[1].metadata == {'offered_qos_profiles': '', 'more': 'yes'}
    if summary and per_chunk:
        return  # rosbags finds nothing in chunks whose messages have no index of their own, which they need not have
    with Reader(path) as reader:  # another program agrees that it is such a file
        assert [(c.topic, moment, bytes(raw)) for c, moment, raw in reader.messages()] == expected()


def test_messages_come_by_time_though_chunks_overlap(tmp_path):
    messages = MESSAGES[:]
    random.Random(0).shuffle(messages)
    assert read(write_mcap(tmp_path / 'a.mcap', [TEXT, MORE], messages, 3)) == expected()
    assert read(write_mcap(tmp_path / 'b.mcap', [TEXT, MORE], messages, 0)) == expected()


def test_a_channel_of_another_kind_disturbs_nobody(tmp_path):
    channels = [TEXT, JSON, PROTOBUF]
    messages = [(number % 3, number, b'{}') for number in range(12)]
    path = write_mcap(tmp_path / 'a.mcap', channels, messages, profile='')
    assert read(path) == expected(channels, messages)
    assert [moment for _, moment, _ in read(path, ['/text'])] == [0, 3, 6, 9]
    assert {channel.encoding for channel in McapFile(path).channels.values()} == {'cdr', 'json', 'protobuf'}


@pytest.mark.parametrize('per_chunk', [0, 4])
@pytest.mark.parametrize('summary', [True, False])
def test_a_file_cut_off_anywhere_gives_what_lies_before(summary, per_chunk, tmp_path):
    whole = write_mcap(tmp_path / 'a.mcap', [TEXT, MORE], MESSAGES, per_chunk, summary=summary).read_bytes()
    cut, counts = tmp_path / 'cut.mcap', []
    for size in [*range(len(MAGIC), len(whole), 7), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        found = read(cut)
        assert found == expected()[: len(found)]
        assert sum(McapFile(cut).counts.values()) == len(found)
        assert not McapFile(cut).closed
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(MESSAGES)


def test_a_file_that_ends_in_zeros_gives_what_lies_before(tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', [TEXT, MORE], MESSAGES, 4, 'zstd', closed=False)
    path.write_bytes(path.read_bytes() + bytes(10_000))
    assert read(path) == expected()
    data = bytearray(path.read_bytes()[:-10_000])
    data[-20:] = bytes(20)  # a last chunk that never came to disk
    path.write_bytes(data)
    assert read(path) == expected()[:20]


@pytest.mark.parametrize('compression', ['', 'zstd', 'lz4'])
def test_a_damaged_chunk_is_no_message(compression, tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', [TEXT, MORE], MESSAGES, 4, compression)
    whole = path.read_bytes()
    for place in random.Random(1).sample(range(500, len(whole)), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = []
        try:
            file = McapFile(path)
            for _, moment, raw in file.messages(file.channels):
                found.append((moment, raw))
        except Exception as error:
            assert str(error)
        assert set(found) <= {(moment, raw) for _, moment, raw in MESSAGES}


@pytest.mark.parametrize('content', [b'', b'MCAP', MAGIC[:-1], b'%PDF-1.7' + MAGIC])
def test_what_is_no_mcap_file_is_refused(content, tmp_path):
    (tmp_path / 'a.mcap').write_bytes(content)
    with pytest.raises(ValueError, match='does not begin as an MCAP file'):
        McapFile(tmp_path / 'a.mcap')


def test_an_unknown_compression_is_named(tmp_path):
    path = write_mcap(tmp_path / 'a.mcap', [TEXT, MORE], MESSAGES, 4, 'brotli')
    with pytest.raises(ValueError, match='compressed by brotli: expected zstd or lz4'):
        read(path)
