"""Metrics compared with closed forms, their definitions and torch-fidelity's numbers.

The last are in `tests/fixtures/torch_fidelity.json`, made in an environment with the extra `fid`:

    python tests/evaluation/test_distances.py > tests/fixtures/torch_fidelity.json
"""

import importlib.metadata
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from ncsn_jax.evaluation import distances
from ncsn_jax.evaluation.distances import (
    Coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest_neighbours,
    precision_recall_density_coverage,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "torch_fidelity.json"


# --- torch-fidelity's numbers ---


def features(count, dim):
    """Two sets of correlated, positive, skewed features, float32 as a network's, of nearby distributions."""
    rng = np.random.default_rng((count, dim))
    mixing = rng.standard_normal((2, dim, dim)) / math.sqrt(dim)
    mixing[1] = 0.8 * mixing[0] + 0.6 * mixing[1]
    sets = rng.standard_normal((2, count, dim)) @ mixing + [[[0.0]], [[0.1]]]
    return [np.logaddexp(0, x).astype(np.float32) for x in sets]


def logits(count, classes):
    return (3 * np.random.default_rng((count, classes)).standard_normal((count, classes))).astype(np.float32)


def probabilities(count, classes):
    x = np.exp(logits(count, classes).astype(np.float64))
    return x / x.sum(axis=1, keepdims=True)


FEATURES = {"more examples than dimensions": (400, 16), "fewer examples than dimensions": (60, 128)}
CLASSES = (1003, 10)  # the ten parts are of 100 and 101


def by_torch_fidelity(name):
    """torch-fidelity's values: of two sets of features, or of one of logits."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    if name == "classes":
        return metric_isc.isc_features_to_metric(torch.tensor(logits(*CLASSES)), shuffle=False)
    fake, real = (torch.tensor(x) for x in features(*FEATURES[name]))
    statistics = [metric_fid.fid_features_to_statistics(x) for x in (fake, real)]
    all_pairs = {"kid_subsets": 1, "kid_subset_size": len(real)}
    found = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    found |= metric_kid.kid_features_to_metric(fake, real, **all_pairs, verbose=False)
    return found | metric_prc.prc_features_to_metric(fake, real, verbose=False)  # k = 3


@pytest.fixture(params=["live", "recorded"])
def torch_fidelity(request):
    return json.loads(FIXTURE.read_text()).get if request.param == "recorded" else by_torch_fidelity


@pytest.mark.parametrize("name", FEATURES)
def test_distances_equal_torch_fidelitys(name, torch_fidelity):
    expected = torch_fidelity(name)
    fake, real = features(*FEATURES[name])
    assert frechet_distance(fake, real) == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    kid = kernel_distance(fake, real)
    expected_kid = expected["kernel_inception_distance_mean"]
    assert abs(kid.value - expected_kid) <= 1e-3 * max(abs(expected_kid), kid.standard_error)
    found = precision_recall_density_coverage(real, fake, num_neighbours=3)
    assert 0 < expected["precision"] < 1
    assert 0 < expected["recall"] < 1
    assert found.precision == pytest.approx(expected["precision"], rel=1e-6)
    assert found.recall == pytest.approx(expected["recall"], rel=1e-6)


def test_inception_score_equals_torch_fidelitys(torch_fidelity):
    expected = torch_fidelity("classes")
    value, standard_error = inception_score(probabilities(*CLASSES))
    assert value == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert standard_error * math.sqrt(9) == pytest.approx(expected["inception_score_std"], rel=1e-6)


# --- the Fréchet distance ---


def with_moments(rng, count, mean, root):
    """Examples whose mean and covariance, root rootᵀ, are exactly these; count − 1 ≥ root's columns."""
    x = rng.standard_normal((count, root.shape[1]))
    orthonormal, _ = np.linalg.qr(x - x.mean(axis=0))
    return mean + math.sqrt(count - 1) * orthonormal @ root.T


def closed_form(mean_a, cov_a, mean_b, cov_b):
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)


