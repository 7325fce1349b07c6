"""Agreement, Fréchet distance and coverage of digits against the weight of classifier-free guidance.

    python main.py --config configs/digits.py:conditional
    python -m benchmarks.guidance --workdir runs/digits_conditional

Draws 1,000 samples, 100 a class, at each weight, by the run's sampler. Prints, and writes as JSON and a plot
to the workdir's `guidance/`,

- the share of the samples that an SVC, fitted to the training images, takes for the class asked for;
- the Fréchet distance of Gaussians fitted to the pixels, as in `benchmarks.digits_quality`;
- coverage: the share of training images with a sample nearer than their fifth neighbour.

The weight 0 is the network without a condition, whose samples have no class to agree with.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.svm import SVC

from benchmarks.digits_quality import real_digits
from ncsn_jax import as_score_fn, training
from ncsn_jax.app.build import dataset_info
from ncsn_jax.app.conditions import EACH, asked_of
from ncsn_jax.app.methods import recipe_of
from ncsn_jax.app.trained import load_run
from ncsn_jax.evaluation.distances import frechet_distance, precision_recall_density_coverage
from ncsn_jax.runtime import viz
from ncsn_jax.runtime.chains import batches, draw, rows
from ncsn_jax.runtime.errors import UserError

WEIGHTS = (0.0, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of the table; the agreement of samples without a condition is NaN."""

    weight: float
    agreement: float
    distance: float
    coverage: float


def measure(
    workdir: Path, weights: tuple[float, ...], num_samples: int, interval: tuple[float, float] | None = None
) -> list[Measured]:
    """Draw samples of a run at each weight, and measure them.

    Raises:
      UserError: if the run doesn't exist, or isn't a run on digits with classes.
    """
    config = load_run(workdir)
    if (config.data.name, config.data.condition) != ("digits", "class"):
        raise UserError(f"{workdir} is not a run of configs/digits.py:conditional; accepted: such a run")
    train, labels, *_ = real_digits(config.data.data_dir)
    svc = SVC(gamma="scale", C=10).fit(train, labels)
    score_fn, info = as_score_fn(*training.restore(workdir)), dataset_info(config)
    measured = []
    for weight in weights:
        own = {"condition": EACH, "guidance": weight, "guidance_interval": interval}
        settings = config.sampling.model_copy(update=own)
        asked = asked_of(config.model_copy(update={"sampling": settings}), lambda: None)
        recipe = recipe_of(settings, config.model.noise_levels, info, asked and asked.of)
        samples = []
        for numbers in batches(num_samples, settings.batch_size or 100):
            *_, x = draw(score_fn, recipe, numbers)
            samples.append(rows(x).reshape(numbers.size, -1))
        pixels = np.round(np.clip(np.concatenate(samples)[:num_samples], 0, 1) * 16) / 16
        classes = np.full(num_samples, -1) if asked is None else asked.of(np.arange(num_samples))
        agreement = np.nan if asked is None else float(np.mean(svc.predict(pixels) == classes))
        coverage = precision_recall_density_coverage(train, pixels, num_neighbours=5).coverage
        measured.append(Measured(weight, agreement, frechet_distance(pixels, train), float(coverage)))
        print(f"| {weight:g} | {agreement:.1%} | {measured[-1].distance:.3f} | {coverage:.1%} |", flush=True)
    return measured


def plot(measured: list[Measured]) -> Figure:
    """Plot agreement and coverage, and the Fréchet distance, over the weight."""
    figure = Figure((7, 3), dpi=100, layout="constrained")
    shares, distances = figure.subplots(1, 2)
    weights = [m.weight for m in measured]
    shares.plot(weights, [m.agreement for m in measured], marker="o", label="agreement (SVC)")
    shares.plot(weights, [m.coverage for m in measured], marker="o", label="coverage")
    shares.legend()
    distances.plot(weights, [m.distance for m in measured], marker="o")
    distances.set_ylabel("Fréchet distance to the training images")
    for axes in (shares, distances):
        axes.set_xlabel("weight of guidance")
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Digits against the weight of guidance.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_conditional"))
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--interval", nargs=2, type=float, help="noise levels with guidance; default all")
    parser.add_argument("--num_samples", type=int, default=1000)
    options = parser.parse_args()
    interval = None if options.interval is None else tuple(options.interval)
    print("| weight | agreement (SVC) | Fréchet distance | coverage |\n|---|---|---|---|")
    try:
        measured = measure(options.workdir, tuple(options.weights), options.num_samples, interval)
    except UserError as error:
        sys.exit(f"guidance: {error}")
    directory = options.workdir / "guidance"
    directory.mkdir(exist_ok=True)
    (directory / "weights.json").write_text(json.dumps([dataclasses.asdict(m) for m in measured], indent=1))
    viz.save_png(directory / "weights.png", viz.rendered(plot(measured)))
    print(f"{directory}: weights.json, weights.png")


if __name__ == "__main__":
    main()
