"""The manifold hypothesis: sliced score matching needs data that fill their space.

    python -m experiments.manifold

After Figure 1 of Song & Ermon 2019 (arXiv:1907.05600). An MLP is trained by sliced score matching on data
that fill only part of their space: two moons in a plane of 10 dimensions, and scikit-learn's digits, 64
pixels of 17 grey values. The score of such data is undefined, and the loss is unbounded below: across the
data, s may fall ever more steeply at no cost. With N(0, 10⁻⁴) noise the loss is bounded below by
−½E‖∇log p_σ‖², and converges: on the moons close to the bound, on the digits to a value above it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from experiments import output
from experiments.fitting import fit, unconditional
from ncsn_jax import MLP, GaussianMixture, sliced_score_matching
from ncsn_jax.densities import two_moons
from ncsn_jax.runtime import viz
from ncsn_jax.typing import PRNGKey

NOISE = 1e-2
STEPS = 9_000


def embedded_moons(key: PRNGKey) -> Float[Array, "10"]:
    """Draw a point of two moons in a plane of 10 dimensions."""
    plane, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (10, 2)))
    return plane @ two_moons(key)


def all_digits() -> Float[Array, "1797 64"]:
    """Return scikit-learn's digits, in [0, 1]."""
    return jnp.asarray(load_digits(return_X_y=True)[0] / 16, jnp.float32)


def digit(key: PRNGKey) -> Float[Array, "64"]:
    """Draw one of scikit-learn's digits."""
    return jax.random.choice(key, all_digits())


def lowest_losses() -> dict[str, float]:
    """Compute the lower bounds of the losses with noise, −½E‖∇log p_σ‖².

    The digits with noise are a mixture of one Gaussian per digit. The bound of the moons counts the eight
    directions across their plane, where they are N(0, σ²); the two in the plane add a thousandth.
    """
    p = GaussianMixture(weights=jnp.ones(1797), means=all_digits(), stds=0.0)
    keys = jax.random.split(jax.random.key(3), 2_000)
    score = jax.lax.map(lambda key: p.score(p.sample(key, NOISE), NOISE), keys, batch_size=100)
    digits = -0.5 * float(jnp.mean(jnp.sum(jnp.square(score), axis=1)))
    return {"moons in 10 dimensions": -0.5 * 8 / NOISE**2, "digits": digits}


def loss_curve(draw, std: float) -> Float[np.ndarray, " steps"]:
    """Train on draws plus N(0, std²) noise, and return the sliced score matching loss of every step."""
    model = MLP(num_features=256)

    def loss(key, params):
        data_key, noise_key, projection_key = jax.random.split(key, 3)
        x = draw(data_key)
        x = x + std * jax.random.normal(noise_key, x.shape)
        return sliced_score_matching(projection_key, unconditional(model, params, NOISE), x)

    dimension = jax.eval_shape(draw, jax.random.key(0)).size
    params = model.init(jax.random.key(0), jnp.zeros((1, dimension)), jnp.ones(1))
    _, losses = fit(jax.random.key(2), loss, params, optax.adam(1e-3), num_steps=STEPS, batch_size=128)
    return np.asarray(losses)


def summary(losses: Float[np.ndarray, " steps"]) -> dict[str, float]:
    """Summarise the convergence of a loss.

    `growth` is the mean over the last sixth of the steps relative to the sixth before it, 1 if converged;
    `fluctuation` is the standard deviation of the last sixth, and `last` its mean.
    """
    *_, before, last = losses.reshape(6, -1)
    return {
        "last": float(last.mean()),
        "growth": float(last.mean() / before.mean()),
        "fluctuation": float(last.std()),
    }


def experiment() -> tuple[Figure, dict[str, Any]]:
    """Plot the losses of both datasets, without and with noise."""
    data = {"moons in 10 dimensions": embedded_moons, "digits": digit}
    figure = Figure(figsize=(9, 6), dpi=80, layout="constrained")
    numbers: dict[str, Any] = {"steps": STEPS, "noise_std": NOISE}
    lowest = lowest_losses()
    rows = figure.subplots(len(data), 2)
    for axes, (name, draw) in zip(rows, data.items(), strict=True):
        numbers[name] = {"lowest with noise": lowest[name]}
        for ax, kind, std in zip(axes, ("without noise", "with noise"), (0.0, NOISE), strict=True):
            losses = loss_curve(draw, std)
            numbers[name][kind] = summary(losses)
            curve = np.stack([np.arange(1, STEPS + 1), losses], axis=1)[::10]
            viz.curves(ax, {f"{name}, {kind}": curve}, ylabel="sliced score matching loss")
    return figure, numbers


def main() -> None:
    output.run("manifold", str(__doc__), experiment)


if __name__ == "__main__":
    main()
