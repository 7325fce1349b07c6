"""The objects that a config describes: network, data, objective, optimizer, and the experiment of them."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from ncsn_jax import data
from ncsn_jax.app.conditions import kind_of
from ncsn_jax.app.config import Config, OwnModel, Training, parse
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.imports import called, hashable, imported, is_import_path
from ncsn_jax.data import Dataset, DatasetInfo
from ncsn_jax.data.datasets import OF_ARRAYS, OF_CONDITIONS, OF_FOLDERS, OF_IMAGES, TRANSFORMS, refuse
from ncsn_jax.models import Patches, Preconditioned
from ncsn_jax.runtime.errors import ArgumentError, UserError
from ncsn_jax.training import (
    Experiment,
    LogNormal,
    Objective,
    Settings,
    denoising_objective,
    sliced_objective,
)
from ncsn_jax.training.description import Description, flatten, is_by_identity
from ncsn_jax.training.optimizers import adam, clipped, decays, learning_rate_schedule, muon
from ncsn_jax.training.step import Map

MAY_CHANGE = (
    "data.data_dir",
    "evaluation.",
    "restoration.",
    "sampling.",
    "training.checkpoint_dir",
    "training.checkpoint_every",
    "training.ema_snapshot_every",
    "training.eval_every",
    "training.eval_examples",
    "training.keep_best",
    "training.keep_checkpoints",
    "training.log_every",
    "training.max_",
    "training.preview_",
)
"""Settings, or prefixes of settings, that don't affect the final parameters of a run."""


def build(config: Config, dataset: Dataset | None = None) -> Experiment:
    """Return the experiment that a config describes.

    Args:
      config: the run's settings, with noise levels instead of "auto".
      dataset: its data; None loads them.

    Raises:
      UserError: if the data aren't available, or a setting doesn't fit.
    """
    dataset = dataset or load_dataset(config)
    first = dataset.train_examples[0]
    if config.training.unconditional and not (isinstance(first, Mapping) and "condition" in first):
        raise UserError(
            f"config.training.unconditional={config.training.unconditional}: the examples have no condition; "
            "accepted: 0.0, or examples with a condition"
        )
    return Experiment(
        model=network(config),
        objective=objective(config),
        optimizer=optimizer(config.training),
        train=dataset.train_examples,
        test=dataset.test_examples,
        preprocess=of_x(data.preprocessing(dataset.info)),
        augment=augmentation(config),
        settings=settings(config),
        identity=identity(config),
        description=described(config),
    )


def augmentation(config: Config) -> Map | None:
    """Return the random function of a stored training example; None if there is none."""
    flip = of_x(data.random_flip) if config.data.random_flip else None
    if not config.training.unconditional:
        return flip
    drop = data.drop_condition(config.training.unconditional)
    if flip is None:
        return drop

    def both(key, example):
        flip_key, drop_key = jax.random.split(key)
        return drop(drop_key, flip(flip_key, example))

    return both


def network(config: Config) -> nn.Module:
    """Return the untrained score network.

    Raises:
      UserError: if it is the user's own, and can't be made.
    """
    is_preconditioned = config.model.preconditioning == "karras"
    if isinstance(config.model, OwnModel):
        model = _own_network(config.model)
    else:
        conditions: Any = kind_of(config.data, getattr(config.model, "patch_size", 1))
        is_centred = is_preconditioned or _is_centred(config.data)
        model = config.model.build(rescaled=is_centred, conditions=conditions)
    model = Preconditioned(model, config.model.measured_std) if is_preconditioned else model
    patch_size = getattr(config.model, "patch_size", 1)
    return Patches(model, patch_size) if patch_size > 1 else model


def _is_centred(settings: data.Data) -> bool:
    """Return whether the network's space has 0 in its middle, unlike [0, 1]."""
    if settings.name == data.ARRAYS and settings.num_values is None:
        return settings.normalize != "range"
    return settings.transform != "none"


def _own_network(settings: OwnModel) -> nn.Module:
    model = called("config.model.name", settings.name, **hashable(settings.fields))
    if not isinstance(model, nn.Module):
        raise UserError(
            f"config.model.name={settings.name!r}: found {type(model).__name__}; accepted: a "
            "flax.linen.Module"
        )
    return model


@contextlib.contextmanager
def settings_of_network(config: Config) -> Iterator[None]:
    """Name the settings in the error about a network that can't take the examples."""
    try:
        yield
    except ArgumentError as error:
        argument, _, reason = str(error).partition(": ")
        if not argument.startswith("model="):
            raise
        raise UserError(
            f"config.model.name={config.model.name!r} can't take the examples of "
            f"config.data.name={config.data.name!r}: {reason}"
        ) from error


def dataset_info(config: Config) -> DatasetInfo:
    """Return the facts about the config's data; the user's own are loaded, and others aren't."""
    if is_import_path(config.data.name):
        return load_dataset(config).info
    with flagged("config.data.", data.Data):
        return data.describe(config.data)


def load_dataset(config: Config) -> Dataset:
    """Return the config's examples.

    Raises:
      UserError: if they aren't available, or a setting doesn't fit.
    """
    with flagged("config.data.", data.Data):
        return _own_dataset(config.data) if is_import_path(config.data.name) else data.load(config.data)


