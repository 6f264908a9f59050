"""Bags: images of a recording in, a bag of their KeypointArray messages out. Needs no ROS.

Reads what `recordings` reads, rosbag2 and ROS 1, and writes rosbag2. The output grows by parts, each of them a whole
file that is listed in metadata.yaml only when it is safely on disk: whatever interrupts an extraction, the bag can be
read up to its last part, and the same call goes on behind it.
"""

import fcntl
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore
from ruamel.yaml import YAML

from edgepoint2_ros.bridges.recordings import (
    KEYPOINTS,
    Recording,
    Topic,
    known_types,
    load_metadata,
    open_recording,
    sentence,
)
from edgepoint2_ros.errors import BagError, EdgePoint2Error
from edgepoint2_ros.extractor import DEFAULTS, Extractor, ExtractorSettings
from edgepoint2_ros.features import Features
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import decode, to_fields, to_nanoseconds

IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
STORAGES = ('mcap', 'sqlite3')
PART = 1000  # images in a part of the output
VERSION: Final = 8  # of rosbag2's metadata: the newest that Humble reads, too
_STATE = 'edgepoint2'  # key in the bag's custom data


@dataclass(frozen=True)
class Job:
    """One bag to extract.

    Attributes:
        source: rosbag2 folder, .mcap, .db3 or ROS 1 .bag file.
        output: folder of the new bag.
        topics: the images'; may be empty where the bag has only one image topic.
        keypoints_topics: of the new bag, one for each of ``topics``; by default `keypoints` beside the image topic.
        keep: topics to copy, ``('*',)`` for all that can be.
        extractor: the settings of the extractor.
        encoding: of the descriptors, as for messages.encode.
        part: images in a part, and what an interruption costs at most.
    """

    source: Path
    output: Path
    topics: tuple[str, ...] = ()
    keypoints_topics: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    extractor: ExtractorSettings = DEFAULTS
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


class _Copy(NamedTuple):
    """How a topic is copied: its definition as Writer.add_connection takes it, and what makes CDR of a message."""

    definition: dict[str, Any]
    convert: Callable[[bytes], bytes | memoryview]


