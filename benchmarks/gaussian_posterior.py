"""Posterior samples of Gaussian fields against Wiener's filter, the exact posterior.

    python -m benchmarks.gaussian_posterior
    python -m benchmarks.gaussian_posterior --fields fields       # write draws of the field as training data
    python -m benchmarks.gaussian_posterior --workdir runs/fields # with the network that was trained on them

A field of 32×32 pixels with its exact score is observed through masks, blurs and Fourier masks, and
`sample_posterior` draws from p(x | y). Four numbers compare the samples with the exact posterior, over all
pixels: the error of the mean in posterior standard deviations (root mean square, without the part that
the number of chains explains), the samples' standard deviation relative to the exact one (mean and root mean
square deviation from 1), and the mean distance |log₁₀ P/P_exact| of power spectra.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import Observation, as_score_fn, geometric_sigmas, sample_posterior
from ncsn_jax.densities import GaussianField
from ncsn_jax.operators import Compose, Convolution, FourierMask, Mask
from ncsn_jax.training import restore
from ncsn_jax.typing import ScoreFn

SIZE = 32
FIELD = GaussianField((SIZE, SIZE), lambda k: 0.02 / (0.05 + k) ** 2)
SIGMAS = geometric_sigmas(5.0, 0.01, 40)


def observations(size: int = SIZE) -> dict[str, tuple[Any, Any]]:
    """Return operators and standard deviations of the noise, by name."""
    rng = np.random.default_rng(0)
    side = np.arange(-3, 4)
    psf = np.exp(-np.add.outer(side**2, side**2) / (2 * 1.2**2))
    psf /= psf.sum()
    square = np.ones((size, size), bool)
    square[size // 4 : size // 2, size // 4 : 3 * size // 4] = False
    frequencies = (np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2, indexing="ij")) < 0.2) & (
        rng.random((size, size)) < 0.6
    )
    noise_map = np.exp(rng.normal(size=(size, size)) * 0.7) * 0.2
    return {
        "mask, noise 0.1": (Mask(square), 0.1),
        "blur, noise 0.2": (Convolution(psf), 0.2),
        "masked blur, noise map": (Compose(Mask(square), Convolution(psf)), noise_map),
        "Fourier mask, noise 0.2": (FourierMask(frequencies), 0.2),
    }


def exact(field: GaussianField, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the covariance of the posterior, in float64."""
    shape = field.shape
    units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    prior = np.fft.ifft2(np.asarray(field.power, float) * np.fft.fft2(units)).real.reshape(len(units), -1)
    a = _parts(np.asarray(jax.vmap(observation.operator)(jnp.asarray(units, jnp.float32)))).T
    std = np.broadcast_to(observation.noise_std, np.shape(observation.y))
    is_complex = np.iscomplexobj(observation.y)
    noise = _parts((std * (1 + 1j) if is_complex else std)[None])[0]
    gain = prior @ a.T @ np.linalg.inv(a @ prior @ a.T + np.diag(noise**2))
    mean = gain @ _parts(np.asarray(observation.y)[None])[0]
    return mean.reshape(shape), prior - gain @ a @ prior


def _parts(v: Any) -> np.ndarray:
    v = np.reshape(v, (len(v), -1))
    return (np.concatenate([v.real, v.imag], 1) if np.iscomplexobj(v) else v).astype(float)


def observe(field: GaussianField, operator: Any, std: Any) -> Observation:
    """Observe a draw of the field."""
    field_key, noise_key = jax.random.split(jax.random.key(0))
    seen = operator(field.sample(field_key))
    unit = np.sqrt(2.0) if jnp.iscomplexobj(seen) else 1.0
    noise = jnp.asarray(std * unit, jnp.float32) * jax.random.normal(noise_key, seen.shape, seen.dtype)
    return Observation(seen + noise, operator, std)


