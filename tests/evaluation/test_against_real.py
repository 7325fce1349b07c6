"""Samples compared with real examples: names, real values, copies and missing classes."""

import numpy as np
import pytest

from ncsn_jax.evaluation import against_real, distances
from ncsn_jax.evaluation.against_real import Real
from ncsn_jax.evaluation.features import PIXELS, Extracted, Features

RNG = np.random.default_rng(0)


def gaussian(n, shift=0.0):
    probabilities = RNG.dirichlet(np.ones(3), n)
    return Extracted((shift + RNG.standard_normal((n, 4))).astype(np.float32), probabilities)


TRAIN, TEST = gaussian(2000), gaussian(300)
REAL = Real("of", Features("classifier", "f", PIXELS.extract), TRAIN, TEST)


def test_frechet_is_also_measured_on_as_many_samples_as_test_examples():
    samples = gaussian(1000, shift=0.5)
    found = against_real.frechet(REAL, samples).results
    assert list(found) == ["FD-1k (classifier)", "FD-300 (classifier)"]
    whole, few = found.values()
    assert whole.value == distances.frechet_distance(samples.features, TRAIN.features)
    assert whole.real is None
    assert few.value == distances.frechet_distance(samples.features[:300], TRAIN.features)
    assert few.real == distances.frechet_distance(TEST.features, TRAIN.features)
    assert few.real < 0.2 < few.value


def test_fewer_samples_are_compared_with_equally_many_test_examples():
    found = against_real.kernel(REAL, gaussian(100, shift=1.0)).results
    assert list(found) == ["KD-100 (classifier)"]
    (result,) = found.values()
    assert result.real == distances.kernel_distance(TEST.features[:100], REAL.reference).value
    assert result.value > 4 * result.standard_error


def test_only_inception_features_get_the_names_fid_kid_and_is():
    inception = Real("of", Features("inception", "f", PIXELS.extract), TRAIN, TEST)
    assert list(against_real.frechet(inception, TEST).results) == ["FID-300"]
    assert list(against_real.kernel(inception, TEST).results) == ["KID-300"]
    assert list(against_real.inception_score(inception, TEST).results) == ["IS-300"]


def test_test_examples_given_as_samples_score_the_real_value():
    for measure in (against_real.frechet, against_real.kernel, against_real.inception_score):
        (result,) = measure(REAL, TEST).results.values()
        assert result.value == result.real
    for result in against_real.coverage(REAL, TEST, num_neighbours=3).results.values():
        assert result.value == result.real > 0.2


def test_pairwise_reference_is_a_random_subset_of_all_training_examples(monkeypatch):
    monkeypatch.setattr(against_real, "MAX_REFERENCE", 500)
    assert REAL.reference.shape == (500, 4)
    assert len(np.unique(REAL.reference, axis=0)) == 500
    rows = {row.tobytes() for row in TRAIN.features}
    assert all(row.tobytes() in rows for row in REAL.reference)
    assert not np.array_equal(REAL.reference, TRAIN.features[:500])


def test_class_shares_are_counted_and_a_missing_class_is_detected():
    samples = gaussian(300)
    samples = samples._replace(probabilities=np.eye(3)[np.arange(300) % 2])
    found = against_real.classes(REAL, samples)
    results, shares = found.results, found.details
    assert shares["samples"] == [0.5, 0.5, 0.0]
    expected = np.bincount(TRAIN.probabilities.argmax(1), minlength=3) / 2000
    np.testing.assert_allclose(shares["training data"], expected)
    result, _ = results.values()
    assert result.value == pytest.approx(0.5 * np.abs(np.array([0.5, 0.5, 0]) - expected).sum())
    assert result.real < 0.15 < result.value


def test_the_share_of_sure_classes_counts_the_probabilities_above_the_bound():
    probabilities = np.repeat([[0.95, 0.05, 0.0], [0.0, 0.15, 0.85]], [225, 75], axis=0)
    found = against_real.classes(REAL, gaussian(300)._replace(probabilities=probabilities)).results
    result = found["class with p > 0.9-300 (classifier)"]
    assert result.value == 0.75
    assert result.real == np.mean(TEST.probabilities.max(1) > 0.9)


def test_neighbour_distance_detects_copies_of_training_examples():
    def ratio(samples):
        (result,) = against_real.neighbours(REAL, samples).results.values()
        return result.value

    assert ratio(TRAIN.rows(slice(200))) == 0.0
    assert 0.8 < ratio(gaussian(300)) < 1.25
    assert ratio(gaussian(300, shift=3.0)) > 1.5
    leaked = Real("of", REAL.features, TRAIN, TRAIN.rows(slice(300)))
    assert against_real.neighbours(leaked, gaussian(300)).results == {}


@pytest.mark.parametrize("num_test", [1, 2, 5])
def test_too_few_test_examples_skip_only_the_comparison_that_needs_more(num_test):
    """Metrics of all samples stay; metrics of as many samples as test examples may be missing."""
    small, samples = Real("of", REAL.features, TRAIN, TEST.rows(slice(num_test))), gaussian(50)
    for measure, least, name in (
        (against_real.frechet, 2, "FD"),
        (against_real.kernel, 3, "KD"),
        (lambda *a: against_real.coverage(*a, num_neighbours=5), 6, "recall"),
    ):
        found = measure(small, samples)
        assert f"{name}-50 (classifier)" in found.results
        of_few = f"{name}-{num_test} (classifier)"
        if num_test < least:
            assert f"at least {least} examples, found" in found.problems[of_few]
            assert of_few not in found.results
        else:
            assert not found.problems
            assert found.results[of_few].real is not None
