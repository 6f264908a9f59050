"""Where this package keeps its own files, and how it writes and checks them."""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def cache_directory() -> Path:
    """Return the user's folder for what can be regenerated: plans, decoded photographs."""
    return _user_directory('XDG_CACHE_HOME', '.cache')


def data_directory() -> Path:
    """Return the user's folder of models and weights."""
    return _user_directory('XDG_DATA_HOME', '.local/share')


def _user_directory(variable: str, default: str) -> Path:
    """Return a folder of this package by the XDG base directory rules: in $variable, else in ~/``default``."""
    base = os.environ.get(variable, '')
    if os.path.isabs(base):  # the rules ask to ignore relative paths
        return Path(base) / 'edgepoint2'
    try:
        home = Path.home()
    except RuntimeError:  # a container's user without a name
        home = Path('/nonexistent')  # as Debian calls the home of users who have none
    return home / default / 'edgepoint2'


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one step, as `replacing` does.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` when the block ends; its folder is created.

    After an exception, a kill or a power cut there is the old file or the new one, never a partial one. A link stays a
    link: its target is replaced.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
    try:
        with unfinished.open('xb') as file:
            yield file
        put_in_place(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def drafting(path: Path) -> Iterator[Path]:
    """Yield where to write a file that replaces ``path`` when the block ends, as with `replacing`.

    For libraries that open the file by themselves, and may write others beside it. These are removed.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'{path.name}.', suffix='.part', dir=path.parent) as folder:
        yield Path(folder) / path.name
        put_in_place(Path(folder) / path.name, path)


def put_in_place(finished: Path, path: Path) -> None:
    """Move a finished file to ``path`` on the same disk, so that it is there as a whole or not at all.

    Raises:
        OSError: it cannot be flushed to the disk or moved.
    """
    _sync(finished)
    os.replace(finished, path)
    _sync(path.parent)  # the new name


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
