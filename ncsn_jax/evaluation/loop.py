"""Evaluation loop over a run's checkpoints, and the files that it writes."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from ncsn_jax import data, training
from ncsn_jax.config import METRICS, Config
from ncsn_jax.data.datasets import Dataset
from ncsn_jax.evaluation import against_real, figures, model_metrics, results
from ncsn_jax.evaluation.against_real import Real
from ncsn_jax.evaluation.cached_parts import fingerprint
from ncsn_jax.evaluation.features import Features
from ncsn_jax.evaluation.inception import require_installed
from ncsn_jax.evaluation.real_features import kind_of_features, real_features
from ncsn_jax.evaluation.results import Found, Measured, Subject
from ncsn_jax.evaluation.samples import Samples, drawn_samples, given_samples, sample_features
from ncsn_jax.models import as_score_fn
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.batch_size import chains_at_once
from ncsn_jax.runtime.determinism import pinned
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.runtime.processes import wait_for_all
from ncsn_jax.training.checkpoints import DamagedCheckpointError
from ncsn_jax.training.manifest import run_facts
from ncsn_jax.training.workdir import (
    checkpoint_dir,
    checkpoint_steps,
    read_record,
    require_same_data,
)

OF_CLASSES = ("inception_score", "classes")
OF_NETWORKS = ("likelihood", "loss")


class Measure(NamedTuple):
    """Metric of one subject: the fingerprint of its inputs and its computation, which every process runs."""

    of: str
    run: Callable[[], Found]


@pinned()
def evaluate(
    config: Config,
    workdir: str | PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    images: str | None = None,
    features: Features | None = None,
) -> list[Subject]:
    """Measure a run's checkpoints, or given images, against the config's data.

    `eval/` in the workdir holds a JSON file for every checkpoint, or for the given images; pictures and
    curves; and, in `parts/`, the arrays that these are computed from. After a kill at any time, calling it
    again resumes the work. A metric with the same inputs isn't measured again.

    Args:
      config: the run's config; `evaluation` chooses the metrics, `sampling` the sampler.
      workdir: the run's directory; any directory for given images.
      steps: the steps of the checkpoints; None is all checkpoints.
      images: a directory of images, or an array in a file (see `ncsn_jax.data.stored_images`), to measure
        instead of checkpoints.
      features: the features in which examples are compared, instead of the config's.

    Returns:
      The subjects, as in their files.

    Raises:
      UserError: if a checkpoint doesn't exist, the metrics, images or data don't fit, or the run was trained
        on other data.
    """
    workdir = Path(expanded(workdir))
    directory, parts = workdir / "eval", workdir / "eval" / "parts"
    if features is None:
        config = _with_features(config, of_images=images is not None)
    chosen = _chosen_metrics(config, of_images=images is not None, given=features is not None)
    if config.evaluation.features == "inception" and features is None:
        require_installed(config.evaluation.inception_weights)
    is_named = steps is not None
    steps = [] if images else _chosen_steps(workdir, config, steps)
    dataset = data.load(config.data)
    of_dataset = data.fingerprint(dataset)
    if images and (workdir / "config.json").exists():
        newest = checkpoint_steps(workdir, config)[-1:]
        _sound_steps(workdir, config, newest, of_dataset, skip_damaged=True)
    steps = _sound_steps(workdir, config, steps, of_dataset, skip_damaged=not is_named)
    if not images and not steps:
        raise UserError(
            f"{checkpoint_dir(workdir, config)}: no checkpoint is intact, so there is nothing to measure"
        )
    # Computed only if needed, because it may train a classifier or read the whole dataset.
    real = functools.cache(lambda: real_features(parts, config, dataset, of_dataset, features))

    def of_samples(name: str, samples: Samples) -> dict[str, Measure]:
        return _measures_of_samples(directory, config, dataset, real(), samples, name)

    measured = []
    if images:
        path = Path(expanded(images)).resolve()
        name = _name_of_images(path)
        samples = given_samples(parts, data.stored_images(path, config.data, dataset.info))
        subject = Subject(name=name, images=str(path))
        measured.append(_measure(directory, subject, of_samples(name, samples), chosen))
    if steps:
        config = _with_batch_size(config, dataset.info.shape)
    for step in steps:
        name = f"step_{step:08d}"
        try:
            _, variables = training.restore(workdir, step=step)
        except DamagedCheckpointError as error:
            if is_named:
                raise
            processes.say(f"{error}; it is not measured")
            continue
        score_fn = as_score_fn(config.network(), variables)
        of_network = fingerprint(variables, config.model.model_dump())
        measures = _measures_of_network(parts, config, dataset, of_dataset, score_fn, of_network)
        if set(chosen) - set(OF_NETWORKS):
            samples = drawn_samples(parts, score_fn, of_network, config, dataset.info, name)
            measures |= of_samples(name, samples)
        measured.append(_measure(directory, Subject(name=name, step=step), measures, chosen))
    if processes.is_first():
        figures.write_curves(directory, results.read_all(directory))
    return measured


def _with_features(config: Config, *, of_images: bool) -> Config:
    """Return the config with `auto` features replaced by the first process's choice."""
    if config.evaluation.features != "auto":
        return config
    chosen = set(METRICS if config.evaluation.metrics == "all" else config.evaluation.metrics)
    if not of_images and chosen <= set(OF_NETWORKS):  # these need no features
        return config
    kind = processes.from_first(lambda: kind_of_features(config))
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"features": kind})})


