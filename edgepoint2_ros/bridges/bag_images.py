"""The images behind the keypoints of a bag: their names outside of it, and their files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edgepoint2_ros.bridges.bag_contents import IMAGES, Frame, only_topic
from edgepoint2_ros.bridges.bag_output import parse_state
from edgepoint2_ros.bridges.recordings import open_recording
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features
from edgepoint2_ros.files import make_folder, refuse_existing, write_image
from edgepoint2_ros.images import to_array
from edgepoint2_ros.messages import to_nanoseconds
from edgepoint2_ros.progress import Report


class NamedFrame(NamedTuple):
    """A frame with the name of its image; ``number`` frames with the same stamp and recording time came before it."""

    name: str
    stamp: int
    moment: int
    number: int
    features: Features


def name_frames(frames: Iterable[Frame]) -> Iterator[NamedFrame]:
    """Yield frames with unique names of their images, such as ``1700000000.123456789.png``.

    An image is named by its stamp in seconds, without one by its recording time, with a number appended if an earlier
    image has that name.
    """
    same: Counter[tuple[int, int]] = Counter()
    taken: Counter[str] = Counter()
    for stamp, moment, features in frames:
        seconds, nanoseconds = divmod(stamp or moment, 1_000_000_000)
        name = f'{seconds}.{nanoseconds:09d}'
        taken[name] += 1
        again = f'-{taken[name]}' if taken[name] > 1 else ''
        yield NamedFrame(f'{name}{again}.png', stamp, moment, same[stamp, moment], features)
        same[stamp, moment] += 1


def remarks(frames: Sequence[NamedFrame]) -> list[str]:
    """Return a remark about each kind of image that is not named by its stamp alone."""
    unstamped = sum(frame.stamp == 0 for frame in frames)
    numbered = sum('-' in frame.name for frame in frames)
    found = []
    if unstamped:
        found.append(f'{unstamped} of {len(frames)} images have no stamp: called by their moment of recording')
    if numbered:
        found.append(
            f'{numbered} of {len(frames)} images are of the same moment as one before: called by a number, too'
        )
    return found


def find_image_topic(source: Path, topic: str, bag: Path, keypoints_topic: str) -> str:
    """Return the topic of the images that a bag of keypoints was extracted from.

    Args:
        source: the bag with the images.
        topic: the requested one, or ''.
        bag, keypoints_topic: the bag of keypoints, which may say what it was made from; the topic may be ''.

    Raises:
        BagError: a bag cannot be read, or the topic is ambiguous.
    """
    with open_recording(bag) as recording:
        state = parse_state(recording.state) or {'keypoints_topics': [], 'topics': []}
    made = dict(zip(state['keypoints_topics'], state['topics']))
    if not keypoints_topic and len(made) == 1:
        keypoints_topic = next(iter(made))
    topic = topic or made.get(keypoints_topic, '')
    with open_recording(source) as recording:
        return only_topic(recording, IMAGES, topic, 'images')


def write_images(frames: Sequence[NamedFrame], source: Path, topic: str, folder: Path, report: Report) -> int:
    """Write the images of frames as PNG under their names, as they were extracted: gray or BGR, 8 bits.

    An image belongs to the frame with its stamp and recording time, which `bags.extract` keeps, else to the only one
    with its stamp, which suffices for keypoints recorded live.

    Args:
        frames: whose images to write.
        source, topic: the bag with the images.
        folder: for the files; it is created.
        report: called with a message about each image that cannot be written.

    Returns:
        The number of images written; the others were missing from the bag or unreadable.

    Raises:
        BagError: the bag cannot be read.
        EdgePoint2Error: a file already exists, or cannot be written.
    """
    refuse_existing(folder / frame.name for frame in frames)
    make_folder(folder)
    waiting = {(frame.stamp, frame.moment, frame.number): frame for frame in frames}
    stamps = Counter(frame.stamp for frame in frames)
    alone = {frame.stamp: frame for frame in frames if frame.stamp and stamps[frame.stamp] == 1}
    same: Counter[tuple[int, int]] = Counter()
    written = set()
    with open_recording(source) as recording:
        deserialise = recording.decoder(recording.topics[topic])
        for number, (_, moment, raw) in enumerate(recording.messages({topic}), 1):
            try:
                message = deserialise(raw)
                stamp = to_nanoseconds(message.header.stamp)
                frame = waiting.get((stamp, moment, same[stamp, moment])) or alone.get(stamp)
                same[stamp, moment] += 1
                if frame is None or frame.name in written:
                    continue
                image = to_array(message)
                if image.shape[1::-1] != frame.features.image_size:
                    raise EdgePoint2Error(
                        f'its size is {image.shape[1::-1]}, keypoints are of {frame.features.image_size}'
                    )
            except EdgePoint2Error as error:
                report(f'{source}: image {number} of {topic} left out: {error}')
                continue
            write_image(folder / frame.name, image)
            written.add(frame.name)
    return len(written)
