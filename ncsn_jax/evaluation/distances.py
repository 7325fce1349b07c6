"""Distances between two sets of features, and other measures of them, in double precision."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

# scikit-learn and scipy's special functions are imported in functions: importing them takes longer than the
# whole package.

_ROWS = 2048
"""Rows and columns of a matrix between all pairs that are in memory at a time."""
_TIE = 1e-6
"""Tolerance of ties, as a share of an example's norm: features are float32, so the distances of copies come
out as up to 1e-7 of the norm."""


class Estimate(NamedTuple):
    """A number estimated from samples, and its standard error."""

    value: float
    standard_error: float


class Coverage(NamedTuple):
    """Overlap of the manifolds of real and generated examples.

    Attributes:
      precision: the share of generated examples that lie in the real manifold.
      recall: the share of real examples that lie in the generated manifold.
      density: the mean number of real neighbourhoods that a generated example lies in, divided by k; it may
        exceed 1.
      coverage: the share of real examples whose neighbourhood contains a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "m D"]) -> float:
    """The squared Fréchet distance of two Gaussians with the sets' means and covariances.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½); with Inception's features it is called FID. With Σ = RᵀR, the trace
    of (Σ₁Σ₂)^½ is the sum of the singular values of R₁R₂ᵀ. Covariances may be singular, as with fewer
    examples than dimensions.

    The estimate is biased upwards, about in proportion to 1/n + 1/m, and more so in more dimensions: two sets
    from one distribution have a positive distance. Only distances with the same n and m can be compared.

    Args:
      a: features, one row per example.
      b: features of other examples, of the same dimension.

    Returns:
      The distance, in squared units of the features; not its root.

    Raises:
      ValueError: if a set has fewer than 2 examples, the dimensions differ, or some aren't finite.

    Reference:
      Heusel et al. 2017 (arXiv:1706.08500), equation 6; Dowson & Landau 1982.
    """
    a, b = _checked(a, b, at_least=2)
    mean_a, mean_b = (x.mean(axis=0, dtype=np.float64) for x in (a, b))
    root_a, root_b = _root_of_covariance(a, mean_a), _root_of_covariance(b, mean_b)
    of_means = np.sum((mean_a - mean_b) ** 2)
    of_covariances = np.sum(root_a**2) + np.sum(root_b**2)
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    # For equal sets, rounding may give slightly less than 0.
    return max(float(of_means + of_covariances - 2 * shared), 0.0)


def _root_of_covariance(x: Float[np.ndarray, "n D"], mean: Float[np.ndarray, " D"]) -> np.ndarray:
    """R with RᵀR = Σ, shape (at most D, D)."""
    n, dim = x.shape
    if n <= dim:
        return (x - mean) / math.sqrt(n - 1)
    covariance = np.zeros((dim, dim))
    for first in range(0, n, _ROWS):
        block = x[first : first + _ROWS] - mean
        covariance += block.T @ block / (n - 1)
    # The zero eigenvalues of a singular covariance come out as rounding.
    values, vectors = np.linalg.eigh(covariance)
    kept = values > n * np.finfo(np.float64).eps * values[-1]
    return (vectors[:, kept] * np.sqrt(values[kept])).T


