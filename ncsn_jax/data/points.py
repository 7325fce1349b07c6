"""The two-dimensional toy densities as datasets: points drawn from a fixed key."""

import jax
import numpy as np
from jaxtyping import Float

from ncsn_jax import densities

POINTS = {
    "two_gaussians": lambda key: densities.two_gaussians().sample(key),
    "eight_gaussians": lambda key: densities.eight_gaussians().sample(key),
    "two_moons": densities.two_moons,
    "swiss_roll": densities.swiss_roll,
    "checkerboard": densities.checkerboard,
}
NUM_TRAIN, NUM_TEST = 50_000, 5_000


class Drawn(np.ndarray):
    """Points drawn by this package; processors may round them differently, so they have no checksum."""


def draw_points(name: str) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "m 2"]]:
    """Return the training and the test points of one of `POINTS`, the same on every call."""
    with jax.enable_x64(False):  # double precision would draw other points
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), NUM_TRAIN + NUM_TEST)
        x = np.asarray(jax.jit(jax.vmap(POINTS[name]))(keys))
    x = x.view(Drawn)
    return x[:NUM_TRAIN], x[NUM_TRAIN:]