def test_frechet_distance_equals_the_closed_form_of_given_moments():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.standard_normal((2, 5))
    root_a, root_b = rng.standard_normal((2, 5, 5))
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    assert np.abs(cov_a @ cov_b - cov_b @ cov_a).max() > 1  # where tr (Σ₁Σ₂)^½ isn't tr Σ₁^½ Σ₂^½
    a, b = with_moments(rng, 20, mean_a, root_a), with_moments(rng, 31, mean_b, root_b)
    expected = closed_form(mean_a, cov_a, mean_b, cov_b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [2, 5, 50])
def test_frechet_distance_equals_the_closed_form_for_singular_covariances(count):
    """tr (Σ v vᵀ)^½ = (vᵀ Σ v)^½: in eight dimensions one set lies on a line, the other in two to five."""
    rng = np.random.default_rng(1)
    mean_a, mean_b, v = rng.standard_normal((3, 8))
    root = rng.standard_normal((8, min(count - 1, 5)))
    cov = root @ root.T
    a, b = with_moments(rng, count, mean_a, root), with_moments(rng, 3, mean_b, v[:, None])
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov) + v @ v - 2 * math.sqrt(v @ cov @ v)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_a_shifted_or_scaled_copy_equals_the_closed_form():
    a, _ = features(60, 128)
    trace = a.var(axis=0, ddof=1, dtype=np.float64).sum()
    assert frechet_distance(a, a) <= 1e-12 * trace
    assert frechet_distance(a, a.astype(np.float64) + 3) == pytest.approx(9 * 128, rel=1e-10)
    centred = a - a.mean(axis=0, dtype=np.float64)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * trace, rel=1e-10)


@pytest.mark.parametrize("count", [3, 30])
def test_frechet_distance_of_coinciding_points_equals_the_closed_form(count):
    a, b = np.full((count, 4), 0.1), np.random.default_rng(14).standard_normal((50, 4))
    assert frechet_distance(a, a + 2) == pytest.approx(16, rel=1e-12)
    expected = np.sum((b.mean(axis=0) - 0.1) ** 2) + b.var(axis=0, ddof=1).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_computed_by_blocks_equals_one_block(monkeypatch):
    a, b = features(400, 16)
    expected = frechet_distance(a, b)
    monkeypatch.setattr(distances, "_ROWS", 3)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_gaussian_samples_estimates_the_closed_form():
    """Within four standard errors of the mean of 40 pairs, which are 0.1 % of the distance."""
    rng = np.random.default_rng(2)
    mean_a, mean_b = rng.standard_normal((2, 4))
    root_a, root_b = rng.standard_normal((2, 4, 4))
    truth = closed_form(mean_a, root_a @ root_a.T, mean_b, root_b @ root_b.T)

    def pair():
        a, b = rng.standard_normal((2, 20_000, 4))
        return frechet_distance(mean_a + a @ root_a.T, mean_b + b @ root_b.T)

    found = np.array([pair() for _ in range(40)])
    standard_error = found.std(ddof=1) / math.sqrt(len(found))
    assert standard_error < 2e-3 * truth
    assert abs(found.mean() - truth) < 4 * standard_error


def test_frechet_distance_bias_is_inverse_to_the_number_of_samples():
    rng = np.random.default_rng(3)
    few, many = (
        np.mean([frechet_distance(*rng.standard_normal((2, count, 16))) for _ in range(20)])
        for count in (500, 2000)
    )
    assert few > 0
    assert few / many == pytest.approx(4, rel=0.1)


# --- the kernel distance ---


