"""Slow mixing: Langevin dynamics loses the weights of separated modes, annealing finds them.

    python -m experiments.slow_mixing

After Figure 3 of Song & Ermon 2019 (arXiv:1907.05600): 4,096 samples of
0.2 N((−5, −5), I) + 0.8 N((5, 5), I), drawn exactly, by Langevin dynamics, and by annealed Langevin dynamics.
Both dynamics take 1,000 steps with the exact score, from the same starts, uniform in [−8, 8]². Near a mode,
the score doesn't depend on the modes' weights, so plain Langevin dynamics keeps the share of starts on each
mode's side. Under large noise the modes overlap, and chains cross in the right proportion before annealing
separates them.
"""

from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import output
from ncsn_jax import annealed_langevin_dynamics, geometric_sigmas, langevin_dynamics
from ncsn_jax.densities import two_gaussians
from ncsn_jax.runtime import viz

NUM_SAMPLES = 4096
LOW, HIGH = -8.0, 8.0
SIGMAS = (20.0, 0.1, 10)
STEPS_PER_SCALE = 100


def samples() -> dict[str, Float[Array, "n 2"]]:
    """Draw samples by each method, and return them by its name."""
    p, sigmas = two_gaussians(), geometric_sigmas(*SIGMAS)
    exact_keys, start_key, chain_keys = jax.random.split(jax.random.key(0), 3)
    starts = jax.random.uniform(start_key, (NUM_SAMPLES, 2), minval=LOW, maxval=HIGH)

    def langevin(key, x):
        num_steps = len(sigmas) * STEPS_PER_SCALE
        return langevin_dynamics(key, p.score, x, step_size=0.1, num_steps=num_steps)

    def annealed(key, x):
        return annealed_langevin_dynamics(
            key, p.score, x, sigmas, step_size=1e-3, steps_per_scale=STEPS_PER_SCALE
        )

    keys = jax.random.split(chain_keys, NUM_SAMPLES)
    return {
        "exact samples": jax.vmap(p.sample)(jax.random.split(exact_keys, NUM_SAMPLES)),
        "Langevin": jax.jit(jax.vmap(langevin))(keys, starts),
        "annealed Langevin": jax.jit(jax.vmap(annealed))(keys, starts),
    }


def experiment() -> tuple[Figure, dict[str, Any]]:
    """Plot the samples, and estimate the weight 0.8 and the standard deviation 1 of the upper mode."""
    figure = Figure(figsize=(12, 4), dpi=80, layout="constrained")
    numbers = {}
    drawn = samples()
    for axes, (name, x) in zip(figure.subplots(1, 3), drawn.items(), strict=True):
        x = np.asarray(x)
        upper = x[x.sum(axis=1) > 0]
        weight = len(upper) / len(x)
        numbers[name] = {"weight": weight, "std": upper.std(axis=0).tolist()}
        viz.points(axes, x, low=LOW - 2, high=HIGH + 2)
        axes.set_title(f"{name}: {weight:.2f} above")
    return figure, numbers


def main() -> None:
    output.run("slow_mixing", str(__doc__), experiment)


if __name__ == "__main__":
    main()
