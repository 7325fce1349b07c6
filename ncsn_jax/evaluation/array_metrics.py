"""Metrics of arrays, in their own units: moments of each channel, and power spectra."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from ncsn_jax.data import Source
from ncsn_jax.evaluation.measured_samples import Samples
from ncsn_jax.evaluation.results import Found, Result, count_name
from ncsn_jax.runtime import processes, viz

CHUNK = 2**22
"""Number of numbers whose transforms are in memory at once."""

Chunks = Iterable[Float[np.ndarray, "n height width channels"]]


class Spectrum(NamedTuple):
    """Power spectra by wave number.

    Attributes:
      wave_numbers: the mean wave number of each bin, in cycles per pixel.
      power: the mean square of the unitary Fourier transform, of each channel.
    """

    wave_numbers: Float[np.ndarray, " bins"]
    power: Float[np.ndarray, "channels bins"]


def moments(samples: Samples, train: Source, test: Source) -> Found:
    """Compute the mean and the standard deviation of each channel, beside as many test examples'.

    Their largest differences from the training examples', relative to the standard deviation of a channel,
    come first.
    """
    count, of_test = samples.count, min(samples.count, len(test))
    expected = _mean_and_std(_chunks(train))
    found, real = _mean_and_std(samples.chunks()), _mean_and_std(_chunks(test, of_test))

    def worst(measured, i):
        return float(np.max(np.abs(measured[i] - expected[i]) / np.maximum(expected[1], 1e-30)))

    name = count_name(count)
    results = {
        f"{what} of a channel, largest error-{name}": Result(
            value=worst(found, i), real=worst(real, i), better="lower"
        )
        for i, what in enumerate(("mean", "standard deviation"))
    }
    for channel in range(len(expected[0])):
        for i, what in enumerate(("mean", "standard deviation")):
            results[f"{what} of channel {channel}-{name}"] = Result(
                value=float(found[i][channel]), real=float(real[i][channel])
            )
    return Found(results, {"training data": {"mean": expected[0].tolist(), "std": expected[1].tolist()}})


def spectra(samples: Samples, train: Source, test: Source, path: Path) -> Found:
    """Compute the mean distance of log power spectra from the training examples', and draw the spectra.

    The distance is the mean of |log₁₀ P/P_train| over wave numbers and channels; frequency 0, which is the
    mean, doesn't count.

    Args:
      samples: the samples.
      train: the training examples.
      test: the test examples, whose distance is the smallest to expect.
      path: the PNG file of the spectra.
    """
    found, expected = spectrum(samples.chunks()), spectrum(_chunks(train))
    real = spectrum(_chunks(test, min(samples.count, len(test))))

    def distance(measured: Spectrum) -> float:
        ratios = np.maximum(measured.power, 1e-30) / np.maximum(expected.power, 1e-30)
        return float(np.abs(np.log10(ratios)).mean())

    if processes.is_first():
        viz.save_png(path, _drawn({"samples": found, "training data": expected, "test data": real}))
    name = f"log power spectrum, mean distance-{count_name(samples.count)}"
    details = {
        "wave_number": expected.wave_numbers.tolist(),
        "samples": found.power.tolist(),
        "training data": expected.power.tolist(),
    }
    return Found({name: Result(value=distance(found), real=distance(real), better="lower")}, details)


def spectrum(chunks: Chunks) -> Spectrum:
    """Return the power spectra of images, radially averaged in bins of one cycle per longest side."""
    total, count, shape = 0.0, 0, (0, 0)
    for x in _pieces(chunks):
        shape, count = x.shape[1:3], count + len(x)
        transformed = np.fft.fft2(x.astype(np.float64), axes=(1, 2), norm="ortho")
        total = total + np.square(np.abs(transformed)).sum(0)
    k = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    bins = np.round(k * max(shape)).astype(int).ravel()
    is_kept = (bins > 0) & (k.ravel() <= 0.5)
    sizes = np.bincount(bins[is_kept])
    of_bin = sizes > 0
    flat = np.reshape(total / count, (bins.size, -1))

    def averaged(values):
        return np.bincount(bins[is_kept], values[is_kept])[of_bin] / sizes[of_bin]

    return Spectrum(averaged(k.ravel()), np.stack([averaged(channel) for channel in flat.T]))


def _mean_and_std(chunks: Chunks) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    # Shifted by the first example, so that no digits cancel.
    shift, total, squares, count = None, 0.0, 0.0, 0
    for x in _pieces(chunks):
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        shift = flat.mean(0) if shift is None else shift
        total, squares = total + (flat - shift).sum(0), squares + np.square(flat - shift).sum(0)
        count += len(flat)
    assert shift is not None  # there are examples
    return shift + total / count, np.sqrt(np.maximum(squares / count - np.square(total / count), 0.0))


def _chunks(examples: Source, count: int | None = None) -> Iterator[np.ndarray]:
    for i in range(len(examples) if count is None else count):
        yield examples[i][None]


def _pieces(chunks: Chunks) -> Iterator[np.ndarray]:
    """Yield the same images in pieces of at most `CHUNK` numbers, or of one image."""
    held: list[np.ndarray] = []
    for image in itertools.chain.from_iterable(chunks):
        held.append(image)
        if len(held) * image.size >= CHUNK:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def _drawn(spectra: dict[str, Spectrum]) -> viz.Picture:
    channels = len(next(iter(spectra.values())).power)
    figure = Figure((4 * min(channels, 3), 3 * -(-channels // 3)), dpi=100, layout="constrained")
    axes = np.atleast_1d(figure.subplots(-(-channels // 3), min(channels, 3), squeeze=False)).ravel()
    for channel in range(channels):
        series = {
            label: np.stack([found.wave_numbers, found.power[channel]], 1) for label, found in spectra.items()
        }
        viz.curves(axes[channel], series, xlabel="cycles per pixel", ylabel=f"power of channel {channel}")
        axes[channel].set(xscale="log", yscale="log")
    for unused in axes[channels:]:
        unused.set_axis_off()
    return viz.rendered(figure)