def naive_kernel_distance(a, b):
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    within_a = np.mean([kernel(x, y) for x, y in itertools.permutations(a, 2)])
    within_b = np.mean([kernel(x, y) for x, y in itertools.permutations(b, 2)])
    return within_a + within_b - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kernel_distance_and_its_jackknife_error_equal_their_definitions():
    a, b = features(60, 128)
    a, b = a[:9].astype(np.float64), b[:6].astype(np.float64)
    found = kernel_distance(a, b)
    assert found.value == pytest.approx(naive_kernel_distance(a, b), rel=1e-10)
    without_a = np.array([naive_kernel_distance(np.delete(a, i, axis=0), b) for i in range(9)])
    without_b = np.array([naive_kernel_distance(a, np.delete(b, j, axis=0)) for j in range(6)])
    variance = sum((len(u) - 1) / len(u) * np.sum((u - u.mean()) ** 2) for u in (without_a, without_b))
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_kernel_distance_computed_by_blocks_equals_the_whole_matrix(monkeypatch):
    a, b = features(400, 16)
    b = b[:301]
    expected = kernel_distance(a, b)
    for rows in (1000, 7):
        monkeypatch.setattr(distances, "_ROWS", rows)
        assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)
    monkeypatch.undo()
    swapped = kernel_distance(b, a)
    assert swapped == pytest.approx(expected, rel=1e-9)


def cubed_product(x, y):
    """E (x·y/D + 1)³ of independent Gaussians (mean, covariance), from their first three moments."""
    dim = len(x[0])

    def moments(mean, cov):
        second = cov + np.outer(mean, mean)
        crossed = [np.einsum(f"a,bc->{to}", mean, cov) for to in ("abc", "bac", "bca")]
        return mean, second, np.einsum("a,b,c->abc", mean, mean, mean) + sum(crossed)

    products = [
        np.sum(p * q) / dim**k for k, (p, q) in enumerate(zip(moments(*x), moments(*y), strict=True), 1)
    ]
    return 1 + 3 * products[0] + 3 * products[1] + products[2]


def gaussians():
    """Functions that draw from two Gaussians, and their squared MMD in closed form."""
    rng = np.random.default_rng(4)
    means = np.array([[0.0, 0.5, 1.0, -0.5], [0.3, 0.5, 0.7, -0.2]])
    roots = rng.standard_normal((2, 4, 4)) / 2
    a, b = ((mean, root @ root.T) for mean, root in zip(means, roots, strict=True))
    truth = cubed_product(a, a) + cubed_product(b, b) - 2 * cubed_product(a, b)
    draws = [
        lambda rng, count, mean=mean, root=root: mean + rng.standard_normal((count, 4)) @ root.T
        for mean, root in zip(means, roots, strict=True)
    ]
    return *draws, truth


def discrete():
    """Functions that draw from two distributions on the same five points, and their squared MMD."""
    points = np.random.default_rng(5).standard_normal((5, 3))
    weights = np.array([[0.4, 0.1, 0.2, 0.2, 0.1], [0.1, 0.3, 0.1, 0.2, 0.3]])
    kernel = (points @ points.T / 3 + 1) ** 3
    difference = weights[0] - weights[1]
    draws = [lambda rng, count, p=p: points[rng.choice(5, count, p=p)] for p in weights]
    return *draws, difference @ kernel @ difference


def repeated(draw_a, draw_b, n, m, repeats):
    rng = np.random.default_rng(6)
    return np.array([kernel_distance(draw_a(rng, n), draw_b(rng, m)) for _ in range(repeats)])


@pytest.mark.parametrize("distributions", [gaussians, discrete])
def test_kernel_distance_of_different_distributions_is_unbiased(distributions):
    """With 5 and 8 examples, where a biased estimate would be far off: within four standard errors."""
    draw_a, draw_b, truth = distributions()
    found, _ = repeated(draw_a, draw_b, 5, 8, 3000).T
    standard_error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - truth) < 4 * standard_error
    # The test would notice terms i = j left in the sums.
    on_diagonal = np.mean([(x @ x / len(x) + 1) ** 3 for x in draw_a(np.random.default_rng(7), 2000)])
    assert on_diagonal / 5 > 20 * standard_error


