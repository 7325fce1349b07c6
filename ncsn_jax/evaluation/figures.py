"""Pictures of an evaluation: nearest neighbours, and curves over training steps and over noise levels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped
from matplotlib.figure import Figure

from ncsn_jax.data.datasets import Dataset, Source
from ncsn_jax.evaluation import distances, results
from ncsn_jax.evaluation.against_real import Real
from ncsn_jax.evaluation.features import PIXELS, Extracted
from ncsn_jax.evaluation.results import Subject
from ncsn_jax.runtime import processes, viz

SHOWN, NEIGHBOURS = 12, 4
"""Number of samples that are shown with their nearest training images, and number of these images."""


def write_neighbours(
    path: Path, samples: Shaped[np.ndarray, "n *event"], extracted: Extracted, real: Real, dataset: Dataset
) -> None:
    """Draw each sample next to its nearest training images, in pixels and in features; nothing for points.

    Args:
      path: the PNG file.
      samples: the first few samples, as stored.
      extracted: the features of at least these samples.
      real: the training images' features.
      dataset: the training images.
    """
    if not processes.is_first() or dataset.info.num_values is None:
        return
    count = min(NEIGHBOURS, len(dataset.train))
    in_pixels = nearest_in_pixels(samples, dataset.train, count)
    features = extracted.features[: len(samples)]
    _, in_features = distances.nearest_neighbours(features, real.train.features, count=count)
    scale = dataset.info.num_values - 1
    gap = np.ones((1, *samples.shape[1:]))
    images = []
    for sample, *found in zip(samples, in_pixels, in_features, strict=True):
        images.append(sample[None] / scale)
        for numbers in found:
            images += [gap, np.stack([dataset.train[int(number)] for number in numbers]) / scale]
    grid = viz.image_grid(np.concatenate(images), columns=3 + 2 * count)
    viz.save_png(path, grid)


def nearest_in_pixels(
    samples: Shaped[np.ndarray, "n *event"], train: Source, count: int, *, block: int = 5_000
) -> Int[np.ndarray, "n count"]:
    """Return the numbers of the training images nearest to each sample; memory holds a block of images."""
    x = PIXELS.extract(samples).features
    nearest, numbers = np.empty((len(x), 0)), np.empty((len(x), 0), int)
    for first in range(0, len(train), block):
        examples = np.stack([train[i] for i in range(first, min(first + block, len(train)))])
        found = distances.nearest_neighbours(
            x, PIXELS.extract(examples).features, count=min(count, len(examples))
        )
        nearest = np.concatenate([nearest, found[0]], axis=1)
        numbers = np.concatenate([numbers, first + found[1]], axis=1)
        order = np.argsort(nearest, axis=1, kind="stable")[:, :count]
        nearest, numbers = (np.take_along_axis(a, order, axis=1) for a in (nearest, numbers))
    return numbers


def write_curves(directory: Path, subjects: Sequence[Subject]) -> None:
    """Write `curves.png`, every result over training steps, and `loss_by_level.png` of every checkpoint."""
    if figure := results.curves(subjects):
        viz.save_png(directory / "curves.png", viz.rendered(figure))
    if found := results.losses_by_level(subjects):
        figure = Figure((6, 4), dpi=100, layout="constrained")
        axes = figure.subplots()
        results.draw_losses(axes, found)
        axes.set_ylabel("loss of test examples")
        viz.save_png(directory / "loss_by_level.png", viz.rendered(figure))
