"""Evaluation loop over a run's checkpoints, and the files that it writes."""

import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ncsn_jax import data
from ncsn_jax.data import Dataset
from ncsn_jax.evaluation import against_real, array_metrics, figures, model_metrics, results
from ncsn_jax.evaluation.against_real import Real
from ncsn_jax.evaluation.cached_parts import fingerprint
from ncsn_jax.evaluation.features import Features
from ncsn_jax.evaluation.generator import Generator
from ncsn_jax.evaluation.inception import require_installed
from ncsn_jax.evaluation.measured_samples import (
    Samples,
    drawn_samples,
    given_samples,
    preprocessing_facts,
    sample_features,
)
from ncsn_jax.evaluation.real_features import kind_of_features, real_features
from ncsn_jax.evaluation.results import Found, Measured, Subject
from ncsn_jax.evaluation.settings import METRICS, Evaluation
from ncsn_jax.models import as_score_fn
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.errors import ArgumentError, UserError
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.runtime.processes import wait_for_all
from ncsn_jax.training.checkpoints import DamagedCheckpointError, read_record, steps_in
from ncsn_jax.training.resume import require_same_data
from ncsn_jax.training.variables import restored_variables

OF_CLASSES = ("inception_score", "classes")
OF_FEATURES = ("frechet", "kernel", "coverage", "neighbours")
OF_ARRAYS = ("moments", "spectrum")
OF_CONDITIONS = ("agreement", "class_frechet")
OF_NETWORKS = ("likelihood", "loss")
MAX_FEATURES = 2**14
"""Largest number of numbers in an array whose numbers are features: distances need their covariance."""


class Measure(NamedTuple):
    """Metric of one subject: the fingerprint of its inputs and its computation, which every process runs."""

    of: str
    run: Callable[[], Found]


@pinned()
def evaluate(
    workdir: str | PathLike[str],
    *,
    dataset: Dataset,
    settings: Evaluation,
    generator: Generator | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    steps: Sequence[int] | None = None,
    images: str | None = None,
    features: Features | None = None,
) -> list[Subject]:
    """Measure a run's checkpoints, or given images, against a dataset.

    `eval/` in the workdir holds a JSON file for every checkpoint, or for the given images; pictures and
    curves; and, in `parts/`, the arrays that these are computed from. After a kill at any time, calling it
    again resumes the work. A metric with the same inputs isn't measured again.

    Args:
      workdir: the run's directory; any directory for given images.
      dataset: the real examples.
      settings: the metrics, the number of samples, and the features.
      generator: the network, and how it is sampled; None for given images.
      checkpoint_dir: the directory of the checkpoints; None is `checkpoints/` in the workdir.
      steps: the steps of the checkpoints; None is all checkpoints.
      images: a directory of images, or an array in a file (see `ncsn_jax.data.stored_images`), to measure
        instead of checkpoints.
      features: the features in which examples are compared, instead of the settings'.

    Returns:
      The subjects, as in their files.

    Raises:
      ArgumentError: if the metrics or the features don't fit.
      UserError: if the images don't fit, there is no intact checkpoint or none of a step, or the run was
        trained on other data.
    """
    if isinstance(dataset.train[0], Mapping):
        raise UserError(f"the examples of {dataset.name!r} are dictionaries; accepted: arrays")
    workdir = Path(expanded(workdir))
    directory, parts = workdir / "eval", workdir / "eval" / "parts"
    checkpoints = epath.Path(checkpoint_dir or workdir / "checkpoints")
    is_of_images = images is not None
    if features is None:
        settings = _with_features(settings, dataset, of_images=is_of_images)
    chosen = _chosen_metrics(settings, dataset, generator, of_images=is_of_images, given=features is not None)
    if settings.features == "inception" and features is None:
        require_installed(settings.inception_weights)
    is_named = steps is not None
    steps = [] if is_of_images else _chosen_steps(checkpoints, steps)
    of_dataset = data.fingerprint(dataset.train_examples, dataset.test_examples)
    if is_of_images and steps_in(checkpoints):
        _sound_steps(checkpoints, steps_in(checkpoints)[-1:], of_dataset, skip_damaged=True)
    steps = _sound_steps(checkpoints, steps, of_dataset, skip_damaged=not is_named)
    if not is_of_images and not steps:
        raise UserError(f"{checkpoints}: no checkpoint is intact, so there is nothing to measure")
    # Computed only if needed, because it may train a classifier or read the whole dataset.
    real = functools.cache(lambda: real_features(parts, settings, dataset, of_dataset, features))

    def of_samples(name: str, samples: Samples) -> dict[str, Measure]:
        conditions = None if generator is None else generator.recipe.conditions
        found = _measures_of_samples(directory, settings, dataset, real(), samples, name, conditions)
        return {metric: found[metric] for metric in found if metric in chosen}

    measured = []
    if images is not None:
        path = Path(expanded(images)).resolve()
        name = _name_of_images(path)
        samples = given_samples(parts, data.stored_images(path, dataset))
        subject = Subject(name=name, images=str(path))
        measured.append(_measure(directory, subject, of_samples(name, samples), chosen))
    of_run = _with_batch_size(generator) if steps else None
    for step, length in itertools.product(steps, settings.ema_lengths or [None]):
        assert of_run is not None
        name = f"step_{step:08d}" + ("" if length is None else f"_ema_{length:g}")
        try:
            variables, _ = restored_variables(checkpoints, step=step, ema_length=length)
        except DamagedCheckpointError as error:
            if is_named:
                raise
            processes.say(f"{error}; it is not measured")
            continue
        score_fn = as_score_fn(of_run.model, variables)
        of_network = fingerprint(variables, of_run.model_identity)
        measures = _measures_of_network(parts, settings, of_run, dataset, of_dataset, score_fn, of_network)
        if set(chosen) - set(OF_NETWORKS):
            count = settings.num_samples
            samples = drawn_samples(parts, score_fn, of_network, of_run, dataset, count, name)
            measures |= _measures_of_arrays(directory, dataset, of_dataset, samples, name)
            if set(chosen) - set(OF_NETWORKS) - set(OF_ARRAYS):
                measures |= of_samples(name, samples)
        subject = Subject(name=name, step=step, ema_length=length)
        measured.append(_measure(directory, subject, measures, chosen))
    if processes.is_first():
        figures.write_curves(directory, results.read_all(directory))
    return measured


