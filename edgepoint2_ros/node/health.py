"""The images of one camera, counted by outcome, and judged once a second."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# Where the time goes: waiting for the worker, decoding the message, extraction, making and publishing the answer.
# Then their sum, and the age of the image at the end, from its stamp.
STAGES = ('wait', 'read', 'extract', 'publish', 'latency', 'age')
REASONS = ('newer', 'full', 'bad', 'error', 'stopped')  # why an image can be dropped

SILENCE = 2.0  # seconds without an image after which a camera counts as silent
LONG = 0.3  # seconds of the first inference at an image size that excuse dropped images whenever it is
TOLERATED = 0.1  # share of images that may be dropped for newer ones, as happens when frames come in bursts

LARGE = 'images above 0.5 MB need more shared memory in the process of the camera (config/fastdds.xml)'
LIMIT = 500_000  # bytes of such an image
BUSY = 'this machine or the network is overloaded'

TYPES = {'raw': 'sensor_msgs/msg/Image', 'compressed': 'sensor_msgs/msg/CompressedImage'}  # by transport
COMPRESSED = '/compressed'  # what image_transport adds to the topic of an image

OK, WARN, ERROR = range(3)  # levels of diagnostic_msgs/DiagnosticStatus


@dataclass(frozen=True)
class Period:
    """The outcomes of the images of one camera between two diagnostics.

    Attributes:
        seconds: its length.
        received: images that arrived in it.
        processed: images answered in it.
        keypoints: mean number per answer; 0 if there was none.
        times: by stage, (mean, 95th percentile, maximum) in milliseconds; NaN if nothing was processed.
        dropped: images dropped in it, by reason.
        lost: images that the middleware lost in it.
        masks_bad: masks that could not be read in it.
        masks_lost: masks that the middleware lost in it.
        unmasked: images answered in it without a mask, because all masks received are stamped later.
        warm_up: the slow first inference at an image size, if one was running in it; else ''. A camera that crops each
            image differently has one all the time: then only those that are LONG count.
        silent: seconds since the last image, or since subscribing if none has come; 0 while idle.
        idle: no image was answered, because nobody subscribes to the results and none is requested.
    """

    seconds: float
    received: int
    processed: int
    keypoints: float
    times: dict[str, tuple[float, float, float]]
    dropped: dict[str, int]
    lost: int
    masks_bad: int
    masks_lost: int
    unmasked: int
    warm_up: str
    silent: float
    idle: bool

    @property
    def rate_in(self) -> float:
        return self.received / self.seconds

    @property
    def rate_out(self) -> float:
        return self.processed / self.seconds


@dataclass
class Health:
    """Counters since activation. Each is written by the executor's thread or by the worker, none by both."""

    now: float
    received: int = 0
    processed: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    lost: int = 0
    masks_received: int = 0
    masks_bad: int = 0
    masks_lost: int = 0
    unmasked: int = 0
    mask_lead: float = 0.0  # seconds by which every mask was later than the last unmasked image
    last_error: str = ''
    last_arrival: float | None = None
    size: int | None = None  # of the last image, in bytes
    idle: bool = False
    last_rate_out: float = 0.0

    def __post_init__(self) -> None:
        self._begun = self._since = self.now
        # (keypoints, *times in seconds) of each image processed in this period
        self._frames: list[tuple[float, ...]] = []
        self._before = self._counters()
        self._warm_up: tuple[str, float] | None = None  # what the engine is doing for the first time, and since when
        self._warmed_up = ''  # what it did so in this period
        self._longest = 0.0  # seconds of what it did so
        self._new = True  # whether it did nothing so in the period before

    def arrive(self, now: float, size: int = 0) -> None:
        """Count an image that was received, of a size in bytes."""
        self.received += 1
        self.last_arrival = now
        self.size = size

    def pause(self) -> None:
        """From now on no images are requested."""
        self.idle = True

    def resume(self, now: float) -> None:
        """From now on images are requested."""
        if self.idle:
            self.idle, self._begun, self.last_arrival = False, now, None

    def serve(self, keypoints: int, times: tuple[float, ...]) -> None:
        """Count an image that was answered, with the seconds of each of the STAGES."""
        self.processed += 1
        self._frames.append((keypoints, *times))

    def drop(self, reason: str, count: int = 1, error: str = '') -> None:
        """Count images that were dropped for one of the REASONS."""
        self.dropped[reason] += count
        if error:
            self.last_error = error

    def pass_masks(self, lead: float) -> None:
        """Count an image that is ``lead`` seconds earlier than every mask, if there are any."""
        self.unmasked += 1
        self.mask_lead = lead

    def begin_warm_up(self, what: str, now: float) -> None:
        """Note that a slow warm-up of the engine has begun: images are dropped meanwhile."""
        self._warm_up = what, now

    def end_warm_up(self, now: float) -> None:
        """Note that the warm-up is done."""
        if self._warm_up is not None:
            what, begun = self._warm_up
            self._warmed_up = f'{what} took {(now - begun) * 1e3:.0f} ms'
            self._longest = max(self._longest, now - begun)
            self._warm_up = None

    @property
    def may_be_large(self) -> bool:
        """Tell whether the last image exceeded the middleware's buffers, or could if none has come."""
        return self.size is None or self.size > LIMIT

    @property
    def waiting(self) -> int:
        """Received images neither answered nor dropped yet."""
        return max(0, self.received - self.processed - sum(self.dropped.values()))

    def end_period(self, now: float) -> Period:
        """Return what happened since the last period ended, and begin a new one."""
        frames, self._frames = self._frames, []
        before, self._before = self._before, self._counters()
        warm_up = self._end_warm_ups(now)
        seconds, self._since = max(now - self._since, 1e-3), now
        change = {name: self._before[name] - before[name] for name in before}
        self.last_rate_out = len(frames) / seconds
        return Period(
            seconds=seconds,
            received=change['received'],
            processed=len(frames),
            keypoints=float(np.mean([frame[0] for frame in frames])) if frames else 0.0,
            times=_summarise(np.array([frame[1:] for frame in frames]).reshape(-1, len(STAGES)) * 1e3),
            dropped={reason: change[reason] for reason in REASONS},
            lost=change['lost'],
            masks_bad=change['masks_bad'],
            masks_lost=change['masks_lost'],
            unmasked=change['unmasked'],
            warm_up=warm_up,
            silent=0.0 if self.idle else now - (self._begun if self.last_arrival is None else self.last_arrival),
            idle=self.idle and not frames,
        )

    def _end_warm_ups(self, now: float) -> str:
        """Return what the period's warm_up is, and begin a new period."""
        longest, self._longest = self._longest, 0.0
        ended, self._warmed_up = self._warmed_up, ''
        new, self._new = self._new, not ended
        said, running = ended, self._warm_up  # which the worker may end meanwhile
        if running is not None:
            said, longest = f'{running[0]} is running', max(longest, now - running[1])
        return said if new or longest > LONG else ''

    def _counters(self) -> dict[str, int]:
        return {
            'received': self.received,
            'processed': self.processed,
            'lost': self.lost,
            'masks_bad': self.masks_bad,
            'masks_lost': self.masks_lost,
            'unmasked': self.unmasked,
            **self.dropped,
        }


