"""What `edgepoint2 bench` measured, as Markdown."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepoint2_ros.bench.worker import LONG_SIDE, Contender
from edgepoint2_ros.engines import BACKENDS
from edgepoint2_ros.errors import EdgePoint2Error

FORMAT = 'edgepoint2 bench 2'  # of the file that --json writes
TITLES = {
    'orb': 'ORB (OpenCV)',
    'sift': 'SIFT (OpenCV)',
    'dense': 'dense reference, PyTorch',
    'official': 'official code and weights, PyTorch',
    'auto': '',  # its precision is auto
    **{name: backend.title for name, backend in BACKENDS.items()},
}
PACES = {
    'camera': 'at 30 Hz',
    'back-to-back': 'back to back',
    'cold': 'cold',
    '15-hz': 'at 15 Hz',
    '10-hz': 'at 10 Hz',
}

_NOTES = """\
Milliseconds are medians (10 to 90 %); ratios are of medians. Cold: a frame every 250 ms, and before each the caches
are filled with something else. CPU ms: of all threads, a frame, with the pauses between frames; this and the ratio to
the dense reference are at the pace that stands first. As fp32: of the best 1000 keypoints of ONNX Runtime in fp32 on
a drawn scene, the share found within a pixel, and the median cosine of the descriptors. First features: since the
start of the process, interpreter and imports included. Peak memory: all that was resident, the interpreter, its
libraries, the model and the frames. All rows of a variant have the same weights, but for the official code, which has
its own."""
_ACCURACY_NOTE = """\
MMA@3 (the share of matches within 3 px) and repeatability are in percent, of {pairs} synthetic pairs with long sides of
at most {side} px, with the same model, runtime and precision that were timed."""


def read_report(path: Path) -> dict[str, Any]:
    """Return what --json wrote.

    Raises:
        EdgePoint2Error: the file cannot be read, or is not a report.
    """
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise EdgePoint2Error(f'{path} cannot be read: {error}') from None
    if not isinstance(report, dict) or report.get('format') != FORMAT:
        raise EdgePoint2Error(f'{path}: expected what `edgepoint2 bench --json` of this version writes')
    return report


def title(contender: Contender) -> str:
    """Return the name of a contender, without its size and threads."""
    runtime = f'{TITLES[contender.kind]} {contender.precision}'.strip()
    return f'{contender.model}, {runtime}' if contender.model else runtime


def summarise(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each contender that ran: its ``contender`` and ``accuracy``, and over all its runs the rest.

    ``paces``: for each pace the 50th, 10th and 90th percentile in ms; ``ms``: the 50th of the first pace.
    ``cpu_ms``, ``keypoints``: means; ``first_s``: the median; ``peak_mb``: the maximum.
    ``orb``: for each pace the median as a multiple of ORB's at the same size and threads, and ``dense``: ``ms`` as a
    multiple of the dense reference's; empty and None if they did not run. ``fidelity``: of `bench.worker`, or None.
    """
    rows = [_row(result) for result in report['results'] if result['runs']]
    paces = {row['contender']: row['paces'] for row in rows}
    medians = {row['contender']: row['ms'] for row in rows}
    for row in rows:
        orb = paces.get(replace(row['contender'], kind='orb', model='', precision=''), {})
        row['orb'] = {pace: row['paces'][pace][0] / orb[pace][0] for pace in row['paces'] if pace in orb}
        dense = replace(row['contender'], kind='dense', precision='')
        row['dense'] = row['ms'] / medians[dense] if dense in medians else None
    return rows


def _row(result: dict[str, Any]) -> dict[str, Any]:
    runs = result['runs']
    times = {pace: np.concatenate([run['paces'][pace]['ms'] for run in runs]) for pace in runs[0]['paces']}
    paces = {pace: np.percentile(values, [50, 10, 90]) for pace, values in times.items()}
    first = next(iter(paces))
    return {
        'contender': Contender(**result['contender']),
        'accuracy': result.get('accuracy'),
        'fidelity': result.get('fidelity'),
        'paces': paces,
        'ms': paces[first][0],
        'cpu_ms': np.mean([run['paces'][first]['cpu_ms'] for run in runs]),
        'keypoints': np.mean([run['paces'][first]['keypoints'] for run in runs]),
        'first_s': np.median([run['first_s'] for run in runs]),
        'peak_mb': max(run['peak_mb'] for run in runs),
    }


