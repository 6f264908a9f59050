"""Recordings: bags of ROS 1 and ROS 2, read topic by topic, complete or left by a recorder that was killed.

Topics are independent: one whose messages cannot be read (JSON, an undefined type) is reported and does not affect the
others.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePath
from typing import Any

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag2.metadata import parse_qos
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML

from edgepoint2_ros.bridges.mcap import MAGIC, McapFile, decompress_zstd, unpack_zstd
from edgepoint2_ros.errors import BagError, MessageError
from edgepoint2_ros.progress import Report

KEYPOINTS = 'edgepoint2_ros/msg/KeypointArray'
_SUFFIXES = ('.mcap', '.db3', '.zstd')  # of the files in a folder without metadata
_ZSTD = b'\x28\xb5\x2f\xfd'  # begins a compressed file or message; an uncompressed message begins with 0
_IDL = '=' * 80 + '\n'  # precedes each definition in an IDL text
_IN_MSG, _IN_IDL = ('ros2msg', 'ros1msg'), ('ros2idl', 'omgidl')  # encodings of definitions


@dataclass(frozen=True)
class Topic:
    """What a recording says about a topic.

    Attributes:
        name, type: such as ``/camera/image_raw`` and ``sensor_msgs/msg/Image``.
        count: messages.
        encoding: of the messages: ``cdr``, ``ros1`` or another, which is not supported.
        definition: text of the type's definition.
        definition_encoding: of that: ``ros2msg``, ``ros1msg``, ``ros2idl``, ``omgidl``; '' if there is none.
        digest: hash of the type (RIHS01), '' if unknown.
        qos: as offered by the publishers.
        fault: why the messages cannot be read, or ''.
    """

    name: str
    type: str
    count: int
    encoding: str = 'cdr'
    definition: str = ''
    definition_encoding: str = ''
    digest: str = ''
    qos: tuple[Qos, ...] = ()
    fault: str = ''


class Recording:
    """A bag that is open for reading; `open_recording` opens it.

    Attributes:
        topics: by name.
        start, end: times of the first and the last message in nanoseconds; both 0 if there are none.
        state: the custom data in the metadata, where `bags.extract`, like other programs, keeps its own.
    """

    def __init__(self, path: Path, report: Report):
        self.path = path
        self.topics: dict[str, Topic] = {}
        self.start = self.end = 0
        self.state: dict[str, str] = {}
        self._files: list[_McapTopics | _SqliteTopics | _Rosbag1Topics] = []
        self._temporary = tempfile.TemporaryDirectory()
        try:
            if path.is_dir():
                self._open_folder(report)
            else:
                self._open_file(path)
                if not self._files[0].closed:
                    report(f'{path} was not closed: reading up to the truncation; {self._files[0].repair}')
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            with suppress(Exception):
                file.close()
        self._temporary.cleanup()

    @property
    def count(self) -> int:
        """Messages of all topics."""
        return sum(topic.count for topic in self.topics.values())

    def messages(self, names: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield topic, recording time in nanoseconds and bytes of each message of some topics, by time.

        Raises:
            BagError: the recording is damaged; what came before is valid.
        """
        count = 0
        for file in self._files:
            messages = file.messages(names)
            while True:
                try:
                    name, moment, raw = next(messages)
                    raw = decompress_zstd(raw) if raw[:4] == _ZSTD else raw
                except StopIteration:
                    break
                except Exception as error:  # each format fails in its own way
                    raise BagError(f'{self.path} is damaged behind message {count}: {sentence(error)}') from None
                count += 1
                yield name, moment, raw
        expected = sum(self.topics[name].count for name in names)
        if count < expected:
            repair = next((f'; {file.repair}' for file in self._files if not file.closed), '')
            raise BagError(
                f'{self.path} is damaged: it holds {count} messages where its index names {expected}{repair}'
            )

    def types(self, topic: Topic) -> Typestore:
        """Return a rosbags typestore with a topic's type: from the recording, else from ROS 2 Humble.

        Raises:
            BagError: the messages cannot be read.
        """
        try:
            found = {} if topic.fault else _parse(topic)
            types = get_typestore(Stores.EMPTY)
            types.register({**known_types().fielddefs, **found})
            fault = topic.fault
            if not fault and topic.type not in types.fielddefs:
                fault = 'the recording holds no definition of its type'
            hashed = not fault and topic.digest.startswith('RIHS01_')
            if hashed and types.hash_rihs01(topic.type) != topic.digest:
                fault = f'its definition in {"the recording" if found else "ROS 2 Humble"} does not match its messages'
            if not fault:
                types.get_msgdef(topic.type)  # which raises if a type it is made of is missing
        except Exception as error:  # the parser fails in many ways
            fault = f'its definition makes no sense: {sentence(error)}'
        if fault:
            raise BagError(f'{self.path}: {topic.name} ({topic.type}) cannot be read: {fault}')
        return types

    def decoder(self, topic: Topic) -> Callable[[bytes], Any]:
        """Return a function that decodes a message from bytes; it raises MessageError if they are invalid.

        Raises:
            BagError: the messages cannot be read.
        """
        types = self.types(topic)
        deserialise = types.deserialize_ros1 if topic.encoding == 'ros1' else types.deserialize_cdr

        def decode(raw: bytes) -> Any:
            try:
                return deserialise(raw, topic.type)
            except Exception as error:  # rosbags names only some of the ways
                raise MessageError(f'{len(raw)} bytes are no {topic.type}: {sentence(error)}') from None

        return decode

    def _open_folder(self, report: Report) -> None:
        found = sorted(path for path in self.path.iterdir() if path.suffix in _SUFFIXES)
        if not (self.path / 'metadata.yaml').exists():
            if not found:
                raise BagError(f'{self.path} is no bag: it holds neither metadata.yaml nor an .mcap or .db3 file')
            report(f'{self.path} has no metadata.yaml: its recording was interrupted; what its files hold is read')
            self._open_files_alone(found, report)
            return
        metadata = load_metadata(self.path)
        listed = [self.path / PurePath(name).name for name in metadata['relative_file_paths']]
        for path in listed:
            self._open_file(path)
        self.state = metadata.get('custom_data') or {}
        forgotten = [path.name for path in found if path not in listed]
        if forgotten and not self.state:  # those of `bags.extract` resume by themselves
            report(
                f'{self.path}: metadata.yaml does not name {", ".join(forgotten)}: left out; `ros2 bag reindex` adds it'
            )
        for entry in metadata['topics_with_message_count']:
            name, kind = entry['topic_metadata']['name'], entry['topic_metadata']['type']
            topic = self.topics.get(name, Topic(name, kind, 0))
            digest = topic.digest or entry['topic_metadata'].get('type_description_hash') or ''
            self.topics[name] = replace(topic, count=entry['message_count'], digest=digest)

    def _open_files_alone(self, paths: list[Path], report: Report) -> None:
        faults = []
        for path in paths:
            try:
                self._open_file(path)
            except BagError as error:  # the last file of a killed recorder may be empty
                faults.append(str(error))
        if not self._files:
            raise BagError('; '.join(faults))
        for fault in faults:
            report(f'left out: {fault}')
        self._files.sort(key=lambda file: file.start)

    def _open_file(self, path: Path) -> None:
        opened = _open_file(path, Path(self._temporary.name))
        self._files.append(opened)
        for topic in opened.topics:
            known = self.topics.setdefault(topic.name, replace(topic, count=0))
            fault = known.fault or ('' if known.type == topic.type else f'it has two types, the other is {topic.type}')
            self.topics[topic.name] = replace(known, count=known.count + topic.count, fault=fault)
        if opened.end:
            self.start = min(self.start, opened.start) if self.end else opened.start
            self.end = max(self.end, opened.end)


