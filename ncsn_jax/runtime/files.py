"""Files that survive kills and full disks, and caches of limited size."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file atomically: it appears complete or not at all.

    Args:
      path: the file.
      write: a function that writes to an opened binary file.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def limit_size(directory: Path, size: int) -> None:
    """Delete the least recently read files of a directory until the rest take at most `size`.

    This is safe while other processes do the same, or read and write in the directory.

    Args:
      directory: the directory of the files; its subdirectories are kept.
      size: the limit in bytes.
    """
    found = []
    for path in filter(Path.is_file, directory.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_atime_ns, status.st_size, path))
    for _, num_bytes, path in sorted(found, reverse=True):
        size -= num_bytes
        if size < 0:
            path.unlink(missing_ok=True)


class AppendedFile:
    """A file for appending; data that a full disk refuses wait in memory for the next write."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def append(self, data: bytes) -> None:
        """Add data, for `write` to write."""
        self._pending += data

    def write(self) -> None:
        """Write the pending data; raise an OSError if the disk doesn't take all of it."""
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def sync(self) -> None:
        """Write the pending data, and wait until they would survive a power failure."""
        self.write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; pending data are lost."""
        self._file.close()
