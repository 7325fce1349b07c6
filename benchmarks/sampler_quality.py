"""Quality against cost of every sampler on one digits model, for 20 to 1,000 score evaluations.

    python main.py --config configs/digits.py:v2
    python -m benchmarks.sampler_quality --workdir runs/digits_v2

Prints the Fréchet distance (between Gaussians fitted to the pixels, as in `benchmarks.digits_quality`) of
1,000 samples to the training images, and writes the table as JSON and a plot to the workdir's `samplers/`.

- annealed: L levels of T steps, L·T + 1 evaluations, with NCSNv2's Technique 4 for ε
- consistent: L levels, L evaluations
- pc: reverse diffusion and one corrector step a level, 2L − 1 evaluations
- ode: Tsit5 in fixed steps of log σ, 6 evaluations a step and 2 more
- heun: the levels of Karras et al., 2L − 1 evaluations; with churn, S_churn = L, the maximum

All except heun end in the denoised mean, which heun's last step equals. They start as `main.py` does, at
uniform images with the noise σ₁; "from data" starts at training images with that noise, which is p_σ₁ itself.
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.digits_quality import real_digits
from ncsn_jax import as_score_fn, geometric_sigmas, training
from ncsn_jax.app.build import dataset_info
from ncsn_jax.app.config import Config, Sampling
from ncsn_jax.app.methods import sampler_of
from ncsn_jax.app.trained import load_run
from ncsn_jax.evaluation.distances import frechet_distance
from ncsn_jax.noise import step_size_for
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.chains import Recipe, batches, chains, first_states, rows
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.streams import stream
from ncsn_jax.samplers import Sampler, denoising, probability_flow
from ncsn_jax.transforms import Transform

BUDGETS = (20, 50, 100, 200, 1000)
METHODS = (
    "annealed",
    "consistent",
    "pc",
    "ode",
    "heun",
    "heun with churn",
    "ode from data",
    "heun from data",
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Entry of the table."""

    method: str
    evaluations: int
    distance: float


def sampler(method: str, budget: int, config: Config) -> tuple[Sampler, int]:
    """Return a method's sampler for at most `budget` score evaluations, and its number of evaluations."""
    sigmas, method = config.model.noise_levels, method.removesuffix(" from data")
    begin, end = sigmas[0], sigmas[-1]
    if method == "annealed":
        # As in NCSNv2's tables, many levels and few steps; 16 levels are enough to overlap.
        num_steps = max(2, (budget - 1) // 16)
        num_scales = (budget - 1) // num_steps
        levels = tuple(geometric_sigmas(begin, end, num_scales).tolist())
        step_size = step_size_for(levels, num_steps)
        settings = Sampling(steps_per_scale=num_steps, step_size=step_size, denoise=True)
        return sampler_of(settings, levels), num_scales * num_steps + 1
    if method == "consistent":
        return sampler_of(Sampling(method="consistent", num_levels=budget), sigmas), budget
    if method == "ode":
        num_steps = (budget - 2) // 6
        return _fixed_ode(begin, end, num_steps), 6 * num_steps + 2
    num_scales = (budget + 1) // 2
    if method == "pc":
        settings = Sampling(method="pc", num_levels=num_scales, denoise=True)
    else:
        churn = num_scales if method == "heun with churn" else 0.0
        settings = Sampling(method="heun", num_levels=num_scales, s_churn=churn)
    return sampler_of(settings, sigmas), 2 * num_scales - 1


def _fixed_ode(begin: float, end: float, num_steps: int) -> Sampler:
    import diffrax

    def step(key, score_fn, x, sigma, next_sigma):
        times = jnp.linspace(jnp.log(sigma), jnp.log(next_sigma), num_steps + 1)
        controller = diffrax.StepTo(times)
        return probability_flow(score_fn, x, sigma, next_sigma, stepsize_controller=controller)

    return Sampler(step, (begin, end), denoising(end))


def measure(workdir: Path, methods, budgets, num_samples: int, batch_size: int) -> list[Measured]:
    """Draw samples of a run by every method and budget, and measure their quality.

    Raises:
      UserError: if the run doesn't exist, or isn't a run on digits with a network for any σ.
    """
    config = load_run(workdir)
    if config.data.name != "digits" or config.model.is_discrete:
        raise UserError(
            f"{workdir} is not a run of configs/digits.py:v2, or another network for any σ on 'digits'"
        )
    train, *_ = real_digits(config.data.data_dir)
    score_fn = as_score_fn(*training.restore(workdir))
    info, begin = dataset_info(config), config.model.noise_levels[0]
    fold_in = functools.partial(jax.random.fold_in, stream(0, "sampling"))
    measured = []
    for method in methods:
        for budget in budgets:
            chosen, evaluations = sampler(method, budget, config)
            noise: Any = 0.0 if method == "annealed" else chosen.levels[0]
            recipe = Recipe(chosen, info.shape, noise, info.transform)
            samples = []
            for numbers in batches(num_samples, batch_size):
                keys, x = first_states(jax.vmap(jax.vmap(fold_in))(numbers), recipe)
                if method.endswith("from data"):
                    x = _noisy_images(numbers, train.reshape(-1, *info.shape), begin, info.transform)
                *_, x = chains(chosen, keys, score_fn, x)
                samples.append(rows(info.transform.inverse(x)).reshape(numbers.size, -1))
            pixels = np.round(np.clip(np.concatenate(samples)[:num_samples], 0, 1) * 16) / 16
            measured.append(Measured(method, evaluations, frechet_distance(pixels, train)))
            print(f"{method:15}  {evaluations:4} evaluations  {measured[-1].distance:.3f}", flush=True)
    return measured


def _noisy_images(numbers, images, begin: float, transform: Transform) -> jax.Array:
    """Return training images with the noise σ₁."""
    keys = jax.random.split(jax.random.key(1), numbers.size)
    clean = transform.forward(jnp.asarray((images[numbers.ravel() % len(images)] * 16 + 0.5) / 17))
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(keys)
    return (clean + begin * noise).reshape(*numbers.shape, *clean.shape[1:])


def plot(measured: list[Measured]) -> Figure:
    """Plot the distances over the evaluations, one curve per method."""
    figure = Figure((6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(m.method for m in measured):
        rows = [(m.evaluations, m.distance) for m in measured if m.method == method]
        axes.loglog(*zip(*rows, strict=True), marker="o", markersize=3, label=method)
    axes.set(xlabel="score evaluations", ylabel="Fréchet distance to the training images")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality against cost of every sampler on a digits model.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_v2"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=250)
    options = parser.parse_args()
    try:
        measured = measure(
            options.workdir, options.methods, options.budgets, options.num_samples, options.batch_size
        )
    except UserError as error:
        sys.exit(f"sampler_quality: {error}")
    directory = options.workdir / "samplers"
    directory.mkdir(exist_ok=True)
    (directory / "quality.json").write_text(json.dumps([dataclasses.asdict(m) for m in measured], indent=1))
    viz.save_png(directory / "quality.png", viz.rendered(plot(measured)))
    print(f"{directory}: quality.json, quality.png")


if __name__ == "__main__":
    main()