@contextmanager
def open_recording(path: Path, report: Report = lambda text: None) -> Iterator[Recording]:
    """Open a recording: a rosbag2 folder, an .mcap or .db3 file, or a ROS 1 .bag file.

    Args:
        path: its folder or file.
        report: called with a message about each irregularity.

    Raises:
        BagError: it is missing, or not a readable recording.
    """
    if not path.exists():
        raise BagError(f'there is no bag {path}')
    try:
        recording = Recording(path, report)
    except BagError:
        raise
    except Exception as error:
        raise BagError(f'{path} cannot be read as a bag: {sentence(error)}') from None
    try:
        yield recording
    finally:
        recording.close()


def load_metadata(folder: Path) -> dict[str, Any]:
    """Return the content of a rosbag2 folder's metadata.yaml.

    Raises:
        BagError: it cannot be read.
    """
    path = folder / 'metadata.yaml'
    try:
        metadata = YAML(typ='safe').load(path.read_text(encoding='utf-8'))['rosbag2_bagfile_information']
        missing = {'relative_file_paths', 'topics_with_message_count'} - metadata.keys()
        if missing:
            raise ValueError(f'it has no entry {min(missing)}')
        return metadata
    except Exception as error:
        raise BagError(f'{path} cannot be read: {sentence(error)}; `ros2 bag reindex {folder}` recreates it') from None


