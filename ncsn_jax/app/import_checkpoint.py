"""Import of official PyTorch checkpoints: config, parameters, moving average, optimizer state, step."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncsn_jax.app.build import dataset_info, described, network, optimizer, settings_of_network
from ncsn_jax.app.config import (
    NCSN_NORMS,
    NCSNV2_NORMS,
    Config,
    NcsnppModel,
    RefineNetModel,
    parse,
)
from ncsn_jax.app.flags import flagged
from ncsn_jax.app.official_run import AdamState, OfficialRun
from ncsn_jax.models import NCSN, NCSNpp
from ncsn_jax.models.vp import Process, sigma_at
from ncsn_jax.noise import geometric_sigmas
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.locking import only_writer
from ncsn_jax.training import description
from ncsn_jax.training.checkpoints import Checkpoints
from ncsn_jax.training.description import changes, flatten
from ncsn_jax.training.manifest import make_record, run_facts
from ncsn_jax.training.parallel import replicate
from ncsn_jax.training.state import first_state, fitting_params
from ncsn_jax.training.workdir import check, checkpoint_dir


def experiment_of(official: OfficialRun) -> tuple[str, ...]:
    """Return the file in `configs/`, and its argument, of the official experiment with this network.

    Raises:
      UserError: if the checkpoint doesn't determine the experiment.
    """
    if isinstance(official.model, NCSNpp):
        return _unet_experiment(official, official.model)
    if isinstance(official.model, NCSN):
        return ("mnist",) if official.channels == 1 else ("cifar10", "ncsn")
    if official.channels == 1:
        return ("mnist", "ncsnv2")
    if official.sigmas is None:
        raise UserError(
            "the checkpoint has an NCSNv2 but no noise levels, so the experiment is unknown: name it with "
            "--config, such as configs/cifar10.py:ncsnv2"
        )
    return {
        4: ("celeba" if official.sigmas[0] > 70 else "cifar10", "ncsnv2"),
        5: ("lsun", "bedroom" if official.sigmas[0] > 165 else "church"),
        6: ("ffhq",),
    }[official.model.depth]  # pyright: ignore[reportAttributeAccessIssue]


def _unet_experiment(official: OfficialRun, model: NCSNpp) -> tuple[str, ...]:
    largest = official.sigmas[0] if official.sigmas else 50.0
    if model.progressive == "output_skip":
        if largest > 700:
            return "ffhq", "ncsnpp_1024"
        # 348 is both FFHQ's and CelebA-HQ's.
        return (
            ("ffhq", "ncsnpp")
            if largest < 363
            else ("lsun", f"{'church' if largest > 379 else 'bedroom'}_ncsnpp")
        )
    if model.block == "ddpm":
        return "cifar10", "ddpm"
    if model.embedding == "positional":
        return ("celeba", "ncsnpp") if largest > 70 else ("cifar10", "ncsnpp_discrete")
    return "cifar10", "ncsnpp_deep" if model.num_res_blocks > 4 else "ncsnpp"


def imported_config(official: OfficialRun, given: Config) -> Config:
    """Return the given config with the checkpoint's network, noise levels and optimizer.

    Raises:
      UserError: if the result isn't a valid config.
    """
    training = {**official.optimizer, "num_steps": max(given.training.num_steps, official.step)}
    if official.step < given.training.warmup_steps:
        training.pop("learning_rate", None)  # the file's is a rate within the warm-up
    if official.ema_rate is not None:
        training["ema_rate"] = official.ema_rate
    elif official.ema_params is not None and given.training.ema_rate == 0.0:
        training["ema_rate"] = 0.999  # the official rate; 0 would discard the average at the next step
    # The file has one average and Adam's state at most, and no network that is preconditioned.
    training |= {"ema_lengths": (), "ema_snapshot_every": None, "weighting": "power"}
    if given.training.optimizer == "muon":
        training["optimizer"] = "adam"
    if given.training.noise == "log_normal":
        training["noise"] = "discrete"
    settings = given.model_dump()
    settings["model"] = _model_settings(official, given)
    if settings["model"].get("process", "ve") != "ve":  # as all published experiments of the VP processes
        training |= {"noise": "continuous", "reduce_mean": True}
    settings["training"] |= training
    return parse(settings)


def import_run(official: OfficialRun, settings: Config, workdir: Path) -> None:
    """Turn an official checkpoint into a run that training can resume.

    Args:
      official: the checkpoint.
      settings: the run's settings, from `imported_config`, with the network's settings unchanged.
      workdir: the run's directory; must be empty or missing.

    Raises:
      UserError: if the directory isn't empty, or the checkpoint, the settings and the dataset don't fit
        together; the directory then stays unchanged.
    """
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run already: choose another --workdir")
    own = described(settings)
    with flagged("config.training."):
        check(workdir, settings.training, own)
    shape = dataset_info(settings).shape
    if len(shape) != 3 or shape[2] != official.channels:
        raise UserError(
            f"the checkpoint's network takes images of {official.channels} channels, but config.data.name="
            f"{settings.data.name!r} has the shape {shape}: choose another --config"
        )
    if settings.model.sigmas == "auto":
        raise UserError("config.model.sigmas='auto': a trained network already has noise levels; omit this")
    _require_importable(settings)
    if settings.training.num_steps < official.step:
        raise UserError(
            f"config.training.num_steps={settings.training.num_steps}: "
            f"the checkpoint is at step {official.step}; use at least that"
        )
    with settings_of_network(settings):
        expected, _ = fitting_params(network(settings), jax.ShapeDtypeStruct(shape, jnp.float32))

    def placed(params: Any) -> Any:
        """The parameters of the config's network, in which `VPScore` holds the official one."""
        is_vp = isinstance(settings.model, NcsnppModel) and settings.model.process != "ve"
        return {"network": params} if is_vp else params

    if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, placed(official.params)):
        fitting = imported_config(official, settings)
        differing = [
            f"config.{name}={given!r}: the checkpoint's network has {has!r}"
            for name, (has, given) in changes(*(flatten(c.model_dump()) for c in (fitting, settings))).items()
            if name.startswith("model.")
        ]
        raise UserError("; ".join(differing))
    state = first_state(placed(official.params), optimizer(settings.training))
    state = state.replace(step=jnp.asarray(official.step, jnp.int32))
    if official.ema_params is not None:
        state = state.replace(ema_params=placed(official.ema_params))
    if isinstance(official.adam, AdamState):
        count = jnp.asarray(official.adam.num_steps, jnp.int32)
        moments = {"mu": placed(official.adam.mu), "nu": placed(official.adam.nu)}
        state = state.replace(opt_state=optax.tree.set(state.opt_state, **moments, count=count))
    directory = checkpoint_dir(workdir, settings.training.checkpoint_dir)
    with only_writer(workdir):
        check(workdir, settings.training, own)
        # First the checkpoint, then the config: an import that is killed in between can be repeated.
        with Checkpoints(directory, keep=settings.training.keep_checkpoints) as checkpoints:
            if checkpoints.steps:
                raise UserError(f"{directory} holds checkpoints already: choose another --workdir")
            state = replicate(state)
            facts = run_facts(own.content, data=None)
            checkpoints.save(official.step, state, make_record(facts, official.step, state))
        description.write(workdir, own)


