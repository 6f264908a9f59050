"""MCAP files (mcap.dev/spec), complete or truncated: the names of their channels, and their messages by time.

Every record is found by walking from one to the next, so that a file whose recorder was killed yields everything before
the cut. Messages are not decoded here: a channel with unknown ones does not affect the others.
"""

import heapq
import shutil
import struct
from binascii import crc32
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b'\x89MCAP0\r\n'
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _STATISTICS, _DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0B, 0x0F
_HEAD = struct.Struct('<BQ')  # of a record: opcode and length
_FOOTER_SIZE = 20


class Channel(NamedTuple):
    """A channel: ``encoding`` is that of its messages, ``schema`` and ``schema_encoding`` define their content."""

    topic: str
    type: str
    encoding: str
    schema: str
    schema_encoding: str
    metadata: dict[str, str]


class _Piece(NamedTuple):
    """A chunk, or a message outside of chunks: when it begins, and where the content of its record is."""

    start: int
    place: int
    size: int
    is_chunk: bool


class McapFile:
    """An MCAP file that is open for reading.

    Attributes:
        channels: by number.
        counts: messages of each channel, from the file's own statistics; counted as far as readable if it has none.
        start, end: times of the first and the last message in nanoseconds; both 0 if there are none.
        closed: its recorder finished it. Otherwise it is truncated, and what was being written is lost.
    """

    def __init__(self, path: Path):
        """Open a file and read all but the messages.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not an MCAP file, or damaged.
        """
        self.channels: dict[int, Channel] = {}
        self.counts: Counter[int] = Counter()
        self.start = self.end = 0
        self._file = path.open('rb')
        try:
            self._open()
        except BaseException as error:
            self._file.close()
            if isinstance(error, (struct.error, IndexError)):
                raise ValueError('a record is too short for what it should hold') from None
            raise

    def _open(self) -> None:
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._pieces: list[_Piece] = []
        size = self._file.seek(0, 2)
        if self._read(0, len(MAGIC)) != MAGIC:
            raise ValueError('it does not begin as an MCAP file')
        footer = size - len(MAGIC) - _FOOTER_SIZE - _HEAD.size
        end = self._read(max(footer, 0), size)
        self.closed = end.endswith(MAGIC) and end.startswith(_HEAD.pack(_FOOTER, _FOOTER_SIZE))
        summary = struct.unpack_from('<Q', end, _HEAD.size)[0] if self.closed else 0
        last = summary or (footer if self.closed else size)
        behind = len(MAGIC)
        for opcode, place, length in self._records(behind, last):
            behind = place + length
            if opcode == _CHUNK:
                self._pieces.append(_Piece(struct.unpack('<Q', self._read(place, 8))[0], place, length, True))
            elif opcode == _MESSAGE:
                channel, _, moment = struct.unpack('<HIQ', self._read(place, 14))
                self._pieces.append(_Piece(moment, place, length, False))
                self._count(channel, moment)
            elif opcode in (_SCHEMA, _CHANNEL):
                self._define(opcode, self._read(place, length))
            elif opcode == _DATA_END:
                behind = last
                break
        if not (summary and self._read_summary(summary, footer)):
            if self.closed and behind < last:
                raise ValueError(f'its records break off at byte {behind}')
            self._look_into_chunks()

    def close(self) -> None:
        self._file.close()

    def messages(self, channels: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Yield channel, recording time in nanoseconds and bytes of each message, by time.

        Raises:
            Exception: the file is damaged; which one depends on the compression. What came before is valid.
        """
        # Read, but a chunk not yet read may hold earlier ones.
        waiting: list[tuple[int, int, int, int, bytes]] = []
        for number, piece in enumerate(sorted(self._pieces)):
            while waiting and waiting[0][0] < piece.start:
                yield _without_order(heapq.heappop(waiting))
            for index, (opcode, content) in enumerate(self._contents(piece)):
                channel, _, moment = struct.unpack_from('<HIQ', content) if opcode == _MESSAGE else (None, 0, 0)
                if channel in channels:
                    heapq.heappush(waiting, (moment, number, index, channel, bytes(content[22:])))
        while waiting:
            yield _without_order(heapq.heappop(waiting))

    def _read(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)

    def _records(self, place: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield opcode, content offset and content size of each record; end at a truncated one."""
        while place + _HEAD.size <= end:
            opcode, size = _HEAD.unpack(self._read(place, _HEAD.size))
            place += _HEAD.size
            if opcode == 0 or place + size > end:
                return
            yield opcode, place, size
            place += size

    def _read_summary(self, place: int, end: int) -> bool:
        """Take channels and counts from the summary; tell whether it has all of them."""
        statistics = None
        for opcode, start, size in self._records(place, end):
            if opcode in (_SCHEMA, _CHANNEL):
                self._define(opcode, self._read(start, size))
            elif opcode == _STATISTICS:
                statistics = self._read(start, size)
        if statistics is None:
            return False
        total, _, channels, _, _, _, start, end, _ = struct.unpack_from('<QHIIIIQQI', statistics)
        counts = Counter(dict(struct.iter_unpack('<HQ', statistics[46:])))
        if channels > len(self.channels) or sum(counts.values()) != total or not counts.keys() <= self.channels.keys():
            return False
        self.counts = counts
        self.start, self.end = (start, end) if total else (0, 0)
        return True

    def _look_into_chunks(self) -> None:
        """Find channels and counts in the chunks themselves; an incomplete last one is left out."""
        for number, piece in enumerate(self._pieces):
            try:
                contents = list(self._contents(piece)) if piece.is_chunk else []
            except Exception:
                if self.closed:
                    raise
                del self._pieces[number:]
                return
            for opcode, content in contents:
                if opcode == _MESSAGE:
                    channel, _, moment = struct.unpack_from('<HIQ', content)
                    self._count(channel, moment)
                elif opcode in (_SCHEMA, _CHANNEL):
                    self._define(opcode, bytes(content))

    def _count(self, channel: int, moment: int) -> None:
        self.start = min(self.start, moment) if self.counts else moment
        self.end = max(self.end, moment)
        self.counts[channel] += 1

    def _contents(self, piece: _Piece) -> Iterator[tuple[int, memoryview]]:
        """Yield opcode and content of the records in a chunk, or of a message outside of chunks.

        Raises:
            ValueError: it is damaged.
        """
        content = self._read(piece.place, piece.size)
        if not piece.is_chunk:
            yield _MESSAGE, memoryview(content)
            return
        records = memoryview(_unpack_chunk(content))
        place = 0
        while place < len(records):
            if place + _HEAD.size > len(records):
                raise ValueError('a chunk ends within a record')
            opcode, size = _HEAD.unpack_from(records, place)
            place += _HEAD.size
            if place + size > len(records):
                raise ValueError('a chunk ends within a record')
            yield opcode, records[place : place + size]
            place += size

    def _define(self, opcode: int, content: bytes) -> None:
        if opcode == _SCHEMA:
            name, place = _text(content, 2)
            encoding, place = _text(content, place)
            text, _ = _text(content, place)
            self._schemas[struct.unpack_from('<H', content)[0]] = name, text, encoding
            return
        number, schema = struct.unpack_from('<HH', content)
        topic, place = _text(content, 4)
        encoding, place = _text(content, place)
        metadata, end = {}, place + 4 + struct.unpack_from('<I', content, place)[0]
        place += 4
        while place < end:
            key, place = _text(content, place)
            metadata[key], place = _text(content, place)
        kind, text, schema_encoding = self._schemas.get(schema, ('', '', ''))
        self.channels[number] = Channel(topic, kind, encoding, text, schema_encoding, metadata)


def _without_order(entry: tuple[int, int, int, int, bytes]) -> tuple[int, int, bytes]:
    moment, _, _, channel, data = entry
    return channel, moment, data


def _text(content: bytes, place: int) -> tuple[str, int]:
    """Return the string at an offset, and the offset after it; a binary schema is decoded as far as possible."""
    begin = place + 4
    end = begin + struct.unpack_from('<I', content, place)[0]
    if end > len(content):
        raise ValueError('a string is longer than its record')
    return content[begin:end].decode('utf-8', 'replace'), end


def _unpack_chunk(content: bytes) -> bytes:
    size, checksum = struct.unpack_from('<QI', content, 16)
    compression, place = _text(content, 28)
    records = content[place + 8 :][: struct.unpack_from('<Q', content, place)[0]]
    if compression == 'zstd':
        records = decompress_zstd(records)
    elif compression == 'lz4':
        import lz4.frame  # comes with rosbags

        records = lz4.frame.decompress(records)
    elif compression:
        raise ValueError(f'a chunk is compressed by {compression}: expected zstd or lz4')
    if len(records) != size or (checksum and crc32(records) != checksum):
        raise ValueError('a chunk is not what was written')
    return records


def decompress_zstd(data: bytes) -> bytes:
    """Return the content of a Zstandard frame.

    Raises:
        Exception: it is damaged; which one depends on the package.
    """
    return _zstd().decompress(data)


def unpack_zstd(source: Path, target: Path) -> None:
    """Decompress a Zstandard file into another.

    Raises:
        Exception: it is damaged; which one depends on the package.
    """
    with _zstd().open(source, 'rb') as compressed, target.open('wb') as file:
        shutil.copyfileobj(compressed, file)


def _zstd() -> Any:
    try:
        from compression import zstd
    except ImportError:  # before Python 3.14; comes with rosbags
        from backports import zstd
    return zstd