def kernel_distance(a: Float[np.ndarray, "n D"], b: Float[np.ndarray, "m D"]) -> Estimate:
    """The unbiased squared maximum mean discrepancy, with the kernel k(x, y) = (x·y/D + 1)³.

    Σ_{i≠j} k(aᵢ, aⱼ)/(n(n−1)) + Σ_{i≠j} k(bᵢ, bⱼ)/(m(m−1)) − 2 Σᵢⱼ k(aᵢ, bⱼ)/(nm); with Inception's features
    it is called KID. All pairs are used, whereas KID is usually the mean over random subsets. The estimate's
    expectation is the distributions' own discrepancy for any n and m, so the estimate may be negative.

    The standard error is the two-sample jackknife's: with Uᵢ the estimate without aᵢ, Vⱼ the estimate without
    bⱼ, and U̅ and V̅ their means, its square is (n−1)/n Σᵢ (Uᵢ − U̅)² + (m−1)/m Σⱼ (Vⱼ − V̅)². The error is too
    large rather than too small, by about √2 if the distributions are equal.

    Args:
      a: features, one row per example.
      b: features of other examples, of the same dimension.

    Returns:
      The estimate and its standard error, in O(nmD) time, with memory in proportion to the features.

    Raises:
      ValueError: if a set has fewer than 3 examples, the dimensions differ, or some aren't finite.

    Reference:
      Bińkowski et al. 2018 (arXiv:1801.01401), section 4; Gretton et al. 2012, equation 3; Arvesen 1969.
    """
    a, b = _checked(a, b, at_least=3)
    n, m = len(a), len(b)
    (within_a, _), (within_b, _), (of_a, of_b) = _kernel_sums(a, a), _kernel_sums(b, b), _kernel_sums(a, b)
    within_a, within_b = within_a - _kernel_of_itself(a), within_b - _kernel_of_itself(b)
    sum_a, sum_b, between = within_a.sum(), within_b.sum(), of_a.sum()
    value = sum_a / (n * (n - 1)) + sum_b / (m * (m - 1)) - 2 * between / (n * m)
    # Without aᵢ, a sum loses its row and its column; terms shared by all estimates don't matter.
    without_a = (sum_a - 2 * within_a) / ((n - 1) * (n - 2)) - 2 * (between - of_a) / ((n - 1) * m)
    without_b = (sum_b - 2 * within_b) / ((m - 1) * (m - 2)) - 2 * (between - of_b) / (n * (m - 1))
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return Estimate(float(value), math.sqrt(variance))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel of all pairs, (n, m)."""
    base = x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1
    return base * base * base


def _kernel_of_itself(x: np.ndarray) -> np.ndarray:
    return (np.einsum("nd,nd->n", x, x, dtype=np.float64) / x.shape[1] + 1) ** 3


def _kernel_sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel matrix's sums of rows and of columns, (n,) and (m,), with one block in memory at a time."""
    rows, columns = np.zeros(len(a)), np.zeros(len(b))
    for i in range(0, len(a), _ROWS):
        for j in range(0, len(b), _ROWS):
            block = _kernel(a[i : i + _ROWS], b[j : j + _ROWS])
            rows[i : i + _ROWS] += block.sum(axis=1)
            columns[j : j + _ROWS] += block.sum(axis=0)
    return rows, columns


