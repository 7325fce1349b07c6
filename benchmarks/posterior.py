"""Errors of the posterior samplers against the exact posterior of a Gaussian mixture.

    python -m benchmarks.posterior

The prior is ½ N(−(a, a), I) + ½ N((a, a), I), with modes that touch (a = 2) or don't (a = 5). The observation
is one noisy line, y = x₁ + ½x₂ + ½n, or one coordinate without noise, y = x₁. Prints for each sampler, over
4,096 chains: the score evaluations; the error of the mean of x₂, in standard deviations of the posterior; the
standard deviation of x₂ relative to the posterior's; and the share with x₁ + x₂ > 0, to compare with the
posterior's weight of the mode (a, a). The closed form of the posterior is again a mixture.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import (
    GaussianMixture,
    Observation,
    geometric_sigmas,
    heun,
    inpaint,
    karras_sigmas,
    posterior_score,
    predictor_corrector,
    sample_posterior,
)
from ncsn_jax.posterior import Mask
from ncsn_jax.samplers import Sampler, diffuse, reverse_diffusion, run

NUM_CHAINS = 4096
END = 0.1
"""Smallest noise level."""

Draw = Callable[..., jax.Array]
"""Function of (key, x) that returns a sample."""


def posterior(a: float, row: np.ndarray, y: float, noise_std: float) -> tuple[float, float, float]:
    """Return the weight of (a, a), and the mean and standard deviation of x₂, given y = row·x + σ_y n."""
    means = np.array([[a, a], [-a, -a]])
    evidence = row @ row + noise_std**2
    residual = y - means @ row
    weights = np.exp(-(residual**2 - residual.min() ** 2) / (2 * evidence))
    weights /= weights.sum()
    centres = means[:, 1] + residual * row[1] / evidence
    mean = weights @ centres
    variance = 1 - row[1] ** 2 / evidence + weights @ (centres - mean) ** 2
    return weights[0], mean, np.sqrt(variance)


def samplers(p: GaussianMixture, begin: float, observation: Observation) -> Iterator[tuple[str, int, Draw]]:
    """Yield every sampler of a posterior: its name, its number of score evaluations, and itself."""
    score_fn = posterior_score(p.score, observation)
    few, fine = geometric_sigmas(begin, END, 10), geometric_sigmas(begin, END, 1000)

    for num_steps in (20, 200, 2000):
        options = dict(step_size=0.2 * END**2, steps_per_scale=num_steps)
        yield (
            "annealed Langevin dynamics",
            10 * num_steps,
            functools.partial(_annealed, p, few, observation, options),
        )
        if isinstance(observation.operator, Mask):
            yield (
                "annealed Langevin dynamics, replacement",
                10 * num_steps,
                functools.partial(_inpaint, p, few, observation, options),
            )
    for corrector_steps in (0, 1):
        name = "reverse diffusion" + ", Langevin corrector" * corrector_steps
        options = dict(corrector_steps=corrector_steps, denoise=True)
        sampler = functools.partial(_predictor_corrector, score_fn, fine, options)
        yield name, 999 * (1 + corrector_steps) + 1, sampler
    if isinstance(observation.operator, Mask):
        sampler = functools.partial(_replacement, p, fine, observation)
        yield "reverse diffusion, replacement", 999, sampler
    for churn in (0.0, 50.0):
        name = "Heun" + " with churn" * bool(churn)
        sampler = functools.partial(_heun, score_fn, karras_sigmas(begin, END, 100), churn)
        yield name, 199, sampler


def _annealed(p, sigmas, observation, options, key, x):
    return sample_posterior(key, p.score, x, sigmas, observation, **options)


def _inpaint(p, sigmas, observation, options, key, x):
    mask = observation.operator.mask
    return inpaint(key, p.score, x, sigmas, observation.y, mask=mask, **options)


def _predictor_corrector(score_fn, sigmas, options, key, x):
    return predictor_corrector(key, score_fn, x, sigmas, **options)


def _replacement(p, sigmas, observation, key, x):
    """Inpaint as Song et al. 2021 (arXiv:2011.13456): every step gives the known pixels new noise."""

    def step(key, score_fn, x, sigma, next_sigma):
        step_key, known_key = jax.random.split(key)
        x = reverse_diffusion(step_key, score_fn, x, sigma, next_sigma)
        return jnp.where(observation.operator.mask, diffuse(known_key, observation.y, 0.0, next_sigma), x)

    return run(key, Sampler(step, sigmas), p.score, x)


def _heun(score_fn, sigmas, churn, key, x):
    return heun(key, score_fn, x, sigmas, s_churn=churn)


def measure(sampler: Draw, begin: float) -> np.ndarray:
    """Draw 4,096 samples, `(4096, 2)`."""

    def chain(key):
        start_key, chain_key = jax.random.split(key)
        return sampler(chain_key, begin * jax.random.normal(start_key, (2,)))

    return np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), NUM_CHAINS)), np.float64)


def main() -> None:
    for a, begin, line, coordinate in ((2.0, 10.0, 1.0, 0.2), (5.0, 20.0, 0.3, 0.08)):
        p = GaussianMixture([0.5, 0.5], [[a, a], [-a, -a]], [1.0, 1.0])
        matrix = jnp.array([[1.0, 0.5]])
        through_line = Observation(jnp.array([line]), jax.tree_util.Partial(jnp.matmul, matrix), 0.5)
        seen = Observation(jnp.array([coordinate, 0.0]), Mask(jnp.array([True, False])), 0.0)
        for name, observation, row, y, noise_std in (
            ("x₁ + ½x₂ + ½n", through_line, np.array([1.0, 0.5]), line, 0.5),
            ("x₁", seen, np.array([1.0, 0.0]), coordinate, 0.0),
        ):
            weight, mean, std = posterior(a, row, y, noise_std)
            print(f"a = {a:g}, y = {name} = {y:g}: the posterior has {weight:.3f} at (a, a)")
            for method, evaluations, sampler in samplers(p, begin, observation):
                x = measure(sampler, begin)
                error, spread = (x[:, 1].mean() - mean) / std, x[:, 1].std() / std
                share = np.mean(x.sum(axis=1) > 0)
                print(
                    f"  {method:40} {evaluations:6} evaluations  "
                    f"mean {error:+.2f} std  std × {spread:.2f}  share {share:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
