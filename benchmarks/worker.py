"""Worker process of `benchmarks.performance`, which measures one case on request.

It imports neither jax nor torch, because each peer's interpreter has only one of them.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Work to measure.

    Attributes:
      run: the function that does the work once, and returns when it is done.
      cost: the function that returns its floating-point operations, `flops`, and the `bytes` that it reads
        and writes.
    """

    run: Callable[[], None]
    cost: Callable[[], dict[str, float]] = dict


TURN_SECONDS = 1.0
"""Smallest duration of a turn, in seconds."""


def serve(prepare: Callable[[dict[str, Any]], Work]) -> None:
    """Measure the case in argv on requests from stdin, and answer with lines of JSON.

    The first answer needs no request: `compile`, the seconds to the end of the first run. The answer to
    `turn` has the `seconds` of the turn's median run, and `memory`, the peak bytes of the process since the
    second turn. The answer to `cost` is the cost of the work.

    A turn has at least two runs and lasts at least `TURN_SECONDS`. Its first run isn't counted: it finds the
    processor's caches as another process left them, whereas in training each step follows another step.

    Args:
      prepare: the function that makes the work of a case.
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
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        answer(seconds=statistics.median(turn(run)[1:]), memory=peak())


def turn(run: Callable[[], None]) -> list[float]:
    """Run one turn, and return the seconds of each run."""
    seconds = []
    while len(seconds) < 2 or sum(seconds) < TURN_SECONDS:
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


def answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


def peak() -> int:
    """Return the peak resident size of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