def format_report(report: dict[str, Any]) -> str:
    """Return a table for each image size, what was left out and why, the cameras, the machine and notes."""
    rows = summarise(report)
    parts = []
    for size in dict.fromkeys(row['contender'].size for row in rows):
        parts.append(f'{size}:\n\n{_table([row for row in rows if row["contender"].size == size])}')
    parts.append(_list_choices(rows))
    parts.append(_list_errors(report['results']))
    if report['cameras']:
        parts.append(_camera_table(report['cameras']))
    parts += [format_machine(report), _NOTES]
    accuracy = next((row['accuracy'] for row in rows if row['accuracy']), None)
    if accuracy:
        parts[-1] += '\n' + _ACCURACY_NOTE.format(pairs=accuracy['pairs'], side=LONG_SIDE)
    return '\n\n'.join(filter(None, parts))


def format_machine(report: dict[str, Any]) -> str:
    """Return the machine and the settings in one line."""
    machine, settings = report['machine'], report['settings']
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    how = '{rounds} x {frames} frames, at most {keypoints} keypoints'.format(**settings)
    if settings.get('busy'):
        how += f', beside {settings["busy"]} busy process{"es" if settings["busy"] > 1 else ""}'
    return f'{machine["processor"]}, {machine["cores"]} cores; {versions}; {how}'


def _table(rows: list[dict[str, Any]]) -> str:
    columns = {
        'extractor': [title(row['contender']) for row in rows],
        'threads': [row['contender'].threads for row in rows],
    }
    for pace in rows[0]['paces']:
        columns[f'ms {PACES[pace]}'] = ['{:.1f} ({:.1f} to {:.1f})'.format(*row['paces'][pace]) for row in rows]
    columns['CPU ms'] = [f'{row["cpu_ms"]:.1f}' for row in rows]
    columns['keypoints'] = [f'{row["keypoints"]:.0f}' for row in rows]
    columns['first features, s'] = [f'{row["first_s"]:.2f}' for row in rows]
    columns['peak memory, MB'] = [f'{row["peak_mb"]:.0f}' for row in rows]
    if any(row['fidelity'] for row in rows):
        columns['as fp32'] = [
            '{share:.1f} % ({cosine:.4f})'.format(**row['fidelity']) if row['fidelity'] else '' for row in rows
        ]
    if any(row['accuracy'] for row in rows):
        for name in ('MMA@3', 'repeatability'):
            columns[name] = [f'{row["accuracy"][name]:.1f}' if row['accuracy'] else '' for row in rows]
    for pace in rows[0]['paces']:
        columns[f'times ORB {PACES[pace]}'] = [f'{row["orb"][pace]:.2f}' if row['orb'] else '' for row in rows]
    faster = ['' if row['dense'] in (None, 1) else f'{1 / row["dense"]:.1f}x' for row in rows]
    columns['faster than the dense reference'] = faster
    return markdown(columns)


def _list_choices(rows: list[dict[str, Any]]) -> str:
    """Return a line for each model and size with the choice of auto."""
    lines = []
    for row in rows:
        if row['contender'].kind == 'auto' and row['fidelity']:
            lines.append(f'- auto, {row["contender"].model}, {row["contender"].size}: {row["fidelity"]["engine"]}')
    return '\n'.join(lines)


def _list_errors(results: list[dict[str, Any]]) -> str:
    """Return a line for each runtime and precision that failed, however many models, threads and sizes it was for."""
    lines = []
    for result in results:
        if result['error']:
            lines.append(f'- {title(replace(Contender(**result["contender"]), model=""))}: {result["error"]}')
    return '\n'.join(dict.fromkeys(lines))


def _camera_table(rows: list[dict[str, Any]]) -> str:
    return markdown(
        {
            'cameras at 30 Hz': [row['cameras'] for row in rows],
            'share': [row['model'] for row in rows],
            'frames a second served': [f'{row["fps"]:.1f}' if 'fps' in row else row['error'] for row in rows],
            '95 % within ms': [f'{row["p95_ms"]:.1f}' if 'fps' in row else '' for row in rows],
        }
    )


def markdown(columns: dict[str, list[Any]]) -> str:
    """Return a table of columns, each a name and its cells."""
    lines = [' | '.join(columns), '|'.join(['---', *['---:'] * (len(columns) - 1)])]
    lines += [' | '.join(map(str, cells)) for cells in zip(*columns.values())]
    return '\n'.join(f'| {line} |' if k != 1 else f'|{line}|' for k, line in enumerate(lines))
