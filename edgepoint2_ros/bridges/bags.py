"""Bags: images of a recording in, a bag of their KeypointArray messages out. Needs no ROS.

Reads what `recordings` reads, rosbag2 and ROS 1, and writes rosbag2 by `bag_output`: after an interruption, the same
call resumes.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from edgepoint2_ros.bridges.bag_contents import IMAGES, only_topic
from edgepoint2_ros.bridges.bag_output import Output, Progress
from edgepoint2_ros.bridges.recordings import KEYPOINTS, Recording, Topic, known_types, open_recording, sentence
from edgepoint2_ros.errors import BagError, EdgePoint2Error
from edgepoint2_ros.extractor import DEFAULTS, Extractor, ExtractorSettings
from edgepoint2_ros.features import Features
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import NAME, to_fields
from edgepoint2_ros.progress import Report

PART = 1000  # images in a part of the output


@dataclass(frozen=True)
class Job:
    """One bag to extract.

    Attributes:
        source: rosbag2 folder, .mcap, .db3 or ROS 1 .bag file.
        output: folder of the new bag.
        topics: of the images; may be empty if the bag has only one image topic.
        keypoints_topics: of the new bag, one for each of ``topics``; by default `keypoints` beside the image topic.
        keep: topics to copy, ``('*',)`` for all that can be copied.
        extractor: the settings of the extractor.
        encoding: of the descriptors, as for messages.encode.
        part: images in a part, the most that an interruption loses.
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


class _Copy(NamedTuple):
    """How a topic is copied: its definition for Writer.add_connection, and a conversion of messages to CDR."""

    definition: dict[str, Any]
    convert: Callable[[bytes], bytes | memoryview]


def extract(job: Job, report: Report = lambda text: None) -> Iterator[Progress]:
    """Write the features of every image of a bag; resume if an earlier call with the same job was interrupted.

    Args:
        job: what to extract.
        report: called with a message about each unusable message, which is left out of the output, and about
            irregularities of the source, such as unreadable topics.

    Yields:
        The progress: before the first image, after each image and at the end. The work is done by iterating.

    Raises:
        BagError: the source cannot be read, or the output cannot be written or belongs to another job. Messages
            before the error are safe.
        EdgePoint2Error: as Extractor raises them.
    """
    with open_recording(job.source, report) as recording:
        targets = _targets(recording, job)
        copies = _copies(recording, job, set(targets), report)
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
        with Output(job.output, settings) as output:
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
                        report(f'{job.source}: message {seen[name]} of {name} not copied: {_fault(error)}')
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
                    report(f'{job.source}: image {seen[name]} of {name} left out: {_fault(error)}')
                    progress.bad += 1
                if progress.images % job.part == 0:
                    output.commit()
                yield progress
            progress.complete = True
            output.commit()
            yield progress


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
    for target in job.keypoints_topics:
        if not re.fullmatch(f'/?{NAME}', target, re.ASCII):
            raise BagError(f'keypoints topic {target!r}: expected names of letters, digits and _ between /, like /a/b')
    target, count = Counter(targets.values()).most_common(1)[0]
    if count > 1:
        same = ' and '.join(topic for topic, other in targets.items() if other == target)
        raise BagError(f'{same} would both be written to {target}: name a keypoints topic for each')
    return targets


def _copies(recording: Recording, job: Job, wanted: set[str], report: Report) -> dict[str, _Copy]:
    """Return how to copy each topic to keep; report the others that cannot be read or copied."""
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
        report(f'{job.source}: left out: {"; ".join(left)}')
    return copies


def _copy(recording: Recording, topic: Topic) -> _Copy:
    """Return how to copy a topic: with the source's own definition if it is complete enough for the output.

    Raises:
        BagError: its messages are not CDR and cannot be converted, or its type is unknown.
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
    except Exception as error:  # a definition that rosbags cannot generate
        raise BagError(f'{recording.path}: {topic.name} ({topic.type}) cannot be copied: {sentence(error)}') from None
    return _Copy(definition, (lambda raw: types.ros1_to_cdr(raw, topic.type)) if topic.encoding == 'ros1' else bytes)


def _fault(error: Exception) -> str:
    """Return why one message failed, so that the next ones are processed; raise fatal errors."""
    if isinstance(error, BagError):
        raise error
    return str(error) if isinstance(error, EdgePoint2Error) else sentence(error)


def _without_sequence_numbers(types: Typestore) -> Typestore:
    """Return the types of a ROS 1 bag with the header of ROS 2, for the conversion of messages."""
    header = get_typestore(Stores.ROS2_HUMBLE).fielddefs['std_msgs/msg/Header']
    changed = get_typestore(Stores.EMPTY)
    changed.register({**types.fielddefs, 'std_msgs/msg/Header': header})
    return changed


def _message(types: Typestore, features: Features, header: Any, encoding: str) -> Any:
    stamp = types.types['builtin_interfaces/msg/Time'](sec=header.stamp.sec, nanosec=header.stamp.nanosec)
    header = types.types['std_msgs/msg/Header'](stamp=stamp, frame_id=header.frame_id)
    return types.types[KEYPOINTS](header=header, **to_fields(features, encoding))
