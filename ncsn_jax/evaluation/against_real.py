"""Metrics that compare features of samples with features of real examples."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from ncsn_jax.evaluation import distances
from ncsn_jax.evaluation.features import Extracted, Features
from ncsn_jax.evaluation.results import Found, Result, count_name

MAX_REFERENCE = 10_000
"""Largest number of training examples, drawn at random, in metrics that compare every pair."""
MAX_NEIGHBOURS = 1_000
"""Largest number of samples whose nearest training examples are computed."""
SURE = 0.9
"""Probability of a class above which the classifier is sure of it."""

Results = dict[str, Result]
Classes = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Real:
    """Features of real examples.

    Attributes:
      of: the fingerprint of all inputs.
      features: the map to features.
      train: the features of all training examples, with which samples are compared.
      test: the features of the test examples, in a fixed random order.
      train_classes: the classes of the training examples, if they are the network's condition; else None.
      test_classes: the classes of the test examples, in the order of their features.
    """

    of: str
    features: Features
    train: Extracted
    test: Extracted
    train_classes: Int[np.ndarray, " train"] | None = None
    test_classes: Int[np.ndarray, " test"] | None = None

    @property
    def reference(self) -> Float[np.ndarray, "n D"]:
        """Features of at most `MAX_REFERENCE` training examples, drawn at random."""
        order = np.random.default_rng(0).permutation(len(self.train.features))
        return self.train.features[np.sort(order[:MAX_REFERENCE])]

    def name(self, metric: str, count: int) -> str:
        """Return a metric's name with the number of samples and the features, which decide its value.

        The papers' names are reserved for the features of Inception-v3.
        """
        if self.features.name == "inception":
            return f"{metric}-{count_name(count)}"
        metric = {"FID": "FD", "KID": "KD"}.get(metric, metric)
        return f"{metric}-{count_name(count)} ({self.features.name})"


def frechet(real: Real, samples: Extracted) -> Found:
    """Compute the Fréchet distance to all training examples; its bias falls with the number of samples."""

    def measure(x):
        return {
            "FID": Result(value=distances.frechet_distance(x.features, real.train.features), better="lower")
        }

    return _beside_real(real, samples, ("FID",), measure)


def kernel(real: Real, samples: Extracted) -> Found:
    """Compute the unbiased kernel distance to the reference."""

    def measure(x):
        value, error = distances.kernel_distance(x.features, real.reference)
        return {"KID": Result(value=value, standard_error=error, better="lower")}

    return _beside_real(real, samples, ("KID",), measure)


def coverage(real: Real, samples: Extracted, *, num_neighbours: int) -> Found:
    """Compute precision, recall, density and coverage with respect to the reference."""

    def measure(x):
        found = distances.precision_recall_density_coverage(
            real.reference, x.features, num_neighbours=num_neighbours
        )
        return {name: Result(value=value, better="higher") for name, value in found._asdict().items()}

    return _beside_real(real, samples, distances.Coverage._fields, measure)


def inception_score(real: Real, samples: Extracted) -> Found:
    """Compute the inception score over the classes of the features' network."""

    def measure(x):
        num_splits = min(10, len(x.features) // 2)
        value, error = distances.inception_score(x.probabilities, num_splits=num_splits)
        return {"IS": Result(value=value, standard_error=error, better="higher")}

    return _beside_real(real, samples, ("IS",), measure)


def classes(real: Real, samples: Extracted) -> Found:
    """Compute the class shares and their total variation ½ Σ |pₖ − qₖ| from the training examples' shares.

    The share of examples that the classifier is sure of, with a class of probability above `SURE`, comes with
    it.
    """
    expected, names = class_shares(real.train), ("class shares, total variation", f"class with p > {SURE}")

    def measure(x):
        distance, sure = 0.5 * np.abs(class_shares(x) - expected).sum(), x.probabilities.max(axis=1) > SURE
        values = (Result(value=float(distance), better="lower"), Result(value=sure.mean(), better="higher"))
        return dict(zip(names, values, strict=True))

    shares = {"samples": class_shares(samples).tolist(), "training data": expected.tolist()}
    return dataclasses.replace(_beside_real(real, samples, names, measure), details=shares)


def class_shares(extracted: Extracted) -> Float[np.ndarray, " K"]:
    """Return the share of the examples that is assigned to each class."""
    assert extracted.probabilities is not None
    counts = np.bincount(extracted.probabilities.argmax(1), minlength=extracted.probabilities.shape[1])
    return counts / counts.sum()


def agreement(real: Real, samples: Extracted, asked: Classes) -> Found:
    """Compute the share of samples that the classifier takes for the class that was asked for.

    It comes with the share of all test examples that it takes for their class.

    Args:
      real: the features of real examples, with their classes.
      samples: the features of the samples.
      asked: the class that each sample was asked for; −1 for none, which isn't counted.
    """
    is_asked = asked >= 0
    assert samples.probabilities is not None
    assert real.test.probabilities is not None
    agrees = (samples.probabilities.argmax(1) == asked)[is_asked]
    if not len(agrees):
        raise ValueError("no sample was asked for a class")
    of_real = float(np.mean(real.test.probabilities.argmax(1) == real.test_classes))
    by_class = {int(c): float(agrees[asked[is_asked] == c].mean()) for c in np.unique(asked[is_asked])}
    error = float(np.sqrt(agrees.mean() * (1 - agrees.mean()) / len(agrees)))
    result = Result(value=float(agrees.mean()), standard_error=error, real=of_real, better="higher")
    return Found({real.name("agreement with the class", len(agrees)): result}, {"by class": by_class})


def class_frechet(real: Real, samples: Extracted, asked: Classes) -> Found:
    """Compute the mean over the classes of the Fréchet distance between samples and training examples of one.

    It comes with the mean of as many test examples of each class, if there are enough.

    Args:
      real: the features of real examples, with their classes.
      samples: the features of the samples.
      asked: the class that each sample was asked for; −1 for none, which isn't counted.
    """
    assert real.train_classes is not None
    assert real.test_classes is not None
    distances_of, of_real = {}, []
    for c in np.unique(asked[asked >= 0]):
        train, test = real.train.features[real.train_classes == c], real.test.features[real.test_classes == c]
        own = samples.features[asked == c]
        if min(len(own), len(train)) < 2:  # no covariance
            continue
        distances_of[int(c)] = distances.frechet_distance(own, train)
        if len(test) >= len(own):
            of_real.append(distances.frechet_distance(test[: len(own)], train))
    if not distances_of:
        raise ValueError("no class has two samples and two training examples")
    reference = float(np.mean(of_real)) if len(of_real) == len(distances_of) else None
    result = Result(value=float(np.mean(list(distances_of.values()))), real=reference, better="lower")
    name = real.name("FID", int((asked >= 0).sum())) + " within classes"
    return Found({name: result}, {"by class": distances_of})


def neighbours(real: Real, samples: Extracted) -> Found:
    """Compute the median distance to the nearest training example, relative to the test examples' median.

    1 is the distance of unseen data; 0 would be copies. If half of the test examples coincide with training
    examples, the ratio is undefined, and there is no result.
    """

    def nearest(x):
        found, _ = distances.nearest_neighbours(x[:MAX_NEIGHBOURS], real.train.features, count=1)
        return float(np.median(found))

    count = min(len(samples.features), MAX_NEIGHBOURS)
    distance, of_real = nearest(samples.features), nearest(real.test.features)
    if of_real == 0:
        return Found({})
    result = Result(value=distance / of_real, real=1.0)
    return Found({real.name("nearest training example, relative distance", count): result})


def _beside_real(
    real: Real, samples: Extracted, names: Sequence[str], measure: Callable[[Extracted], Results]
) -> Found:
    """Measure all samples, and as many samples as there are test examples if these are fewer.

    Each result comes with the same measure of as many test examples, if there are enough of them, because
    most measures depend on the number of examples. A measure that has too few examples reports a problem and
    doesn't affect other measures.
    """
    total, available = len(samples.features), len(real.test.features)
    results, problems = {}, {}
    for count in dict.fromkeys((total, min(total, available))):
        try:
            measured = measure(samples.rows(slice(count)))
        except ValueError as error:
            problems |= {real.name(name, count): str(error) for name in names}
            continue
        try:
            of_real = measure(real.test.rows(slice(count))) if count <= available else {}
        except ValueError:  # the test examples' features aren't finite
            of_real = {}
        for metric, result in measured.items():
            known = of_real.get(metric)
            results[real.name(metric, count)] = result.model_copy(
                update={"real": None if known is None else known.value}
            )
    return Found(results, problems=problems)
