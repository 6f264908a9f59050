"""Places: one short vector per image, to find an image of the same place among thousands.

The vector is a VLAD (Jegou et al., "Aggregating local descriptors into a compact image representation", CVPR 2010) of
the local descriptors: each is assigned to the nearest of a few centres, and the residuals of each centre are summed. A
square root dampens repeated structure (Perronnin et al., "Improving the Fisher kernel", ECCV 2010). The centres, the
vocabulary, are learned from the descriptors of one model and useless for those of another. They are part of the model's
card and carry its digest.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error, ModelError
from edgepoint2_ros.features import Features
from edgepoint2_ros.models import Model, write_entry

CENTRES = 16
ENTRY = 'places'  # of a model's card
_SCALE = 127  # the largest absolute value of a centre, in int8
_ITERATIONS = 100
_ATTEMPTS = 3  # of k-means, from different starts


@dataclass(frozen=True)
class Vocabulary:
    """The centres that quantise the descriptors of one model.

    Attributes:
        model: name of the variant.
        digest: identity of the weights that the descriptors must come from.
        centres: (K, D) float32.
    """

    model: str
    digest: str
    centres: np.ndarray

    @property
    def size(self) -> int:
        """Length of a global descriptor: K * D."""
        return self.centres.size

    def describe(self, features: Features) -> np.ndarray:
        """Return the global descriptor of an image, (K * D,) float32 of unit length; zeros without keypoints.

        The cosine of two, their dot product, measures how similar two images are.

        Raises:
            EdgePoint2Error: the features come from other weights than the vocabulary.
        """
        if features.digest != self.digest:
            raise EdgePoint2Error(
                f'the vocabulary is of {self.model} [{self.digest}], the features are of {features.model} '
                f'[{features.digest}]: places of different weights cannot be compared'
            )
        return aggregate(features.descriptors, self.centres)


def aggregate(descriptors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the VLAD of local descriptors, (K * D,) float32 of unit length; zeros for none.

    Args:
        descriptors: (N, D) float32.
        centres: (K, D) float32.
    """
    # The nearest centre is the one with the largest of x.c - |c|^2 / 2.
    nearest = np.argmax(descriptors @ centres.T - (centres**2).sum(axis=1) / 2, axis=1)
    members = (nearest == np.arange(len(centres))[:, None]).astype(np.float32)
    sums = (members @ descriptors - members.sum(axis=1, keepdims=True) * centres).ravel()
    roots = np.sign(sums) * np.sqrt(np.abs(sums))
    return roots / max(float(np.linalg.norm(roots)), 1e-12)


def most_similar(places: np.ndarray, query: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the ``count`` places most similar to a query, best first.

    Args:
        places: (M, S) float32, global descriptors.
        query: (S,) float32.
    """
    return np.argsort(-(places @ query), kind='stable')[:count]


def train_centres(descriptors: np.ndarray, count: int = CENTRES, seed: int = 0) -> np.ndarray:
    """Return centres by k-means, (count, D) float32: the same from the same descriptors and seed.

    Args:
        descriptors: (N, D) float32, of many images.

    Raises:
        EdgePoint2Error: fewer descriptors than centres.
    """
    if len(descriptors) < count:
        raise EdgePoint2Error(f'expected at least {count} keypoints to learn a vocabulary from, got {len(descriptors)}')
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, _ITERATIONS, 1e-5)
    rows = np.ascontiguousarray(descriptors, np.float32)
    _, _, centres = cv2.kmeans(  # type: ignore[call-overload]  # None for the labels: OpenCV's stubs do not know it
        rows, count, None, criteria, _ATTEMPTS, cv2.KMEANS_PP_CENTERS
    )
    return centres


def store_vocabulary(model: Model, centres: np.ndarray, trained: dict[str, Any]) -> None:
    """Write a vocabulary into the card of its model, replacing any that is there.

    Args:
        model: whose descriptors the centres were learned from.
        centres: (K, D) float32; stored in int8.
        trained: what they were learned from, for information.

    Raises:
        OSError: the card cannot be written.
    """
    scale = float(np.abs(centres).max())
    rows = np.round(centres / scale * _SCALE).astype(np.int8)
    entry = {
        'digest': model.digest,
        'centres': base64.b64encode(rows.tobytes()).decode(),
        'scale': round(scale / _SCALE, 8),
        'trained': trained,
    }
    write_entry(model, ENTRY, entry)


def open_vocabulary(model: Model) -> Vocabulary:
    """Return the vocabulary in the card of a model.

    Raises:
        ModelError: it has none, or one that is from other weights or malformed.
    """
    advice = f'make one with `edgepoint2 models vocabulary {model.variant} --weights PATH --images FOLDER`'
    entry = model.card.get(ENTRY)
    if entry is None:
        raise ModelError(f'{model.path} has no vocabulary of places: {advice}')
    try:
        digest, scale = entry['digest'], float(entry['scale'])
        rows = np.frombuffer(base64.b64decode(entry['centres'], validate=True), np.int8)
        centres = rows.reshape(-1, model.variant.descriptor_size).astype(np.float32) * np.float32(scale)
        if not 0 < scale < np.inf:
            raise ValueError(f'scale {scale}')
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ModelError(
            f'{model.path}: its card has a malformed vocabulary of places ({type(error).__name__}: {error}): {advice}'
        ) from None
    if digest != model.digest:
        raise ModelError(
            f'{model.path}: its vocabulary of places was learned from the weights [{digest}], the model has '
            f'[{model.digest}]: {advice}'
        )
    if not len(centres):
        raise ModelError(f'{model.path}: its vocabulary of places is empty: {advice}')
    return Vocabulary(model.variant.name, digest, centres)
