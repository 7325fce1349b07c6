"""Upper bound of the speed with XLA's convolutions: the speed of networks if all else took no time.

    python -m benchmarks.convolutions --torch_python ~/torch/bin/python --only "F=64 28×28×1 ×16"

Every convolution of a step, including its gradients, or of a forward pass is run alone, as XLA for CPUs
computes it by Eigen (as in our step) and by oneDNN (as in our forward pass), in turns with PyTorch's whole
work and jax's matrix product. The best turns count. The table has the sums by Eigen, and by the better
library for each convolution, which XLA can't combine in one program.

- × torch: the speed of these convolutions alone, relative to PyTorch's whole work.
- floor: their fraction of the floor's speed, as in `benchmarks.performance`.
"""

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, jaxprs_in_params

from benchmarks.jax_worker import experiment_of
from benchmarks.performance import CASES, TURNS, Case, Worker, print_table
from benchmarks.speed import training
from ncsn_jax.runtime.compiling import inference_options, set_xla_flags

RUNS = 5
"""Runs of each convolution in each turn."""


def convolutions(jaxpr) -> Iterator[JaxprEqn]:
    """Yield the convolutions of a jaxpr and of the jaxprs in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from convolutions(inner)


def of_case(case: Case) -> Counter[JaxprEqn]:
    """Count the different convolutions of a training step or forward pass."""
    experiment = experiment_of(dataclasses.asdict(case))
    step, batches = training(experiment)
    state, batch = experiment.abstract_state(), next(batches)
    if case.work == "step":
        jaxpr = jax.make_jaxpr(step)(state, batch, jax.random.key(0))
    else:
        x, sigma = jnp.ones(batch["examples"].shape[1:]), jnp.ones(case.batch)
        jaxpr = jax.make_jaxpr(experiment.model.apply)({"params": state.params}, x, sigma)
    alike: dict[str, list[JaxprEqn]] = {}
    for equation in convolutions(jaxpr.jaxpr):
        signature = f"{[variable.aval for variable in equation.invars]} {equation.params}"
        alike.setdefault(signature, []).append(equation)
    return Counter({equations[0]: len(equations) for equations in alike.values()})


def compiled(equation: JaxprEqn, options: dict[str, Any]) -> Callable[[], jax.Array]:
    """Compile a convolution alone, with arguments of ones."""
    arguments = [jnp.ones_like(v.aval) for v in equation.invars]  # pyright: ignore[reportArgumentType]
    convolve = jax.jit(
        lambda *arguments: equation.primitive.bind(*arguments, **equation.params), compiler_options=options
    )
    return lambda: jax.block_until_ready(convolve(*arguments))


def best_seconds(convolve: Callable[[], jax.Array]) -> float:
    """Return the seconds of the fastest run."""
    seconds = []
    for _ in range(1 + RUNS):
        began = time.perf_counter()
        convolve()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def measure(case: Case, torch_python: str) -> str:
    """Return the case's row of the table."""
    number = of_case(case)
    ways = {e: [compiled(e, options) for options in ({}, inference_options())] for e in number}
    product = dataclasses.replace(case, work="matrix product")
    ours, theirs, products = [], [], []
    with (
        Worker(sys.executable, "benchmarks.jax_worker", case) as whole,
        Worker(torch_python, "benchmarks.torch_peer", case) as torch,
        Worker(sys.executable, "benchmarks.jax_worker", product) as matrices,
    ):
        for _ in range(TURNS):
            ours.append({e: list(map(best_seconds, ways[e])) for e in number})
            theirs.append(torch.ask("turn")["seconds"])
            products.append(matrices.ask("turn")["seconds"])
        cost, of_product = whole.ask("cost"), matrices.ask("cost")
    eigen = sum(number[e] * min(turn[e][0] for turn in ours) for e in number)
    better = sum(number[e] * min(min(turn[e]) for turn in ours) for e in number)
    floor = cost["flops"] / (of_product["flops"] / min(products))
    return (
        f"| {case} | {1000 * min(theirs):.0f} | {1000 * eigen:.0f} | {1000 * better:.0f} "
        f"| {min(theirs) / eigen:.2f} | {min(theirs) / better:.2f} "
        f"| {floor / eigen:.0%} | {floor / better:.0%} |"
    )


if __name__ == "__main__":
    set_xla_flags()
    print_table(
        "Upper bound of the speed with XLA's convolutions.",
        "| case | torch, ms | by Eigen, ms | by the better, ms "
        "| × torch, by Eigen | × torch, by the better | floor, by Eigen | floor, by the better |",
        [case for case in CASES if case.work != "sampling" and case.dtype == "float32"],
        measure,
    )