def _require_importable(settings: Config) -> None:
    """Refuse settings that an official checkpoint has no arrays or numbers for."""
    training = settings.training
    if training.ema_lengths:
        raise UserError(
            f"config.training.ema_lengths={training.ema_lengths}: an official checkpoint has one average at "
            "most; accepted: none"
        )
    if training.optimizer == "muon":
        raise UserError(
            "config.training.optimizer='muon': an official checkpoint has the state of Adam; accepted: "
            "'adam', 'adamw', or your own"
        )
    if settings.reads_data_std and settings.model.data_std == "auto":
        raise UserError(
            "config.model.data_std='auto': an import reads no data to measure; accepted: a positive number"
        )


def report(official: OfficialRun, settings: Config, workdir: Path) -> str:
    """Return a two-line summary of the import."""
    levels = settings.model.noise_levels
    found = [
        f"{type(official.model).__name__} of {len(jax.tree.leaves(official.params))} tensors",
        f"step {official.step}",
        "no moving average" if official.ema_params is None else "its moving average",
        f"a new optimizer state ({official.adam})" if isinstance(official.adam, str) else "Adam's state",
        f"{len(levels)} noise levels from {levels[0]:g} to {levels[-1]:g}"
        + (" (from the config: the file has no levels)" if official.sigmas is None else ""),
    ]
    taken = f"Images, batches and sampling follow data.name={settings.data.name!r}"
    if isinstance(settings.model, NcsnppModel):
        source = official.published.name if official.published else "this program's default"
        told = ("fir", "skip_rescale", "scale_by_sigma", "num_groups", "process")
        values = ", ".join(f"{name}={getattr(settings.model, name)!r}" for name in told)
        taken = f"Where the file doesn't tell, and no flag does, the network is {source}'s: {values}. {taken}"
    return f"{workdir}: {', '.join(found)}\n{taken}; see {workdir / 'config.json'}"


