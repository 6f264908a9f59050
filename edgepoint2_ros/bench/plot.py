"""The plot of `edgepoint2 bench`: milliseconds against accuracy where that is known, else bars of milliseconds."""

import html
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgepoint2_ros.bench.report import PACES, TITLES, summarise, title
from edgepoint2_ros.files import write_image

SUFFIXES = ('.svg', '.png')
WIDTH = 800
LEFT, RIGHT = 60, 780  # the sides of the plot with accuracy
HEAD = 44  # above a plot
PLOT = 430  # height of the plot with accuracy, its legend and axis included
ROW = 22  # height of a bar's row
BAR_LEFT, BAR_RIGHT = 280, 720
FOOT = 30
INK, PALE, GRAY = '#222222', '#dddddd', '#888888'
# Told apart by every common kind of colour blindness (Okabe and Ito); black and gray are for what is compared with.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')


class Svg:
    """A picture as SVG; places are in pixels, ``anchor`` is the side of a text that lies at its place."""

    def __init__(self, height: int):
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'font-family="Arial, Helvetica, sans-serif"><rect width="{WIDTH}" height="{height}" fill="white"/>'
        ]

    def line(self, points: Sequence, colour: str, width: float = 1):
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')

    def polygon(self, points: Sequence, colour: str, filled: bool = True):
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
        fill = colour if filled else 'white'
        self._parts.append(f'<polygon points="{path}" fill="{fill}" stroke="{colour}" stroke-width="2"/>')

    def text(self, x: float, y: float, text: str, size: int = 12, colour: str = INK, anchor: str = 'start'):
        style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(text)}</text>')

    def save(self, path: Path):
        path.write_text('\n'.join([*self._parts, '</svg>']) + '\n', encoding='utf-8')


class Png:
    """The same picture as PNG, with two pixels for one."""

    def __init__(self, height: int):
        self._image = np.full((2 * height, 2 * WIDTH, 3), 255, np.uint8)

    def line(self, points: Sequence, colour: str, width: float = 1):
        cv2.polylines(self._image, [_fixed(points)], False, _bgr(colour), round(2 * width), cv2.LINE_AA, 4)

    def polygon(self, points: Sequence, colour: str, filled: bool = True):
        cv2.fillPoly(self._image, [_fixed(points)], _bgr(colour if filled else '#ffffff'), cv2.LINE_AA, 4)
        cv2.polylines(self._image, [_fixed(points)], True, _bgr(colour), 4, cv2.LINE_AA, 4)

    def text(self, x: float, y: float, text: str, size: int = 12, colour: str = INK, anchor: str = 'start'):
        font, scale = cv2.FONT_HERSHEY_SIMPLEX, 2 * size / 30
        (width, _), _ = cv2.getTextSize(text, font, scale, 1)
        left = 2 * x - width * {'start': 0, 'middle': 0.5, 'end': 1}[anchor]
        cv2.putText(self._image, text, (round(left), round(2 * y)), font, scale, _bgr(colour), 1, cv2.LINE_AA)

    def save(self, path: Path):
        write_image(path, self._image)


def _fixed(points: Sequence) -> np.ndarray:
    """Return points of the picture in 1/16 pixel of twice its size, as OpenCV draws them."""
    return np.rint(np.array(points, float) * 2 * 16).astype(np.int32)


def _bgr(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[k : k + 2], 16) for k in (5, 3, 1))


def write_plot(path: Path, report: dict) -> None:
    """Draw the report, one plot for each size of images, into a file of one of SUFFIXES."""
    rows = summarise(report)
    sizes = list(dict.fromkeys(row['contender'].size for row in rows))
    panels = [[row for row in rows if row['contender'].size == size] for size in sizes]
    # A contender whose accuracy failed is named by the table; the others are still worth a plot.
    known = [[row for row in panel if row['accuracy']] for panel in panels]
    drawn = [(_draw_accuracy, panel) for panel in known] if all(known) else [(_draw_bars, panel) for panel in panels]
    heights = [HEAD + (PLOT if draw is _draw_accuracy else ROW * len(panel)) for draw, panel in drawn]
    canvas = (Svg if path.suffix == '.svg' else Png)(sum(heights) + FOOT)
    colours = _choose_colours(rows)
    machine = f'{report["machine"]["processor"]}, {report["machine"]["cores"]} cores'
    top = 0
    for (draw, panel), height in zip(drawn, heights):
        pace = next(iter(panel[0]['paces']))
        heading = f'{PACES[pace]}, {panel[0]["contender"].size}, at most {report["settings"]["keypoints"]} keypoints'
        canvas.text(20, top + 24, heading, 15)
        draw(canvas, top + HEAD, panel, colours)
        top += height
    canvas.text(20, top + FOOT - 10, machine, 11, GRAY)
    canvas.save(path)


def _series(row: dict) -> tuple[str, str]:
    return row['contender'].kind, row['contender'].precision


def _choose_colours(rows: list[dict]) -> dict[tuple[str, str], str]:
    colours = {('orb', ''): INK, ('sift', ''): INK, ('dense', ''): GRAY}
    runtimes = [series for series in dict.fromkeys(map(_series, rows)) if series not in colours]
    return colours | {series: COLOURS[k % len(COLOURS)] for k, series in enumerate(runtimes)}


