"""Image pairs of known geometry, made from single photographs, and pairs of views of matched photographs.

Two views of one photograph differ by a homography. Pieces of other photographs are pasted over both, each with its own
homography, so that the pair has occlusions and motion boundaries, as real scenes do. Light, blur, noise and compression
differ between the views. Matched photographs show one place from two points: of these, views show as much as fits, and
what corresponds is known at their matches alone. Pair number n depends only on the seed, the number of layouts and n.
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgepoint2_ros.distillation.matches import MatchedPhotos
from edgepoint2_ros.distillation.photos import Photos

WIDTH, HEIGHT = 480, 352  # of a view; multiples of 32, large enough for the coarsest map, at 1/32, to be meaningful
MAX_PIECES = 3
OUTSIDE = 255  # label of a pixel that shows no photograph

ROTATION_SD = np.deg2rad(18)
MAX_SCALE = 1.6
SHIFT = 0.2  # of the view's size, at most
PERSPECTIVE_SD = 0.3  # change of depth from the view's centre to its right edge, times two
UNCHANGED = 0.7  # share of views that keep their light

MAX_MATCHES = 256  # of matched photographs, in both views
CROP = (0.65, 1.05)  # size of a view of a matched photograph, of the largest one that fits into it
CROP_SHIFT = 0.3  # of its size, at most, from a match that both views show
CROP_ROTATION_SD = np.deg2rad(8)
CROP_TRIES = 4  # of which the one with the most matches is taken


class Pair(NamedTuple):
    """Two views; row or index 0 is view a, 1 is view b.

    Attributes:
        views: (2, H, W) uint8, gray.
        clean: (2, H, W) uint8, the same views before light, blur and noise changed.
        labels: (2, H, W) uint8, the layer that each pixel shows: 0 the photograph, 1.. the pieces, 255 nothing.
        homographies: (MAX_PIECES + 1, 3, 3) float32, maps pixels of a to pixels of b for each layer.
        photos: (MAX_PIECES + 1,) int64, the photograph of each layer, -1 for none.
        layout: () int64; pairs of the same layout differ only in the light, blur and noise of their views. -1: no other
            pair has it.
        matches: (MAX_MATCHES, 2, 2) float32, pixels of a and b of the matches of matched photographs, of which the
            labels and homographies say nothing; NaN where there are no more.
    """

    views: Tensor
    clean: Tensor
    labels: Tensor
    homographies: Tensor
    photos: Tensor
    layout: Tensor = torch.tensor(-1)
    matches: Tensor = torch.full((MAX_MATCHES, 2, 2), torch.nan)


class PairDataset(Dataset[Pair]):
    """Pair number n of an endless, reproducible sequence.

    Args:
        photos: what the pairs show.
        seed: of everything random.
        length: number of pairs.
        layouts: number of different layouts, used in turn; 0: each pair has its own.
        matched: every second layout is of a pair of these.
    """

    def __init__(self, photos: Photos, seed: int, length: int, layouts: int = 0, matched: MatchedPhotos | None = None):
        self.photos = photos
        self.matched = matched
        self.seed = seed
        self.length = length
        self.layouts = layouts or length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Pair:
        layout = number % self.layouts
        rng = np.random.default_rng([self.seed, layout])
        light = rng if layout == number else np.random.default_rng([self.seed, number])
        if self.matched is not None and layout % 2:
            pair = make_matched_pair(self.matched, rng, light)
            # Numbered after those of the photographs.
            pair = pair._replace(photos=torch.where(pair.photos < 0, -1, pair.photos + len(self.photos)))
        else:
            pair = make_pair(self.photos, rng, light)
        return pair._replace(layout=torch.tensor(layout))


def make_pair(photos: Photos, rng: np.random.Generator, light: np.random.Generator | None = None) -> Pair:
    """Return a random pair of views.

    Args:
        photos: what it shows.
        rng: of the layout.
        light: of light, blur and noise; by default ``rng``.
    """
    views = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    labels = np.full((2, HEIGHT, WIDTH), OUTSIDE, np.uint8)
    homographies = np.tile(np.eye(3), (MAX_PIECES + 1, 1, 1))
    shown = np.full(MAX_PIECES + 1, -1, np.int64)

    motion = random_homography(rng)  # pixels of b to pixels of a
    pieces = rng.integers(0, MAX_PIECES + 1)
    for layer in range(pieces + 1):
        index = int(rng.integers(len(photos)))
        pyramid = photos[index]
        placement = _random_placement(pyramid[0].shape, rng)  # pixels of a to pixels of the photograph
        if layer == 0:
            outline = _corners(*pyramid[0].shape[::-1]) @ np.linalg.inv(placement).T
            outline = outline[:, :2] / outline[:, 2:]
            own_motion = motion
        else:
            outline = _random_polygon(rng)
            own_motion = motion @ random_homography(rng, strength=0.25)
        homographies[layer] = np.linalg.inv(own_motion)
        shown[layer] = index
        for view, to_a in enumerate((np.eye(3), own_motion)):
            texture = _warp(pyramid, placement @ to_a)
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            here = cv2.perspectiveTransform(outline[None], np.linalg.inv(to_a))[0]
            cv2.fillPoly(mask, [np.round(here).clip(-30000, 30000).astype(np.int32)], 1)
            np.copyto(views[view], texture, where=(mask == 1) | (layer == 0))
            labels[view][mask == 1] = layer
    return Pair(
        *_record(views, rng, light or rng),
        torch.from_numpy(labels),
        torch.from_numpy(homographies.astype(np.float32)),
        torch.from_numpy(shown),
    )


def make_matched_pair(
    matched: MatchedPhotos, rng: np.random.Generator, light: np.random.Generator | None = None
) -> Pair:
    """Return views of a random pair of matched photographs.

    Args:
        matched: what it shows.
        rng: of the layout.
        light: of light, blur and noise; by default ``rng``.
    """
    a, b, xy = matched.pairs[rng.integers(len(matched.pairs))]
    pyramids = matched.photos[a], matched.photos[b]
    mirrored = rng.random() < 0.5

    def place() -> tuple[list[np.ndarray], np.ndarray]:
        # A match that both views show, at nearly the same place of each.
        centres = xy[rng.integers(len(xy))]
        offset = rng.uniform(-CROP_SHIFT, CROP_SHIFT, 2)
        placements, moved = [], []
        for pyramid, centre, points in zip(pyramids, centres, xy.swapaxes(0, 1)):
            placement = _random_crop(pyramid[0].shape, centre, offset, mirrored, rng)
            placements.append(placement)
            moved.append(cv2.perspectiveTransform(points[None].astype(float), np.linalg.inv(placement))[0])
        both = np.stack(moved, axis=1)
        return placements, both[((both >= 0) & (both <= (WIDTH - 1, HEIGHT - 1))).all(axis=(1, 2))]

    placements, seen = max((place() for _ in range(CROP_TRIES)), key=lambda placed: len(placed[1]))
    seen = rng.permutation(seen)[:MAX_MATCHES]
    matches = np.full((MAX_MATCHES, 2, 2), np.nan, np.float32)
    matches[: len(seen)] = seen
    views = np.stack([_warp(pyramid, placement) for pyramid, placement in zip(pyramids, placements)])
    shown = np.full(MAX_PIECES + 1, -1, np.int64)
    shown[:2] = a, b
    return Pair(
        *_record(views, rng, light or rng),
        torch.full((2, HEIGHT, WIDTH), OUTSIDE, dtype=torch.uint8),
        torch.eye(3).repeat(MAX_PIECES + 1, 1, 1),
        torch.from_numpy(shown),
        matches=torch.from_numpy(matches),
    )


def _record(views: np.ndarray, rng: np.random.Generator, light: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the views, uint8 (2, H, W), as two cameras record them, and as they are."""
    sharpen(views, rng)
    recorded = [view if light.random() < UNCHANGED else change_light(view, light) for view in views]
    return torch.from_numpy(np.stack(recorded)), torch.from_numpy(views)


