"""Train a score network, sample from a trained one, and restore images with it.

    python main.py                                   train configs/digits.py in runs/digits, then sample
    python main.py --config configs/mnist.py:small --workdir DIR --config.training.batch_size=64
    python main.py --mode sample --workdir DIR --num_samples 1000
    python main.py --mode inpaint --workdir DIR --images 0:8      or colorize, superres, denoise, interpolate
    python main.py --mode evaluate --workdir DIR       and then --mode report
    python main.py --mode import --checkpoint FILE.pth --workdir DIR
    python main.py --mode suggest_noise --config configs/digits.py

A run is its workdir: rerun the command to resume where it stopped. If DIR holds a run, --workdir DIR reads
its config, and --config can be omitted.

On several hosts, start the command on each of them (docs/pods.md). The exit status is 0 on success, 1 after
an error that one line explains, 130 after Ctrl-C, and 143 after a preemption, with the training saved.
"""

import contextlib
import functools
import logging
import operator
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from ncsn_jax.app import import_checkpoint, suggest_noise
from ncsn_jax.app.build import dataset_info, load_dataset, network
from ncsn_jax.app.conditions import asked_of
from ncsn_jax.app.config import Config, parse
from ncsn_jax.app.flags import CONFIGS, DEFAULT_CONFIG, RESTORATIONS, flagged, one_line, parse_flags
from ncsn_jax.app.imports import import_paths
from ncsn_jax.app.interpolate import interpolate
from ncsn_jax.app.official_run import read_checkpoint
from ncsn_jax.app.restore import restore as restore_images
from ncsn_jax.app.sample import write_samples
from ncsn_jax.app.train import train_and_evaluate
from ncsn_jax.app.trained import load_run, restored_score
from ncsn_jax.models import as_score_fn
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime import determinism, processes
from ncsn_jax.runtime.compiling import keep_compilations
from ncsn_jax.runtime.errors import PreemptedError, UserError
from ncsn_jax.runtime.locking import first_is_only_writer, only_writer
from ncsn_jax.training.preemption import STATUS

OVERRIDABLE = ("data.data_dir", "evaluation.", "model.dtype", "restoration.", "sampling.")
"""Settings of a trained run, or their prefixes, that flags may override."""


def with_overrides(base: Config, given: dict) -> Config:
    """Return the config with settings replaced, by dotted name."""
    settings = base.model_dump()
    for name, value in given.items():
        *groups, setting = name.split(".")
        value = value.to_dict() if isinstance(value, ConfigDict) else value
        functools.reduce(operator.getitem, groups, settings)[setting] = value
    return parse(settings)


def train(workdir: Path, values: flags.FlagValues) -> None:
    """Train the run that the config describes, or the workdir's own run, then draw samples of it."""
    parsed = processes.together(lambda: with_overrides(run_config(workdir, values), num_samples(values)))
    state = train_and_evaluate(parsed, workdir)

    def draw_of_state() -> None:
        trained = load_run(workdir)  # with the noise levels that training chose
        draw(workdir, trained, as_score_fn(network(trained), {"params": jax.device_get(state.ema_params)}))

    processes.by_first(draw_of_state)


def run_config(workdir: Path, values: flags.FlagValues) -> Config:
    """Return the config that the flags name, or else the workdir's config, with the flags' overrides."""
    given = config_flags.get_override_values(values["config"])
    if values.workdir and values["config"].using_default_value:
        if not (workdir / "config.json").exists():
            raise UserError(
                f"{workdir} holds no run (no config.json): name the config of a new one, such as "
                f"--config={DEFAULT_CONFIG}"
            )
        parsed, source = with_overrides(load_run(workdir), given), workdir / "config.json"
    else:
        parsed = parse(values.config.to_dict())  # the overrides are in it
        source = config_flags.get_config_filename(values["config"])
    if parsed.model.sigmas != "geometric":
        for name in given.keys() & {"model.sigma_begin", "model.num_scales"}:
            raise UserError(
                f"--config.{name} isn't read with config.model.sigmas="
                f"{str(parsed.model.sigmas)[:40]!r}; add --config.model.sigmas=geometric"
            )
    return announce_imports(parsed, source)


def announce_imports(config: Config, source: Path | str) -> Config:
    """Log which of the user's modules the config names, before they are imported; return the config."""
    for module in dict.fromkeys(path.partition(":")[0] for _, path in import_paths(config)):
        processes.say(f"imports {module}, named by {source}")
    return config


