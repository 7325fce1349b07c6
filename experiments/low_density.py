"""Low-density regions: where there are no data, the learned score is wrong.

    python -m experiments.low_density

After Figure 2 of Song & Ermon 2019 (arXiv:1907.05600). An MLP is trained by sliced score matching on
0.2 N((−5, −5), I) + 0.8 N((5, 5), I), and compared with the exact score: over the data; over the part of the
square [−8, 8]² where the density is below 10⁻⁴ of its maximum; and between the modes, over N(0, I).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

from experiments import output
from experiments.fitting import fit, unconditional
from ncsn_jax import MLP, sliced_score_matching
from ncsn_jax.densities import two_gaussians
from ncsn_jax.runtime import viz

LOW, HIGH = -8.0, 8.0
SPARSE = 1e-4


def learned_score():
    """Train an MLP by sliced score matching on the mixture, and return its score."""
    p, model = two_gaussians(), MLP()

    def loss(key, params):
        data_key, projection_key = jax.random.split(key)
        return sliced_score_matching(projection_key, unconditional(model, params), p.sample(data_key))

    params = model.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, 5_000))
    params, _ = fit(jax.random.key(1), loss, params, optimizer, num_steps=5_000, batch_size=256)
    return unconditional(model, params)


def relative_error(score_fn, estimate, x) -> float:
    """Compute √(E‖ŝ − s‖² / E‖s‖²) over points."""
    true, estimated = jax.vmap(score_fn)(x), jax.vmap(estimate)(x)
    return float(jnp.sqrt(jnp.sum(jnp.square(estimated - true)) / jnp.sum(jnp.square(true))))


def experiment() -> tuple[Figure, dict[str, Any]]:
    """Plot the true score, the learned score and its error, and compute the errors."""
    p, estimate = two_gaussians(), learned_score()
    data = jax.vmap(p.sample)(jax.random.split(jax.random.key(2), 10_000))
    square = jax.random.uniform(jax.random.key(3), (20_000, 2), minval=LOW, maxval=HIGH)
    log_density = jax.vmap(p.log_density)(square)
    sparse = square[log_density < p.log_density(p.means[1]) + jnp.log(SPARSE)]
    between = jax.random.normal(jax.random.key(4), (2_000, 2))
    numbers = {
        "relative error over the data": relative_error(p.score, estimate, data),
        "relative error where the density is low": relative_error(p.score, estimate, sparse),
        "relative error between the modes": relative_error(p.score, estimate, between),
        "share of the square where the density is low": len(sparse) / len(square),
    }

    figure = Figure(figsize=(12, 4), dpi=80, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    viz.score_field(left, p.score, log_density=p.log_density, low=LOW, high=HIGH)
    left.set_title("∇log p over log p")
    viz.score_field(middle, estimate, log_density=p.log_density, low=LOW, high=HIGH)
    middle.set_title("learned by sliced score matching")
    viz.score_error(right, p.score, estimate, low=LOW, high=HIGH)
    right.plot(data[:300, 0], data[:300, 1], "k.", markersize=1)
    right.set_title("relative error, and data")
    return figure, numbers


def main() -> None:
    output.run("low_density", str(__doc__), experiment)


if __name__ == "__main__":
    main()
