"""Files that are whole whenever the process is killed and whatever the disk takes; caches that stay small."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Writes a file that is there whole or not at all.

    Args:
      path: the file.
      write: writes to an opened binary file.
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
    """Deletes the files of a directory that were not read for longest, until the others take at most `size`.

    Another process may do the same, or read and write there.

    Args:
      directory: of the files; what it has besides is left.
      size: in bytes.
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
    """A file that grows. What a full disk doesn't take is kept, and written when there is space."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)
        self._pending = b""

    def append(self, data: bytes) -> None:
        """Takes data, which `write` writes."""
        self._pending += data

    def write(self) -> None:
        """Writes what is pending; raises an OSError if the disk doesn't take all of it."""
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def sync(self) -> None:
        """As `write`, and returns when it would survive the loss of power."""
        self.write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; what is pending is lost."""
        self._file.close()
