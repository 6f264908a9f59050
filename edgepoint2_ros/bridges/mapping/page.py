"""The page of a map: cameras and points to rotate and zoom, tracks and matches, in one self-contained file."""

import base64
import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edgepoint2_ros.drawing import draw_matches, draw_points, to_data_url, write_caption
from edgepoint2_ros.extractor import fit
from edgepoint2_ros.images import read_image
from edgepoint2_ros.storage import write_whole

MOST_POINTS = 40_000  # of the view, those seen most often
THUMBNAIL, HALF = 240, 480  # long sides of an image in the list and in a pair, pixels
PAIRS = 6  # pictures of neighbours and of images that are far apart, each
FAR = 10  # positions in the order of images from which a pair is far apart
LONGEST = 20  # images that see a point; the table has one sum for points seen by more
_QUALITY = 75


def write_page(path: Path, title: str, model: str, summary: Mapping[str, Any], output: Path) -> None:
    """Write the page of a map.

    Args:
        path: the file.
        title: name of the source.
        model: description of the extractor.
        summary: fields of a Summary.
        output: folder of the map, with images/ and sparse/0.
    """
    reconstruction = pycolmap.Reconstruction(output / 'sparse' / '0')
    images = sorted((image for image in reconstruction.images.values() if image.has_pose), key=lambda i: i.name)
    folder = output / 'images'
    view, indices = _view(reconstruction, images)
    seen = {image.name: {p.point3D_id: p.xy for p in image.points2D if p.has_point3D()} for image in images}
    view['images'] = [
        {
            'name': image.name,
            'picture': _thumbnail(folder / image.name, seen[image.name], reconstruction),
            'sees': sorted(indices[number] for number in seen[image.name] if number in indices),
        }
        for image in images
    ]
    near, far = _choose_pairs(images, seen)
    text = (resources.files(__package__) / 'page.html').read_text(encoding='utf-8')
    values = {
        'TITLE': html.escape(title),
        'MODEL': html.escape(model),
        'FACTS': _facts(summary),
        'TRACKS': _histogram([point.track.length() for point in reconstruction.points3D.values()]),
        'NEAR': ''.join(_pair(folder, a, b, seen) for a, b in near),
        'FAR': ''.join(_pair(folder, a, b, seen) for a, b in far) or '<p>none</p>',
        'VIEW': json.dumps(view, separators=(',', ':')).replace('</', '<\\/'),
    }
    for name, value in values.items():
        text = text.replace(f'{{{{{name}}}}}', value)
    write_whole(path, text.encode(errors='backslashreplace'))  # names of files need not be UTF-8


def _facts(summary: Mapping[str, Any]) -> str:
    facts = (
        ('images in the map', f'{summary["registered"]} of {summary["images"]}'),
        ('pairs that overlap', f'{summary["matched"]} of {summary["pairs"]} that were matched'),
        ('points', f'{summary["points"]:,}'),
        ('images that see a point', f'{summary["track_length"]:.1f}'),
        ('reprojection error', f'{summary["error"]:.2f} px'),
    )
    rows = ''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in facts)
    left_out = summary['left_out']
    return f'<dl>{rows}</dl>' + (f'<p>Not in the map: {html.escape(", ".join(left_out))}</p>' if left_out else '')


