"""Our side of `benchmarks.performance`: the network, the step and the sampler as main.py runs them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import load, training
from benchmarks.worker import Run, serve
from ncsn_jax import as_score_fn, sampling
from ncsn_jax.compiling import give_memory_back_after_compilations, inference_options, set_xla_flags
from ncsn_jax.config import Config
from ncsn_jax.training.parallel import replicate
from ncsn_jax.training.workdir import initial_state

CONFIGS = {1: "configs/mnist.py", 3: "configs/cifar10.py"}
"""By the number of channels: 28×28×1 and 32×32×3."""


def prepare(case: dict[str, Any]) -> tuple[Run, float]:
    """The work of a case (see `benchmarks.performance.Case`), and its floating-point operations."""
    if case["work"] == "matrix product":
        return _matrix_product()
    run, batch = config_of(case), case["batch"]
    network, shape = run.network(), (batch, case["side"], case["side"], case["channels"])
    x, sigma = jax.random.uniform(jax.random.key(0), shape), jnp.full(batch, 0.1)
    if case["work"] == "step":
        return _step(run)
    params = jax.jit(network.init)(jax.random.key(0), x[:1], sigma[:1])
    lowered = jax.jit(network.apply, compiler_options=inference_options()).lower(params, x, sigma)
    forward, flops = lowered.compile(), _flops(lowered)
    if case["work"] == "forward":
        return lambda: jax.block_until_ready(forward(params, x, sigma)), flops
    levels = run.model.noise_levels
    numbers = sampling.batches(batch, batch)[0]
    draw = functools.partial(
        sampling.draw, as_score_fn(network, params), shape[1:], levels, run.sampling, numbers
    )

    def sample() -> None:
        for state in draw():
            jax.block_until_ready(state)

    return sample, len(levels) * flops


def config_of(case: dict[str, Any]) -> Config:
    """The config of a case's network, batch and sampling."""
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


def _matrix_product() -> tuple[Run, float]:
    size = 2048
    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    return lambda: jax.block_until_ready(product(matrix, matrix)), 2.0 * size**3


def _flops(lowered: jax.stages.Lowered) -> float:
    """As it is written, before the compiler saves any."""
    return (lowered.cost_analysis() or {})["flops"]


def _step(run: Config) -> tuple[Run, float]:
    state, (step, batches) = replicate(initial_state(run)), training(run)
    key = jax.random.key(0)
    flops = sum(map(_flops, step.lowered(state, next(batches), key)))

    def train() -> None:
        nonlocal state
        state, values = step(state, next(batches), key)
        jax.block_until_ready(values)

    return train, flops


if __name__ == "__main__":
    set_xla_flags()
    give_memory_back_after_compilations()
    serve(prepare)
