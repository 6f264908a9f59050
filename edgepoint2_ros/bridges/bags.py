"""Bags: images of a recording in, a bag of their KeypointArray messages out. Needs no ROS.

Reads rosbag2 (mcap, sqlite3) and ROS 1 bags, writes rosbag2. The output grows by parts, each of them a whole file that
is listed in metadata.yaml only when it is safely on disk: whatever interrupts an extraction, the bag can be read up to
its last part, and the same call goes on behind it.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from ruamel.yaml import YAML

from edgepoint2_ros.errors import BagError, EdgePoint2Error
from edgepoint2_ros.extractor import Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import decode, to_fields, to_nanoseconds

KEYPOINTS = 'edgepoint2_ros/msg/KeypointArray'
IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
STORAGES = ('mcap', 'sqlite3')
PART = 1000  # images in a part of the output
_VERSION = 8  # of rosbag2's metadata: the newest that Humble reads, too
_STATE = 'edgepoint2'  # key in the bag's custom data


@dataclass(frozen=True)
class Job:
    """One bag to extract.

    Attributes:
        source: rosbag2 folder, .mcap, .db3 or ROS 1 .bag file.
        output: folder of the new bag.
        topic: the images'; may be empty where the bag has only one image topic.
        keypoints_topic: of the new bag; by default `keypoints` beside the image topic.
        keep: topics to copy, ``('*',)`` for all.
        part: images in a part, and what an interruption costs at most.
        others: as those of Extractor; and of messages.encode.
    """

    source: Path
    output: Path
    topic: str = ''
    keypoints_topic: str = ''
    keep: tuple[str, ...] = ()
    model: str = 'T-32'
    weights: str = 'auto'
    backend: str = 'auto'
    precision: str = 'fp32'
    threads: int = 0
    max_keypoints: int | None = None
    score_threshold: float = -5.0
    encoding: str = 'float32'
    storage: str = 'mcap'
    part: int = PART


@dataclass
class Progress:
    """How far an extraction has come: messages read, among them images of `total`, and of these the unusable ones."""

    read: int = 0
    images: int = 0
    bad: int = 0
    complete: bool = False
    total: int = 0


def extract(job: Job, warn: Callable[[str], None] = lambda text: None) -> Iterator[Progress]:
    """Write the features of every image of a bag; go on where an earlier call with the same job was interrupted.

    Args:
        job: what to extract.
        warn: called with a sentence about each image that cannot be used; it has no message in the output.

    Yields:
        The progress: before the first image, after each image and at the end. The work is done by iterating.

    Raises:
        BagError: the source cannot be read, or the output cannot be written or belongs to another job. Messages
            before the error are safe.
        EdgePoint2Error: as Extractor raises them.
    """
    with _open(job.source) as reader:
        topic = _image_topic(reader, job)
        kept = _kept_topics(reader, job)
        extractor = Extractor(
            job.model,
            job.weights,
            backend=job.backend,
            precision=job.precision,
            threads=job.threads,
            max_keypoints=job.max_keypoints,
            score_threshold=job.score_threshold,
        )
        keypoints_topic = job.keypoints_topic or f'{topic.rsplit("/", 1)[0]}/keypoints'
        if keypoints_topic in kept:
            raise BagError(f'{keypoints_topic} is to be copied and to be written: name another keypoints topic')
        settings = {
            'source': job.source.name,
            'topic': topic,
            'keypoints_topic': keypoints_topic,
            'keep': sorted(kept),
            'model': extractor.variant.name,
            'digest': extractor.digest,
            'backend': extractor.backend,
            'precision': extractor.precision,
            'max_keypoints': extractor.max_keypoints,
            'score_threshold': extractor.score_threshold,
            'encoding': job.encoding,
            'storage': job.storage,
            'part': job.part,
        }
        wanted = [c for c in reader.connections if c.topic == topic or c.topic in kept]
        total = sum(c.msgcount for c in wanted if c.topic == topic)
        types = _types()
        with _Output(job.output, settings) as output:
            progress = output.progress
            progress.total = total
            yield progress
            if progress.complete:
                return
            output.topics = [(keypoints_topic, KEYPOINTS, {'typestore': types})]
            copied_types = reader.typestore if reader.is2 else _without_sequence_numbers(reader.typestore)
            output.topics += [
                (c.topic, c.msgtype, _definition(c, copied_types)) for c in _once(wanted) if c.topic in kept
            ]
            start = progress.read
            for number, (connection, timestamp, raw) in enumerate(_messages(reader, wanted, job.source)):
                if number < start:  # written by an earlier call
                    continue
                if connection.topic in kept:
                    copy = raw if reader.is2 else copied_types.ros1_to_cdr(raw, connection.msgtype)
                    output.write(connection.topic, timestamp, copy)
                progress.read += 1
                if connection.topic != topic:
                    continue
                progress.images += 1
                try:
                    image = reader.deserialize(raw, connection.msgtype)
                    features = extractor.extract(to_array(image))
                    message = _message(types, features, image.header, job.encoding)
                    output.write(keypoints_topic, timestamp, types.serialize_cdr(message, KEYPOINTS))
                except BagError:
                    raise
                except Exception as error:  # whatever one image does, the next is processed
                    progress.bad += 1
                    what = error if isinstance(error, EdgePoint2Error) else f'{type(error).__name__}: {error}'
                    warn(f'{job.source}: image {progress.images} of {topic} left out: {what}')
                if progress.images % job.part == 0:
                    output.commit()
                yield progress
            progress.complete = True
            output.commit()
            yield progress


def read_features(path: Path, topic: str = '') -> Iterator[tuple[int, Features]]:
    """Yield the features in a bag with the stamps of their images in nanoseconds, in the order of recording.

    Args:
        path: rosbag2 folder or file.
        topic: may be empty where the bag has only one topic of KeypointArray.

    Raises:
        BagError: the bag cannot be read, or has no such topic.
        MessageError: a message contradicts itself.
    """
    with _open(path) as reader:
        topic = _only_topic(reader, (KEYPOINTS,), topic, path, 'keypoints')
        connections = [c for c in reader.connections if c.topic == topic]
        for connection, _, raw in _messages(reader, connections, path):
            message = reader.deserialize(raw, connection.msgtype)
            yield to_nanoseconds(message.header.stamp), decode(message)


def describe(path: Path) -> Iterator[str]:
    """Yield lines that say what a bag holds; of topics of keypoints also the model, the encoding and the sizes."""
    with _open(path) as reader:
        duration = max(0, reader.duration) * 1e-9
        yield f'{path}: {reader.message_count} messages in {duration:.1f} s'
        state = _read_state(path)
        if state is not None and not state['complete']:
            yield f'not complete: {state["images"]} images of {state["source"]} so far; the same `bag extract` goes on'
        expected = _types().hash_rihs01(KEYPOINTS)
        for connection in _once(reader.connections):
            count = sum(c.msgcount for c in reader.connections if c.topic == connection.topic)
            yield f'{connection.topic}  {connection.msgtype}  {count} messages'
            if connection.msgtype != KEYPOINTS:
                continue
            if connection.digest not in ('', expected):
                yield f'  recorded with another definition of the message: {connection.digest}, here it is {expected}'
                continue
            models, sizes, lengths, encodings = set(), set(), [], set()
            for _, _, raw in _messages(reader, [c for c in reader.connections if c.topic == connection.topic], path):
                message = reader.deserialize(raw, KEYPOINTS)
                models.add(f'{message.model} [{message.digest}]')
                encodings.add(('float32', 'float16', 'int8', 'unknown')[min(message.descriptor_encoding, 3)])
                sizes.add(f'{message.image_width}x{message.image_height}')
                lengths.append((len(message.x), len(raw)))
            if lengths:
                keypoints, size = np.median(lengths, axis=0)
                models, encodings, sizes = (', '.join(sorted(found)) for found in (models, encodings, sizes))
                yield f'  {models}, {encodings}, images {sizes}'
                yield f'  median {keypoints:.0f} keypoints, {size / 1e3:.1f} kB a message'


class _Output:
    """The bag that is written: parts on disk and one that is growing."""

    def __init__(self, folder: Path, settings: dict):
        self.topics: list[tuple[str, str, dict]] = []  # name, type, definition as Writer.add_connection takes it
        self.progress = Progress()
        self._folder = folder
        self._settings = settings
        self._growing = folder / 'part.tmp'
        self._info: dict | None = None  # rosbag2's metadata
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}

    def __enter__(self):
        with _disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._resume()
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise BagError(f'{self._folder} is being written by another process') from None
            raise
        return self

    def __exit__(self, kind, error, traceback):
        try:
            # An error of the source leaves what was read before it; an error of the disk leaves the parts before, and
            # so does Ctrl-C, which may come between any two steps.
            if self._writer is not None:
                if isinstance(error, EdgePoint2Error) and error.__cause__ is None:
                    self.commit()
                else:
                    with suppress(Exception):
                        self._writer.abort()
            shutil.rmtree(self._growing, ignore_errors=True)
        finally:
            os.close(self._lock)

    def write(self, topic: str, timestamp: int, data: bytes) -> None:
        """Append a message to the growing part."""
        with _disk_errors(self._folder):
            if self._writer is None:
                self._open_part()
            self._writer.write(self._connections[topic], timestamp, data)

    def commit(self) -> None:
        """Bring the growing part and the progress safely to disk."""
        with _disk_errors(self._folder):
            if self._writer is None and self._info is None:  # a bag without messages is a bag, too
                self._open_part()
            if self._writer is not None:
                part = self._writer.path
                self._writer.close()
                self._writer = None
                info = _load_yaml(part / 'metadata.yaml')
                file = part / info['relative_file_paths'][0]
                _sync(file)
                os.replace(file, self._folder / file.name)
                self._info = info if self._info is None else _join(self._info, info)
                shutil.rmtree(self._growing)
            self._info['custom_data'] = {
                _STATE: json.dumps({**self._settings, **vars(self.progress)}, sort_keys=True),
            }
            text = io.StringIO()
            yaml = YAML(typ='safe')
            yaml.default_flow_style = False
            yaml.dump({'rosbag2_bagfile_information': self._info}, text)
            draft = self._folder / 'metadata.tmp'
            draft.write_text(text.getvalue(), encoding='utf-8')
            _sync(draft)
            os.replace(draft, self._folder / 'metadata.yaml')
            os.fsync(self._lock)

    def _resume(self) -> None:
        shutil.rmtree(self._growing, ignore_errors=True)
        state = _read_state(self._folder)
        if state is None:
            foreign = sorted(path.name for path in self._folder.iterdir() if path.name != 'metadata.tmp')
            # A kill between a part's file and its mention in the metadata leaves the first part alone.
            if foreign != [] and foreign != [f'{self._folder.name}_0{_suffix(self._settings["storage"])}']:
                raise BagError(f'{self._folder} is not empty and no bag of this command: it holds {foreign[0]}')
            return
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise BagError(
                    f'{self._folder} was made with another {name}: {state.get(name)!r}, now {value!r} is asked for; '
                    f'choose another output, or remove it'
                )
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})
        self._info = _load_yaml(self._folder / 'metadata.yaml')

    def _open_part(self) -> None:
        number = 0 if self._info is None else len(self._info['relative_file_paths'])
        path = self._growing / f'{self._folder.name}_{number}'
        self._writer = Writer(path, version=_VERSION, storage_plugin=StoragePlugin[self._settings['storage'].upper()])
        self._writer.open()
        self._connections = {
            name: self._writer.add_connection(name, kind, **definition) for name, kind, definition in self.topics
        }


def _join(first: dict, second: dict) -> dict:
    """Return rosbag2's metadata of two bags with the same topics, the second after the first."""
    starts = [info['starting_time']['nanoseconds_since_epoch'] for info in (first, second)]
    ends = [start + info['duration']['nanoseconds'] for start, info in zip(starts, (first, second))]
    counts = {t['topic_metadata']['name']: t['message_count'] for t in second['topics_with_message_count']}
    topics = [
        {**topic, 'message_count': topic['message_count'] + counts[topic['topic_metadata']['name']]}
        for topic in first['topics_with_message_count']
    ]
    return {
        **first,
        'relative_file_paths': first['relative_file_paths'] + second['relative_file_paths'],
        'files': first['files'] + second['files'],
        'starting_time': {'nanoseconds_since_epoch': min(starts)},
        'duration': {'nanoseconds': max(ends) - min(starts)},
        'message_count': first['message_count'] + second['message_count'],
        'topics_with_message_count': topics,
    }