def _with_features(settings: Evaluation, dataset: Dataset, *, of_images: bool) -> Evaluation:
    """Return the settings with `auto` features replaced by the first process's choice."""
    if settings.features != "auto":
        return settings
    chosen = set(METRICS if settings.metrics == "all" else settings.metrics)
    if not of_images and chosen <= set(OF_NETWORKS):  # these need no features
        return settings
    kind = processes.from_first(lambda: kind_of_features(dataset))
    return settings.model_copy(update={"features": kind})


def _sound_steps(
    checkpoints: epath.Path, steps: Sequence[int], of_dataset: dict[str, Any], *, skip_damaged: bool
) -> list[int]:
    """Return the steps of checkpoints that are intact and were trained on these data."""
    sound = []
    for step in steps:
        try:
            place, record = read_record(checkpoints, step)
        except DamagedCheckpointError as error:
            if not skip_damaged:
                raise
            processes.say(f"{error}; it is not measured")
            continue
        require_same_data(place, record, of_dataset)
        sound.append(step)
    return sound


def _name_of_images(path: Path) -> str:
    """Return the name of a path's results; the digits distinguish paths with the same last part."""
    digits = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    return f"images_{results.file_name(path.stem)}_{digits}"


def _with_batch_size(generator: Generator | None) -> Generator:
    """Return the generator with the first process's batch size, because files hold batches."""
    if generator is None:
        raise ValueError("generator=None: checkpoints are measured with their network and a sampler")
    shape = generator.recipe.shape
    size = processes.from_first(lambda: str(chains_at_once(generator.batch_size, generator.model, shape)))
    return dataclasses.replace(generator, batch_size=int(size))


def _chosen_steps(checkpoints: epath.Path, steps: Sequence[int] | None) -> Sequence[int]:
    available = steps_in(checkpoints)
    if not available:
        raise UserError(f"{checkpoints} holds no checkpoint yet: continue training")
    for step in steps or []:
        if step not in available:
            raise UserError(f"{checkpoints} holds no checkpoint of step {step}; accepted: {available}")
    return steps or available


def _chosen_metrics(
    settings: Evaluation, dataset: Dataset, generator: Generator | None, *, of_images: bool, given: bool
) -> tuple[str, ...]:
    """Return the chosen metrics; for `all`, every metric that is possible."""
    is_image = dataset.info.num_values is not None
    impossible, kind = {}, "points" if len(dataset.info.shape) == 1 else "arrays"
    if not is_image and settings.features not in ("auto", "pixels"):
        raise ArgumentError(
            f"features={settings.features!r}: {dataset.name!r} are {kind}, compared by their numbers; "
            "accepted: 'auto' or 'pixels'"
        )
    if not is_image and of_images:
        raise UserError(f"images can't be compared with {dataset.name!r}, which are {kind}")
    if is_image or len(dataset.info.shape) != 3:
        impossible |= dict.fromkeys(OF_ARRAYS, "it measures arrays with a height and a width")
    size = math.prod(dataset.info.shape)
    if not is_image and not given and size > MAX_FEATURES:
        reason = f"it compares at most {MAX_FEATURES} numbers, found {size} in an example"
        impossible |= dict.fromkeys(OF_FEATURES, reason)
    if not given and settings.features == "pixels":
        impossible |= dict.fromkeys(OF_CLASSES, "pixels and points have no classes")
    if given or settings.features not in ("auto", "classifier"):
        impossible["agreement"] = "it needs the features of the classifier of the dataset's labels"
    if generator is None or generator.recipe.conditions is None or dataset.classes() is None:
        impossible |= dict.fromkeys(OF_CONDITIONS, "it measures samples of given classes")
    if of_images:
        impossible |= dict.fromkeys(OF_NETWORKS, "it measures a network, not images")
    elif generator is not None and getattr(generator.model, "sigmas", None) is not None:
        levels = "it needs scores at any σ, found a network that embeds discrete levels"
        impossible["likelihood"] = levels
    if settings.metrics == "all":
        return tuple(name for name in METRICS if name not in impossible)
    for name in settings.metrics:
        if name in impossible:
            raise ArgumentError(f"metrics: {name}: {impossible[name]}")
    return settings.metrics


