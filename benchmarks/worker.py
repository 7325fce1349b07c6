"""A process that measures one thing, when told to: the other end of `benchmarks.performance`.

It imports neither jax nor torch, as each peer's interpreter has only one of them.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Work(NamedTuple):
    """What is measured.

    Attributes:
      run: does it once, and returns when it is done.
      cost: tells its floating-point operations, `flops`, and the `bytes` that it reads and writes.
    """

    run: Callable[[], None]
    cost: Callable[[], dict[str, float]] = dict


TURN_SECONDS = 1.0
"""How long a turn takes at least."""


def serve(prepare: Callable[[dict[str, Any]], Work]) -> None:
    """Measures the case that argv names, as lines of stdin ask; answers with lines of JSON.

    The first, unasked, tells what it took until the first run had ended, `compile` (seconds). Asked for a
    `turn`, it tells the `seconds` of the turn's median run, and the most memory that the process held since
    the second turn, `memory` (bytes); asked for the `cost`, the work's.

    A turn is two runs, or as many as fill it. The first isn't counted: it finds the processor's caches as
    another process has left them, whereas in training each step follows another step.

    Args:
      prepare: makes the work of a case.
    """
    began = time.perf_counter()
    run, cost = prepare(json.loads(sys.argv[1]))
    run()
    answer(compile=time.perf_counter() - began)
    turns = 0
    for line in sys.stdin:
        if line == "cost\n":
            answer(**cost())
            continue
        turns += 1
        if turns == 2:  # the first warms up
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        answer(seconds=statistics.median(turn(run)[1:]), memory=peak())


def turn(run: Callable[[], None]) -> list[float]:
    """The seconds of each run of a turn."""
    seconds = []
    while len(seconds) < 2 or sum(seconds) < TURN_SECONDS:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


def peak() -> int:
    """The largest resident size of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
