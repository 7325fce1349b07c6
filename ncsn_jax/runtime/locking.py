"""Locks that admit one writer at a time, for the lifetime of its process."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import UserError


@contextlib.contextmanager
def only_writer(workdir: Path, what: str = "") -> Iterator[None]:
    """Lock a run, or a named part of it, for writing until the process ends, for whatever reason.

    The kernel releases the lock. A part is a subdirectory with its own lock, such as `eval` with `eval.lock`;
    the name "" stands for the run itself, with `lock`.

    Args:
      workdir: the run's directory, created if missing; the lock file in it names the last holder.

    Raises:
      UserError: if another process holds the lock.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / lock_name(what)).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise UserError(
                f"{workdir / what} is being written by {holder}: wait for it, stop it, or choose another "
                "workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            processes.say(
                f"{workdir} is on a disk without locks: make sure that no other process writes there"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def lock_name(what: str = "") -> str:
    """Return the name of the lock file."""
    return f"{what}.lock" if what else "lock"


@contextlib.contextmanager
def first_is_only_writer(workdir: Path, what: str) -> Iterator[None]:
    """Lock like `only_writer`, with the first process holding the lock for all."""
    with contextlib.ExitStack() as stack:
        processes.by_first(lambda: stack.enter_context(only_writer(workdir, what)))
        yield
