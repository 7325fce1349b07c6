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

# ruff: noqa: E402
import gc

gc.disable()  # imports create only lasting objects

import contextlib
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import platformdirs
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from ncsn_jax import config, data, interpolating, restoring, sampling, suggest_noise, training
from ncsn_jax.models import as_score_fn
from ncsn_jax.models.score_fn import NetworkScore
from ncsn_jax.runtime import compiling, determinism, processes
from ncsn_jax.runtime.errors import PreemptedError, UserError
from ncsn_jax.runtime.files import limit_size
from ncsn_jax.runtime.locking import first_is_only_writer, only_writer
from ncsn_jax.runtime.paths import expanded, is_url
from ncsn_jax.training import importing
from ncsn_jax.training.preemption import STATUS
from ncsn_jax.training.workdir import load_run

gc.enable()

ROOT = Path(__file__).parent
DEFAULT_CONFIG = "configs/digits.py"
OVERRIDABLE = ("data.data_dir", "evaluation.", "model.dtype", "restoration.", "sampling.")
"""Settings of a trained run, or their prefixes, that flags may override."""
RESTORATIONS = (*restoring.MODES, "interpolate")
MAX_COMPILATIONS = 4 * 2**30
"""Largest size of the cache of compiled programs, in bytes."""


class OrNone(flags.ArgumentParser):
    """Parser that reads the word None as None, which config.py refuses for settings that aren't optional."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument):
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self):
        return self._parser.flag_type()


for kind, parser in {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
}.items():
    config_flags.register_flag_parser_for_type(kind, OrNone(parser))


def with_config_file(argv: list[str]) -> list[str]:
    """Return the arguments with the path of --config resolved: here, or else in this program's directory.

    Raises:
      UserError: if the file doesn't exist, or is a run's config.json.
    """
    for number, word in enumerate(argv):
        if not re.match("--?config(=|$)", word):
            continue
        flag, equals, value = word.partition("=")
        place = number if equals else number + 1
        if place == len(argv):  # absl reports the flag without a value
            break
        name, colon, argument = (value if equals else argv[place]).partition(":")
        path = Path(expanded(name))
        if path.suffix == ".json":
            raise UserError(
                f"--config={name}: found JSON; --workdir={path.parent} reads the settings of a run; "
                "accepted: a Python file that defines get_config()"
            )
        found = next((p for p in (path, ROOT / path) if p.is_file()), None)
        if found is None:
            raise UserError(
                f"--config={name}: no such file, here or in {ROOT}; accepted: a Python file that defines "
                "get_config(), such as configs/digits.py"
            )
        resolved = f"{flag}={found}{colon}{argument}"
        return [*argv[:number], resolved, *with_config_file(argv[place + 1 :])]
    return argv


def parse_flags(argv: list[str]) -> flags.FlagValues:
    """Parse the flags; raise `SystemExit` after --help."""
    argv = with_config_file(argv)
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Print this help and exit.", flag_values=values)
    flags.DEFINE_enum("mode", "train", list(MODES), "Action.", flag_values=values)
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; by default runs/NAME for configs/NAME.py.", flag_values=values
    )
    flags.DEFINE_string(
        "checkpoint", None, "Checkpoint of the official PyTorch code, for --mode import.", flag_values=values
    )
    flags.DEFINE_integer(
        "num_samples",
        None,
        "Number of samples: in total (--config.sampling.num_samples), per image in restorations "
        "(--config.restoration.num_samples), or per checkpoint in evaluate "
        "(--config.evaluation.num_samples).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "images",
        None,
        "Images to restore or interpolate: a directory, an image file, or numbers of test images such as "
        "0,3,8:12; restorations default to the first eight. With --mode evaluate: a directory, or a .npz or "
        ".npy array, to measure instead of checkpoints.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        None,
        "Name of a subdirectory for the results of --mode sample and of restorations, such as samples/NAME, "
        "so that they replace no others.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "steps",
        None,
        "Steps of the checkpoints that --mode evaluate measures, such as 1000,2000; by default all.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of process 0; needed for several processes outside TPU pods, Slurm and GKE.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes, with --coordinator_address; 1 runs alone, even in a cluster.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0.", lower_bound=0, flag_values=values
    )
    try:
        config_flags.DEFINE_config_file(
            "config",
            str(ROOT / DEFAULT_CONFIG),
            "Config file of the run; --config.training.batch_size=64 after it overrides a setting.",
            flag_values=values,
            sys_argv=argv,
        )
        rest = values(argv)[1:]
        getattr(values.config, "lock", None)  # raises the error that kept the file from being loaded
    except (AttributeError, LookupError) as error:  # an unknown setting, or a bug in the file
        given = ", ".join(word for word in argv if word.startswith("--config"))
        # ml_collections quotes its message twice
        words = one_line(error).replace("\\'", "").replace("\\n", ". ")
        words = words[1:-1] if words.startswith("'") else words
        raise UserError(f"{given}: no such setting or attribute: {words}") from error
    except (flags.Error, ImportError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise UserError(one_line(error)) from error
    except Exception as error:  # a config file is a program
        raise UserError(f"--config: {type(error).__name__}: {one_line(error)}") from error
    if values.help:
        print(f"{__doc__}\n{values.get_help()}")
        raise SystemExit
    if not isinstance(values.config, ConfigDict):
        found = type(values.config).__name__
        raise UserError(f"--config: get_config() must return an ml_collections.ConfigDict, found {found}")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: every setting is a --flag=value")
    if values.workdir == "":
        raise UserError("--workdir: found an empty name; accepted: a directory")
    if values.images == "":
        raise UserError("--images: found an empty name; accepted: numbers, a directory or a file")
    if values.workdir and re.search("[\ud800-\udfff]", values.workdir):  # where Orbax can't write
        raise UserError(f"--workdir={values.workdir!r}: accepted: a name in UTF-8")
    if values.workdir and is_url(values.workdir):
        raise UserError(
            f"--workdir={values.workdir}: a workdir is a local directory; "
            "--config.training.checkpoint_dir may be a bucket"
        )
    for name in ("workdir", "images", "checkpoint"):
        if isinstance(path := values[name].value, str):
            values[name].value = expanded(path)
    if values.checkpoint is not None and values.mode != "import":
        raise UserError("--checkpoint: only --mode import accepts it")
    if values.images is not None and values.mode not in (*RESTORATIONS, "evaluate"):
        raise UserError(f"--images: only these modes accept it: {', '.join(RESTORATIONS)}, evaluate")
    if values.out is not None and values.mode not in ("sample", *RESTORATIONS):
        raise UserError(f"--out: only these modes accept it: sample, {', '.join(RESTORATIONS)}")
    if values.out is not None and not re.fullmatch(r"[\w-]+", values.out):
        raise UserError(f"--out={values.out}: accepted: a name of letters, digits, - and _")
    if values.steps is not None and values.mode != "evaluate":
        raise UserError("--steps: only --mode evaluate accepts it")
    if values.images is not None and values.steps is not None:
        raise UserError("--steps: --images are measured instead of checkpoints; accepted: one of the two")
    return values


def one_line(error: Exception) -> str:
    """Return an error's message as one line; if it contains a traceback from flags, only the last line."""
    text = str(error.args[0] if isinstance(error, LookupError) and error.args else error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[-1] if "Traceback" in text else " ".join(" ".join(lines).split())


def with_overrides(base: config.Config, given: dict) -> config.Config:
    """Return the config with settings replaced, by dotted name."""
    settings = base.model_dump()
    for name, value in given.items():
        group, _, setting = name.rpartition(".")
        (settings[group] if group else settings)[setting] = value
    return config.parse(settings)


def train(workdir: Path, values: flags.FlagValues) -> None:
    """Train the run that the config describes, or the workdir's own run, then draw samples of it."""
    parsed = processes.together(lambda: with_overrides(run_config(workdir, values), num_samples(values)))
    state = training.train_and_evaluate(parsed, workdir)

    def draw_of_state() -> None:
        trained = load_run(workdir)  # with the noise levels that training chose
        draw(workdir, trained, as_score_fn(trained.network(), {"params": jax.device_get(state.ema_params)}))

    processes.by_first(draw_of_state)


def run_config(workdir: Path, values: flags.FlagValues) -> config.Config:
    """Return the config that the flags name, or else the workdir's config, with the flags' overrides."""
    given = config_flags.get_override_values(values["config"])
    if values.workdir and values["config"].using_default_value:
        if not (workdir / "config.json").exists():
            raise UserError(
                f"{workdir} holds no run (no config.json): name the config of a new one, such as "
                f"--config={DEFAULT_CONFIG}"
            )
        parsed = with_overrides(load_run(workdir), given)
    else:
        parsed = config.parse(values.config.to_dict())  # the overrides are in it
    if parsed.model.sigmas != "geometric":
        for name in given.keys() & {"model.sigma_begin", "model.num_scales"}:
            raise UserError(
                f"--config.{name} isn't read with config.model.sigmas="
                f"{str(parsed.model.sigmas)[:40]!r}; add --config.model.sigmas=geometric"
            )
    return parsed


def sample(workdir: Path, values: flags.FlagValues) -> None:
    """Draw samples of the run in the workdir, with its own config."""
    parsed = processes.together(lambda: trained_config(workdir, values))
    score_fn = restored(workdir, parsed)
    processes.by_first(lambda: draw(workdir, parsed, score_fn, values.out))


def restored(workdir: Path, parsed: config.Config) -> NetworkScore:
    """Return the score of the newest checkpoint in the workdir, computed as the config says."""
    _, variables = training.restore(workdir)
    return as_score_fn(parsed.network(), variables)


def restore(workdir: Path, values: flags.FlagValues) -> None:
    """Restore images, or interpolate between them, with the run in the workdir."""
    parsed, mode = processes.together(lambda: trained_config(workdir, values)), values.mode
    score_fn = restored(workdir, parsed)
    directory = workdir / mode / (values.out or "")

    def write() -> None:
        with only_writer(workdir, mode):
            if mode == "interpolate":
                interpolating.interpolate(directory, score_fn, parsed, values.images)
            else:
                restoring.restore(directory, mode, score_fn, parsed, values.images)
        print(
            f"{directory}: {', '.join(sorted(path.name for path in directory.iterdir() if path.is_file()))}"
        )

    processes.by_first(write)


def evaluate(workdir: Path, values: flags.FlagValues) -> None:
    """Measure the checkpoints of the run in the workdir, or given images."""
    from ncsn_jax import evaluation  # here and below: a slow import that no other mode needs

    is_of_run = values.images is None or (workdir / "config.json").exists()

    def configure() -> config.Config:
        if is_of_run:
            return trained_config(workdir, values)
        return with_overrides(run_config(workdir, values), num_samples(values))

    parsed, chosen = processes.together(lambda: (configure(), steps(values)))
    with first_is_only_writer(workdir, "eval"):
        subjects = evaluation.evaluate(parsed, workdir, steps=chosen, images=values.images)
    if processes.is_first():
        directory = workdir / "eval"
        print(evaluation.table(subjects))
        print(evaluation.about_real(directory / "parts"))
        print(f"{directory}: {', '.join(sorted(path.name for path in directory.glob('*.*')))}")


def report(workdir: Path, values: flags.FlagValues) -> None:
    """Write a page about the run in the workdir."""
    from ncsn_jax import evaluation

    refuse_config(workdir, values)
    for name in config_flags.get_override_values(values["config"]):
        raise UserError(f"--config.{name}: --mode report shows a run as it is; accepted: --workdir")
    processes.by_first(lambda: print(evaluation.write_report(workdir)))


def steps(values: flags.FlagValues) -> list[int] | None:
    """Return the steps of the checkpoints that --steps names."""
    if values.steps is None:
        return None
    if not values.steps or not all(re.fullmatch(r"[0-9]{1,12}", step) for step in values.steps):
        raise UserError(f"--steps={','.join(values.steps)}: accepted: steps such as 1000,2000")
    return sorted({int(step) for step in values.steps})


def trained_config(workdir: Path, values: flags.FlagValues) -> config.Config:
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
    return with_overrides(load_run(workdir), given)


def refuse_config(workdir: Path, values: flags.FlagValues) -> None:
    """Refuse a --config next to the --workdir of a run, whose own settings are read."""
    if values.workdir and not values["config"].using_default_value:
        name = config_flags.get_config_filename(values["config"])
        raise UserError(
            f"--config={name}: --mode {values.mode} reads the settings of the run in {workdir}; omit --config"
        )


def import_checkpoint(workdir: Path, values: flags.FlagValues) -> None:
    """Make the workdir a run that resumes from a checkpoint of the official PyTorch code."""
    if values.checkpoint is None or values.workdir is None:
        raise UserError("--mode import needs --checkpoint FILE and --workdir DIR")
    if jax.process_count() > 1:
        raise UserError("--mode import runs in one process; add --num_processes=1")
    official = importing.read_checkpoint(values.checkpoint)
    given = config_flags.get_override_values(values["config"]) | num_samples(values)
    base = values.config
    if values["config"].using_default_value:
        file, *argument = importing.experiment_of(official)
        base = importlib.import_module(f"configs.{file}").get_config(*argument)
    # Twice: first for settings that the checkpoint lacks, then over those that it holds.
    base = with_overrides(config.parse(base.to_dict()), given)
    imported = with_overrides(importing.imported_config(official, base), given)
    importing.import_run(official, imported, workdir)
    print(importing.report(official, imported, workdir))


def suggest(workdir: Path, values: flags.FlagValues) -> None:
    """Print noise levels and a step size for the data of the config, or of the workdir's run."""
    if values.workdir and values["config"].using_default_value:
        load_run(workdir)  # raises if there is no run
    parsed = run_config(workdir, values)

    def write() -> None:
        dataset = data.load(parsed.data)
        print(suggest_noise.report(parsed, suggest_noise.for_config(parsed, dataset), dataset))

    processes.by_first(write)


def num_samples(values: flags.FlagValues) -> dict[str, int]:
    """Return the override that --num_samples is short for."""
    group = {"evaluate": "evaluation"} | dict.fromkeys(RESTORATIONS, "restoration")
    group = group.get(values.mode, "sampling")
    return {} if values.num_samples is None else {f"{group}.num_samples": values.num_samples}


def draw(workdir: Path, parsed: config.Config, score_fn: NetworkScore, out: str | None = None) -> None:
    """Write samples, a grid and an animation to `samples/` in the workdir, or to `samples/OUT`."""
    directory = workdir / "samples" / (out or "")
    shape, transform = data.describe(parsed.data).shape, data.TRANSFORMS[parsed.data.transform]
    with only_writer(workdir, "samples"):
        sampling.write_samples(
            directory, score_fn, shape, parsed.model.noise_levels, parsed.sampling, transform=transform
        )
    print(f"{directory}: grid.png, annealing.gif, samples.npy ({parsed.sampling.num_samples} samples)")


MODES = {
    "train": train,
    "sample": sample,
    **dict.fromkeys(RESTORATIONS, restore),
    "evaluate": evaluate,
    "report": report,
    "import": import_checkpoint,
    "suggest_noise": suggest,
}


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the errors that it also raises
    try:
        values = parse_flags(argv)
        processes.join(values.coordinator_address, values.num_processes, values.process_id)
        require_devices()
        keep_compilations()
        name = Path(config_flags.get_config_filename(values["config"])).name
        workdir = Path(values.workdir or f"runs/{name.replace('.py', '').replace(':', '_')}")
        with messages(), determinism.pinned():
            MODES[values.mode](workdir, values)
    except (UserError, OSError) as error:
        print("main.py:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 1
    except PreemptedError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return STATUS
    except KeyboardInterrupt:
        print("main.py: interrupted; rerun to resume from the last checkpoint, if any", file=sys.stderr)
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
            "such as pip install -e '.[cuda]'"
        ) from error


def keep_compilations() -> None:
    """Keep compiled programs in the user's cache directory, unless jax already has a directory for them."""
    directory = platformdirs.user_cache_path("ncsn_jax") / "compilations"
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not jax's own limit: with it, every write reads a file of each cached program.
        limit_size(directory, MAX_COMPILATIONS)
    except OSError:
        return  # a read-only home costs only time
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        warnings.filterwarnings("ignore", compiling.NOT_KEPT)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Write the package's messages to stderr, line by line, above any progress bar."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("main.py: %(message)s"))
    processes.logger.addHandler(handler)
    processes.logger.propagate = False
    try:
        with logging_redirect_tqdm([processes.logger]):
            yield
    finally:
        processes.logger.removeHandler(handler)
        processes.logger.propagate = True


def _unraisable(unraisable) -> None:
    """Ignore tasks of failed saves and damaged checkpoints that end after Orbax has closed its loop."""
    expected = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(expected):
        sys.__unraisablehook__(unraisable)


def _open_streams() -> None:
    """Replace closed output streams with a sink, and characters that open ones lack with question marks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        else:
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    _open_streams()
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited")  # Orbax's, as above
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # other tasks of a failed save, likewise
    gc.set_threshold(100_000)  # tracing makes many objects and few cycles
    compiling.set_xla_flags()
    compiling.give_memory_back_after_compilations()
    sys.exit(main(sys.argv))