@contextmanager
def _open(path: Path):
    """Open a bag for reading.

    Raises:
        BagError: it is missing, or not a bag that can be read.
    """
    if not path.exists():
        raise BagError(f'there is no bag {path}')
    try:
        # Bags without definitions of their own, from before Iron, are read with those of Humble.
        reader = AnyReader([path], default_typestore=_types())
        reader.open()
    except EdgePoint2Error:
        raise
    except Exception as error:  # each format fails in its own way
        raise BagError(
            f'{path} cannot be read as a bag: {_sentence(error)}; '
            f'expected a rosbag2 folder, an .mcap or .db3 file, or a ROS 1 .bag file'
        ) from None
    try:
        yield reader
    finally:
        with suppress(Exception):
            reader.close()


def _messages(reader: AnyReader, connections: list, path: Path) -> Iterator[tuple[Connection, int, bytes]]:
    if not connections:
        return
    messages = reader.messages(connections)
    count = 0
    while True:
        try:
            item = next(messages)
        except StopIteration:
            break
        except Exception as error:
            raise BagError(f'{path} is damaged behind message {count}: {_sentence(error)}') from None
        count += 1
        yield item
    expected = sum(connection.msgcount for connection in connections)
    if count < expected:
        raise BagError(f'{path} is damaged: it holds {count} messages where its index names {expected}')


