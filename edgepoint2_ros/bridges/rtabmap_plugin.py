"""EdgePoint2 inside RTAB-Map: the functions it calls for a detector, matcher and global descriptor in Python.

RTAB-Map embeds Python and calls `init` once, then `detect` for each image, `match` for each pair or `extract` for each
node of its map (its PyDetector.cpp, PyMatcher.cpp and PyDescriptor.cpp). It reads the returned arrays without
converting them, and aborts the whole process if one has another type. So nothing here raises, every result has the type
that RTAB-Map expects, and what goes wrong is printed on stderr, once. As RTAB-Map passes no settings, they are
environment variables, see `read_settings`.
"""

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edgepoint2_ros.bridges.rtabmap import to_responses
from edgepoint2_ros.errors import EdgePoint2Error, in_words
from edgepoint2_ros.extractor import MAX_PIXELS, Extractor, ExtractorSettings
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match as match_features
from edgepoint2_ros.models.variants import find_variant
from edgepoint2_ros.odometry import MIN_COSINE
from edgepoint2_ros.places import CENTRES, Vocabulary, open_vocabulary

PREFIX = 'EDGEPOINT2_'
# RTAB-Map keeps the best 1000 of an image for its odometry and 500 for its map, unless told otherwise.
DEFAULTS = ExtractorSettings(max_keypoints=1000)
MAX_COMPLAINTS = 20  # that are printed; an error with a different text for every image must not fill a disk


