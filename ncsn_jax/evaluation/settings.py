"""Settings of an evaluation."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from ncsn_jax.runtime.settings import Place, StrictSettings
from ncsn_jax.training.settings import Lengths

METRICS = (
    "frechet",
    "kernel",
    "coverage",
    "inception_score",
    "classes",
    "neighbours",
    "agreement",
    "class_frechet",
    "moments",
    "spectrum",
    "likelihood",
    "loss",
)


def _metrics(value: Any) -> Any:
    """Return the setting `metrics`; names from the command line are one string."""
    if value == "all":
        return value
    names = value.strip("()[] ").split(",") if isinstance(value, str) else value
    names = tuple(names) if isinstance(names, list | tuple) else ()
    if names and all(name in METRICS for name in names):
        return names
    raise ValueError(f"found {str(value)[:80]!r}; accepted: 'all', or some of {','.join(METRICS)}")


class Evaluation(StrictSettings):
    """Metrics, the number of samples, and the features in which they are compared."""

    metrics: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_metrics)] = "all"
    """Metrics to compute: `frechet` and `kernel` distance, `coverage` (with precision, recall and density),
    `inception_score`, the histogram of `classes`, the nearest training `neighbours`; of samples of given
    classes, the classifier's `agreement` with these and the `class_frechet` distance within them; of arrays,
    the `moments` of each channel and the power `spectrum`; the `likelihood` and the `loss` of test examples,
    given their conditions; `all` is every metric that the data and the network allow."""
    ema_lengths: Lengths = ()
    """Lengths σ_rel of averages by power functions, such as 0.05,0.1,0.15, with which each checkpoint is
    measured, made of the run's two averages and their snapshots; empty for the run's own average alone."""
    num_samples: Annotated[int, Field(ge=2)] = 10_000
    """Number of samples per checkpoint; the metrics' names contain this number."""
    features: Literal["auto", "classifier", "inception", "pixels"] = "auto"
    """Features in which images are compared: the last layer of a small classifier, trained once on the
    dataset's labels; the last layer of Inception-v3 (needs the extra `fid`); or the pixels. `auto` is the
    classifier if images have labels, otherwise Inception if it is installed, otherwise the pixels. Points
    and arrays are compared by their numbers."""
    inception_weights: Place | None = None
    """File of Inception-v3's weights in torch-fidelity's format; None downloads it."""
    num_neighbours: PositiveInt = 5
    """k of the k-nearest-neighbour radii; read by coverage."""
    likelihood_examples: PositiveInt = 1_000
    """Test examples, from the first, that the likelihood averages over."""
    trace: Literal["auto", "exact", "hutchinson"] = "auto"
    """Computation of the score's divergence: exact, or Hutchinson's estimate; `auto` is exact in up to 16
    dimensions. Read by likelihood."""
    num_probes: PositiveInt = 1
    """Rademacher vectors that Hutchinson's estimate averages over; read by likelihood."""
    loss_examples: PositiveInt = 1_000
    """Test examples, from the first, that the loss at each noise level averages over."""