def sample(workdir: Path, values: flags.FlagValues) -> None:
    """Draw samples of the run in the workdir, with its own config."""
    parsed = processes.together(lambda: trained_config(workdir, values))
    score_fn = restored_score(workdir, parsed)
    processes.by_first(lambda: draw(workdir, parsed, score_fn, values.out))


def restore(workdir: Path, values: flags.FlagValues) -> None:
    """Restore images, or interpolate between them, with the run in the workdir."""
    parsed, mode = processes.together(lambda: trained_config(workdir, values)), values.mode
    score_fn = restored_score(workdir, parsed)
    directory = workdir / mode / (values.out or "")

    def write() -> None:
        with only_writer(workdir, mode):
            if mode == "interpolate":
                interpolate(directory, score_fn, parsed, values.images)
            else:
                restore_images(directory, mode, score_fn, parsed, values.images)
        print(
            f"{directory}: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}"
        )

    processes.by_first(write)


def evaluate(workdir: Path, values: flags.FlagValues) -> None:
    """Measure the checkpoints of the run in the workdir, or given images."""
    # Here and below: slow imports that no other mode needs.
    from ncsn_jax.app.evaluate import evaluate as evaluate_run
    from ncsn_jax.evaluation.real_features import about_real
    from ncsn_jax.evaluation.results import table

    is_of_run = values.images is None or (workdir / "config.json").exists()

    def configure() -> Config:
        if is_of_run:
            return trained_config(workdir, values)
        return with_overrides(run_config(workdir, values), num_samples(values))

    parsed, chosen = processes.together(lambda: (configure(), steps(values)))
    with first_is_only_writer(workdir, "eval"):
        subjects = evaluate_run(parsed, workdir, steps=chosen, images=values.images)
    if processes.is_first():
        directory = workdir / "eval"
        print(table(subjects))
        print(about_real(directory / "parts"))
        print(f"{directory}: {', '.join(sorted(path.name for path in directory.glob('*.*')))}")


def report(workdir: Path, values: flags.FlagValues) -> None:
    """Write a page about the run in the workdir."""
    from ncsn_jax.app.report import write_report

    refuse_config(workdir, values)
    for name in config_flags.get_override_values(values["config"]):
        raise UserError(f"--config.{name}: --mode report shows a run as it is; accepted: --workdir")
    processes.by_first(lambda: print(write_report(workdir)))


def steps(values: flags.FlagValues) -> list[int] | None:
    """Return the steps of the checkpoints that --steps names."""
    if values.steps is None:
        return None
    if not values.steps or not all(re.fullmatch(r"[0-9]{1,12}", step) for step in values.steps):
        raise UserError(f"--steps={','.join(values.steps)}: accepted: steps such as 1000,2000")
    return sorted({int(step) for step in values.steps})


def trained_config(workdir: Path, values: flags.FlagValues) -> Config:
    """Return the config of the workdir's run, with the flags' overrides."""
    refuse_config(workdir, values)
    given = config_flags.get_override_values(values["config"]) | num_samples(values)
    for name in given:
        if not name.startswith(OVERRIDABLE):
            raise UserError(
                f"--config.{name}: a trained run's settings are fixed; accepted: "
                "config.sampling.*, config.restoration.*, config.evaluation.*, config.data.data_dir, "
                "config.model.dtype"
            )
    return announce_imports(with_overrides(load_run(workdir), given), workdir / "config.json")


def refuse_config(workdir: Path, values: flags.FlagValues) -> None:
    """Refuse a --config next to the --workdir of a run, whose own settings are read."""
    if values.workdir and not values["config"].using_default_value:
        name = config_flags.get_config_filename(values["config"])
        raise UserError(
            f"--config={name}: --mode {values.mode} reads the settings of the run in {workdir}; omit --config"
        )


def import_official(workdir: Path, values: flags.FlagValues) -> None:
    """Make the workdir a run that resumes from a checkpoint of the official PyTorch code."""
    if values.checkpoint is None or values.workdir is None:
        raise UserError("--mode import needs --checkpoint FILE and --workdir DIR")
    if jax.process_count() > 1:
        raise UserError("--mode import runs in one process; add --num_processes=1")
    official = read_checkpoint(values.checkpoint)
    given = config_flags.get_override_values(values["config"]) | num_samples(values)
    base = values.config
    if values["config"].using_default_value:
        file, *argument = import_checkpoint.experiment_of(official)
        base = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"](*argument)
    # Twice: first for settings that the checkpoint lacks, then over those that it holds.
    base = announce_imports(with_overrides(parse(base.to_dict()), given), "--config")
    imported = with_overrides(import_checkpoint.imported_config(official, base), given)
    import_checkpoint.import_run(official, imported, workdir)
    print(import_checkpoint.report(official, imported, workdir))