def _image_topic(reader: AnyReader, job: Job) -> str:
    return _only_topic(reader, IMAGES, job.topic, job.source, 'images')


def _only_topic(reader: AnyReader, types: tuple[str, ...], topic: str, path: Path, what: str) -> str:
    topics = sorted({c.topic for c in reader.connections if c.msgtype in types})
    names = ', '.join(topics) or 'none'
    if topic:
        if topic not in topics:
            raise BagError(f'{path} has no {what} on {topic}: its topics of {what} are {names}')
        return topic
    if len(topics) != 1:
        raise BagError(f'{path}: name the topic of {what}; it has {names}')
    return topics[0]


def _kept_topics(reader: AnyReader, job: Job) -> set[str]:
    topics = {c.topic for c in reader.connections}
    if '*' in job.keep:
        return topics
    missing = sorted(set(job.keep) - topics)
    if missing:
        raise BagError(f'{job.source} has no topic {missing[0]} to keep: it has {", ".join(sorted(topics))}')
    return set(job.keep)


def _once(connections: list[Connection]) -> list[Connection]:
    """Return the first connection of each topic; several publishers have one each."""
    return list({connection.topic: connection for connection in reversed(connections)}.values())[::-1]


def _definition(connection: Connection, types) -> dict:
    """Return the definition of a topic's messages, as Writer.add_connection takes it: the source's own where it can."""
    qos = getattr(connection.ext, 'offered_qos_profiles', ())
    if connection.digest.startswith('RIHS01_') and connection.msgdef.format != MessageDefinitionFormat.NONE:
        return {'msgdef': connection.msgdef.data, 'rihs01': connection.digest, 'offered_qos_profiles': qos}
    return {'typestore': types, 'offered_qos_profiles': qos}


