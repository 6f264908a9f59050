"""Pictures of features: keypoints on their image, matches between two images, tracks through a sequence."""

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.features import Features

Colour = tuple[int, int, int]  # BGR

GOOD = (80, 220, 80)
BAD = (60, 60, 235)
# Of plots. Distinguishable with every common kind of colour blindness (Okabe and Ito).
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_DOT = (0, 200, 255)
_SHIFT = 4  # OpenCV draws at 1/16 pixel


def draw_keypoints(image: np.ndarray, features: Features) -> np.ndarray:
    """Return a BGR copy of ``image`` (H, W) or (H, W, 3) with its keypoints, coloured by score (blue low, red high)."""
    canvas = _bgr(image)
    if len(features) == 0:
        return canvas
    low, high = np.percentile(features.scores, [2, 98])
    levels = (features.scores - low) / max(high - low, 1e-6)
    # The weakest first, so that the best lie on top.
    _put_dots(canvas, features.xy[::-1], _turbo(levels[::-1]), radius=3, thickness=1)
    return canvas


def draw_points(image: np.ndarray, xy: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return a BGR copy of ``image`` (H, W) or (H, W, 3) with small dots at pixels (N, 2), by level: 0 blue, 1 red."""
    canvas = _bgr(image)
    _put_dots(canvas, xy, _turbo(levels), radius=1)
    return canvas


def draw_matches(
    first: np.ndarray,
    second: np.ndarray,
    first_xy: np.ndarray,
    second_xy: np.ndarray,
    good: np.ndarray,
    lines: int = 200,
) -> np.ndarray:
    """Return a BGR picture of two images side by side with their matches as lines, good ones green, others red.

    Args:
        first: image (H, W) or (H, W, 3).
        second: the other image.
        first_xy: (N, 2) pixels of the matches in ``first``.
        second_xy: (N, 2) pixels of the matches in ``second``.
        good: (N,) bool.
        lines: maximum number of lines to draw, spread evenly over all matches; every match gets its two dots.
    """
    first, second = _bgr(first), _bgr(second)
    height, offset = max(len(first), len(second)), first.shape[1]
    canvas = np.zeros((height, offset + second.shape[1], 3), np.uint8)
    canvas[: len(first), :offset] = first
    canvas[: len(second), offset:] = second
    ends = first_xy, second_xy + np.array([offset, 0])
    shown = np.linspace(0, len(first_xy) - 1, min(lines, len(first_xy))).astype(int)
    for i in sorted(shown, key=lambda i: good[i], reverse=True):  # the few bad ones stay visible on top
        a, b = (_fixed(end[i]).tolist() for end in ends)
        cv2.line(canvas, a, b, GOOD if good[i] else BAD, 1, cv2.LINE_AA, _SHIFT)
    for xy in ends:
        _put_dots(canvas, xy, [_DOT] * len(xy), radius=2)
    return canvas


def draw_tracks(image: np.ndarray, history: Sequence[tuple[np.ndarray, np.ndarray]], trail: int = 20) -> np.ndarray:
    """Return a BGR copy of an image with the trails of its tracks, red for those seen in all images.

    Args:
        image: (H, W) or (H, W, 3), the last of the sequence.
        history: the tracks of each image, as ids (T,) and pixels (T, 2), those of ``image`` last.
        trail: images to look back.
    """
    canvas = _bgr(image)
    history = history[-trail - 1 :]
    paths: dict[int, list[np.ndarray]] = {number: [] for number in history[-1][0].tolist()} if history else {}
    for ids, xy in history:
        for number, place in zip(ids.tolist(), xy):
            if number in paths:
                paths[number].append(place)
    colours = _turbo(np.array([len(path) for path in paths.values()]) / max(len(history), 1))
    for path, colour in zip(paths.values(), colours):
        cv2.polylines(canvas, [_fixed(path).astype(np.int32)], False, colour, 1, cv2.LINE_AA, _SHIFT)
        _put_dots(canvas, path[-1:], [colour], radius=2)
    return canvas


def write_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """Return ``picture`` with a line of text on a dark bar above it."""
    bar = np.full((32, picture.shape[1], 3), 32, np.uint8)
    cv2.putText(bar, text, (10, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def to_data_url(picture: np.ndarray, quality: int) -> str:
    """Return a picture, (H, W, 3) uint8 BGR, as a JPEG for the ``src`` of an image in HTML."""
    data = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return f'data:image/jpeg;base64,{base64.b64encode(data).decode()}'


def import_matplotlib() -> tuple[Any, Any]:
    """Return matplotlib's Figure, which needs no display, and rc_context.

    Raises:
        EdgePoint2Error: it is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EdgePoint2Error(f'plots need matplotlib ({error}): pip install matplotlib') from None
    return Figure, rc_context


def _put_dots(
    canvas: np.ndarray,
    xy: Sequence[np.ndarray] | np.ndarray,
    colours: Sequence[Colour],
    radius: int,
    thickness: int = cv2.FILLED,
) -> None:
    """Draw circles at pixels (N, 2) into a BGR picture, the last on top."""
    for (x, y), colour in zip(_fixed(xy).tolist(), colours):
        cv2.circle(canvas, (x, y), radius << _SHIFT, colour, thickness, cv2.LINE_AA, _SHIFT)


def _turbo(levels: np.ndarray) -> list[Colour]:
    """Return the colours (BGR) of levels (N,) from 0, blue, to 1, red."""
    if len(levels) == 0:
        return []  # OpenCV refuses that
    scaled = (255 * np.clip(levels, 0, 1)).astype(np.uint8)
    return [(b, g, r) for b, g, r in cv2.applyColorMap(scaled[:, None], cv2.COLORMAP_TURBO).reshape(-1, 3).tolist()]


def _bgr(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image.copy()


def _fixed(xy: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(xy) * (1 << _SHIFT)).astype(np.int64)