def _view(model: pycolmap.Reconstruction, images: Sequence[pycolmap.Image]) -> tuple[dict[str, Any], dict[int, int]]:
    """Return points and cameras for the view, and the index of each point in it by its id."""
    numbers = sorted(model.points3D, key=lambda number: -model.points3D[number].track.length())[:MOST_POINTS]
    points = np.array([model.points3D[number].xyz for number in numbers]).reshape(-1, 3)
    colours = np.array([model.points3D[number].color for number in numbers], np.uint8)
    turns = np.array([image.cam_from_world().rotation.matrix().T for image in images])  # columns: axes of the camera
    centres = np.array([image.projection_center() for image in images])
    # Down is the mean of the cameras' y axes, so that the picture does not depend on COLMAP's choice of axes.
    down, ahead = turns[:, :, 1].mean(axis=0), turns[:, :, 2].mean(axis=0)
    down /= max(np.linalg.norm(down), 1e-9)
    right = np.cross(down, ahead)
    if np.linalg.norm(right) < 1e-3:  # the cameras look all around
        right = np.cross(down, np.eye(3)[np.argmin(np.abs(down))])
    right /= np.linalg.norm(right)
    axes = np.stack([right, down, np.cross(right, down)])
    middle = np.median(points, axis=0)
    # Distant background points do not make the rest small.
    size = max(np.median(np.linalg.norm(points - middle, axis=1)), np.linalg.norm(centres - middle, axis=1).max())
    points, centres = (points - middle) @ axes.T / size, (centres - middle) @ axes.T / size
    view = {
        'points': _pack(points.astype('<f4')),
        'colours': _pack(colours),
        'cameras': [[*centre.round(5).tolist(), *(axes @ turn).round(5).ravel().tolist()]
                    for centre, turn in zip(centres, turns)],
        'shape': [[camera.width / camera.mean_focal_length() / 2, camera.height / camera.mean_focal_length() / 2]
                  for camera in (model.cameras[image.camera_id] for image in images)],
    }  # fmt: skip
    return view, {number: place for place, number in enumerate(numbers)}


def _thumbnail(path: Path, points: Mapping[int, np.ndarray], model: pycolmap.Reconstruction) -> str:
    """Return an image with its points, coloured by the number of images that see each: two blue, ten and more red."""
    image, scale = _shrink(read_image(path), THUMBNAIL)
    xy = np.array([*points.values()]).reshape(-1, 2) * scale - 0.5
    lengths = np.array([model.points3D[number].track.length() for number in points])
    return to_data_url(draw_points(image, xy, (lengths - 2) / 8), _QUALITY)


def _choose_pairs(
    images: Sequence[pycolmap.Image], seen: Mapping[str, Mapping[int, np.ndarray]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return pairs of neighbours from all over the map, and pairs far apart in the order that share the most points."""
    names = [image.name for image in images]
    neighbours = [(a, b) for a, b in zip(names, names[1:]) if seen[a].keys() & seen[b].keys()]
    places = np.unique(np.linspace(0, len(neighbours) - 1, PAIRS).astype(int)).tolist() if neighbours else []
    common = Counter({
        (a, b): len(seen[a].keys() & seen[b].keys()) for k, a in enumerate(names) for b in names[k + FAR :]
    })  # fmt: skip
    far: list[tuple[str, str]] = []
    used: set[str] = set()
    for pair, count in common.most_common():
        if count and len(far) < PAIRS and not used & {*pair}:
            far.append(pair)
            used |= {*pair}
    return [neighbours[place] for place in places], far


def _pair(folder: Path, a: str, b: str, seen: Mapping[str, Mapping[int, np.ndarray]]) -> str:
    common = sorted(seen[a].keys() & seen[b].keys())
    (first, first_scale), (second, second_scale) = (_shrink(read_image(folder / name), HALF) for name in (a, b))
    first_xy = np.array([seen[a][number] for number in common]) * first_scale - 0.5
    second_xy = np.array([seen[b][number] for number in common]) * second_scale - 0.5
    picture = draw_matches(first, second, first_xy, second_xy, np.ones(len(common), bool), lines=100)
    picture = write_caption(picture, f'{a}   {b}   {len(common)} points in common')
    return f'<img alt="{html.escape(f"{a} and {b}")}" src="{to_data_url(picture, _QUALITY)}">'


def _histogram(lengths: Sequence[int]) -> str:
    """Return a table of how many points are seen by how many images, with bars."""
    counts = np.bincount(np.minimum(lengths, LONGEST))
    rows = ''.join(
        f'<tr><th>{length}{"+" if length == LONGEST else ""}<td>{count:,}'
        f'<td><div style="width: {count / counts.max():.1%}"></div>'
        for length, count in enumerate(counts.tolist())
        if length >= 2
    )
    return f'<table><tr><th>images<th>points{rows}</table>'


def _shrink(image: np.ndarray, long_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of that size, and the factors of x and y."""
    smaller, scale = fit(image, long_side)
    return smaller, scale.diagonal()[:2]


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
