"""The methods compared: EdgePoint2 models, and OpenCV's ORB and SIFT."""

from typing import Protocol

import cv2
import numpy as np

from edgepoint2_ros.extractor import DEFAULTS, Extractor
from edgepoint2_ros.features import Features
from edgepoint2_ros.matching import match


class Method(Protocol):
    """Something that finds and matches features."""

    name: str

    def extract(self, image: np.ndarray) -> Features:
        """Return the features of a uint8 image (H, W) or (H, W, 3)."""

    def match(self, a: Features, b: Features) -> np.ndarray:
        """Return mutual nearest neighbours, rows of a and of b: int (M, 2)."""


class EdgePoint2Method:
    """An EdgePoint2 model.

    Args:
        spec: ``T-32`` for the default weights, or with an ``@``: ``T-32@official``, ``T-32@path/to/model.onnx``.
        max_keypoints: maximum number of keypoints per image.
        precision: fp32, so that the scores do not depend on the machine, or another.
        score_threshold: keypoints score above it, raw logits.
    """

    def __init__(
        self,
        spec: str,
        max_keypoints: int,
        precision: str = 'fp32',
        score_threshold: float = DEFAULTS.score_threshold,
    ):
        name, _, weights = spec.partition('@')
        self.extractor = Extractor(
            name,
            weights=weights or 'auto',
            precision=precision,
            max_keypoints=max_keypoints,
            score_threshold=score_threshold,
        )
        self.name = f'{self.extractor.variant} {weights}'.strip()

    def extract(self, image: np.ndarray) -> Features:
        """Return the features of an image."""
        return self.extractor.extract(image)

    def match(self, a: Features, b: Features) -> np.ndarray:
        """Return mutual nearest neighbours by cosine."""
        return match(a, b)


class OpenCVMethod:
    """ORB or SIFT with OpenCV's defaults."""

    def __init__(self, name: str, max_keypoints: int):
        self.name = name
        self._detector: cv2.Feature2D
        if name == 'ORB':
            self._detector, norm = cv2.ORB.create(nfeatures=max_keypoints), cv2.NORM_HAMMING
        else:
            self._detector, norm = cv2.SIFT.create(nfeatures=max_keypoints), cv2.NORM_L2
        self._matcher = cv2.BFMatcher(norm, crossCheck=True)

    def extract(self, image: np.ndarray) -> Features:
        """Return the features of an image, with OpenCV's descriptors."""
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
        keypoints, descriptors = self._detector.detectAndCompute(gray, None)
        xy = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
        scores = np.array([keypoint.response for keypoint in keypoints], np.float32)
        if descriptors is None:
            descriptors = np.zeros((0, 32), np.uint8)
        return Features(xy, scores, descriptors, (image.shape[1], image.shape[0]), self.name, '')

    def match(self, a: Features, b: Features) -> np.ndarray:
        """Return mutual nearest neighbours by Hamming distance (ORB) or L2 (SIFT)."""
        if len(a) == 0 or len(b) == 0:
            return np.zeros((0, 2), int)
        matches = self._matcher.match(a.descriptors, b.descriptors)
        return np.array([(found.queryIdx, found.trainIdx) for found in matches], int).reshape(-1, 2)