def judge(period: Period, health: Health, topic: str, silence: str, masks: str = '') -> tuple[int, str]:
    """Return the level of a camera (OK, WARN or ERROR) and the most severe reason for it in one line.

    Args:
        period: its last one.
        health: its counters.
        topic: full name of its image topic.
        silence: why no image may come.
        masks: why no mask can come, if so.
    """
    if period.silent > SILENCE:
        since = 'no image yet' if health.last_arrival is None else f'no image for {period.silent:.0f} s'
        return (WARN if health.last_arrival is None else ERROR), f'{since} on {topic}: {silence}'
    if period.dropped['error']:
        return ERROR, f'{period.dropped["error"]} of {period.received} images failed: {health.last_error}'
    if period.dropped['bad']:
        level = WARN if period.processed else ERROR
        return level, f'{period.dropped["bad"]} of {period.received} images could not be used: {health.last_error}'
    behind = period.dropped['newer'] + period.dropped['full']
    if behind > TOLERATED * max(period.received, 1) and not period.warm_up:
        return WARN, (
            f'{behind} of {period.received} images dropped: they arrive faster than they can be processed; use a '
            f'smaller model, image size or rate'
        )
    if period.lost:
        return WARN, f'{period.lost} images lost in transit: {LARGE if health.may_be_large else BUSY}'
    if masks:
        return WARN, masks
    if period.masks_lost:
        return WARN, (
            f'{period.masks_lost} masks lost in transit, older ones count instead: masks above 0.5 MB need a '
            f'reliable publisher, or more shared memory in its process (config/fastdds.xml)'
        )
    if period.masks_bad:
        return WARN, f'{period.masks_bad} masks could not be used: {health.last_error}'
    if period.unmasked and period.unmasked >= period.processed:
        return WARN, (
            f'no mask applies: each is stamped {health.mask_lead:.2f} s or more after the images; give it the stamp of '
            f'the image that it was made from, or 0 to count for all'
        )
    if period.processed and period.keypoints == 0:
        return WARN, 'no keypoints in any image: is it dark, covered or all masked?'
    if period.idle:
        return OK, 'idle: no subscribers to keypoints, place or overlay'
    if period.warm_up:
        return OK, f'{period.warm_up}{f", {behind} images dropped meanwhile" if behind else ""}'
    if not period.processed:
        return OK, 'no image in this second'
    return OK, f'{period.rate_out:.1f} images/s, latency {period.times["latency"][0]:.1f} ms'