def inception_score(probabilities: Float[np.ndarray, "n K"], *, num_splits: int = 10) -> Estimate:
    """The Inception score exp E KL(p(y|x) ‖ p(y)): examples of clear classes, evenly shared, score high.

    It is the mean of the scores of `num_splits` parts of the examples, in their order, each with its own
    p(y); the parts differ in size by at most one example, and no example is left out. The p(y) of few
    examples is too close to their p(y|x), so the score, between 1 and K, grows with n/num_splits.

    Args:
      probabilities: p(y|x) from a classifier, one row per example.
      num_splits: S, the number of parts; the papers use 10.

    Returns:
      The mean, and its standard error s/√S, with s the standard deviation (over S − 1) of the parts' scores.
      Papers write the standard deviation over S after ±: √(S − 1) standard errors.

    Raises:
      ValueError: if there are fewer than 2 parts or fewer examples than parts, or rows aren't probabilities.

    Reference:
      Salimans et al. 2016 (arXiv:1606.03498), section 4.
    """
    from scipy.special import rel_entr

    n = len(probabilities)
    if not 2 <= num_splits <= n:
        raise ValueError(f"num_splits must be between 2 and the number of examples, {n}, found {num_splits}")
    p = probabilities.astype(np.float64)
    # A classifier's float32 probabilities of a thousand classes sum to 1 within this tolerance.
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, rtol=0, atol=1e-3)):
        raise ValueError("rows must be probabilities: found one that is negative, NaN or doesn't add up to 1")
    ends = [i * n // num_splits for i in range(num_splits + 1)]
    parts = [p[first:end] for first, end in itertools.pairwise(ends)]
    scores = [np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return Estimate(float(np.mean(scores)), float(np.std(scores, ddof=1) / math.sqrt(num_splits)))


def precision_recall_density_coverage(
    real: Float[np.ndarray, "n D"], fake: Float[np.ndarray, "m D"], *, num_neighbours: int = 5
) -> Coverage:
    """Precision and recall, and density and coverage, which outliers don't mislead.

    The neighbourhood of an example is the closed ball up to its k-th nearest neighbour in its own set, itself
    not counted; a manifold is the union of its examples' neighbourhoods.

    Precision and recall depend on n and m. For two sets from one distribution with n = m, density is about 1
    and coverage about 1 − 2⁻ᵏ.

    Args:
      real: features, one row per example.
      fake: features of generated examples, of the same dimension.
      num_neighbours: k; Kynkäänniemi et al. use 3, Naeem et al. 5.

    Raises:
      ValueError: if a set has at most k examples, the dimensions differ, or some aren't finite.

    Reference:
      Kynkäänniemi et al. 2019 (arXiv:1904.06991), equations 1 and 2; Naeem et al. 2020 (arXiv:2002.09797),
      section 3.
    """
    from sklearn.metrics import pairwise_distances_chunked

    if num_neighbours < 1:
        raise ValueError(f"num_neighbours must be at least 1, found {num_neighbours}")
    real, fake = _checked(real, fake, at_least=num_neighbours + 1)
    # Distances come from differences of squares, which are most precise near the origin.
    mean = real.mean(axis=0, dtype=np.float64)
    real, fake = real - mean, fake - mean
    around_real, around_fake = (_radii(x, num_neighbours) for x in (real, fake))
    in_real = np.zeros(len(fake), int)  # number of real neighbourhoods around each
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)

    def count(distances, first):
        rows = slice(first, first + len(distances))
        inside = distances <= around_real
        in_real[rows] = inside.sum(axis=1)
        covered[:] |= inside.any(axis=0)
        recalled[:] |= (distances <= around_fake[rows, None]).any(axis=0)

    for _ in pairwise_distances_chunked(fake, real, reduce_func=count, working_memory=64):
        pass
    return Coverage(
        precision=float((in_real > 0).mean()),
        recall=float(recalled.mean()),
        density=float(in_real.mean() / num_neighbours),
        coverage=float(covered.mean()),
    )


def _radii(x: Float[np.ndarray, "n D"], num_neighbours: int) -> Float[np.ndarray, " n"]:
    """k-nearest-neighbour radii; ties count as inside."""
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=num_neighbours, algorithm="brute").fit(x)
    distances, _ = nearest.kneighbors()  # without arguments, no example is its own neighbour
    return distances[:, -1] + _TIE * np.linalg.norm(x, axis=1)


def nearest_neighbours(
    samples: Float[np.ndarray, "n D"], training: Float[np.ndarray, "m D"], *, count: int
) -> tuple[Float[np.ndarray, "n count"], Int[np.ndarray, "n count"]]:
    """Find each sample's nearest training examples, by Euclidean distance and exhaustive search.

    Args:
      samples: features or pixels, one row per example.
      training: features or pixels of the training examples, of the same dimension.
      count: the number of neighbours.

    Returns:
      The distances of the neighbours, ascending and exactly 0 for a copy, and their row numbers.

    Raises:
      ValueError: if there are no samples, count isn't between 1 and the number of training examples, the
        dimensions differ, or some aren't finite.
    """
    from sklearn.neighbors import NearestNeighbors

    samples, training = _checked(samples, training, at_least=1)
    if not 1 <= count <= len(training):
        raise ValueError(f"count must be between 1 and the {len(training)} training examples, found {count}")
    kind = np.result_type(samples, training, np.float32)
    nearest = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(training.astype(kind, copy=False))
    indices = nearest.kneighbors(samples.astype(kind, copy=False), return_distance=False)
    # The search uses differences of squares, in which the distance of a copy isn't exactly 0.
    x = samples.astype(np.float64)
    distances = np.stack([np.linalg.norm(x - training[column], axis=1) for column in indices.T], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _checked(a: Any, b: Any, *, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Check both sets and return them as numpy arrays: jax's would compute in single precision."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sets must have the same dimension, found {a.shape[1]} and {b.shape[1]}")
    if min(len(a), len(b)) < at_least:
        raise ValueError(f"each set needs at least {at_least} examples, found {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite, found NaN or infinity")
    return a, b
