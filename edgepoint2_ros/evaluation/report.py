"""The evaluation's outputs: a text table, a CSV file and one self-contained HTML page."""

import csv
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.drawing import COLOURS, draw_matches, import_matplotlib, to_data_url
from edgepoint2_ros.errors import EdgePoint2Error
from edgepoint2_ros.evaluation import metrics
from edgepoint2_ros.evaluation.benchmark import (
    CORNER_THRESHOLDS,
    MATCH_THRESHOLDS,
    POSE_THRESHOLDS,
    RIGHT,
    RIGHT_EPIPOLAR,
    Picture,
    Result,
    compare,
    summarise,
)

COUNTS = ('keypoints', 'matches')  # columns that are not percentages
DIFFERENCES = 'difference (standard error)'
DRAWN_MATCHES = 200  # maximum number of lines in one picture
MAX_PICTURE_ROWS = 6  # pairs in the page

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 1rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.best { font-weight: 700; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(26rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { width: 100%; } figcaption { font-size: .85rem; color: #555; }
"""


def table_columns(row: dict[str, Any]) -> list[str]:
    """Return the columns of the short table for a summary row."""
    if 'right' in row:
        return ['keypoints', 'matches', 'right', *(f'AUC@{degrees}' for degrees in POSE_THRESHOLDS)]
    accuracies = [f'MMA@{pixels}' for pixels in (1, 3, 5)]
    return ['keypoints', 'matches', 'repeatability', *accuracies, *(f'homography@{px}' for px in CORNER_THRESHOLDS)]


def format_table(results: Sequence[Result], rivals: Sequence[tuple[str, str]]) -> str:
    """Return the summary as text: for each benchmark and group the methods, then their lead over their rivals.

    Args:
        results: of all methods on the same pairs.
        rivals: names of a method and of the one it is compared with.
    """
    lines = []
    for title, rows, gains in _blocks(results, rivals):
        columns = table_columns(rows[0])
        table = [['method', *columns], *([row['method'], *_cells(row, columns)] for row in rows)]
        compared = [[_versus(row), *_gain_cells(row, columns)] for row in gains]
        widths = [max(map(len, column)) for column in zip(*table, *compared)]
        lines.append(title)
        for first, *cells in [*table, *([[DIFFERENCES], *compared] if compared else [])]:
            others = (cell.rjust(width) for cell, width in zip(cells, widths[1:]))
            lines.append('  '.join(['', first.ljust(widths[0]), *others]).rstrip())
        lines.append('')
    return '\n'.join(lines)


def write_csv(path: Path, results: Sequence[Result], options: Mapping[str, float]) -> None:
    """Write one row per pair and method; shares are fractions, errors in pixels (homographies) or degrees (poses).

    ``options``: options of the command, by name, that results must share to be comparable; each is a column.
    """
    estimations = max(len(result.errors) for result in results)
    with Path(path).open('w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(
            ['benchmark', 'group', 'pair', 'digest', 'method', 'sources', *options]
            + ['keypoints', 'matches', 'right', 'repeatability']
            + [f'error_{number}' for number in range(estimations)]
            + [f'accuracy_{pixels}px' for pixels in MATCH_THRESHOLDS]
        )
        for result in results:
            errors = result.errors.tolist()
            accuracy = [''] * len(MATCH_THRESHOLDS) if result.accuracy is None else result.accuracy.tolist()
            writer.writerow(
                [result.benchmark, result.group, result.pair, result.digest, result.method, '|'.join(result.sources)]
                + [*options.values(), result.keypoints, result.matches, result.right]
                + ['' if result.repeatability is None else result.repeatability]
                + [*errors, *[''] * (estimations - len(errors)), *accuracy]
            )


def read_csv(path: Path, options: Mapping[str, float]) -> list[Result]:
    """Return the results that `write_csv` wrote.

    Raises:
        EdgePoint2Error: the file cannot be read, is not such a file, or was made with other options.
    """
    results = []
    try:
        with Path(path).open(newline='', encoding='utf-8', errors='surrogateescape') as file:
            for row in csv.DictReader(file):
                for name, expected in options.items():
                    if float(row[name]) != expected:
                        option = '--' + name.replace('_', '-')
                        raise EdgePoint2Error(f'{path} was made with {option} {row[name]}: expected {expected}')
                accuracy = [row[f'accuracy_{pixels}px'] for pixels in MATCH_THRESHOLDS]
                results.append(
                    Result(
                        benchmark=row['benchmark'],
                        group=row['group'],
                        pair=row['pair'],
                        digest=row['digest'],
                        method=row['method'],
                        sources=tuple(row['sources'].split('|')),
                        keypoints=float(row['keypoints']),
                        matches=int(row['matches']),
                        right=float(row['right']),
                        repeatability=float(row['repeatability']) if row['repeatability'] else None,
                        accuracy=np.array(accuracy, float) if all(accuracy) else None,
                        errors=np.array([row[name] for name in row if name.startswith('error_') and row[name]], float),
                    )
                )
        if not results:
            raise ValueError('no results')
    except OSError as error:
        raise EdgePoint2Error(f'{path} cannot be read: {error.strerror}') from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise EdgePoint2Error(
            f'{path}: expected results.csv of this version of `edgepoint2 evaluate`: {error}'
        ) from None
    return results


def write_page(
    path: Path,
    results: Sequence[Result],
    rivals: Sequence[tuple[str, str]],
    pictures: Sequence[Picture],
    settings: dict[str, str],
    command: str,
) -> None:
    """Write the HTML page; ``settings`` (name to value) and ``command`` document how it was made.

    Raises:
        EdgePoint2Error: matplotlib is not installed.
    """
    methods = list(dict.fromkeys(result.method for result in results))
    colours = dict(zip(methods, itertools.cycle((*COLOURS, '#000000', '#999999'))))
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>EdgePoint2 evaluation</title>',
        f'<style>{_STYLE}</style><h1>EdgePoint2 evaluation</h1>',
    ]
    for title, rows, gains in _blocks(results, rivals):
        parts.append(f'<h2>{html.escape(title)}</h2>{_html_table(rows, gains)}')
        parts.append(f'<div class="charts">{_charts(rows, results, colours)}</div>')
    if pictures:
        parts.append(
            f'<h2>Matches</h2><p>Green: right (at most {RIGHT:g} px off; for poses at most {RIGHT_EPIPOLAR:g} px from '
            f'the epipolar line); red: wrong. At most {DRAWN_MATCHES} lines are drawn.</p>{_gallery(pictures)}'
        )
    parts.append(_protocol(settings, command))
    Path(path).write_text('\n'.join(parts), encoding='utf-8', errors='backslashreplace')


def _blocks(
    results: Sequence[Result], rivals: Sequence[tuple[str, str]]
) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Return for each benchmark and group a title, its summary rows and its comparisons."""
    blocks: dict[Any, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    scenes = {result.group for result in results if result.accuracy is None}
    for row in summarise(results):
        block = blocks.setdefault((row['benchmark'], row['group']), ([], []))
        block[0].append(row)
    for gain in compare(results, rivals):
        blocks[gain['benchmark'], gain['group']][1].append(gain)
    titled = []
    for (benchmark, group), (rows, gains) in blocks.items():
        part = group
        if group == 'all':
            part = f'mean of {len(scenes - {"all"})} scenes' if 'right' in rows[0] and scenes - {'all'} else ''
        title = ', '.join(filter(None, (benchmark, part)))
        titled.append((f'{title} ({rows[0]["pairs"]} pairs)', rows, gains))
    return titled


def _cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    return [f'{row[column]:.0f}' if column in COUNTS else f'{row[column]:.1f}' for column in columns]


def _gain_cells(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    cells = []
    for column in columns:
        digits = 0 if column in COUNTS else 1
        gain, error = row[column]
        known = '-' if np.isnan(error) else f'{error:.{digits}f}'
        cells.append(f'{round(gain, digits) + 0.0:+.{digits}f} ({known})')  # + 0.0: there is no -0.0
    return cells


def _versus(row: dict[str, Any]) -> str:
    variant, _, rest = row['rival'].partition(' ')
    return f'{row["method"]} - {rest if rest and row["method"].startswith(f"{variant} ") else row["rival"]}'


def _html_table(rows: Sequence[dict[str, Any]], gains: Sequence[dict[str, Any]]) -> str:
    columns = table_columns(rows[0])
    best = {column: max(row[column] for row in rows) for column in columns if column not in COUNTS}
    body = ''.join(f'<th>{html.escape(column)}</th>' for column in ['method', *columns])
    for row in rows:
        cells = ''.join(
            f'<td{" class=best" if row[column] == best.get(column) else ""}>{cell}</td>'
            for column, cell in zip(columns, _cells(row, columns))
        )
        body += f'<tr><td>{html.escape(row["method"])}</td>{cells}</tr>'
    if gains:
        body += f'<tr><td colspan={len(columns) + 1}>{html.escape(DIFFERENCES)}</td></tr>'
    for row in gains:
        cells = ''.join(f'<td>{cell}</td>' for cell in _gain_cells(row, columns))
        body += f'<tr><td>{html.escape(_versus(row))}</td>{cells}</tr>'
    return f'<div class=wide><table>{body}</table></div>'


def _charts(rows: Sequence[dict[str, Any]], results: Sequence[Result], colours: dict[str, str]) -> str:
    benchmark, group = rows[0]['benchmark'], rows[0]['group']
    own = [result for result in results if result.benchmark == benchmark and group in ('all', result.group)]
    errors = {
        row['method']: np.concatenate([result.errors for result in own if result.method == row['method']])
        for row in rows
    }
    if own[0].accuracy is None:
        degrees = np.arange(0, 21)
        shares = {method: 100 * metrics.share_within(errors[method], degrees) for method in errors}
        return _line_chart('Poses found, %', 'pose error, degrees', degrees, shares, colours)
    matching = {row['method']: np.array([row[f'MMA@{pixels}'] for pixels in MATCH_THRESHOLDS]) for row in rows}
    pixels = np.arange(0, 11)
    shares = {method: 100 * metrics.share_within(errors[method], pixels) for method in errors}
    return _line_chart(
        'Mean matching accuracy, %', 'threshold, pixels', np.array(MATCH_THRESHOLDS), matching, colours
    ) + _line_chart('Homographies found, %', 'corner error, pixels', pixels, shares, colours)


def _line_chart(title: str, axis: str, x: np.ndarray, series: dict[str, np.ndarray], colours: dict[str, str]) -> str:
    """Return an SVG line chart of percentages over ``x``, its legend beside it."""
    figure_type, rc_context = import_matplotlib()
    # Text as text, and IDs that follow from the content: the same results give the same page.
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': title, 'font.family': 'sans-serif', 'font.size': 9}):
        figure = figure_type(figsize=(6, 3), layout='constrained')
        axes = figure.subplots()
        for method, percents in series.items():
            axes.plot(x, percents, color=colours[method], label=method)
        axes.set_title(title, loc='left', fontweight='bold')
        axes.set_xlabel(axis)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(0, 100)
        axes.grid(axis='y', color='#ddd')
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
        file = io.StringIO()
        figure.savefig(file, format='svg', metadata={'Date': None})
    return file.getvalue()[file.getvalue().index('<svg') :]


def _gallery(pictures: Sequence[Picture]) -> str:
    """Return pictures of some pairs, spread evenly, with all methods of a pair side by side."""
    pairs = list(dict.fromkeys((picture.benchmark, picture.pair) for picture in pictures))
    chosen = [pairs[i] for i in sorted(set(np.linspace(0, len(pairs) - 1, MAX_PICTURE_ROWS).round().astype(int)))]
    parts = []
    for benchmark, pair in chosen:
        parts.append(f'<h3>{html.escape(f"{benchmark}: {pair}")}</h3><div class="pictures">')
        for picture in pictures:
            if (picture.benchmark, picture.pair) != (benchmark, pair):
                continue
            drawn = draw_matches(
                picture.image_a, picture.image_b, picture.matched_a, picture.matched_b, picture.right, DRAWN_MATCHES
            )
            caption = f'{picture.method}: {np.count_nonzero(picture.right)} of {len(picture.right)} right'
            caption, source = html.escape(caption), to_data_url(drawn, 80)
            parts.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
        parts.append('</div>')
    return ''.join(parts)


def _protocol(settings: dict[str, str], command: str) -> str:
    rows = ''.join(f'<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>' for k, v in settings.items())
    return f"""<h2>Protocol</h2>
<p>Made by <code>{html.escape(command)}</code>. Every method gets the same images, shrunk to the same long side, and
the same number of keypoints; ORB and SIFT are OpenCV's with its defaults. Matches are mutual nearest neighbours
(cosine for EdgePoint2, L2 for SIFT, Hamming for ORB) without any ratio test. EdgePoint2 computes in fp32.</p>
<ul>
<li><b>Repeatability</b>: of the keypoints in the area that both images show, the share with a counterpart within 3 px
in the other image.</li>
<li><b>MMA@t</b>: the share of a pair's matches within t px of the true place, averaged over pairs; a pair without
matches counts 0.</li>
<li><b>homography@t</b>: the share of estimated homographies that move the corners by at most t px on average from
where they belong.</li>
<li><b>right</b>: the share of a pair's matches within {RIGHT_EPIPOLAR:g} px of the true epipolar line, averaged over
pairs.</li>
<li><b>AUC@t</b>: the area under the curve of pose errors up to t degrees, averaged over the estimations; the error is
the larger of the angles of rotation and translation; a pair without a pose counts as 180 degrees.</li>
<li>Homographies and poses are by poselib's LO-RANSAC with {metrics.RANSAC_THRESHOLD:g} px (homographies) or
{metrics.EPIPOLAR_THRESHOLD:g} px (poses), at most {metrics.MAX_ITERATIONS} iterations and confidence
{metrics.CONFIDENCE:g}.</li>
<li><b>{DIFFERENCES}</b>: the mean of the differences scene by scene and pair by pair; the error is how much it would
vary with other images of these scenes, where pairs with an image in common are not taken for independent.</li>
<li><b>synthetic</b> pairs: a photograph on a wall, seen by a camera that walks around it up to 60 degrees, 0.65 to
1.5 times as far away, rolled up to 45 degrees (viewpoint), or that stays while lamp, exposure, gamma and noise change
(light).</li>
<li><b>rooms</b>: photographs hung at 3 to 8 m before a wall that is a photograph too, rendered with their true parallax
for two cameras up to 1.5 m apart, 640x480.</li>
</ul><table>{rows}</table>"""
