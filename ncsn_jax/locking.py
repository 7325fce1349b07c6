"""One writer a directory, for as long as its process lives."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ncsn_jax import hosts
from ncsn_jax.errors import UserError

LOCK = "lock"
"""The file that is locked; what stands in it is who locked it last."""


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Holds a directory, which is made if need be; the kernel lets it go when the process ends, however.

    Raises:
      UserError: if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise UserError(
                f"{directory} is being written by {holder}: wait for it or end it, or choose another "
                "--workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            hosts.say(f"{directory} is on a disk without locks: see that no other process writes there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
