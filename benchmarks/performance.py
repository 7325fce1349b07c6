"""Speed of this package, compared with PyTorch and with the machine's limits, as one table.

    python -m benchmarks.performance                              # 35 minutes on 2 cores
    python -m benchmarks.performance --torch_python ~/torch/bin/python --only "F=64 28×28×1 ×16"

For each network and batch: a training step, a forward pass and, of NCSN, annealed sampling (ten levels, one
step each), by this package (`benchmarks/jax_worker.py`) and by the same network in plain PyTorch
(`benchmarks/torch_peer.py`), each in its own process. They take turns of at least a second and two runs, the
first of which isn't counted; the table compares the medians of the turns' medians.

- images/s: our speed; × torch: our speed relative to PyTorch's.
- floor: the fraction of our time that is necessary for the work's floating-point operations, as written in
  our program, at the speed of jax's float32 matrix product; and the fraction that is necessary for the bytes
  that the compiled program reads and writes, at the speed of an in-place negation of 256 MiB. Both speeds are
  measured in turns with the rest.
- compile: our seconds from the start of the work to the end of its first run.
- memory: the peak memory of our process and of PyTorch's in the runs, in GiB.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = [(filters, 28, 1, batch) for filters in (32, 64) for batch in (1, 16, 64)]
SIZES += [(64, 32, 3, 16)]
NCSNPP_SIZES = [(filters, 32, 3, 16) for filters in (32, 64)]
TURNS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """Benchmark case: the network's width; the images' side, channels and number; the work; its dtype."""

    filters: int
    side: int
    channels: int
    batch: int
    work: str
    dtype: str = "float32"
    """Floating-point type of our network; PyTorch's is float32."""
    network: str = "NCSN"
    """NCSN, or NCSN++ as for CIFAR-10."""

    def __str__(self) -> str:
        image = f"{self.side}×{self.side}×{self.channels}"
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        network = "" if self.network == "NCSN" else f"{self.network} "
        return f"{network}F={self.filters} {image} ×{self.batch} {self.work}{dtype}"


CASES = [Case(*size, work) for size in SIZES for work in ("step", "forward", "sampling")]
CASES += [Case(128, 28, 1, 16, "forward")]
CASES += [Case(64, 28, 1, 16, work, "bfloat16") for work in ("forward", "sampling")]
CASES += [Case(*size, work, network="NCSN++") for size in NCSNPP_SIZES for work in ("step", "forward")]


class Worker:
    """Process that measures a case."""

    def __init__(self, python: str, module: str, case: Case):
        command = [python, "-m", module, json.dumps(dataclasses.asdict(case))]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        self.name = f"{module} in {python}"
        self.first = self._read()

    def ask(self, question: str) -> dict[str, float]:
        """Return the answer of `benchmarks.worker.serve` to `turn` or `cost`."""
        assert self.process.stdin
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def measure(case: Case, torch_python: str) -> str:
    """Return the case's row of the table."""
    product, negation = (dataclasses.replace(case, work=work) for work in ("matrix product", "negation"))
    with (
        Worker(sys.executable, "benchmarks.jax_worker", case) as ours,
        Worker(torch_python, "benchmarks.torch_peer", case) as theirs,
        Worker(sys.executable, "benchmarks.jax_worker", product) as products,
        Worker(sys.executable, "benchmarks.jax_worker", negation) as negations,
    ):
        workers = ours, theirs, products, negations
        rows = [[worker.ask("turn") for worker in workers] for _ in range(1 + TURNS)][1:]
        cost, of_product, of_negation = (worker.ask("cost") for worker in (ours, products, negations))
    mine, other, one_product, one_negation = (
        statistics.median(row[i]["seconds"] for row in rows) for i in range(len(workers))
    )
    operations = cost["flops"] / of_product["flops"] * one_product
    transfers = cost["bytes"] / of_negation["bytes"] * one_negation
    memory = [max(row[i]["memory"] for row in rows) / 2**30 for i in (0, 1)]
    return (
        f"| {case} | {case.batch / mine:.3g} | {other / mine:.2f} "
        f"| {operations / mine:.0%} + {transfers / mine:.0%} "
        f"| {ours.first['compile']:.0f} | {memory[0]:.2f} : {memory[1]:.2f} |"
    )


def print_table(
    description: str, columns: str, cases: list[Case], measure: Callable[[Case, str], str]
) -> None:
    """Measure the cases that the command line chooses, and print the table row by row."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--torch_python", default=sys.executable, help="Python interpreter with torch")
    parser.add_argument("--only", default="", help="prefix of the cases to measure")
    arguments = parser.parse_args()
    print(columns)
    print("|---" * columns.count(" | ") + "|---|", flush=True)
    for case in cases:
        if str(case).startswith(arguments.only):
            print(measure(case, arguments.torch_python), flush=True)


if __name__ == "__main__":
    print_table(
        "Speed of this package, compared with PyTorch.",
        "| case | images/s | × torch | floor: operations + bytes | compile, s | memory, GiB, ours : torch |",
        CASES,
        measure,
    )