def suggest(workdir: Path, values: flags.FlagValues) -> None:
    """Print noise levels and a step size for the data of the config, or of the workdir's run."""

    def configure() -> Config:
        if values.workdir and values["config"].using_default_value:
            load_run(workdir)  # raises if there is no run; no mode but training starts one
        return run_config(workdir, values)

    parsed = processes.together(configure)

    def write() -> None:
        dataset = load_dataset(parsed)
        print(suggest_noise.report(parsed, suggest_noise.for_config(parsed, dataset), dataset))

    processes.by_first(write)


def num_samples(values: flags.FlagValues) -> dict[str, int]:
    """Return the override that --num_samples is short for."""
    group = {"evaluate": "evaluation"} | dict.fromkeys(RESTORATIONS, "restoration")
    group = group.get(values.mode, "sampling")
    return {} if values.num_samples is None else {f"{group}.num_samples": values.num_samples}


def draw(workdir: Path, parsed: Config, score_fn: NetworkScore, out: str | None = None) -> None:
    """Write samples, a grid and an animation to `samples/` in the workdir, or to `samples/OUT`."""
    directory = workdir / "samples" / (out or "")
    info, levels, settings = dataset_info(parsed), parsed.model.noise_levels, parsed.sampling
    with only_writer(workdir, "samples"):
        asked = asked_of(parsed, lambda: load_dataset(parsed).train_conditions)
        write_samples(directory, score_fn, info, levels, settings, asked)
    print(f"{directory}: grid.png, annealing.gif, samples.npy ({parsed.sampling.num_samples} samples)")


MODES = {
    "train": train,
    "sample": sample,
    **dict.fromkeys(RESTORATIONS, restore),
    "evaluate": evaluate,
    "report": report,
    "import": import_official,
    "suggest_noise": suggest,
}


def main(argv: list[str]) -> int:
    """Run the program and return its exit status; `argv` begins with the program's name."""
    program = Path(argv[0]).name.replace("__main__.py", "ncsn-jax")
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the errors that it also raises
    if (here := os.getcwd()) not in sys.path:  # like `python -m`, for modules that configs name
        sys.path.append(here)
    try:
        values = parse_flags(argv, MODES, __doc__ or "")
        with flagged("--"):
            processes.join(values.coordinator_address, values.num_processes, values.process_id)
        require_devices()
        keep_compilations()
        name = Path(config_flags.get_config_filename(values["config"])).name
        workdir = Path(values.workdir or f"runs/{name.replace('.py', '').replace(':', '_')}")
        with messages(program), determinism.pinned():
            MODES[values.mode](workdir, values)
    except (UserError, OSError) as error:
        message = " ".join(str(error).splitlines()).replace("another workdir", "another --workdir")
        print(f"{program}: {message}", file=sys.stderr)
        return 1
    except PreemptedError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return STATUS
    except KeyboardInterrupt:
        print(f"{program}: interrupted; rerun to resume from the last checkpoint, if any", file=sys.stderr)
        return 130
    return 0


def require_devices() -> None:
    """Check that jax has devices; every mode needs them, if only to count the processes."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # jax asserts if CUDA isn't installed
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = str(error) and f" ({one_line(error).partition(' (set JAX')[0][:200]})"
        if platforms is None:
            raise UserError(f"jax finds no device{reason}") from error
        raise UserError(
            f"JAX_PLATFORMS={platforms}: jax finds no such device{reason}; unset it, or install jax for it, "
            "such as pip install -e '.[app,cuda]'"
        ) from error


@contextlib.contextmanager
def messages(program: str) -> Iterator[None]:
    """Write the package's messages to stderr, line by line, above any progress bar."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{program}: %(message)s"))
    processes.logger.addHandler(handler)
    processes.logger.propagate = False
    try:
        with logging_redirect_tqdm([processes.logger]):
            yield
    finally:
        processes.logger.removeHandler(handler)
        processes.logger.propagate = True
