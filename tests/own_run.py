"""A run of one's own objects, here or as a program: `python -m tests.own_run WORKDIR [PROCESSES ID PORT]`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from ncsn_jax.training import Experiment, Settings, train


class Plane(nn.Module):
    """A score of points in the plane, given a number."""

    width: int = 8

    @nn.compact
    def __call__(self, x, sigma, condition=None):
        given = jnp.zeros_like(x[:, :1]) if condition is None else condition[:, None]
        h = jnp.concatenate([x, sigma[:, None], given], axis=-1)
        return nn.Dense(2)(nn.tanh(nn.Dense(self.width)(h))) / sigma[:, None]


def objective(key, score_fn, example):
    """Denoising score matching at σ = ½, weighted if the example has a weight."""
    x, weight = (example["x"], example["weight"]) if isinstance(example, dict) else (example, 1.0)
    z = jax.random.normal(key, x.shape)
    return weight * jnp.sum(jnp.square(0.5 * score_fn(x + 0.5 * z, 0.5) + z))


POINTS = np.random.default_rng(0).standard_normal((96, 2)).astype(np.float32)
EXAMPLES = [{"x": x, "condition": np.float32(x[0] > 0), "weight": np.float32(1 + x[1] ** 2)} for x in POINTS]


def experiment(num_steps=60, *, settings=None, **objects):
    """An experiment on points; `settings` and objects replace its own."""
    own = {"num_steps": num_steps, "batch_size": 8, "ema_rate": 0.9, "log_every": 10, "eval_every": 20}
    own |= {"checkpoint_every": 20, "eval_examples": 16}
    objects = {"train": POINTS} | objects if "batches" not in objects else objects
    default = {
        "model": Plane(),
        "objective": objective,
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
        "identity": {"network": "Plane", "optimizer": "lion"},
    }
    return Experiment(settings=Settings(**own | (settings or {})), **default | objects)


if __name__ == "__main__":
    workdir, *cluster = sys.argv[1:]
    if cluster:
        processes, number, port = cluster
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(number))
    norm = (20, lambda step, state, log: {"norm": float(optax.tree.norm(state.params))})
    train(experiment(train=EXAMPLES, test=EXAMPLES[:16]), workdir, callbacks=[norm])