def extract(job: Job, warn: Callable[[str], None] = lambda text: None) -> Iterator[Progress]:
    """Write the features of every image of a bag; go on where an earlier call with the same job was interrupted.

    Args:
        job: what to extract.
        warn: called with a sentence about each message that cannot be used, which is left out of the output, and about
            what is odd in the source, such as topics that nobody can read.

    Yields:
        The progress: before the first image, after each image and at the end. The work is done by iterating.

    Raises:
        BagError: the source cannot be read, or the output cannot be written or belongs to another job. Messages
            before the error are safe.
        EdgePoint2Error: as Extractor raises them.
    """
    with open_recording(job.source, warn) as recording:
        targets = _targets(recording, job)
        copies = _copies(recording, job, set(targets), warn)
        clash = next((target for target in targets.values() if target in copies), None)
        if clash:
            raise BagError(f'{clash} is to be copied and to be written: name another keypoints topic')
        decoders = {name: recording.decoder(recording.topics[name]) for name in targets}
        extractor = Extractor(job.extractor)
        settings = {
            'source': job.source.name,
            'start of the source': recording.start,
            'number of messages': recording.count,
            'topics': list(targets),
            'keypoints_topics': list(targets.values()),
            'keep': sorted(copies),
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
        types = known_types()
        with _Output(job.output, settings) as output:
            progress = output.progress
            progress.total = sum(recording.topics[name].count for name in targets)
            yield progress
            if progress.complete:
                return
            output.topics = [(target, KEYPOINTS, {'typestore': types}) for target in targets.values()]
            output.topics += [(name, recording.topics[name].type, copy.definition) for name, copy in copies.items()]
            start = progress.read
            seen: Counter[str] = Counter()
            for number, (name, moment, raw) in enumerate(recording.messages({*targets, *copies})):
                seen[name] += 1
                if number < start:  # written by an earlier call
                    continue
                if name in copies:
                    try:
                        output.write(name, moment, copies[name].convert(raw))
                    except Exception as error:
                        warn(f'{job.source}: message {seen[name]} of {name} not copied: {_fault(error)}')
                progress.read += 1
                if name not in targets:
                    continue
                progress.images += 1
                try:
                    image = decoders[name](raw)
                    features = extractor.extract(to_array(image))
                    message = _message(types, features, image.header, job.encoding)
                    output.write(targets[name], moment, types.serialize_cdr(message, KEYPOINTS))
                except Exception as error:
                    warn(f'{job.source}: image {seen[name]} of {name} left out: {_fault(error)}')
                    progress.bad += 1
                if progress.images % job.part == 0:
                    output.commit()
                yield progress
            progress.complete = True
            output.commit()
            yield progress


class Frame(NamedTuple):
    """The features of one image in a bag, with its stamp and its moment of recording, both in nanoseconds."""

    stamp: int
    moment: int
    features: Features


def read_frames(path: Path, topic: str = '', note: Callable[[str], None] = lambda text: None) -> Iterator[Frame]:
    """Yield the frames in a bag of keypoints, in the order of recording.

    Args:
        path: rosbag2 folder or file.
        topic: may be empty where the bag has only one topic of KeypointArray.
        note: takes a sentence about each thing that is odd in the bag.

    Raises:
        BagError: the bag cannot be read, or has no such topic.
        MessageError: a message contradicts itself.
    """
    with open_recording(path, note) as recording:
        topic = only_topic(recording, (KEYPOINTS,), topic, 'keypoints')
        deserialise = recording.decoder(recording.topics[topic])
        for _, moment, raw in recording.messages({topic}):
            message = deserialise(raw)
            yield Frame(to_nanoseconds(message.header.stamp), moment, decode(message))


def read_features(path: Path, topic: str = '') -> Iterator[tuple[int, Features]]:
    """Yield the features in a bag with the stamps of their images in nanoseconds, as `read_frames` does."""
    for frame in read_frames(path, topic):
        yield frame.stamp, frame.features


def describe(path: Path) -> Iterator[str]:
    """Yield lines that say what a bag holds; of topics of keypoints also the model, the encoding and the sizes."""
    notes: list[str] = []
    with open_recording(path, notes.append) as recording:
        yield from notes
        yield f'{path}: {recording.count} messages in {(recording.end - recording.start) * 1e-9:.1f} s'
        state = read_state(recording)
        if state is not None and not state['complete']:
            yield f'not complete: {state["images"]} images of {state["source"]} so far; the same `bag extract` goes on'
        expected = known_types().hash_rihs01(KEYPOINTS)
        for topic in recording.topics.values():
            fault = f', not read: {topic.fault}' if topic.fault else ''
            yield f'{topic.name}  {topic.type or "no type"}  {topic.count} messages{fault}'
            if topic.type != KEYPOINTS:
                continue
            if topic.digest not in ('', expected):
                yield f'  recorded with another definition of the message: {topic.digest}, here it is {expected}'
                continue
            models, sizes, lengths, encodings = set(), set(), [], set()
            deserialise = recording.decoder(topic)
            for _, _, raw in recording.messages({topic.name}):
                message = deserialise(raw)
                models.add(f'{message.model} [{message.digest}]')
                encodings.add(('float32', 'float16', 'int8', 'unknown')[min(message.descriptor_encoding, 3)])
                sizes.add(f'{message.image_width}x{message.image_height}')
                lengths.append((len(message.x), len(raw)))
            if lengths:
                keypoints, size = np.median(lengths, axis=0)
                model, encoding, dimensions = (', '.join(sorted(found)) for found in (models, encodings, sizes))
                yield f'  {model}, {encoding}, images {dimensions}'
                yield f'  median {keypoints:.0f} keypoints, {size / 1e3:.1f} kB a message'


def only_topic(recording: Recording, types: tuple[str, ...], topic: str, what: str) -> str:
    """Return the topic of some types that was asked for, or where none was, the only one.

    Raises:
        BagError: there is none, or there are several.
    """
    topics = sorted(name for name, found in recording.topics.items() if found.type in types)
    names = ', '.join(topics) or 'none'
    if topic:
        if topic not in topics:
            raise BagError(f'{recording.path} has no {what} on {topic}: its topics of {what} are {names}')
        return topic
    if len(topics) != 1:
        raise BagError(f'{recording.path}: name the topic of {what}; it has {names}')
    return topics[0]


def read_state(recording: Recording) -> dict[str, Any] | None:
    """Return what `extract` keeps in a bag's metadata, or None where there is nothing of it."""
    return _parse_state(recording.state)


def _parse_state(custom_data: Any) -> dict[str, Any] | None:
    try:
        state = json.loads(custom_data[_STATE])
        return state if isinstance(state, dict) else None
    except Exception:  # another program's, or damaged
        return None


class _Output:
    """The bag that is written: parts on disk and one that is growing."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        # Name, type, definition as Writer.add_connection takes it.
        self.topics: list[tuple[str, str, dict[str, Any]]] = []
        self.progress = Progress()
        self._folder = folder
        self._settings = settings
        self._growing = folder / 'part.tmp'
        self._metadata = folder / 'metadata.yaml'
        self._first = folder / f'{folder.name}_0{_suffix(settings["storage"])}'
        self._info: dict[str, Any] | None = None  # rosbag2's metadata
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> '_Output':
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

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            # An error of the source leaves what was read before it; an error of the disk leaves the parts before, and
            # so does Ctrl-C, which may come between any two steps.
            if self._writer is not None:
                if isinstance(error, EdgePoint2Error) and error.__cause__ is None:
                    self.commit()
                else:
                    with suppress(Exception):
                        self._writer.abort()
            if self._metadata.exists() or not self._first.exists():  # otherwise it says whose the first part is
                shutil.rmtree(self._growing, ignore_errors=True)
            with suppress(OSError):  # what failed before the first part leaves nothing
                self._folder.rmdir()
        finally:
            os.close(self._lock)

    def write(self, topic: str, timestamp: int, data: bytes | memoryview) -> None:
        """Append a message to the growing part."""
        with _disk_errors(self._folder):
            writer = self._open_part() if self._writer is None else self._writer
            writer.write(self._connections[topic], timestamp, data)

    def commit(self) -> None:
        """Bring the growing part and the progress safely to disk."""
        with _disk_errors(self._folder):
            if self._writer is None and self._info is None:  # a bag without messages is a bag, too
                self._open_part()
            if self._writer is not None:
                part = self._writer.path
                self._writer.close()
                self._writer = None
                info = load_metadata(part)
                file = part / info['relative_file_paths'][0]
                _sync(file)
                os.replace(file, self._folder / file.name)
                self._info = info if self._info is None else _join(self._info, info)
            assert self._info is not None  # what was written, or was there before
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
            os.replace(draft, self._metadata)
            os.fsync(self._lock)
            shutil.rmtree(self._growing, ignore_errors=True)

    def _resume(self) -> None:
        info = load_metadata(self._folder) if self._metadata.exists() else {}
        state = _parse_state(info.get('custom_data'))
        if state is None:
            ours = {'metadata.tmp'}
            # A kill between the first part's file and its mention in the metadata leaves both of these. The file alone
            # may as well be a recording that was interrupted, which must not be written over.
            if self._growing.exists():
                ours |= {self._growing.name, self._first.name}
            foreign = sorted(path.name for path in self._folder.iterdir() if path.name not in ours)
            if foreign:
                raise BagError(f'{self._folder} is not empty and no bag of this command: it holds {foreign[0]}')
            self._first.unlink(missing_ok=True)
            shutil.rmtree(self._growing, ignore_errors=True)
            return
        shutil.rmtree(self._growing, ignore_errors=True)
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise BagError(
                    f'{self._folder} was made with another {name}: {state.get(name)!r}, now {value!r} is asked for; '
                    f'choose another output, or remove it'
                )
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})
        self._info = info

    def _open_part(self) -> Writer:
        number = 0 if self._info is None else len(self._info['relative_file_paths'])
        path = self._growing / f'{self._folder.name}_{number}'
        self._writer = writer = Writer(
            path, version=VERSION, storage_plugin=StoragePlugin[self._settings['storage'].upper()]
        )
        writer.open()
        self._connections = {
            name: writer.add_connection(name, kind, **definition) for name, kind, definition in self.topics
        }
        return writer


def _join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
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


def _targets(recording: Recording, job: Job) -> dict[str, str]:
    """Return the keypoints topic of each image topic."""
    topics = [only_topic(recording, IMAGES, topic, 'images') for topic in job.topics or ('',)]
    twice = next((topic for topic, count in Counter(topics).items() if count > 1), None)
    if twice:
        raise BagError(f'{twice} is named twice')
    if job.keypoints_topics and len(job.keypoints_topics) != len(topics):
        raise BagError(
            f'{len(topics)} image topics, but {len(job.keypoints_topics)} keypoints topics: name one for each'
        )
    targets = dict(zip(topics, job.keypoints_topics or [f'{topic.rpartition("/")[0]}/keypoints' for topic in topics]))
    target, count = Counter(targets.values()).most_common(1)[0]
    if count > 1:
        same = ' and '.join(topic for topic, other in targets.items() if other == target)
        raise BagError(f'{same} would both be written to {target}: name a keypoints topic for each')
    return targets


def _copies(recording: Recording, job: Job, wanted: set[str], warn: Callable[[str], None]) -> dict[str, _Copy]:
    """Return how to copy each topic that is to be kept; say which others cannot be read, or not be copied."""
    missing = sorted({*job.keep} - {*recording.topics, '*'})
    if missing:
        raise BagError(f'{job.source} has no topic {missing[0]} to keep: it has {", ".join(sorted(recording.topics))}')
    copies, left = {}, []
    for name, topic in recording.topics.items():
        if name in job.keep or '*' in job.keep:
            try:
                copies[name] = _copy(recording, topic)
            except BagError as error:
                if name in job.keep:
                    raise
                left.append(str(error).removeprefix(f'{job.source}: '))
        elif topic.fault and name not in wanted:
            left.append(f'{name} ({topic.fault})')
    if left:
        warn(f'{job.source}: left out: {"; ".join(left)}')
    return copies


def _copy(recording: Recording, topic: Topic) -> _Copy:
    """Return how to copy a topic: with the source's own definition where that says all that the output must say.

    Raises:
        BagError: its messages are not CDR and cannot be made so, or nobody knows its type.
    """
    qos = {'offered_qos_profiles': topic.qos}
    own = topic.encoding == 'cdr' and topic.definition_encoding in ('ros2msg', 'ros2idl')
    if own and topic.digest.startswith('RIHS01_'):
        return _Copy({'msgdef': topic.definition, 'rihs01': topic.digest, **qos}, bytes)
    types = recording.types(topic)
    if topic.encoding == 'ros1':
        types = _without_sequence_numbers(types)
    try:
        text, _ = types.generate_msgdef(topic.type, ros_version=2)
        definition = {'msgdef': text, 'rihs01': types.hash_rihs01(topic.type), **qos}
    except Exception as error:  # what rosbags cannot put into words
        raise BagError(f'{recording.path}: {topic.name} ({topic.type}) cannot be copied: {sentence(error)}') from None
    return _Copy(definition, (lambda raw: types.ros1_to_cdr(raw, topic.type)) if topic.encoding == 'ros1' else bytes)


def _fault(error: Exception) -> str:
    """Return why one message failed, so that the next ones are processed; raise what ends it all."""
    if isinstance(error, BagError):
        raise error
    return str(error) if isinstance(error, EdgePoint2Error) else sentence(error)


def _without_sequence_numbers(types: Typestore) -> Typestore:
    """Return the types of a ROS 1 bag with the header of ROS 2; the conversion of messages goes by it."""
    header = get_typestore(Stores.ROS2_HUMBLE).fielddefs['std_msgs/msg/Header']
    changed = get_typestore(Stores.EMPTY)
    changed.register({**types.fielddefs, 'std_msgs/msg/Header': header})
    return changed


def _message(types: Typestore, features: Features, header: Any, encoding: str) -> Any:
    stamp = types.types['builtin_interfaces/msg/Time'](sec=header.stamp.sec, nanosec=header.stamp.nanosec)
    header = types.types['std_msgs/msg/Header'](stamp=stamp, frame_id=header.frame_id)
    return types.types[KEYPOINTS](header=header, **to_fields(features, encoding))


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
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