@dataclass(frozen=True)
class Settings:
    """What the environment sets: the extractor, and the minimum cosine of a match."""

    extractor: ExtractorSettings = DEFAULTS
    min_cosine: float = MIN_COSINE


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Return the settings from environment variables.

    Each setting of the extractor has a variable, EDGEPOINT2_MODEL, EDGEPOINT2_PRECISION, EDGEPOINT2_THREADS and so on,
    and EDGEPOINT2_MIN_COSINE is the matcher's. An empty one counts as not set.

    Raises:
        EdgePoint2Error: a value is not of the type of its setting.
    """
    given = {}
    for name, default in {**vars(DEFAULTS), 'min_cosine': MIN_COSINE}.items():
        text = environment.get(PREFIX + name.upper(), '')
        if text:
            try:
                given[name] = type(default)(text)
            except ValueError:
                kind = 'an integer' if type(default) is int else 'a number'
                raise EdgePoint2Error(f'{PREFIX}{name.upper()}: expected {kind}, got {text!r}') from None
    min_cosine = given.pop('min_cosine', MIN_COSINE)
    if not -1 <= min_cosine <= 1:  # also refuses NaN
        raise EdgePoint2Error(f'{PREFIX}MIN_COSINE: expected -1 to 1, got {min_cosine}')
    return Settings(replace(DEFAULTS, **given), min_cosine)


class Plugin:
    """The extractor and what RTAB-Map requests of it. Its odometry and its map call from separate threads."""

    def __init__(self, environment: Mapping[str, str] = os.environ):
        self._environment = environment
        self._lock = threading.Lock()
        self._settings: Settings | None = None
        self._extractor: Extractor | None = None
        self._vocabulary: Vocabulary | None = None
        self._last: tuple[np.ndarray, Features] | None = None  # the previous image, gray, and its features
        self._is_hopeless = False  # settings or a model that cannot be used; they stay so
        self._complaints: set[str] = set()

    def init(self, *settings: object) -> None:
        """Do nothing: RTAB-Map calls this for each detector, matcher and descriptor, with settings that do not apply.

        Args:
            settings: whether to use CUDA; of a global descriptor its size; of a matcher the size of descriptors, a
                threshold of its confidence, iterations, CUDA and the name of a model, all of them for SuperGlue.
        """

    def detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the keypoints of an image and their descriptors.

        Args:
            image: (H, W) uint8, in memory that belongs to RTAB-Map and is invalid after the call.

        Returns:
            (N, 3) float32, x and y in pixels and a response that is not negative, and (N, D) float32, both contiguous;
            N is 0 if anything went wrong.
        """
        try:
            features = self._find(image)
            if features is not None:
                height, width = image.shape[:2]
                keypoints = np.empty((len(features), 3), np.float32)
                # RTAB-Map aborts on a keypoint outside of the image.
                np.clip(features.xy, 0, (width - 1, height - 1), out=keypoints[:, :2])
                keypoints[:, 2] = to_responses(features.scores)
                return keypoints, np.ascontiguousarray(features.descriptors, np.float32)
        except BaseException as error:  # whatever it is, RTAB-Map must not see it
            self._complain('no features', error)
        return np.zeros((0, 3), np.float32), np.zeros((0, 32), np.float32)

    def match(
        self,
        xy_from: np.ndarray,
        xy_to: np.ndarray,
        scores_from: np.ndarray,
        scores_to: np.ndarray,
        descriptors_from: np.ndarray,
        descriptors_to: np.ndarray,
        width: int,
        height: int,
    ) -> np.ndarray:
        """Return mutual nearest neighbours of at least the minimum cosine.

        Args:
            xy_from, xy_to: (N, 2) and (M, 2) float32, pixels.
            scores_from, scores_to: (N,) and (M,) float32.
            descriptors_from, descriptors_to: (N, D) and (M, D) float32.
            width, height: of the images, pixels.

        Returns:
            (P, 2) int32, contiguous: indices from and to; P is 0 if anything went wrong.
        """
        try:
            with self._lock:
                extractor = self._open()
            if extractor and self._settings:
                size = extractor.variant.descriptor_size
                for descriptors in (descriptors_from, descriptors_to):
                    if descriptors.ndim != 2 or descriptors.shape[1] != size:
                        raise EdgePoint2Error(
                            f'{extractor.variant} has descriptors of {size} numbers, got an array of '
                            f'{descriptors.shape}: is Vis/FeatureType 15, and the map of the same model?'
                        )
                first, second = (
                    Features(xy, scores, descriptors, (width, height), extractor.variant.name, extractor.digest)
                    for xy, scores, descriptors in (
                        (xy_from, scores_from, descriptors_from),
                        (xy_to, scores_to, descriptors_to),
                    )
                )
                return np.ascontiguousarray(match_features(first, second, self._settings.min_cosine), np.int32)
        except BaseException as error:
            self._complain('no matches', error)
        return np.zeros((0, 2), np.int32)

    def extract(self, image: np.ndarray) -> np.ndarray:
        """Return the global descriptor of an image.

        Args:
            image: (H, W, 1) or (H, W, 3) BGR; RTAB-Map says that its bytes are int8.

        Returns:
            (1, S) float32 of unit length, contiguous; zeros if anything went wrong. S depends on the model alone,
            which a map must therefore keep: RTAB-Map aborts if two nodes have descriptors of different sizes.
        """
        try:
            with self._lock:
                self._open()  # first: the vocabulary has the size of what is returned, whatever fails
            if isinstance(image, np.ndarray) and image.dtype == np.int8:
                image = image.view(np.uint8)
            if isinstance(image, np.ndarray) and image.ndim == 3 and image.size and image.shape[2] == 3:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)  # as the detector has seen it
            elif isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 1:
                image = image[:, :, 0]
            features = self._find(image)
            if features is not None and self._vocabulary is not None:
                return np.ascontiguousarray(self._vocabulary.describe(features)[None], np.float32)
        except BaseException as error:
            self._complain('no global descriptor', error)
        return np.zeros((1, self._vocabulary.size if self._vocabulary else self._expected_size()), np.float32)

    def _expected_size(self) -> int:
        """Return the size of the global descriptors of the model that the environment names, if it could be opened."""
        try:
            variant = find_variant(self._environment.get(f'{PREFIX}MODEL') or DEFAULTS.model)
        except EdgePoint2Error:
            variant = find_variant(DEFAULTS.model)
        return CENTRES * variant.descriptor_size

    def _find(self, image: np.ndarray) -> Features | None:
        """Return the features of an image, found once for detector and global descriptor; None without an extractor."""
        if isinstance(image, np.ndarray) and image.size <= MAX_PIXELS:  # the extractor refuses anything else
            image = image.copy()  # the last one is kept, also by OpenVINO
        with self._lock:
            extractor = self._open()
            if extractor is None:
                return None
            if self._last is None or not np.array_equal(self._last[0], image):
                self._last = None
                self._last = image, extractor.extract(image)
            return self._last[1]

    def _open(self) -> Extractor | None:
        """Return the extractor, opened at the first call; None if that failed."""
        if self._extractor is None and not self._is_hopeless:
            self._is_hopeless = True  # until it is open
            self._settings = read_settings(self._environment)
            self._extractor = Extractor(self._settings.extractor, report=self._print)
            try:
                self._vocabulary = open_vocabulary(self._extractor.model)
            except EdgePoint2Error as error:
                self._complain('no global descriptor', error)
            self._is_hopeless = False
        return self._extractor

    def _complain(self, what: str, error: BaseException) -> None:
        text = f'{what}: {" ".join(in_words(error).split())}'
        if text not in self._complaints and len(self._complaints) < MAX_COMPLAINTS:
            self._complaints.add(text)
            self._print(text)

    @staticmethod
    def _print(text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # stderr is closed, or there is none
            print(f'edgepoint2: {text}', file=sys.stderr, flush=True)


plugin = Plugin()
init, detect, match, extract = plugin.init, plugin.detect, plugin.match, plugin.extract
