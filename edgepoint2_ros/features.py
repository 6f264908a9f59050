"""Features: what the extractor returns for one image, and what a KeypointArray message carries."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Features:
    """Keypoints and descriptors of one image, best score first.

    Attributes:
        xy: (N, 2) float32, keypoints in pixels of the image; x right, y down, pixel centres at integers.
        scores: (N,) float32, raw detector logits.
        descriptors: (N, D) float32, rows of unit length.
        image_size: (width, height) of the image in pixels.
        model: name of the variant, for example ``T-32``.
        digest: identity of the weights; descriptors of different digests must not be compared.
    """

    xy: np.ndarray
    scores: np.ndarray
    descriptors: np.ndarray
    image_size: tuple[int, int]
    model: str
    digest: str

    def __len__(self) -> int:
        return len(self.xy)