def _model_settings(official: OfficialRun, given: Config) -> dict[str, Any]:
    """Return the settings that build the checkpoint's network; `given` fills in the unknown ones."""
    model: Any = official.model
    if isinstance(model, NCSNpp):
        return _unet_settings(official, model, given)
    name, norms = ("ncsn", NCSN_NORMS) if isinstance(model, NCSN) else ("ncsnv2", NCSNV2_NORMS)
    settings = {
        "name": name,
        "num_filters": model.num_filters,
        "depth": model.depth,
        "norm": next(norm for norm, module in norms.items() if module is model.norm),
        "act": given.model.act if isinstance(given.model, RefineNetModel) else "elu",
    }
    if official.sigmas is not None:
        return settings | _levels(official.sigmas)
    is_chosen = given.model.sigmas != "auto"
    if isinstance(model, NCSN) and not (is_chosen and len(given.model.noise_levels) == len(model.sigmas)):
        return settings | _levels(model.sigmas)
    if not is_chosen:
        raise UserError(
            "the checkpoint has no noise levels, and config.model.sigmas='auto' would choose new ones: set "
            "the levels it was trained with"
        )
    names = ("sigmas", "sigma_begin", "sigma_end", "num_scales")
    return settings | {name: getattr(given.model, name) for name in names}


def _unet_settings(official: OfficialRun, model: NCSNpp, given: Config) -> dict[str, Any]:
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    own = {
        name: value for name, value in fields.items() if name in NcsnppModel.model_fields and name != "sigmas"
    }
    own |= {"name": "ncsnpp", "act": "swish", "dtype": "float32"}
    process: Any = official.published.process if official.published else "ve"
    if isinstance(given.model, NcsnppModel):
        own |= {"act": given.model.act, "dropout": given.model.dropout}
        process = given.model.process if given.model.process != "ve" else process
    if process != "ve":  # the file's levels, which the network doesn't use, are VE's
        return own | {"process": process, "scale_by_sigma": False, **_levels_of_process(process)}
    if official.sigmas is not None:
        return own | _levels(official.sigmas)
    raise UserError("the checkpoint has no noise levels: its state dict must have 'sigmas'")


def _levels_of_process(process: Process) -> dict[str, Any]:
    """Return the noise levels of the published process between its times 0.001 and 1, of images in [0, 1]."""
    begin, end = (float(f"{sigma_at(time, process) / 2:.4g}") for time in (1.0, 1e-3))
    return {"sigmas": "geometric", "sigma_begin": begin, "sigma_end": end, "num_scales": 1000}


def _levels(sigmas: tuple[float, ...]) -> dict[str, Any]:
    """Return the settings of noise levels: the ends of a geometric sequence, or a list."""
    # The shortest decimal that rounds to the same single-precision number: 0.01, not 0.009999999776.
    begin, end = (float(str(np.float32(sigma))) for sigma in (sigmas[0], sigmas[-1]))
    ends = {"sigma_begin": begin, "sigma_end": end, "num_scales": len(sigmas)}
    if begin > end and np.array_equal(
        geometric_sigmas(begin, end, len(sigmas)), np.asarray(sigmas, np.float32)
    ):
        return ends
    return {"sigmas": sigmas}