@cache
def known_types() -> Typestore:
    """Return the types of ROS 2 Humble, plus KeypointArray, as a rosbags typestore."""
    types = get_typestore(Stores.ROS2_HUMBLE)
    types.register(get_types_from_msg(_definition_file().read_text(encoding='utf-8'), KEYPOINTS))
    return types


def sentence(error: Exception) -> str:
    """Return an error as a part of a sentence."""
    return ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip('.: ')


def _open_file(path: Path, temporary: Path) -> '_McapTopics | _SqliteTopics | _Rosbag1Topics':
    """Open a file of a recording in the format that its first bytes tell.

    Raises:
        BagError: it is missing or cannot be read.
    """
    repair = ''
    try:
        with path.open('rb') as file:
            begins = file.read(16)
        if begins.startswith(_ZSTD):
            unpacked = temporary / path.stem
            unpack_zstd(path, unpacked)
            return _open_file(unpacked, temporary)
        kinds: dict[bytes, type[_McapTopics | _SqliteTopics | _Rosbag1Topics]] = {
            MAGIC: _McapTopics,
            b'SQLite format 3\0': _SqliteTopics,
            b'#ROSBAG V': _Rosbag1Topics,
        }
        for magic, kind in kinds.items():
            if begins.startswith(magic):
                repair = f'; if its recording was interrupted, {kind.repair}'
                return kind(path)
    except BagError:
        raise
    except Exception as error:  # each format fails in its own way
        raise BagError(f'{path} cannot be read as a bag: {sentence(error)}{repair}') from None
    raise BagError(
        f'{path} cannot be read as a bag: {f"it begins with {begins[:8]!r}" if begins else "it is empty"}; '
        f'expected a rosbag2 folder, an .mcap or .db3 file, or a ROS 1 .bag file'
    )