def _sound_steps(
    workdir: Path, config: Config, steps: Sequence[int], of_dataset: dict[str, Any], *, skip_damaged: bool
) -> list[int]:
    """Return the steps of checkpoints that are intact and were trained on these data."""
    facts, sound = run_facts(config, of_dataset), []
    for step in steps:
        try:
            place, record = read_record(workdir, config, step)
        except DamagedCheckpointError as error:
            if not skip_damaged:
                raise
            processes.say(f"{error}; it is not measured")
            continue
        require_same_data(place, record, facts)
        sound.append(step)
    return sound


def _name_of_images(path: Path) -> str:
    """Return the name of a path's results; the digits distinguish paths with the same last part."""
    digits = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    return f"images_{results.file_name(path.stem)}_{digits}"


def _with_batch_size(config: Config, shape: tuple[int, ...]) -> Config:
    """Return the config with the first process's batch size, because files hold batches."""
    size = processes.from_first(
        lambda: str(chains_at_once(config.sampling.batch_size, config.network(), shape))
    )
    sampling = config.sampling.model_copy(update={"batch_size": int(size)})
    return config.model_copy(update={"sampling": sampling})


def _chosen_steps(workdir: Path, config: Config, steps: Sequence[int] | None) -> Sequence[int]:
    available = checkpoint_steps(workdir, config)
    if not available:
        raise UserError(f"{checkpoint_dir(workdir, config)} holds no checkpoint yet: continue training")
    for step in steps or []:
        if step not in available:
            raise UserError(f"--steps: {workdir} holds no checkpoint of step {step}; accepted: {available}")
    return steps or available


def _chosen_metrics(config: Config, *, of_images: bool, given: bool) -> tuple[str, ...]:
    """Return the chosen metrics; for `all`, every metric that is possible."""
    settings, is_image = config.evaluation, len(data.describe(config.data).shape) == 3
    impossible = {}
    if not is_image and settings.features not in ("auto", "pixels"):
        raise UserError(
            f"config.evaluation.features={settings.features!r}: config.data.name={config.data.name!r} are "
            "points, compared by their coordinates; accepted: 'auto' or 'pixels'"
        )
    if not is_image and of_images:
        raise UserError(f"--images: config.data.name={config.data.name!r} are points")
    if not given and settings.features == "pixels":
        impossible |= dict.fromkeys(OF_CLASSES, "pixels and points have no classes")
    if of_images:
        impossible |= dict.fromkeys(OF_NETWORKS, "it measures a network, not images")
    elif config.model.name == "ncsn":
        levels = "it needs scores at any σ, found model.name='ncsn', which embeds discrete levels"
        impossible["likelihood"] = levels
    if settings.metrics == "all":
        return tuple(name for name in METRICS if name not in impossible)
    for name in settings.metrics:
        if name in impossible:
            raise UserError(f"config.evaluation.metrics: {name}: {impossible[name]}")
    return settings.metrics


def _measures_of_samples(
    directory: Path, config: Config, dataset: Dataset, real: Real, samples: Samples, name: str
) -> dict[str, Measure]:
    num_neighbours = config.evaluation.num_neighbours
    of = fingerprint(samples.of, samples.count, real.of, num_neighbours)

    @functools.cache
    def extracted():
        return sample_features(directory / "parts", samples, real.features, dataset.info, name)

    def neighbours():
        shown = samples.first(figures.SHOWN)
        figures.write_neighbours(directory / f"{name}_neighbours.png", shown, extracted(), real, dataset)
        return against_real.neighbours(real, extracted())

    measures = {
        "frechet": Measure(of, lambda: against_real.frechet(real, extracted())),
        "kernel": Measure(of, lambda: against_real.kernel(real, extracted())),
        "coverage": Measure(
            of, lambda: against_real.coverage(real, extracted(), num_neighbours=num_neighbours)
        ),
        "inception_score": Measure(of, lambda: against_real.inception_score(real, extracted())),
        "classes": Measure(of, lambda: against_real.classes(real, extracted())),
        "neighbours": Measure(of, neighbours),
    }
    if real.train.probabilities is not None:
        return measures
    for metric in OF_CLASSES:  # a user's features show their classes only after extraction
        if metric in config.evaluation.metrics:
            raise UserError(f"config.evaluation.metrics: {metric}: {real.features.name!r} has no classes")
    return {metric: measure for metric, measure in measures.items() if metric not in OF_CLASSES}


def _measures_of_network(
    parts: Path,
    config: Config,
    dataset: Dataset,
    of_dataset: dict[str, Any],
    score_fn: NetworkScore,
    of_network: str,
) -> dict[str, Measure]:
    of_data = config.data.model_dump(exclude={"data_dir"}) | of_dataset["test"]
    settings, batch_size = config.evaluation, config.sampling.batch_size
    levels = config.model.noise_levels
    of_loss = fingerprint(
        of_network, of_data, batch_size, levels, config.training.power, settings.loss_examples
    )
    of_likelihood = fingerprint(
        of_network,
        of_data,
        batch_size,
        (levels[0], levels[-1]),
        settings.model_dump(include={"likelihood_examples", "trace", "num_probes"}),
        config.sampling.model_dump(include={"rtol", "atol"}),
    )

    def likelihood():
        place = parts / f"likelihood-{of_likelihood}"
        return model_metrics.bits_per_dim(place, score_fn, config, dataset.test)

    def loss():
        return model_metrics.loss_by_level(parts / f"loss-{of_loss}", score_fn, config, dataset.test)

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
