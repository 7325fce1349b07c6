"""One writer at a time, for as long as its process lives."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ncsn_jax import hosts
from ncsn_jax.errors import UserError


@contextlib.contextmanager
def only_writer(workdir: Path, what: str = "") -> Iterator[None]:
    """Holds what a process writes in a directory; the kernel lets it go when the process ends, however.

    Args:
      workdir: the directory, made if need be; it gets a file `lock`, in which stands who has held it last.
      what: "" is the run itself; a directory in it is held by itself, `eval` by `eval.lock`.

    Raises:
      UserError: if another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / lock_name(what)).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise UserError(
                f"{workdir / what} is being written by {holder}: wait for it or end it, or choose another "
                "--workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            hosts.say(f"{workdir} is on a disk without locks: see that no other process writes there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def lock_name(what: str = "") -> str:
    """The file that is locked."""
    return f"{what}.lock" if what else "lock"


@contextlib.contextmanager
def first_is_only_writer(workdir: Path, what: str) -> Iterator[None]:
    """As `only_writer`, of several processes: the first holds it for all."""
    with contextlib.ExitStack() as stack:
        hosts.by_first(lambda: stack.enter_context(only_writer(workdir, what)))
        yield