def _without_sequence_numbers(types):
    """Return the types of a ROS 1 bag with the header of ROS 2; the conversion of messages goes by it."""
    header = get_typestore(Stores.ROS2_HUMBLE).fielddefs['std_msgs/msg/Header']
    changed = get_typestore(Stores.EMPTY)
    changed.register({**types.fielddefs, 'std_msgs/msg/Header': header})
    return changed


def _message(types, features: Features, header, encoding: str):
    stamp = types.types['builtin_interfaces/msg/Time'](sec=header.stamp.sec, nanosec=header.stamp.nanosec)
    header = types.types['std_msgs/msg/Header'](stamp=stamp, frame_id=header.frame_id)
    return types.types[KEYPOINTS](header=header, **to_fields(features, encoding))


def _types():
    """Return the types of ROS 2 with KeypointArray among them."""
    types = get_typestore(Stores.ROS2_HUMBLE)
    types.register(get_types_from_msg(_definition_file().read_text(encoding='utf-8'), KEYPOINTS))
    return types


def _definition_file() -> Path:
    """Return the file of the message's definition: in a checkout, or where ROS or pip installed it."""
    for folder in Path(__file__).resolve().parents[1:]:
        for place in ('msg', 'share/edgepoint2_ros/msg'):
            file = folder / place / 'KeypointArray.msg'
            if file.is_file():
                return file
    raise BagError('KeypointArray.msg was not installed with this package: install it again')


def _read_state(folder: Path) -> dict | None:
    """Return what `extract` keeps in a bag's metadata, or None where there is nothing of it."""
    try:
        state = json.loads(_load_yaml(folder / 'metadata.yaml')['custom_data'][_STATE])
        return state if isinstance(state, dict) else None
    except Exception:  # no bag, another program's, or a damaged one
        return None


def _load_yaml(path: Path) -> dict:
    return YAML(typ='safe').load(path.read_text(encoding='utf-8'))['rosbag2_bagfile_information']


@contextmanager
def _disk_errors(folder: Path):
    try:
        yield
    except EdgePoint2Error:
        raise
    except Exception as error:  # OSError, and what SQLite makes of one
        raise BagError(f'{folder} cannot be written: {error}') from error


def _sync(path: Path) -> None:
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def _suffix(storage: str) -> str:
    return {'mcap': '.mcap', 'sqlite3': '.db3'}[storage]


def _sentence(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.rstrip('.: ')