def _own_dataset(settings: data.Data) -> Dataset:
    """Return the examples that the user's function returns: uint8 images, or examples of a floating type."""
    refuse(settings, OF_FOLDERS + OF_ARRAYS, "is not a folder of images, nor an array")
    refuse(settings, OF_CONDITIONS, "has the condition of its own examples")
    refuse(settings, ("data_dir",), "gets its arguments from fields")
    found = called("config.data.name", settings.name, **settings.fields)
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(map(_is_source, found)):
        parts = found if isinstance(found, tuple | list) else [found]
        raise ArgumentError(
            f"name={settings.name!r}: found {', '.join(type(part).__name__ for part in parts)}; accepted: a "
            "pair (train, test) of arrays, or of sources with len and [], with at least one example each"
        )
    train, test = (np.asarray(part) if isinstance(part, jax.Array) else part for part in found)
    first = train[0]
    if isinstance(first, Mapping) and "x" not in first:
        raise ArgumentError(f"name={settings.name!r}: found examples of {sorted(first)}; accepted: a key x")
    x = np.asarray(first["x"] if isinstance(first, Mapping) else first)
    is_image = x.dtype == np.uint8 and x.ndim == 3
    if not is_image:
        refuse(settings, OF_IMAGES, "has no images of 8 bits")
    elif settings.crop is not None or settings.image_size is not None:
        raise ArgumentError(f"crop, image_size: {settings.name!r} returns images of their final size")
    info = DatasetInfo(x.shape, num_values=None)
    if is_image:
        info = DatasetInfo(x.shape, 256, settings.dequantization, TRANSFORMS[settings.transform])
    return Dataset(settings.name, info, train, test, None, settings.model_dump(exclude={"data_dir"}))


def _is_source(found: Any) -> bool:
    """Return whether an object has examples by number."""
    is_sized = hasattr(found, "__len__") and hasattr(found, "__getitem__")
    return is_sized and not isinstance(found, Mapping | str) and len(found) > 0


def of_x(function: Map) -> Map:
    """Return a random function of an example that changes its x, if the example is a dictionary."""

    def of_example(key, example):
        if isinstance(example, Mapping):
            return {**example, "x": function(key, example["x"])}
        return function(key, example)

    return of_example


def objective(config: Config) -> Objective:
    """Return the config's objective.

    Raises:
      UserError: if it is the user's own, and can't be imported.
    """
    sigmas, training = config.model.noise_levels, config.training
    noise = LogNormal(training.p_mean, training.p_std) if training.noise == "log_normal" else training.noise
    if is_import_path(training.objective):
        return imported("config.training.objective", training.objective)
    if training.objective == "denoising":
        own: dict[str, Any] = {n: getattr(training, n) for n in ("reduce_mean", "likelihood_weighting")}
        if training.weighting == "karras":
            return denoising_objective(sigmas, noise=noise, data_std=config.model.measured_std, **own)
        return denoising_objective(sigmas, power=training.power, noise=noise, **own)
    return sliced_objective(
        sigmas,
        power=training.power,
        noise=noise,
        num_projections=training.num_projections,
        projection=training.projection,
    )


def optimizer(training: Training) -> optax.GradientTransformation:
    """Return the config's optimizer, after the clipping of the gradient.

    Raises:
      UserError: if it is the user's own, and can't be made.
    """
    names = ("learning_rate", "schedule", "num_steps", "warmup_steps")
    rate = {name: getattr(training, name) for name in names}
    moments = {name: getattr(training, name) for name in ("beta1", "beta2", "epsilon")}
    if training.optimizer == "adam":
        return adam(**rate, **moments, gradient_clip=training.gradient_clip)
    schedule = learning_rate_schedule(**rate)
    if training.optimizer == "adamw":
        decay = {"weight_decay": training.weight_decay, "mask": decays}
        return clipped(optax.adamw(schedule, *moments.values(), **decay), training.gradient_clip)
    if training.optimizer == "muon":
        found = muon(schedule, **moments, weight_decay=training.weight_decay)
        return clipped(found, training.gradient_clip)
    found = called("config.training.optimizer", training.optimizer, schedule)
    if not isinstance(found, optax.GradientTransformation):
        raise UserError(
            f"config.training.optimizer={training.optimizer!r}: found {type(found).__name__}; accepted: "
            "a function that returns an optax.GradientTransformation"
        )
    return clipped(found, training.gradient_clip)


def settings(config: Config) -> Settings:
    """Return the settings that every run has."""
    own = {name: getattr(config.training, name) for name in Settings.model_fields if name != "seed"}
    return Settings(seed=config.seed, **own)


def described(config: Config) -> Description:
    """Return the whole config as the description of a run."""
    return Description(
        json.loads(config.model_dump_json()),
        _settings_of,
        lambda name: (
            name.startswith(MAY_CHANGE)
            or (name == "training.num_steps" and config.training.schedule == "constant")
        ),
        group="training",
    )


def _settings_of(stored: Any) -> dict[str, Any]:
    if is_by_identity(stored):
        raise UserError("it describes a run of Python code, and this is a config; choose another workdir")
    return flatten(parse(stored).model_dump())


def identity(config: Config) -> dict[str, Any]:
    """Return the settings that must be the same when a run resumes, by dotted name."""
    description = described(config)
    flat = flatten(description.content)
    return {name: value for name, value in flat.items() if not description.may_change(name)}
