"""A process that measures one thing, when told to: the other end of `benchmarks.performance`.

It imports neither jax nor torch, as each peer's interpreter has only one of them.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], None]
"""Does the work once, and returns when it is done."""


def serve(prepare: Callable[[dict[str, Any]], tuple[Run, float]]) -> None:
    """Measures the case that argv names, once for each line of stdin; answers with lines of JSON.

    The first answer tells what it took until the first run had ended, `compile` (seconds), and what the work
    costs, `flops` (0 if that isn't known); each other one, a run's `seconds`, and the most memory that the
    process held since the second run, `memory` (bytes).

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
        began = time.perf_counter()
        run()
        answer(seconds=time.perf_counter() - began, memory=peak())


def answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


def peak() -> int:
    """The largest resident size of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