def trained(workdir: str) -> ScoreFn:
    """Return the score of a run of `configs/arrays.py`, in the units of the data."""
    settings = json.loads((Path(workdir) / "config.json").read_text())["data"]
    (offset,), (scale,) = settings["offset"], settings["scale"]
    network = as_score_fn(*restore(workdir))

    def score(x, sigma):
        return network((x[..., None] - offset) / scale, sigma / scale)[..., 0] / scale

    return score


def write_fields(directory: str) -> None:
    """Write 4,096 draws of the field as `train.npy` and `test.npy`."""
    x = np.asarray(jax.vmap(FIELD.sample)(jax.random.split(jax.random.key(0), 4096)))
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "train.npy", x[256:])
    np.save(place / "test.npy", x[:256])


def draw(
    score_fn: ScoreFn, observation: Observation, shape: Any, steps_per_scale: int, chains: int, sigmas: Any
) -> np.ndarray:
    """Draw samples of the posterior by annealed Langevin dynamics, from noise of the largest level."""

    def run(key):
        start_key, chain_key = jax.random.split(key)
        return sample_posterior(
            chain_key,
            score_fn,
            sigmas[0] * jax.random.normal(start_key, shape),
            sigmas,
            observation,
            step_size=0.2 * sigmas[-1] ** 2,
            steps_per_scale=steps_per_scale,
        )

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), chains)), float)


def compared(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> dict[str, float]:
    """Return the four numbers of samples `(n, height, width)`."""
    std = np.sqrt(np.diag(covariance)).reshape(mean.shape)
    error = np.mean(np.square((x.mean(0) - mean) / std)) - 1 / len(x)
    ratio = x.std(0, ddof=1) / std
    # The exact mean square of each frequency: of the mean, and of the covariance.
    size = mean.size
    fourier = np.fft.fft2(np.eye(size).reshape(size, *mean.shape), norm="ortho").reshape(size, size)
    power = np.einsum("ij,ik,jk->k", covariance, fourier, fourier.conj(), optimize=True).real
    power = power.reshape(mean.shape) + np.abs(np.fft.fft2(mean, norm="ortho")) ** 2
    found = np.mean(np.abs(np.fft.fft2(x, norm="ortho")) ** 2, 0)
    rings = np.round(
        np.hypot(*np.meshgrid(*map(np.fft.fftfreq, mean.shape), indexing="ij")) * max(mean.shape)
    )
    logs = [np.log10(found[rings == r].mean() / power[rings == r].mean()) for r in np.unique(rings)]
    return {
        "mean": float(np.sqrt(max(error, 0.0))),
        "std": float(ratio.mean()),
        "std, deviation": float(np.sqrt(max(np.mean((ratio - 1) ** 2) - 0.5 / len(x), 0.0))),
        "spectrum": float(np.mean(np.abs(logs))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chains", type=int, default=128, help="chains of operators with a closed form")
    parser.add_argument("--steps_per_scale", type=int, nargs="+", default=[5, 25])
    parser.add_argument("--fields", help="write training data to this directory, and stop")
    parser.add_argument("--workdir", help="a run on such data, whose network takes the place of the score")
    arguments = parser.parse_args()
    if arguments.fields:
        return write_fields(arguments.fields)
    score_fn = trained(arguments.workdir) if arguments.workdir else FIELD.score
    print(
        "| observation | steps | mean | std | std, deviation | spectrum | seconds |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, (operator, std) in observations().items():
        observation = observe(FIELD, operator, std)
        mean, covariance = exact(FIELD, observation)
        is_iterative = isinstance(operator, Compose)  # a hundred times the work
        chains = arguments.chains // 8 if is_iterative else arguments.chains
        for steps in arguments.steps_per_scale[: 1 if is_iterative else None]:
            began = time.perf_counter()
            found = compared(
                draw(score_fn, observation, FIELD.shape, steps, chains, SIGMAS), mean, covariance
            )
            seconds = time.perf_counter() - began
            numbers = " | ".join(f"{value:.3f}" for value in found.values())
            print(f"| {name} | {steps * len(SIGMAS)} | {numbers} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
