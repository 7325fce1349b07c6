"""Communication of the devices in a training step, and a model of the step's time on a pod.

    python -m benchmarks.collectives configs/digits.py configs/mnist.py

Counted: the all-reduces of the step as exported for TPU, and as compiled here for four CPU devices, each with
a quarter of the config's batch; the bytes that they reduce; the floating-point operations of a device.
Modelled, not measured on a TPU, for N chips with as many examples each: the milliseconds of a step, compute +
all-reduce, and in brackets the efficiency, the share of compute in it.
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator

import jax
from jax import export

from benchmarks.speed import load, of_noise, training
from ncsn_jax.app.config import Config

DEVICES = 4
CHIPS = tuple(2**k for k in range(3, 13))

# StableHLO puts the operands' types after the reduction, HLO puts the results' types before it.
ALL_REDUCE = re.compile(
    r'"stablehlo\.all_reduce".*?\}\) : \((.*?)\) ->|= ([^\n]*?) all-reduce(?:-start)?\(', re.DOTALL
)
ARRAY = re.compile(r"tensor<((?:\d+x)*)(\w+)>|(\w+)\[([\d,]*)\]")
BYTES = {"i1": 1, "pred": 1, "bf16": 2, "i32": 4, "s32": 4, "f32": 4}

AllReduces = list[list[tuple[str, int]]]
"""Types and sizes of the arrays of each all-reduce."""


def all_reduces(program: str) -> AllReduces:
    """Return the all-reduces in the text of a StableHLO or HLO program."""
    return [
        [
            (kind + hlo_kind, math.prod(map(int, re.findall(r"\d+", sides + hlo_sides))))
            for sides, kind, hlo_kind, hlo_sides in ARRAY.findall(stablehlo + hlo)
        ]
        for stablehlo, hlo in ALL_REDUCE.findall(program)
    ]


def reduced_bytes(reduced: AllReduces) -> int:
    """Return the total number of bytes that all-reduces reduce."""
    return sum(BYTES[kind] * size for arrays in reduced for kind, size in arrays)


@dataclasses.dataclass(frozen=True)
class Step:
    """Counts of a training step, from its programs.

    Attributes:
      parameters: the number of the network's parameters.
      exported: the all-reduces for TPU, before its compiler combines them.
      compiled: the all-reduces as combined by the compiler here.
      batch: the number of examples on one device.
      flops: the floating-point operations of one device.
    """

    parameters: int
    exported: AllReduces
    compiled: AllReduces
    batch: int
    flops: float


def count(config: Config) -> Step:
    """Export and compile a config's training step, without running it."""
    experiment = of_noise(config)
    step, batches = training(experiment)
    state = experiment.abstract_state()
    arguments = (state, next(batches), jax.random.key(0))
    exported = export.export(jax.jit(step), platforms=["tpu"])(*arguments)
    compiled = [program.compile() for program in step.lowered(*arguments)]
    return Step(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        exported=all_reduces(exported.mlir_module()),
        compiled=[reduced for program in compiled for reduced in all_reduces(program.as_text() or "")],
        batch=config.training.batch_size // jax.device_count(),
        flops=sum((program.cost_analysis() or {})["flops"] for program in compiled),
    )


@dataclasses.dataclass(frozen=True)
class Chip:
    """Chip of a pod: TPU v4 as published (Jouppi et al. 2023, arXiv:2304.01433), and two assumptions.

    Attributes:
      peak: the floating-point operations per second, in bfloat16.
      utilisation: the fraction of the peak that a step reaches (an assumption).
      bandwidth: the bytes per second to a neighbour, by one of the six links.
      latency: the seconds to a neighbour (an assumption).
    """

    peak: float = 275e12
    utilisation: float = 0.3
    bandwidth: float = 50e9
    latency: float = 1e-6

    def compute_seconds(self, flops: float) -> float:
        """Compute FLOPs / (peak · utilisation)."""
        return flops / (self.peak * self.utilisation)

    def all_reduce_seconds(self, num_chips: int, num_bytes: float, num_all_reduces: int = 1) -> float:
        """Compute 2 (N−1)/N · bytes / bandwidth + all-reduces · hops · latency.

        Rings reduce-scatter along each axis of the torus in turn, and all-gather on the way back. A chip
        sends as many bytes as in one ring of all N chips, with only 2 Σ (side − 1) hops.
        """
        hops = 2 * sum(side - 1 for side in torus(num_chips))
        sent = 2 * (num_chips - 1) / num_chips * num_bytes
        return sent / self.bandwidth + num_all_reduces * hops * self.latency


def torus(num_chips: int) -> tuple[int, int, int]:
    """Return the sides of the torus of `num_chips` chips that is nearest to a cube.

    Raises:
      ValueError: if the number isn't a power of 2.
    """
    exponent = num_chips.bit_length() - 1
    if num_chips != 2**exponent:
        raise ValueError(f"found {num_chips} chips; accepted: a power of 2")
    return 2 ** (exponent // 3), 2 ** ((exponent + 1) // 3), 2 ** ((exponent + 2) // 3)


def rows(step: Step, chip: Chip) -> Iterator[tuple[str, str]]:
    """Yield a step's column of the table: the name and the entry of each row."""
    compute, num_bytes = chip.compute_seconds(step.flops), reduced_bytes(step.compiled)
    yield "parameters", f"{step.parameters:,}"
    yield "all-reduces as exported for TPU", f"{len(step.exported)}"
    yield "bytes reduced as exported", f"{reduced_bytes(step.exported):,}"
    yield "all-reduces as compiled here", f"{len(step.compiled)}"
    yield "bytes reduced as compiled", f"{num_bytes:,}"
    yield "GFLOP an example", short(step.flops / step.batch / 1e9)
    yield "examples a chip", f"{step.batch}"
    yield "compute, ms", short(1e3 * compute)
    all_reduce = {n: chip.all_reduce_seconds(n, num_bytes, len(step.compiled)) for n in CHIPS}
    for num_chips, seconds in all_reduce.items():
        total = compute + seconds
        yield f"{num_chips:,} chips, ms", f"{short(1e3 * total)} ({100 * compute / total:.0f} %)"
    for num_chips in (CHIPS[0], CHIPS[-1]):
        half = short(step.batch * all_reduce[num_chips] / compute)
        yield f"examples a chip for 50 % on {num_chips:,} chips", half


def short(number: float) -> str:
    """Format a number to three digits, without an exponent for large ones."""
    return f"{float(f'{number:.3g}'):,g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Communication of the devices in a step, and its time.")
    parser.add_argument("configs", nargs="+", metavar="configs/NAME.py[:ARGUMENT]")
    for field in dataclasses.fields(Chip):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    chip = vars(parser.parse_args())
    names = chip.pop("configs")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    columns = [dict(rows(count(load(name)), Chip(**chip))) for name in names]
    print(f"| | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    for row in columns[0]:
        print(f"| {row} | {' | '.join(column[row] for column in columns)} |")


if __name__ == "__main__":
    main()
