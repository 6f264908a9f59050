"""The cosine at which a model's match is right with probability 1/2, measured on pairs with known geometry."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.benchmark import RIGHT, RIGHT_EPIPOLAR, extract_pair
from edgepoint2_ros.evaluation.methods import Method
from edgepoint2_ros.evaluation.pairs import HomographyPair, PosePair
from edgepoint2_ros.features import Features

BINS = 400  # of cosines from -1 to 1
MIN_MATCHES = 1000  # of each kind of pair
SHUFFLES = 5  # of the keypoints of a pair, to see how often a wrong match lies on its epipolar line


@dataclass(frozen=True)
class Judged:
    """Mutual nearest neighbours on pairs of one kind.

    Attributes:
        pairs: number of pairs.
        cosines: (N,), of each match.
        right: (N,), on average 1 for right matches and 0 for wrong ones; with epipolar lines, on which some wrong
            matches lie by chance, single values are a bit above 1 or below 0.
    """

    pairs: int
    cosines: np.ndarray
    right: np.ndarray


def judge(pairs: Iterable[HomographyPair | PosePair], methods: Sequence[Method], seed: int = 0) -> list[Judged]:
    """Return each method's mutual nearest neighbours on pairs, and whether they are right.

    A match is right within RIGHT pixels of its true position, or RIGHT_EPIPOLAR pixels of its true epipolar line.
    """
    rng = np.random.default_rng(seed)
    cosines, right = ([[np.zeros(0)] for _ in methods] for _ in range(2))
    count, scene = 0, None
    known: dict[Any, Features] = {}
    for pair in pairs:
        count += 1
        if pair.group != scene:
            known.clear()
            scene = pair.group
        for number, method in enumerate(methods):
            a, b = extract_pair(pair, method, known)
            matches = method.match(a, b)
            rows = a.descriptors[matches[:, 0]], b.descriptors[matches[:, 1]]
            cosines[number].append(np.einsum('nd,nd->n', *rows))
            right[number].append(_judge_pair(pair, a.xy[matches[:, 0]], b.xy[matches[:, 1]], rng))
    return [Judged(count, np.concatenate(c), np.concatenate(r)) for c, r in zip(cosines, right)]


def _judge_pair(
    pair: HomographyPair | PosePair, matched_a: np.ndarray, matched_b: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the probability (N,) that each match is right, as defined by Judged."""
    if isinstance(pair, HomographyPair):
        return (metrics.matching_errors(matched_a, matched_b, pair.homography) <= RIGHT).astype(float)
    if len(matched_a) == 0:
        return np.zeros(0)

    def lie_near(places: np.ndarray) -> np.ndarray:
        errors = metrics.epipolar_errors(matched_a, places, pair.intrinsics_a, pair.intrinsics_b, pair.pose)
        return errors <= RIGHT_EPIPOLAR

    chance = np.mean([lie_near(rng.permutation(matched_b)) for _ in range(SHUFFLES)])
    return (lie_near(matched_b) - chance) / max(1 - chance, 1e-3)


def find_min_cosine(kinds: Iterable[Judged]) -> float:
    """Return the cosine from which a match is more likely right than wrong; each kind of pair has equal weight.

    The probability is a non-decreasing function of the cosine (isotonic regression, by pooling adjacent violators),
    from the shares in BINS bins.

    Raises:
        EdgePoint2Error: too few matches, or they are right, or wrong, at every cosine.
    """
    total, right = np.zeros(BINS), np.zeros(BINS)
    for kind in kinds:
        if len(kind.cosines) < MIN_MATCHES:
            raise EdgePoint2Error(
                f'calibration: expected at least {MIN_MATCHES} matches, got {len(kind.cosines)} on {kind.pairs} pairs'
            )
        bins = np.clip((kind.cosines + 1) / 2 * BINS, 0, BINS - 1).astype(int)
        total += np.bincount(bins, minlength=BINS) / len(bins)
        right += np.bincount(bins, kind.right, minlength=BINS) / len(bins)
    used = np.flatnonzero(total)
    places = (used + 0.5) / BINS * 2 - 1
    shares = _fit_rising(right[used] / total[used], total[used])
    if not shares[0] < 0.5 <= shares[-1]:
        raise EdgePoint2Error(
            f'expected matches that are wrong more often at low cosines and right more often at high ones, got shares '
            f'of right ones from {shares[0]:.2f} to {shares[-1]:.2f}'
        )
    above = int(np.argmax(shares >= 0.5))
    part = (0.5 - shares[above - 1]) / (shares[above] - shares[above - 1])
    return float(places[above - 1] + part * (places[above] - places[above - 1]))


def _fit_rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the non-decreasing values (N,) nearest to ``values`` in weighted least squares."""
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values, weights):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, heavy, length = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * heavy) / (last[1] + heavy)
            last[1] += heavy
            last[2] += length
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks])
