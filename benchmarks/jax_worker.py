"""Our side of `benchmarks.performance`: the network, the step and the sampler of main.py."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.speed import load, of_noise, training
from benchmarks.worker import Work, serve
from ncsn_jax import as_score_fn
from ncsn_jax.app.build import dataset_info, network
from ncsn_jax.app.config import Config
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.models.ncsnpp import NCSNpp
from ncsn_jax.runtime import chains
from ncsn_jax.runtime.compiling import give_memory_back_after_compilations, inference_options, set_xla_flags
from ncsn_jax.training import Experiment
from ncsn_jax.training.parallel import replicate

CONFIGS = {1: "configs/mnist.py", 3: "configs/cifar10.py"}
"""Config files by the number of channels: 28×28×1 and 32×32×3."""


def prepare(case: dict[str, Any]) -> Work:
    """Return the work of a case (see `benchmarks.performance.Case`)."""
    if case["work"] == "matrix product":
        return _matrix_product()
    if case["work"] == "negation":
        return _negation()
    run, batch = config_of(case), case["batch"]
    model, shape = model_of(case), (batch, case["side"], case["side"], case["channels"])
    x, sigma = jax.random.uniform(jax.random.key(0), shape), jnp.full(batch, 0.1)
    if case["work"] == "step":
        return _step(experiment_of(case))
    params = {"params": experiment_of(case).initial_state().params}
    forward = jax.jit(model.apply, compiler_options=inference_options())

    def cost(evaluations: int = 1) -> dict[str, float]:
        # Without those options, because XLA reports no byte counts for oneDNN's convolutions.
        return _cost([jax.jit(model.apply).lower(params, x, sigma)], evaluations)

    if case["work"] == "forward":
        return Work(lambda: jax.block_until_ready(forward(params, x, sigma)), cost)
    levels = run.model.noise_levels
    (numbers,) = chains.batches(batch, batch)
    recipe = recipe_of(run.sampling, levels, dataset_info(run))
    draw = functools.partial(chains.draw, as_score_fn(model, params), recipe, numbers)

    def sample() -> None:
        for state in draw():
            jax.block_until_ready(state)

    return Work(sample, functools.partial(cost, len(levels)))


def config_of(case: dict[str, Any]) -> Config:
    """Return the config of a case's network, batch and sampling."""
    run, batch = load(CONFIGS[case["channels"]]), case["batch"]
    return run.model_copy(
        update={
            "model": run.model.model_copy(update={"num_filters": case["filters"], "dtype": case["dtype"]}),
            "training": run.training.model_copy(update={"batch_size": batch}),
            "sampling": run.sampling.model_copy(
                update={"batch_size": batch, "steps_per_scale": 1, "denoise": False}
            ),
        }
    )


def model_of(case: dict[str, Any]) -> nn.Module:
    """Return the network of a case."""
    if case["network"] == "NCSN++":
        return NCSNpp(case["filters"])
    return network(config_of(case))


def experiment_of(case: dict[str, Any]) -> Experiment:
    """Return the experiment whose training step a case measures; all networks learn the levels of NCSN."""
    return dataclasses.replace(of_noise(config_of(case)), model=model_of(case))


def _matrix_product() -> Work:
    size = 2048
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    return Work(lambda: jax.block_until_ready(product(matrix, matrix)), lambda: {"flops": 2.0 * size**3})


def _negation() -> Work:
    """Return an in-place negation of 256 MiB: it reads and writes every byte, and allocates nothing."""
    numbers = jnp.ones(2**26)
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def run() -> None:
        nonlocal numbers
        numbers = jax.block_until_ready(negate(numbers))

    return Work(run, lambda: {"bytes": 2.0 * numbers.nbytes})


def _cost(programs: Iterable[jax.stages.Lowered], times: int = 1) -> dict[str, float]:
    """Return the operations as written, before XLA's optimisations, and the bytes of the compiled program."""
    flops = num_bytes = 0.0
    for program in programs:
        flops += times * (program.cost_analysis() or {})["flops"]
        num_bytes += times * (program.compile().cost_analysis() or {})["bytes accessed"]
    return {"flops": flops, "bytes": num_bytes}


def _step(experiment: Experiment) -> Work:
    state, (step, batches) = replicate(experiment.initial_state()), training(experiment)
    key = jax.random.key(0)

    def train() -> None:
        nonlocal state
        state, values = step(state, next(batches), key)
        jax.block_until_ready(values)

    return Work(train, lambda: _cost(step.lowered(state, next(batches), key)))


if __name__ == "__main__":
    set_xla_flags()
    give_memory_back_after_compilations()
    serve(prepare)