def _draw_accuracy(canvas, top: float, rows: list[dict], colours: dict) -> None:
    """Draw milliseconds, logarithmic, against MMA@3; the line joins those that no other beats in both."""
    times = np.array([row['ms'] for row in rows])
    shares = np.array([row['accuracy']['MMA@3'] for row in rows])
    fast, slow = times.min() / 1.35, times.max() * 1.2
    low, high = np.floor(shares.min() / 5 - 0.2) * 5, np.ceil(shares.max() / 5 + 0.2) * 5

    def place(ms: float, share: float) -> tuple[float, float]:
        across = np.log(ms / fast) / np.log(slow / fast)
        up = (share - low) / (high - low)
        return LEFT + (RIGHT - LEFT) * across, top + PLOT - 40 - (PLOT - 80) * up

    for ms in [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)]:
        if fast <= ms <= slow:
            x, bottom = place(ms, low)
            canvas.line([(x, bottom), place(ms, high)], PALE)
            canvas.text(x, bottom + 17, f'{ms:g} ms', anchor='middle')
    for share in np.arange(low, high + 1, 5):
        x, y = place(fast, share)
        canvas.line([(x, y), place(slow, share)], PALE)
        canvas.text(x - 8, y + 4, f'{share:.0f}', anchor='end')
    canvas.text(20, top + 30, 'MMA@3, %')
    _draw_legend(canvas, top + 6, rows, colours)

    front, best = [], low
    for k in np.lexsort((-shares, times)):
        if shares[k] > best:
            front += [(times[k], best), (times[k], shares[k])]
            best = shares[k]
    canvas.line([place(*corner) for corner in [*front, (slow, best)]], GRAY, 1.5)
    places = [place(ms, share) for ms, share in zip(times, shares)]
    most = max(row['contender'].threads for row in rows)
    for row, (x, y) in zip(rows, places):
        filled = row['contender'].threads == most
        canvas.polygon(_marker(x, y, row['contender'].model), colours[_series(row)], filled)
    _draw_names(canvas, rows, places)


def _marker(x: float, y: float, model: str) -> list[tuple[float, float]]:
    """Return the corners of a disc for a model, of a square for ORB and SIFT."""
    corners, turn, radius = (16, 0.0, 5.5) if model else (4, np.pi / 4, 7.0)
    angles = turn + np.arange(corners) * 2 * np.pi / corners
    return [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]


def _draw_names(canvas, rows: list[dict], places: list[tuple[float, float]]) -> None:
    """Write each name once, to the left of its fastest point and as near as other points and names allow."""
    boxes = [(x - 6, x + 6, y) for x, y in places]  # left, right and middle of what must not be covered
    named = set()
    for row, (x, y) in sorted(zip(rows, places), key=lambda pair: pair[1]):
        contender = row['contender']
        dense = contender.kind == 'dense'
        name = contender.model or contender.kind.upper()
        if (name, dense) in named:
            continue
        named.add((name, dense))
        left, right = x - 9 - 8 * len(name), x - 9
        middles = (y + shift for shift in (0, 12, -12, 24, -24, 36, -36, 48, -48))
        free = (m for m in middles if all(a > right or b < left or abs(m - other) > 11 for a, b, other in boxes))
        middle = next(free, y)
        boxes.append((left, right, middle))
        canvas.text(right, middle + 4, name, colour=GRAY if dense else INK, anchor='end')


def _draw_legend(canvas, y: float, rows: list[dict], colours: dict) -> None:
    x = 26
    for kind, precision in dict.fromkeys(map(_series, rows)):
        if kind not in ('orb', 'sift'):  # they have their names beside them
            text = f'{TITLES[kind]} {precision}'.strip()
            canvas.polygon(_marker(x, y, text), colours[kind, precision])
            canvas.text(x + 10, y + 4, text)
            x += 28 + 6.2 * len(text)
    *fewer, most = sorted({row['contender'].threads for row in rows})
    if fewer:
        text = f'filled: {most} threads, hollow: {" or ".join(map(str, fewer))}'
        canvas.text(RIGHT, y - 20, text, anchor='end')


def _draw_bars(canvas, top: float, rows: list[dict], colours: dict) -> None:
    """Draw a bar from nothing to the median, with a whisker from 10 to 90 %, for each contender."""
    spreads = [next(iter(row['paces'].values())) for row in rows]
    scale = (BAR_RIGHT - BAR_LEFT) / max(high for _, _, high in spreads)
    for k, (row, (median, low, high)) in enumerate(zip(rows, spreads)):
        y = top + ROW * (k + 0.5)
        threads = row['contender'].threads
        name = f'{title(row["contender"])}, {threads} thread{"s" if threads > 1 else ""}'
        canvas.text(BAR_LEFT - 8, y + 4, name, anchor='end')
        end, low, high = (BAR_LEFT + scale * ms for ms in (median, low, high))
        canvas.polygon([(BAR_LEFT, y - 7), (end, y - 7), (end, y + 7), (BAR_LEFT, y + 7)], colours[_series(row)])
        canvas.line([(low, y), (high, y)], INK, 1.5)
        canvas.text(max(end, high) + 8, y + 4, f'{median:.1f}')