class _McapTopics:
    """The topics of an MCAP file."""

    repair = '`mcap recover` repairs it'

    def __init__(self, path: Path):
        self._file = McapFile(path)
        self.closed, self.start, self.end = self._file.closed, self._file.start, self._file.end
        self.topics = [
            _topic(
                channel.topic,
                channel.type,
                self._file.counts[number],
                channel.encoding,
                channel.schema,
                channel.schema_encoding,
                channel.metadata.get('topic_type_hash', ''),
                channel.metadata.get('offered_qos_profiles', ''),
            )
            for number, channel in self._file.channels.items()
        ]

    def messages(self, names: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        wanted = {number: channel.topic for number, channel in self._file.channels.items() if channel.topic in names}
        for number, moment, raw in self._file.messages(wanted):
            yield wanted[number], moment, raw

    def close(self) -> None:
        self._file.close()


class _SqliteTopics:
    """The topics of an SQLite database of rosbag2."""

    repair = '`sqlite3 FILE .recover` saves what is left of it'

    def __init__(self, path: Path):
        # What a killed recorder had not yet moved into the database is in files beside it; ignoring those is for a file
        # that nobody writes any more, and works on a read-only disk too.
        left = [path.with_name(path.name + suffix) for suffix in ('-wal', '-journal')]
        self.closed = not any(file.exists() and file.stat().st_size for file in left)
        self._database = sqlite3.connect(
            f'{path.resolve().as_uri()}?{"immutable=1" if self.closed else "mode=ro"}', uri=True
        )
        try:
            self._open()
        except BaseException:
            self._database.close()
            raise

    def _open(self) -> None:
        rows = self._rows('topics')
        definitions = {row['topic_type']: row for row in self._rows('message_definitions')}
        sums = 'SELECT topic_id, COUNT(*), MIN(timestamp), MAX(timestamp) FROM messages GROUP BY topic_id'
        spans = {number: span for number, *span in self._database.execute(sums)}
        self.start = min((start for _, start, _ in spans.values()), default=0)
        self.end = max((end for _, _, end in spans.values()), default=0)
        self._names = {row['id']: row['name'] for row in rows}
        self.topics = [
            _topic(
                row['name'],
                row['type'],
                spans.get(row['id'], [0])[0],
                row['serialization_format'],
                definitions.get(row['type'], {}).get('encoded_message_definition', ''),
                definitions.get(row['type'], {}).get('encoding', ''),
                row.get('type_description_hash', ''),
                row.get('offered_qos_profiles', ''),
            )
            for row in rows
        ]

    def _rows(self, table: str) -> list[dict[str, Any]]:
        """Return the rows of a table by column, which changed over the versions; none if there is no such table."""
        columns = [column for _, column, *_ in self._database.execute(f'PRAGMA table_info({table})')]
        if not columns:
            return []
        return [dict(zip(columns, row)) for row in self._database.execute(f'SELECT * FROM {table}')]

    def messages(self, names: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        wanted = [number for number, name in self._names.items() if name in names]
        places = ','.join('?' * len(wanted))
        query = f'SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({places}) ORDER BY timestamp, id'
        for number, moment, raw in self._database.execute(query, wanted):
            yield self._names[number], moment, raw

    def close(self) -> None:
        self._database.close()


class _Rosbag1Topics:
    """The topics of a ROS 1 bag."""

    repair = '`rosbag reindex` repairs it'
    closed = True  # another is refused

    def __init__(self, path: Path):
        self._reader = Rosbag1Reader(path)
        self._reader.open()
        any_message = self._reader.message_count > 0
        self.start = self._reader.start_time if any_message else 0
        self.end = self._reader.end_time - 1 if any_message else 0
        publishers: dict[tuple[str, str], list[Any]] = {}
        for connection in self._reader.connections:
            publishers.setdefault((connection.topic, connection.msgtype), []).append(connection)
        self.topics = []
        for (name, kind), connections in publishers.items():
            topic = _topic(
                name, kind, sum(c.msgcount for c in connections), 'ros1', connections[0].msgdef.data, 'ros1msg'
            )
            # Each latched publisher keeps its last message for late subscribers.
            latched = sum(bool(connection.ext.latching) for connection in connections)
            self.topics.append(replace(topic, qos=(_latched(latched),) if latched else ()))

    def messages(self, names: Collection[str]) -> Iterator[tuple[str, int, bytes]]:
        wanted = [connection for connection in self._reader.connections if connection.topic in names]
        for connection, moment, raw in self._reader.messages(wanted) if wanted else ():
            yield connection.topic, moment, raw

    def close(self) -> None:
        self._reader.close()


def _topic(
    name: str, kind: str, count: int, encoding: str, text: str, text_encoding: str, digest: str = '', qos: str = ''
) -> Topic:
    """Return a topic, with the fault that prevents reading it, if any."""
    with_middle = kind.replace('/', '/msg/') if kind.count('/') == 1 else kind  # as ROS 1 writes it
    fault = ''
    if encoding not in ('cdr', 'ros1'):
        fault = f'its messages are in {encoding or "an encoding without a name"}'
    elif '/srv/' in kind:
        fault = 'it holds the events of a service'
    if text_encoding not in (*_IN_MSG, *_IN_IDL):  # rosbag2 says `unknown` if it found no definition
        text = text_encoding = ''
    try:
        offered = tuple(parse_qos(qos))
    except Exception:  # from a future version: the topic is still usable without it
        offered = ()
    return Topic(name, with_middle, count, encoding, text, text_encoding, digest, offered, fault)


def _latched(depth: int) -> Qos:
    """Return the ROS 2 QoS of a latched topic of ROS 1."""
    durations = dict.fromkeys(('deadline', 'lifespan', 'liveliness_lease_duration'), QosTime(0, 0))
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=depth,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL,
        liveliness=QosLiveliness.AUTOMATIC,
        avoid_ros_namespace_conventions=False,
        **durations,
    )


def _parse(topic: Topic) -> dict[str, Any]:
    """Return the types in a topic's definition, as a rosbags typestore registers them."""
    if topic.definition_encoding in _IN_MSG:
        return get_types_from_msg(topic.definition, topic.type)
    found = {}
    for text in topic.definition.split(_IDL):
        found.update(get_types_from_idl(text.partition('\n')[2] if text.startswith('IDL: ') else text) if text else {})
    return found


def _definition_file() -> Path:
    """Return the file of the message's definition: in a checkout, or where ROS or pip installed it."""
    for folder in Path(__file__).resolve().parents[1:]:
        for place in ('msg', 'share/edgepoint2_ros/msg'):
            file = folder / place / 'KeypointArray.msg'
            if file.is_file():
                return file
    raise BagError('KeypointArray.msg was not installed with this package: install it again')