def test_kernel_distance_of_equal_distributions_is_unbiased():
    draw, _, _ = gaussians()
    found, _ = repeated(draw, draw, 5, 8, 3000).T
    assert abs(found.mean()) < 4 * found.std(ddof=1) / math.sqrt(len(found))


def covered(draw_a, draw_b, truth, repeats):
    found, error = repeated(draw_a, draw_b, 250, 350, repeats).T
    return np.mean(np.abs(found - truth) <= 1.96 * error)


@pytest.mark.parametrize("distributions", [gaussians, discrete])
def test_kernel_distance_interval_covers_the_truth_in_95_percent_of_600_repeats(distributions):
    """95 ± 3 % of 600 intervals: 3 % are 3.4 standard errors."""
    assert covered(*distributions(), repeats=600) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("distributions", [gaussians, discrete])
def test_kernel_distance_interval_covers_the_truth_in_95_percent_of_5000_repeats(distributions):
    """95 ± 1.5 % of 5,000 intervals: 1.5 % are 5 standard errors."""
    assert covered(*distributions(), repeats=5000) == pytest.approx(0.95, abs=0.015)


def test_kernel_distance_error_is_sqrt_2_too_large_for_equal_distributions():
    """By about √2, as the docstring says; 2,000 repeats know the standard deviation to a few per cent."""
    draw, _, _ = gaussians()
    found, error = repeated(draw, draw, 100, 100, 2000).T
    assert math.sqrt(np.mean(error**2)) / found.std() == pytest.approx(math.sqrt(2), rel=0.1)


# --- the inception score ---


def test_inception_score_of_sure_unsure_and_single_classes_is_exact():
    sure = np.tile(np.eye(4), (30, 1))
    assert inception_score(sure) == pytest.approx((4, 0), abs=1e-12)
    assert inception_score(np.full((30, 4), 0.25)) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(np.tile(np.eye(4)[:1], (30, 1))) == pytest.approx((1, 0), abs=1e-12)


