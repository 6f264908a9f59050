"""The bag that an extraction writes: it grows by parts, and after any interruption it is readable up to the last one.

Each part is a complete file that is listed in metadata.yaml only once it is safely on disk.
"""

import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from ruamel.yaml import YAML

from edgepoint2_ros.bridges.recordings import load_metadata
from edgepoint2_ros.errors import BagError, EdgePoint2Error
from edgepoint2_ros.storage import put_in_place

STORAGES = ('mcap', 'sqlite3')
VERSION: Final = 8  # of rosbag2's metadata: the newest that Humble reads, too
_STATE = 'edgepoint2'  # key in the bag's custom data


@dataclass
class Progress:
    """The progress of an extraction: messages read, among them images of `total`, and of these the unusable ones."""

    read: int = 0
    images: int = 0
    bad: int = 0
    complete: bool = False
    total: int = 0


class Output:
    """The bag being written: parts on disk and one that is growing."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        # Name, type, definition as Writer.add_connection takes it.
        self.topics: list[tuple[str, str, dict[str, Any]]] = []
        self.progress = Progress()
        self._folder = folder
        self._settings = settings
        self._growing = folder / 'part.tmp'
        self._metadata = folder / 'metadata.yaml'
        self._first = folder / f'{folder.name}_0{_suffix(settings["storage"])}'
        self._info: dict[str, Any] | None = None  # rosbag2's metadata
        self._writer: Writer | None = None
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> 'Output':
        with _disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._resume()
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise BagError(f'{self._folder} is being written by another process') from None
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            # An error of the source keeps what was read before it; an error of the disk keeps the earlier parts, and so
            # does Ctrl-C, which may come between any two steps.
            if self._writer is not None:
                if isinstance(error, EdgePoint2Error) and error.__cause__ is None:
                    self.commit()
                else:
                    with suppress(Exception):
                        self._writer.abort()
            if self._metadata.exists() or not self._first.exists():  # otherwise it says whose the first part is
                shutil.rmtree(self._growing, ignore_errors=True)
            with suppress(OSError):  # what failed before the first part leaves nothing
                self._folder.rmdir()
        finally:
            os.close(self._lock)

    def write(self, topic: str, timestamp: int, data: bytes | memoryview) -> None:
        """Append a message to the growing part."""
        with _disk_errors(self._folder):
            writer = self._open_part() if self._writer is None else self._writer
            writer.write(self._connections[topic], timestamp, data)

    def commit(self) -> None:
        """Flush the growing part and the progress to disk."""
        with _disk_errors(self._folder):
            if self._writer is None and self._info is None:  # a bag without messages is a bag, too
                self._open_part()
            if self._writer is not None:
                part = self._writer.path
                self._writer.close()
                self._writer = None
                info = load_metadata(part)
                file = part / info['relative_file_paths'][0]
                put_in_place(file, self._folder / file.name)
                self._info = info if self._info is None else _join(self._info, info)
            assert self._info is not None  # what was written, or was there before
            self._info['custom_data'] = {
                _STATE: json.dumps({**self._settings, **vars(self.progress)}, sort_keys=True),
            }
            text = io.StringIO()
            yaml = YAML(typ='safe')
            yaml.default_flow_style = False
            yaml.dump({'rosbag2_bagfile_information': self._info}, text)
            draft = self._folder / 'metadata.tmp'
            draft.write_text(text.getvalue(), encoding='utf-8')
            put_in_place(draft, self._metadata)
            shutil.rmtree(self._growing, ignore_errors=True)

    def _resume(self) -> None:
        info = load_metadata(self._folder) if self._metadata.exists() else {}
        state = parse_state(info.get('custom_data'))
        if state is None:
            ours = {'metadata.tmp'}
            # A kill between writing the first part's file and listing it in the metadata leaves both of these. The file
            # alone may be an interrupted recording, which must not be overwritten.
            if self._growing.exists():
                ours |= {self._growing.name, self._first.name}
            foreign = sorted(path.name for path in self._folder.iterdir() if path.name not in ours)
            if foreign:
                raise BagError(f'{self._folder} is not empty and no bag of this command: it holds {foreign[0]}')
            self._first.unlink(missing_ok=True)
            shutil.rmtree(self._growing, ignore_errors=True)
            return
        shutil.rmtree(self._growing, ignore_errors=True)
        for name, value in self._settings.items():
            if state.get(name) != value:
                raise BagError(
                    f'{self._folder} was made with another {name}: {state.get(name)!r}, now {value!r} is asked for; '
                    f'choose another output, or remove it'
                )
        self.progress = Progress(**{name: state[name] for name in vars(self.progress)})
        self._info = info

    def _open_part(self) -> Writer:
        number = 0 if self._info is None else len(self._info['relative_file_paths'])
        path = self._growing / f'{self._folder.name}_{number}'
        self._writer = writer = Writer(
            path, version=VERSION, storage_plugin=StoragePlugin[self._settings['storage'].upper()]
        )
        writer.open()
        self._connections = {
            name: writer.add_connection(name, kind, **definition) for name, kind, definition in self.topics
        }
        return writer


def _join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return rosbag2's metadata of two bags with the same topics, the second after the first."""
    # A part without messages, because no image in it was usable, has no time.
    timed = [info for info in (first, second) if info['message_count']] or [first]
    starts = [info['starting_time']['nanoseconds_since_epoch'] for info in timed]
    ends = [start + info['duration']['nanoseconds'] for start, info in zip(starts, timed)]
    counts = {t['topic_metadata']['name']: t['message_count'] for t in second['topics_with_message_count']}
    topics = [
        {**topic, 'message_count': topic['message_count'] + counts[topic['topic_metadata']['name']]}
        for topic in first['topics_with_message_count']
    ]
    return {
        **first,
        'relative_file_paths': first['relative_file_paths'] + second['relative_file_paths'],
        'files': first['files'] + second['files'],
        'starting_time': {'nanoseconds_since_epoch': min(starts)},
        'duration': {'nanoseconds': max(ends) - min(starts)},
        'message_count': first['message_count'] + second['message_count'],
        'topics_with_message_count': topics,
    }


def parse_state(custom_data: Any) -> dict[str, Any] | None:
    """Return settings and progress from a bag's custom data, or None if there are none."""
    try:
        state = json.loads(custom_data[_STATE])
        return state if isinstance(state, dict) else None
    except Exception:  # another program's, or damaged
        return None


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except EdgePoint2Error:
        raise
    except Exception as error:  # OSError, and what SQLite makes of one
        raise BagError(f'{folder} cannot be written: {error}') from error


def _suffix(storage: str) -> str:
    return {'mcap': '.mcap', 'sqlite3': '.db3'}[storage]
