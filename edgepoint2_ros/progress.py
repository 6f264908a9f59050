"""How long-running work reports to the user: a progress line at the command line, and messages."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar('Item')
Report = Callable[[str], None]  # takes a message for the user

INTERVAL = 0.5  # seconds between two updates on a terminal
LOG_INTERVAL = 30.0  # seconds between two lines in a file


def show_progress(items: Iterable[Item], label: str, total: int = 0, done: int = 0) -> Iterator[Item]:
    """Yield the items while a line on stderr shows how many are done, the rate and the remaining time.

    Args:
        items: what is left to do.
        label: what is being done.
        total: the number of all items, those done included; 0 if unknown.
        done: items that were done before.
    """
    terminal = sys.stderr.isatty()
    start = shown = time.monotonic()
    count = done
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - shown < (INTERVAL if terminal else LOG_INTERVAL) and count != total:
            continue
        shown = now
        rate = (count - done) / max(now - start, 1e-9)
        line = f'{label} {count}, {rate:.1f}/s'
        if total:
            left = int((total - count) / rate)
            line = f'{label} {count}/{total}, {rate:.1f}/s, {left // 60}:{left % 60:02d} left'
        print(f'\r{line}\033[K' if terminal else line, end='' if terminal else '\n', file=sys.stderr, flush=True)
    if terminal and count > done:
        print(file=sys.stderr)
