"""MCAP files as the tests need them: with channels that rosbags does not write, with and without what is optional."""

import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from edgepoint2_ros.bridges.mcap import MAGIC

SCHEMA, CHANNEL, MESSAGE, CHUNK, CHUNK_INDEX, STATISTICS, DATA_END = 3, 4, 5, 6, 8, 11, 15


class Channel(NamedTuple):
    topic: str
    type: str
    definition: bytes
    definition_encoding: str = 'ros2msg'
    encoding: str = 'cdr'
    metadata: dict = {}


def write_mcap(
    path: Path,
    channels: list[Channel],
    messages: list[tuple[int, int, bytes]],
    per_chunk: int = 4,
    compression: str = '',
    closed: bool = True,
    summary: bool = True,
    profile: str = 'ros2',
) -> Path:
    """Write messages, each (number of the channel, moment, bytes), in the order given.

    Args:
        per_chunk: messages in a chunk; 0 writes none.
        closed: with end of data, footer and magic.
        summary: with channels, chunks and counts before the footer.
    """
    definitions = b''
    for number, channel in enumerate(channels):
        schema = struct.pack('<H', number + 1) + text(channel.type) + text(channel.definition_encoding)
        definitions += record(SCHEMA, schema + struct.pack('<I', len(channel.definition)) + channel.definition)
        metadata = b''.join(text(key) + text(value) for key, value in channel.metadata.items())
        fields = struct.pack('<HH', number, number + 1) + text(channel.topic) + text(channel.encoding)
        definitions += record(CHANNEL, fields + struct.pack('<I', len(metadata)) + metadata)
    data = MAGIC + record(1, text(profile) + text('test'))
    data += b'' if per_chunk else definitions
    index = b''
    for start in range(0, len(messages), per_chunk or 1):
        some = messages[start : start + (per_chunk or 1)]
        records = b''.join(
            record(MESSAGE, struct.pack('<HIQQ', number, 0, moment, moment) + raw) for number, moment, raw in some
        )
        if not per_chunk:
            data += records
            continue
        records = definitions + records if start == 0 else records
        packed = compress(compression, records)
        span = struct.pack('<QQ', min(moment for _, moment, _ in some), max(moment for _, moment, _ in some))
        sizes = struct.pack('<QI', len(records), crc32(records)) + text(compression) + struct.pack('<Q', len(packed))
        chunk = record(CHUNK, span + sizes + packed)
        place = struct.pack('<QQIQ', len(data), len(chunk), 0, 0)
        index += record(CHUNK_INDEX, span + place + text(compression) + struct.pack('<QQ', len(packed), len(records)))
        data += chunk
    if not closed:
        path.write_bytes(data)
        return path
    data += record(DATA_END, bytes(4))
    start = len(data) if summary else 0
    if summary:
        counts = {number: sum(each[0] == number for each in messages) for number in range(len(channels))}
        moments = [moment for _, moment, _ in messages] or [0]
        chunks = -(-len(messages) // per_chunk) if per_chunk else 0
        numbers = (len(messages), len(channels), len(channels), 0, 0, chunks, min(moments), max(moments))
        pairs = b''.join(struct.pack('<HQ', *pair) for pair in counts.items())
        statistics = struct.pack('<QHIIIIQQ', *numbers) + struct.pack('<I', len(pairs)) + pairs
        data += definitions + index + record(STATISTICS, statistics)
    path.write_bytes(data + record(2, struct.pack('<QQI', start, 0, 0)) + MAGIC)
    return path


def record(opcode: int, content: bytes) -> bytes:
    return struct.pack('<BQ', opcode, len(content)) + content


def text(string: str) -> bytes:
    return struct.pack('<I', len(string.encode())) + string.encode()


def compress(compression: str, data: bytes) -> bytes:
    if compression == 'zstd':
        try:
            from compression import zstd
        except ImportError:
            from backports import zstd
        return zstd.compress(data)
    if compression == 'lz4':
        import lz4.frame

        return lz4.frame.compress(data)
    return data
