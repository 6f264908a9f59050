"""The plan cache: plans that TensorRT built, kept for the next start.

A plan is a file with a JSON sidecar, which holds the key (everything that the plan was built for) and the SHA-256 of
the plan. A plan is returned only if its key matches and its bytes are intact: another may crash TensorRT. Files are
replaced atomically, and a lock keeps two processes from building the same plan at once.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgepoint2_ros.progress import Report
from edgepoint2_ros.storage import cache_directory, sha256, write_whole

LOCK_POLL = 0.2  # seconds between two checks of a lock that another process holds
REPORT_PERIOD = 5.0  # seconds between two lines about something slow

Key = dict[str, str]


def provide(path: Path, key: Key, build: Callable[[], bytes], report: Report) -> bytes:
    """Return the plan at ``path`` if it was built for ``key``, else build it and keep it there.

    A cache that cannot be written (read-only, disk full) is reported; the plan then serves this process only.

    Args:
        path: where the plan is kept; its folder is created.
        key: what the plan must have been built for.
        build: builds the plan; its exceptions are passed on, and nothing is kept.
        report: called with lines for the user.
    """
    plan, reason = load(path, key)
    if plan is not None:
        return plan
    with _lock(path, report) as waited:
        if waited:
            plan, reason = load(path, key)
            if plan is not None:
                return plan
        if reason:
            report(f'{reason}: rebuilding')
        plan = build()
        try:
            store(path, key, plan)
        except OSError as error:
            report(f'cannot write the plan to {path.parent} ({error.strerror}): the next start will rebuild it')
    return plan


def load(path: Path, key: Key) -> tuple[bytes | None, str]:
    """Return the bytes at ``path`` and '', or None and why they cannot be used ('' if there are none)."""
    try:
        entry = json.loads(_sidecar(path).read_text(encoding='utf-8'))
        held, digest = dict(entry['key']), entry['sha256']
    except FileNotFoundError:
        return None, ''
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f'{_sidecar(path)} cannot be read ({error})'
    if held != key:
        names = [name for name in {**held, **key} if held.get(name) != key.get(name)]
        built = ', '.join(f'{name} {held.get(name, "unknown")}' for name in names)
        asked = ', '.join(f'{name} {key.get(name, "unknown")}' for name in names)
        return None, f'{path.name} was built for {built}; this is {asked}'
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, f'{path} cannot be read ({error.strerror})'
    if sha256(data) != digest:
        return None, f'{path} is corrupt: SHA-256 mismatch in {len(data)} bytes'
    return data, ''


def store(path: Path, key: Key, data: bytes) -> None:
    """Store ``data`` at ``path`` with its sidecar.

    Raises:
        OSError: it cannot be written; what was there before is still there, or counts as damaged.
    """
    entry = {'key': key, 'sha256': sha256(data), 'written': time.strftime('%Y-%m-%dT%H:%M:%S%z')}
    # The sidecar goes last: a crash between the two leaves a plan that does not match, never a wrong one that does.
    write_whole(path, data)
    write_whole(_sidecar(path), json.dumps(entry, indent=2).encode() + b'\n')


def discard(path: Path) -> None:
    """Delete what is kept at ``path``, as far as possible."""
    for file in (_sidecar(path), path):
        with contextlib.suppress(OSError):
            file.unlink()


def list_plans() -> list[tuple[Path, Key]]:
    """Return the plans in the user's cache and what each was built for; the key is empty if it cannot be read."""
    plans = []
    for path in sorted(cache_directory().glob('*.plan')):
        try:
            plans.append((path, dict(json.loads(_sidecar(path).read_text(encoding='utf-8'))['key'])))
        except (OSError, ValueError, KeyError, TypeError):
            plans.append((path, {}))
    return plans


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + '.json')


@contextlib.contextmanager
def _lock(path: Path, report: Report) -> Iterator[bool]:
    """Hold the lock of ``path``; yields whether another process held it before.

    The kernel releases it when a process ends, however that happens. If locking is not possible, work goes on without.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(path.name + '.lock'), os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError:
        handle = None
    try:
        yield handle is not None and _wait_for(handle, path, report)
    finally:
        if handle is not None:
            os.close(handle)


def _wait_for(handle: int, path: Path, report: Report) -> bool:
    """Take the lock of an open file; returns whether another process held it."""
    start = told = time.monotonic()
    waited = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            now = time.monotonic()
            if not waited or now - told >= REPORT_PERIOD:
                told = now
                report(f'not ready: another process is building {path.name}, waited {now - start:.0f} s')
            waited = True
            time.sleep(LOCK_POLL)
        except OSError:  # a network file system without locks
            return waited