def random_homography(rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Return a random rotation, scale, perspective and shift about the view's centre, a (3, 3) matrix of pixels."""
    angle = rng.normal(0, ROTATION_SD * strength)
    scale = np.exp(rng.uniform(-1, 1) * np.log(MAX_SCALE) * strength)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    stretch = np.exp(rng.normal(0, 0.1 * strength))
    similarity = np.array([[cos * stretch, -sin, 0], [sin * stretch, cos, 0], [0, 0, 1]])
    perspective = np.eye(3)
    tilt = rng.normal(0, PERSPECTIVE_SD * strength, 2).clip(-0.8, 0.8)
    perspective[2, :2] = tilt / (WIDTH, HEIGHT)
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    shift = rng.uniform(-SHIFT, SHIFT, 2) * strength * (WIDTH, HEIGHT)
    return _translation(centre + shift) @ similarity @ perspective @ _translation(-centre)


def correspond(xy: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
    """Map pixels of view a to view b.

    Args:
        xy: (N, 2) float, pixels of view a.

    Returns:
        Their positions in view b, (N, 2), and a bool (N,): the position is inside view b and not occluded there.
    """
    label = pair.labels[0][xy[:, 1].round().long(), xy[:, 0].round().long()].long()
    homographies = pair.homographies[label.clamp(max=MAX_PIECES)]
    moved = torch.einsum('nij,nj->ni', homographies, torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1))
    moved_xy = moved[:, :2] / moved[:, 2:].clamp(min=1e-6)
    limit = torch.tensor([WIDTH - 1, HEIGHT - 1], device=xy.device)
    visible = (label != OUTSIDE) & (moved[:, 2] > 1e-6) & ((moved_xy >= 0) & (moved_xy <= limit)).all(dim=1)
    x, y = moved_xy.round().long().minimum(limit).clamp(min=0).unbind(dim=1)
    visible &= pair.labels[1][y, x] == label
    return moved_xy, visible


def sharpen(views: np.ndarray, rng: np.random.Generator) -> None:
    """Sharpen the views, uint8 (2, H, W), in place, more often than not: both as one camera would.

    Photographs of few pixels lack the fine texture of large ones that a SLAM sees shrunk.
    """
    if rng.random() < 0.6:
        amount, radius = rng.uniform(0.2, 1.6), rng.uniform(0.6, 1.2)
        for view in views:
            view[:] = cv2.addWeighted(view, 1 + amount, cv2.GaussianBlur(view, (0, 0), radius), -amount, 0)


def change_light(view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the view, uint8 (H, W), as another camera would record it under other light."""
    image: np.ndarray = view.astype(np.float32) / 255
    if rng.random() < 0.8:
        image **= np.exp(rng.normal(0, 0.4), dtype=np.float32)
    if rng.random() < 0.6:  # smooth shading
        coarse = rng.normal(0, rng.uniform(0.1, 0.4), (3, 4)).astype(np.float32)
        image *= np.exp(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    if rng.random() < 0.25:  # a shadow, or a patch of sunlight
        mask: np.ndarray = np.zeros((HEIGHT, WIDTH), np.float32)
        cv2.fillPoly(mask, [np.round(_random_polygon(rng, 80, 300)).astype(np.int32)], 1.0)
        mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.7, 8))
        image *= 1 + mask * np.float32(rng.uniform(-0.7, 0.5))
    if rng.random() < 0.7:
        contrast, brightness = np.exp(rng.normal(0, 0.25)), rng.normal(0, 0.08)
        image = (image - 0.5) * np.float32(contrast) + np.float32(0.5 + brightness)
    if rng.random() < 0.1:  # fog, or a dirty lens
        kept = np.float32(np.exp(rng.uniform(np.log(0.15), np.log(0.7))))
        image = image * kept + (1 - kept) * np.float32(rng.uniform(0.4, 0.95))
    if rng.random() < 0.1:  # night: little light, so shot noise, and a gain that compensates some of it
        exposure = np.float32(np.exp(rng.uniform(np.log(0.03), np.log(0.3))))
        image = np.maximum(image, 0) * exposure
        image += rng.standard_normal(image.shape, np.float32) * np.sqrt(image * np.float32(0.0004) + np.float32(1e-6))
        image *= exposure ** np.float32(rng.uniform(-1, -0.3))
    kind = rng.random()
    if kind < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6))
    elif kind < 0.4:
        image = cv2.filter2D(image, -1, _motion_kernel(rng))
    if rng.random() < 0.7:
        level = np.exp(rng.uniform(np.log(0.003), np.log(0.05)))
        image += rng.standard_normal(image.shape, np.float32) * np.float32(level)
    result = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(20, 90))
        _, encoded = cv2.imencode('.jpg', result, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
        assert decoded is not None  # what was just encoded
        return decoded
    return result


def _random_placement(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return where view a lies on a photograph of ``shape``: maps the view's pixels to the photograph's."""
    height, width = shape
    fitting = min(width / WIDTH, height / HEIGHT)
    scale = np.exp(rng.uniform(np.log(min(0.8, fitting)), np.log(np.clip(1.1 * fitting, 0.8, 4.0))))
    room = np.maximum(0, [width - scale * WIDTH, height - scale * HEIGHT])
    start = np.array([width - scale * WIDTH, height - scale * HEIGHT]) / 2 + room * rng.uniform(-0.5, 0.5, 2)
    placement = np.array([[scale, 0, start[0]], [0, scale, start[1]], [0, 0, 1]])
    if rng.random() < 0.5:  # mirrored
        placement = placement @ np.array([[-1, 0, WIDTH - 1], [0, 1, 0], [0, 0, 1]])
    return placement


def _random_crop(
    shape: tuple[int, int], centre: np.ndarray, offset: np.ndarray, mirrored: bool, rng: np.random.Generator
) -> np.ndarray:
    """Return where a view lies that shows as much of a photograph of ``shape`` as fits, as `_random_placement` does.

    Args:
        shape: height and width.
        centre: (2,) pixels, near the centre of the view if the photograph goes on there.
        offset: (2,) of it, of the view's size.
        mirrored: from left to right.
        rng: of scale and rotation.
    """
    height, width = shape
    scale = rng.uniform(*CROP) * min(width / WIDTH, height / HEIGHT)
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    room = np.maximum(0, [width - scale * WIDTH, height - scale * HEIGHT]) / 2
    centre = np.clip(centre + offset * scale * (WIDTH, HEIGHT), middle - room, middle + room)
    angle = rng.normal(0, CROP_ROTATION_SD)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    mirror = np.diag([-1.0 if mirrored else 1.0, 1, 1])
    return _translation(centre) @ turn @ mirror @ _translation(-np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]))