def _measures_of_samples(
    directory: Path,
    settings: Evaluation,
    dataset: Dataset,
    real: Real,
    samples: Samples,
    name: str,
    conditions: Callable[[np.ndarray], Any] | None,
) -> dict[str, Measure]:
    num_neighbours = settings.num_neighbours
    of = fingerprint(samples.of, samples.count, real.of, num_neighbours)

    @functools.cache
    def extracted():
        return sample_features(directory / "parts", samples, real.features, dataset.info, name)

    def neighbours():
        shown = samples.first(figures.SHOWN)
        figures.write_neighbours(directory / f"{name}_neighbours.png", shown, extracted(), real, dataset)
        return against_real.neighbours(real, extracted())

    def asked():
        assert conditions is not None  # else these metrics aren't chosen
        return conditions(np.arange(samples.count))

    measures = {
        "frechet": Measure(of, lambda: against_real.frechet(real, extracted())),
        "kernel": Measure(of, lambda: against_real.kernel(real, extracted())),
        "coverage": Measure(
            of, lambda: against_real.coverage(real, extracted(), num_neighbours=num_neighbours)
        ),
        "inception_score": Measure(of, lambda: against_real.inception_score(real, extracted())),
        "classes": Measure(of, lambda: against_real.classes(real, extracted())),
        "neighbours": Measure(of, neighbours),
        "agreement": Measure(of, lambda: against_real.agreement(real, extracted(), asked())),
        "class_frechet": Measure(of, lambda: against_real.class_frechet(real, extracted(), asked())),
    }
    if real.train.probabilities is not None:
        return measures
    for metric in OF_CLASSES:  # a user's features show their classes only after extraction
        if metric in settings.metrics:
            raise ArgumentError(f"metrics: {metric}: {real.features.name!r} has no classes")
    return {metric: measure for metric, measure in measures.items() if metric not in OF_CLASSES}


def _measures_of_arrays(
    directory: Path, dataset: Dataset, of_dataset: dict[str, Any], samples: Samples, name: str
) -> dict[str, Measure]:
    of, (train, test) = fingerprint(samples.of, samples.count, of_dataset), (dataset.train, dataset.test)
    path = directory / f"{name}_spectrum.png"
    return {
        "moments": Measure(of, lambda: array_metrics.moments(samples, train, test)),
        "spectrum": Measure(of, lambda: array_metrics.spectra(samples, train, test, path)),
    }


def _measures_of_network(
    parts: Path,
    settings: Evaluation,
    generator: Generator,
    dataset: Dataset,
    of_dataset: dict[str, Any],
    score_fn: NetworkScore,
    of_network: str,
) -> dict[str, Measure]:
    of_data = dataset.identity | of_dataset["test"] | preprocessing_facts(dataset)
    levels, batch_size = generator.sigmas, (generator.batch_size, generator.seed)
    of_loss = fingerprint(of_network, of_data, batch_size, levels, generator.power, settings.loss_examples)
    of_likelihood = fingerprint(
        of_network,
        of_data,
        batch_size,
        (levels[0], levels[-1]),
        settings.model_dump(include={"likelihood_examples", "trace", "num_probes"}),
        {"rtol": generator.rtol, "atol": generator.atol},
    )

    def likelihood():
        place = parts / f"likelihood-{of_likelihood}"
        return model_metrics.bits_per_dim(place, score_fn, generator, settings, dataset)

    def loss():
        place = parts / f"loss-{of_loss}"
        return model_metrics.loss_by_level(place, score_fn, generator, settings, dataset)

    return {"likelihood": Measure(of_likelihood, likelihood), "loss": Measure(of_loss, loss)}


def _measure(
    directory: Path, subject: Subject, measures: dict[str, Measure], chosen: Sequence[str]
) -> Subject:
    """Measure the metrics that are new or have changed inputs, and write the file after each of them."""
    path = directory / f"{subject.name}.json"
    subject = results.read(path) or subject
    wait_for_all(f"{path} is read")
    for name in chosen:
        if name not in measures:  # features without classes
            continue
        known, measure = subject.metrics.get(name), measures[name]
        if known is None or known.of != measure.of:
            try:
                found = measure.run()
            except ValueError as error:  # such as too few examples; the other metrics are still measured
                found = Found({}, problems={name: str(error)})
            subject.metrics[name] = Measured(of=measure.of, **vars(found))
            if processes.is_first():
                results.write(path, subject)
    wait_for_all(f"{path} is written")
    return subject