def test_inception_score_of_two_splits_equals_the_value_by_hand():
    """Two parts: e^KL of ¼ and ¾ against ½, twice; and 1."""
    p = np.array([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    first = math.exp(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    value, standard_error = inception_score(p, num_splits=2)
    assert value == pytest.approx((first + 1) / 2, rel=1e-12)
    assert standard_error == pytest.approx((first - 1) / 2, rel=1e-12)


def test_inception_score_uses_every_example():
    """Making any one of 13 even examples sure changes the score."""
    even = np.full((13, 3), 1 / 3)
    for index in range(13):
        p = even.copy()
        p[index] = [1, 0, 0]
        assert inception_score(p, num_splits=5).value > 1.01


# --- precision, recall, density and coverage ---


def test_precision_recall_density_and_coverage_equal_values_by_hand():
    """Real neighbourhoods: 0 ± 1, 1 ± 1, 3 ± 2, 6 ± 3, −10 ± 10. Others: 0.5 ± 4, 4.5 ± 4, 10 ± 1, 11 ± 1."""
    real = np.array([[0.0], [1.0], [3.0], [6.0], [-10.0]])
    fake = np.array([[0.5], [4.5], [10.0], [11.0]])
    found = precision_recall_density_coverage(real, fake, num_neighbours=1)
    # 0.5 lies in the first two, 4.5 in the next two, 10 and 11 in none.
    assert found == Coverage(precision=2 / 4, recall=4 / 5, density=4 / 4, coverage=4 / 5)
    # The other way round, 0, 1 and 3 lie about 0.5, and 1, 3 and 6 about 4.5.
    found = precision_recall_density_coverage(fake, real, num_neighbours=1)
    assert found == Coverage(precision=4 / 5, recall=2 / 4, density=6 / 5, coverage=2 / 4)


def test_an_example_at_exactly_the_neighbourhood_radius_counts_as_inside():
    real, at_surface, beyond = (np.array(x)[:, None] for x in ([0.0, 2.0], [-2.0, 4.0], [-2.001, 4.001]))
    inside = precision_recall_density_coverage(real, at_surface, num_neighbours=1)
    assert (inside.precision, inside.density, inside.coverage) == (1, 1, 1)
    outside = precision_recall_density_coverage(real, beyond, num_neighbours=1)
    assert (outside.precision, outside.density, outside.coverage) == (0, 0, 0)


@pytest.mark.parametrize("offset", [0, 1000])
def test_coverage_of_a_set_by_its_copy_is_complete(offset):
    """Each example lies in its own neighbourhood and, as a tie, k others do: also far from the origin."""
    x = (offset + np.random.default_rng(8).standard_normal((200, 64))).astype(np.float32)
    found = precision_recall_density_coverage(x, x.copy(), num_neighbours=5)
    assert found == Coverage(precision=1, recall=1, density=pytest.approx(6 / 5, rel=1e-12), coverage=1)


def test_copies_of_one_real_example_recall_only_that_example():
    """A collapsed model's neighbourhoods are points: it recalls the one example that it copies."""
    real = (1000 + np.random.default_rng(9).standard_normal((50, 64))).astype(np.float32)
    found = precision_recall_density_coverage(real, np.repeat(real[7:8], 20, axis=0))
    assert (found.precision, found.recall) == (1, 1 / 50)
    assert found.coverage == np.mean(np.sort(cdist(real, real), axis=1)[:, 5] >= cdist(real, real)[:, 7])


def test_precision_recall_density_and_coverage_of_disjoint_sets_are_zero():
    real, fake = np.random.default_rng(10).standard_normal((2, 40, 3))
    assert precision_recall_density_coverage(real, fake + 100) == Coverage(0, 0, 0, 0)


def test_precision_recall_density_and_coverage_equal_their_definitions(monkeypatch):
    rng = np.random.default_rng(11)
    real, fake = rng.standard_normal((150, 4)), 0.4 + 0.8 * rng.standard_normal((90, 4))
    across = cdist(real, fake)
    around_real = np.sort(cdist(real, real), axis=1)[:, 5]
    around_fake = np.sort(cdist(fake, fake), axis=1)[:, 5]
    inside = across <= around_real[:, None]
    expected = Coverage(
        precision=inside.any(axis=0).mean(),
        recall=(across <= around_fake).any(axis=1).mean(),
        density=inside.sum() / (5 * 90),
        coverage=inside.any(axis=1).mean(),
    )
    assert len(set(expected)) == 4
    assert precision_recall_density_coverage(real, fake) == pytest.approx(expected, rel=1e-12)


def test_density_and_coverage_of_equal_distributions_have_expected_values():
    """About 1 and 1 − 2⁻ᵏ, as the docstring says."""
    found = [
        precision_recall_density_coverage(*np.random.default_rng(seed).standard_normal((2, 500, 2)))
        for seed in range(10)
    ]
    assert np.mean([f.density for f in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([f.coverage for f in found]) == pytest.approx(1 - 2**-5, abs=0.01)


def test_coverage_computed_in_chunks_equals_coverage_at_once(monkeypatch):
    """A megabyte holds 131 rows of the 1,000 × 1,000 distances."""
    chunks = []
    whole = sklearn.metrics.pairwise_distances_chunked

    def counted(x, y, *, reduce_func, working_memory):
        def reduce(distances, first):
            chunks.append(len(distances))
            return reduce_func(distances, first)

        assert working_memory < 100
        return whole(x, y, reduce_func=reduce, working_memory=1)

    real, fake = np.random.default_rng(12).standard_normal((2, 1000, 2))
    expected = precision_recall_density_coverage(real, fake)
    monkeypatch.setattr(sklearn.metrics, "pairwise_distances_chunked", counted)
    assert precision_recall_density_coverage(real, fake) == expected
    assert len(chunks) == 8


# --- nearest neighbours ---


def test_nearest_neighbours_equal_distances_and_indices_by_hand():
    training = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
    distances, indices = nearest_neighbours(np.array([[0.0, 0.0], [6.0, 7.0]]), training, count=3)
    np.testing.assert_array_equal(indices, [[0, 3, 1], [2, 1, 3]])
    np.testing.assert_allclose(distances, [[0, 1, 5], [1, math.sqrt(18), math.sqrt(72)]], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_neighbour_of_a_copy_is_its_original_at_distance_zero(dtype):
    training = (1000 + np.random.default_rng(13).standard_normal((500, 64))).astype(dtype)
    distances, indices = nearest_neighbours(training[::7].copy(), training, count=2)
    np.testing.assert_array_equal(indices[:, 0], np.arange(500)[::7])
    np.testing.assert_array_equal(distances[:, 0], 0)
    expected = np.sort(cdist(training[::7], training), axis=1)[:, 1]
    np.testing.assert_allclose(distances[:, 1], expected, rtol=1e-12)


# --- errors ---

TOO_FEW = [
    (frechet_distance, 1, "at least 2 examples, found 1 and 9"),
    (kernel_distance, 2, "at least 3 examples, found 2 and 9"),
    (precision_recall_density_coverage, 5, "at least 6 examples, found 5 and 9"),
]


@pytest.mark.parametrize(("metric", "count", "message"), TOO_FEW)
def test_metrics_refuse_too_few_examples(metric, count, message):
    metric(np.eye(10)[: count + 1], np.eye(10)[:9])
    with pytest.raises(ValueError, match=message):
        metric(np.eye(10)[:count], np.eye(10)[:9])


OF_TWO_SETS = [
    pytest.param(lambda module: module.frechet_distance, id="frechet"),
    pytest.param(lambda module: module.kernel_distance, id="kernel"),
    pytest.param(lambda module: module.precision_recall_density_coverage, id="coverage"),
    pytest.param(lambda module: lambda a, b: module.nearest_neighbours(a, b, count=1), id="neighbours"),
]


@pytest.mark.parametrize("of", OF_TWO_SETS)
def test_metrics_refuse_sets_of_different_dimensions(of, unchecked):
    with pytest.raises(ValueError, match="same dimension, found 10 and 9"):
        of(unchecked(distances))(np.eye(10), np.eye(10)[:, :9])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("of", OF_TWO_SETS)
def test_metrics_refuse_features_that_are_not_finite(of, value):
    for place in range(2):
        sets = [np.eye(10), np.eye(10)]
        sets[place][3, 4] = value
        with pytest.raises(ValueError, match="finite"):
            of(distances)(*sets)


@pytest.mark.parametrize("num_splits", [1, 31])
def test_inception_score_refuses_an_impossible_number_of_splits(num_splits):
    with pytest.raises(ValueError, match=f"between 2 and the number of examples, 30, found {num_splits}"):
        inception_score(np.full((30, 2), 0.5), num_splits=num_splits)


@pytest.mark.parametrize("row", [[0.5, 0.6], [-0.5, 1.5], [np.nan, 1.0]])
def test_inception_score_refuses_rows_that_are_not_probabilities(row):
    p = np.full((30, 2), 0.5)
    p[4] = row
    with pytest.raises(ValueError, match="probabilities"):
        inception_score(p)


@pytest.mark.parametrize("count", [0, 5])
def test_an_impossible_number_of_neighbours_is_refused(count):
    with pytest.raises(ValueError, match=f"between 1 and the 4 training examples, found {count}"):
        nearest_neighbours(np.eye(4), np.eye(4), count=count)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        precision_recall_density_coverage(np.eye(4), np.eye(4), num_neighbours=0)


if __name__ == "__main__":
    values = {name: by_torch_fidelity(name) for name in [*FEATURES, "classes"]}
    print(json.dumps({"torch-fidelity": importlib.metadata.version("torch-fidelity"), **values}, indent=2))
