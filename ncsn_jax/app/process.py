"""The program as a process of its own: settings of the whole process, then the command line."""

import gc
import logging
import os
import sys
import warnings
from pathlib import Path

from ncsn_jax.app import cli
from ncsn_jax.runtime import compiling


def run() -> None:
    """Run the program with the words of the command, and exit with its status."""
    _open_streams()
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited")  # see `_unraisable`
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # other tasks of a failed save, likewise
    gc.set_threshold(100_000)  # tracing makes many objects and few cycles
    compiling.set_xla_flags()
    compiling.give_memory_back_after_compilations()
    sys.exit(cli.main(sys.argv))


def _unraisable(unraisable) -> None:
    """Ignore tasks of failed saves and damaged checkpoints that end after Orbax has closed its loop."""
    expected = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(expected):
        sys.__unraisablehook__(unraisable)


def _open_streams() -> None:
    """Replace closed output streams with a sink, and characters that open ones lack with question marks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        else:
            stream.reconfigure(errors="replace")