def _warp(pyramid: list[np.ndarray], to_photo: np.ndarray) -> np.ndarray:
    """Return the view (H, W) whose pixels ``to_photo`` maps to the photograph's, from the level of its resolution."""
    centre = np.array([[WIDTH / 2, HEIGHT / 2], [WIDTH / 2 + 1, HEIGHT / 2], [WIDTH / 2, HEIGHT / 2 + 1]])
    origin, right, down = cv2.perspectiveTransform(centre[None], to_photo)[0]
    area = abs(np.linalg.det(np.stack([right - origin, down - origin])))
    level = int(np.clip(round(0.5 * np.log2(max(area, 1e-6))), 0, len(pyramid) - 1))
    # Pixel centres are integers: the centre of pixel i of a level lies at (i + 0.5) * 2**level - 0.5 of the photograph.
    shrink = 0.5**level
    to_level = np.array([[shrink, 0, shrink / 2 - 0.5], [0, shrink, shrink / 2 - 0.5], [0, 0, 1]])
    return cv2.warpPerspective(
        pyramid[level],
        to_level @ to_photo,
        (WIDTH, HEIGHT),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def _random_polygon(rng: np.random.Generator, least: float = 25, most: float = 110) -> np.ndarray:
    """Return the corners (N, 2) of a star-shaped polygon in the view; ``least`` and ``most`` bound its radius."""
    corners = rng.integers(3, 9)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(least, most) * rng.uniform(0.6, 1, corners)
    centre = rng.uniform(0, 1, 2) * (WIDTH, HEIGHT)
    return centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _motion_kernel(rng: np.random.Generator) -> np.ndarray:
    """Return a normalised line of 3 to 9 pixels in a random direction."""
    kernel = np.zeros((9, 9), np.float32)
    half, angle = rng.uniform(1, 4), rng.uniform(0, np.pi)
    step = np.array([np.cos(angle), np.sin(angle)]) * half
    ends = np.round([4 - step, 4 + step]).astype(int).tolist()
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return kernel / kernel.sum()


def _corners(width: int, height: int) -> np.ndarray:
    right, bottom = width - 1, height - 1
    return np.array([[0, 0, 1], [right, 0, 1], [right, bottom, 1], [0, bottom, 1]], float)


def _translation(xy: np.ndarray) -> np.ndarray:
    return np.array([[1, 0, xy[0]], [0, 1, xy[1]], [0, 0, 1]])
