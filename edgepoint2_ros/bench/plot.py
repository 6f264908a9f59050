"""The plot of `edgepoint2 bench`: milliseconds against accuracy if that is known, else bars of milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.bench.report import PACES, TITLES, summarise, title
from edgepoint2_ros.drawing import COLOURS, import_matplotlib

SUFFIXES = ('.svg', '.png')
INK, GRAY = '#222222', '#888888'  # for the baselines


def write_plot(path: Path, report: dict[str, Any]) -> None:
    """Draw the report, one plot for each size of images, into a file of one of SUFFIXES.

    Raises:
        EdgePoint2Error: matplotlib is not installed.
    """
    figure_type, rc_context = import_matplotlib()
    rows = summarise(report)
    sizes = list(dict.fromkeys(row['contender'].size for row in rows))
    panels = [[row for row in rows if row['contender'].size == size] for size in sizes]
    # A contender whose accuracy failed is listed in the table; the others are still worth a plot.
    known = [[row for row in panel if row['accuracy']] for panel in panels]
    draw = _draw_accuracy if all(known) else _draw_bars
    panels = known if all(known) else panels
    heights = [4.5 if all(known) else 0.6 + 0.26 * len(panel) for panel in panels]
    figure = figure_type(figsize=(9, sum(heights) + 0.5), layout='constrained', dpi=150)
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    colours = _choose_colours(rows)
    for axis, panel, size in zip(axes, panels, sizes):
        pace = f'ms {PACES[next(iter(panel[0]["paces"]))]}'
        axis.set_title(f'{size}, at most {report["settings"]["keypoints"]} keypoints', loc='left')
        axis.set_xlabel(pace)
        axis.spines[['top', 'right']].set_visible(False)
        draw(axis, panel, colours)
    figure.supxlabel(f'{report["machine"]["processor"]}, {report["machine"]["cores"]} cores', fontsize=8, color=GRAY)
    # Text as text, so that an SVG can be searched and needs no fonts of its own.
    with rc_context({'svg.fonttype': 'none'}):
        figure.savefig(path)


def _series(row: dict[str, Any]) -> tuple[str, str]:
    return row['contender'].kind, row['contender'].precision


def _choose_colours(rows: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    colours = {('orb', ''): INK, ('sift', ''): INK, ('dense', ''): GRAY, ('official', ''): GRAY}
    runtimes = [series for series in dict.fromkeys(map(_series, rows)) if series not in colours]
    return colours | {series: COLOURS[k % len(COLOURS)] for k, series in enumerate(runtimes)}


def _draw_accuracy(axis: Any, rows: list[dict[str, Any]], colours: dict[tuple[str, str], str]) -> None:
    """Draw milliseconds, logarithmic, against MMA@3; the line is the Pareto front."""
    *fewer, most = sorted({row['contender'].threads for row in rows})
    front: list[tuple[float, float]] = []
    named = set()
    for row in sorted(rows, key=lambda row: (row['ms'], -row['accuracy']['MMA@3'])):
        contender, share = row['contender'], row['accuracy']['MMA@3']
        colour = colours[_series(row)]
        face = colour if contender.threads == most else 'white'
        axis.plot(row['ms'], share, 'o' if contender.model else 's', color=colour, markerfacecolor=face, markersize=7)
        name = contender.model or contender.kind.upper()
        if (name, colour == GRAY) not in named:  # once, at its fastest point
            named.add((name, colour == GRAY))
            place = {'xytext': (-7, 4), 'textcoords': 'offset points', 'ha': 'right'}
            axis.annotate(name, (row['ms'], share), color=GRAY if colour == GRAY else INK, **place)
        if not front or share > front[-1][1]:
            front.append((row['ms'], share))
    axis.step(*zip(*front), where='post', color=GRAY, linewidth=1, zorder=0)
    axis.set_xscale('log')
    low, high = min(row['ms'] for row in rows) / 1.35, max(row['ms'] for row in rows) * 1.2
    axis.set_xlim(low, high)
    ticks = [digit * 10.0**power for power in range(-2, 5) for digit in (1, 2, 5)]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high], minor=False)
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_formatter('')
    axis.set_ylabel('MMA@3, %')
    axis.grid(color='#e8e8e8')
    for kind, precision in dict.fromkeys(map(_series, rows)):
        if kind not in ('orb', 'sift'):  # they have their names beside them
            axis.plot([], [], 'o', color=colours[kind, precision], label=f'{TITLES[kind]} {precision}'.strip())
    note = f'filled: {most} threads, hollow: {" or ".join(map(str, fewer))}' if fewer else None
    axis.legend(loc='lower right', fontsize=8, title=note, title_fontsize=8)


def _draw_bars(axis: Any, rows: list[dict[str, Any]], colours: dict[tuple[str, str], str]) -> None:
    """Draw a bar up to the median, with a whisker from the 10th to the 90th percentile, for each contender."""
    spreads = np.array([next(iter(row['paces'].values())) for row in rows])
    names = []
    for row in rows:
        threads = row['contender'].threads
        names.append(f'{title(row["contender"])}, {threads} thread{"s" if threads > 1 else ""}')
    medians, low, high = spreads.T
    places = np.arange(len(rows))
    error = [medians - low, high - medians]
    axis.barh(places, medians, xerr=error, color=[colours[_series(row)] for row in rows], ecolor=INK, capsize=2)
    for place, median, end in zip(places, medians, high):
        axis.annotate(f'{median:.1f}', (end, place), xytext=(5, 0), textcoords='offset points', va='center')
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set_xlim(0, high.max() * 1.12)
