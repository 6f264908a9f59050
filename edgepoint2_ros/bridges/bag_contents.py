"""What a bag holds: its topics, the images or features of one of them, and how it was made."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgepoint2_ros.bridges.bag_output import parse_state
from edgepoint2_ros.bridges.recordings import KEYPOINTS, Recording, known_types, open_recording
from edgepoint2_ros.errors import BagError
from edgepoint2_ros.features import Features
from edgepoint2_ros.messages import ENCODINGS, decode, to_nanoseconds
from edgepoint2_ros.progress import Report

IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


class Frame(NamedTuple):
    """The features of one image in a bag, with its stamp and its recording time, both in nanoseconds."""

    stamp: int
    moment: int
    features: Features


def read_frames(path: Path, topic: str = '', report: Report = lambda text: None) -> Iterator[Frame]:
    """Yield the frames in a bag of keypoints, in recording order.

    Args:
        path: rosbag2 folder or file.
        topic: may be empty if the bag has only one KeypointArray topic.
        report: called with a message about each irregularity in the bag.

    Raises:
        BagError: the bag cannot be read, or has no such topic.
        MessageError: a message contradicts itself.
    """
    with open_recording(path, report) as recording:
        topic = only_topic(recording, (KEYPOINTS,), topic, 'keypoints')
        deserialise = recording.decoder(recording.topics[topic])
        for _, moment, raw in recording.messages({topic}):
            message = deserialise(raw)
            yield Frame(to_nanoseconds(message.header.stamp), moment, decode(message))


def read_features(path: Path, topic: str = '') -> Iterator[tuple[int, Features]]:
    """Yield the features in a bag with the stamps of their images in nanoseconds; see `read_frames`."""
    for frame in read_frames(path, topic):
        yield frame.stamp, frame.features


def describe(path: Path) -> Iterator[str]:
    """Yield lines that describe a bag's contents; for keypoint topics also the model, the encoding and the sizes."""
    notes: list[str] = []
    with open_recording(path, notes.append) as recording:
        yield from notes
        yield f'{path}: {recording.count} messages in {(recording.end - recording.start) * 1e-9:.1f} s'
        state = parse_state(recording.state)
        if state is not None and not state['complete']:
            done = f'{state["images"]} images of {state["source"]}'
            yield f'incomplete: {done} so far; run the same `bag extract` again to resume'
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
                encodings.add((*ENCODINGS, 'unknown')[min(message.descriptor_encoding, len(ENCODINGS))])
                sizes.add(f'{message.image_width}x{message.image_height}')
                lengths.append((len(message.x), len(raw)))
            if lengths:
                keypoints, size = np.median(lengths, axis=0)
                model, encoding, dimensions = (', '.join(sorted(found)) for found in (models, encodings, sizes))
                yield f'  {model}, {encoding}, images {dimensions}'
                yield f'  median {keypoints:.0f} keypoints, {size / 1e3:.1f} kB a message'


def only_topic(recording: Recording, types: tuple[str, ...], topic: str, what: str) -> str:
    """Return the requested topic of some types or, if none was requested, the only one.

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
