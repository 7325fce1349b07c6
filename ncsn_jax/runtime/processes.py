"""Communication between the processes of a program; a single process is a group of one.

On a TPU pod, under Slurm or on GKE, every host runs one process with an identical command.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ncsn_jax.runtime.errors import ArgumentError, UserError

T = TypeVar("T")

logger = logging.getLogger("ncsn_jax")


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connect to the other processes, if there are any; call this before any computation.

    Without arguments, jax finds them through the cluster: a TPU pod, Slurm, Open MPI or GKE. Without a
    cluster, or with `num_processes=1`, this process runs alone.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: the number of processes.
      process_id: the number of this process, from 0.

    Raises:
      UserError: if only some of the arguments are given, they are invalid, or the other processes aren't
        found.
    """
    given = (coordinator_address, num_processes, process_id)
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if any(value is not None for value in given) and None in given:
        raise ArgumentError(
            "coordinator_address, num_processes and process_id: some are missing; accepted: all of them, "
            "none, or num_processes=1"
        )
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ArgumentError(
            f"process_id={process_id}: accepted: 0 to {num_processes - 1}, because "
            f"num_processes={num_processes}"
        )
    if coordinator_address is not None:  # jax would wait minutes for an invalid address
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ArgumentError(
                f"coordinator_address={coordinator_address}: accepted: HOST:PORT of process 0, such as "
                "10.0.0.1:1234"
            )
    is_named = coordinator_address is not None or "JAX_COORDINATOR_ADDRESS" in os.environ
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of clusters that can't be detected
            jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except ValueError as error:
        if is_named:
            place = coordinator_address or os.environ["JAX_COORDINATOR_ADDRESS"]
            raise UserError(f"the coordinator's address {place}: {error}") from error
    except RuntimeError as error:
        if not is_named and "before any JAX calls" in str(error) and jax.process_count() == 1:
            return  # a single process, such as a notebook
        raise UserError(f"the other processes aren't found ({' '.join(str(error).split())[:200]})") from error


def is_first() -> bool:
    """Return whether this is the first process, which writes the shared files."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """Log a notice for the user, in the first process only."""
    if is_first():
        logger.warning(message)


def exchange(text: str) -> list[str]:
    """Return the texts of all processes, in their order; every process must call this."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(own.size))
    padded = np.zeros(lengths.max() + 1, np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def any_of(flag: bool) -> bool:
    """Return whether any process has set its flag; every process must call this."""
    return any(exchange("x" if flag else ""))


def wait_for_all(what: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def together(function: Callable[[], T]) -> T:
    """Call a function in every process; a user's mistake in one of them is raised in all.

    Raises:
      UserError: the error of the first process that has one.
    """
    result: Any = None
    kind, message = "", ""
    cause = None
    try:
        result = function()
    except (UserError, OSError) as error:
        kind = ArgumentError.__name__ if isinstance(error, ArgumentError) else UserError.__name__
        message, cause = " ".join(str(error).splitlines()), error
    for process, other in enumerate(exchange(f"{kind}\n{message}")):
        kind, _, message = other.partition("\n")
        if kind:
            place = f" (process {process})" if jax.process_count() > 1 else ""
            error = ArgumentError if kind == ArgumentError.__name__ else UserError
            raise error(f"{message}{place}") from cause
    return result


def by_first(function: Callable[[], object]) -> None:
    """Call a function in the first process while the others wait; its error is raised in every process."""
    together(lambda: function() if is_first() else None)


def from_first(function: Callable[[], str]) -> str:
    """Return a function's text from the first process; its error is raised in every process."""
    return exchange(together(lambda: function() if is_first() else ""))[0]


def require_equal(facts: Mapping[str, Any]) -> None:
    """Check that the facts are equal in all processes.

    Raises:
      UserError: if they differ; it compares process 0 with the first process that differs from it.
    """
    everyones = [json.loads(text) for text in exchange(json.dumps(dict(facts)))]
    for process, other in enumerate(everyones):
        names = [n for n in everyones[0] | other if everyones[0].get(n) != other.get(n)]
        if names:
            found = ", ".join(f"{n}={other.get(n)!r}, not {everyones[0].get(n)!r}" for n in names[:5])
            raise UserError(
                f"process {process} has {found} like process 0: run the same version of the program, with "
                "the same settings and data, on every host"
            )
