"""A process that measures one thing, when told to: the other end of `benchmarks.performance`.

It imports neither jax nor torch, as each peer's interpreter has only one of them.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], None]
"""Does the work once, and returns when it is done."""

TURN_SECONDS = 1.0
"""How long a turn takes at least."""


def serve(prepare: Callable[[dict[str, Any]], tuple[Run, float]]) -> None:
    """Measures the case that argv names, in a turn for each line of stdin; answers with lines of JSON.

    A turn is two runs, or as many as fill it. The first isn't counted: it finds the processor's caches as
    another process has left them, whereas in training each step follows another step.

    The first answer tells what it took until the first run had ended, `compile` (seconds), and what the work
    costs, `flops` (0 if that isn't known); each other one, the `seconds` of a turn's median run, and the most
    memory that the process held since the second turn, `memory` (bytes).

    Args:
      prepare: makes, of a case, the work and its number of floating-point operations.
    """
    began = time.perf_counter()
    run, flops = prepare(json.loads(sys.argv[1]))
    run()
    answer(compile=time.perf_counter() - began, flops=flops)
    for number, _ in enumerate(sys.stdin):
        if number == 1:  # the first warms up
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        answer(seconds=statistics.median(turn(run)[1:]), memory=peak())


def turn(run: Run) -> list[float]:
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