def explain_types(topic: str, transport: str, published: Callable[[str], set[str]]) -> str:
    """Return where images are published on the other transport, and what fixes it; '' if they are not.

    Args:
        topic: full name of the subscribed topic.
        transport: ``raw`` or ``compressed``.
        published: returns the types published under the full name of a topic.
    """
    image = topic.removesuffix(COMPRESSED)
    if transport == 'raw':
        places = [
            (topic, 'compressed', f'set transport to compressed and {_read_as_compressed(topic)}'),
            (topic + COMPRESSED, 'compressed', 'set transport to compressed'),
        ]
    else:
        places = [
            (topic, 'raw', f'set transport to raw and image to {topic}'),
            (image, 'raw', 'set transport to raw'),
            (image, 'compressed', _read_as_compressed(image)),
        ]
    for place, found, mend in places:
        if TYPES[found] in published(place):
            if place == topic:
                return f'it carries {TYPES[found]}, not {TYPES[transport]}: {mend}'
            return f'it has no publisher, but {place} carries {TYPES[found]}: {mend}'
    types = ', '.join(sorted(published(topic)))
    return types and f'it carries {types}, not {TYPES[transport]}'


def _read_as_compressed(topic: str) -> str:
    """Return the setting with which the compressed transport, which appends its name to the image's, reads a topic."""
    image = topic.removesuffix(COMPRESSED)
    return f'set image to {image}' if image != topic else f'remap {topic}{COMPRESSED} to {topic}'


def _summarise(times: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Return (mean, 95th percentile, maximum) of each column of times (N, stages)."""
    if len(times) == 0:
        return dict.fromkeys(STAGES, (math.nan,) * 3)
    columns = zip(times.mean(axis=0), np.percentile(times, 95, axis=0), times.max(axis=0))
    return {stage: (float(mean), float(high), float(most)) for stage, (mean, high, most) in zip(STAGES, columns)}
