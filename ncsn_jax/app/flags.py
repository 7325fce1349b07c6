"""Flags of the command line, and the names of settings and arguments as it writes them."""

import contextlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags
from pydantic import BaseModel

from ncsn_jax.runtime.errors import ArgumentError, UserError
from ncsn_jax.runtime.paths import expanded, is_url

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(p / "configs" for p in (PACKAGE, PACKAGE.parent) if (p / "configs" / "digits.py").exists())
"""The directory of this project's configs: inside an installed package, or beside it in a checkout."""
DEFAULT_CONFIG = "configs/digits.py"
RESTORATIONS = ("inpaint", "colorize", "superres", "denoise", "deblur", "restore", "interpolate")
"""Modes that take `--images` and write a directory of their name."""


@contextlib.contextmanager
def flagged(prefix: str, settings: type[BaseModel] | None = None) -> Iterator[None]:
    """Name the arguments in errors as the command line does.

    The argument that an error begins with, `batch_size=10`, becomes `config.training.batch_size=10`; and one
    in backticks, `` `data_dir` ``, becomes `--config.data.data_dir`.

    Args:
      prefix: the words in front of the argument's name, such as `config.training.` or `--`.
      settings: the settings with this prefix; None for all names.
    """

    def is_known(name: str) -> bool:
        return settings is None or name in settings.model_fields

    def flag(match: re.Match) -> str:
        name, value = match[1], match[2] or ""
        return f"--{prefix}{name}{value}" if is_known(name) else match[0]

    try:
        yield
    except UserError as error:
        message = re.sub(r"`(\w+)(=[^`]*)?`", flag, str(error))
        if isinstance(error, ArgumentError) and is_known(re.split(r"\W", message)[0]):
            raise UserError(f"{prefix}{message}") from error
        if message == str(error):
            raise
        raise type(error)(message) from error


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
    """Return the arguments with --config resolved: a file here, or one of this project's, by path or name.

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
        places = (path, CONFIGS.parent / path, CONFIGS / f"{name}.py")
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.py")))
            raise UserError(
                f"--config={name}: no such file, here or in {CONFIGS.parent}; accepted: a Python file that "
                f"defines get_config(), or a name of {known}"
            )
        resolved = f"{flag}={found}{colon}{argument}"
        return [*argv[:number], resolved, *with_config_file(argv[place + 1 :])]
    return argv


def parse_flags(argv: list[str], modes: Collection[str], help_text: str) -> flags.FlagValues:
    """Parse the flags; raise `SystemExit` after --help.

    Args:
      argv: the words of the command.
      modes: the accepted words of --mode.
      help_text: the text in front of the flags' own help.
    """
    argv = with_config_file(argv)
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Print this help and exit.", flag_values=values)
    flags.DEFINE_enum("mode", "train", list(modes), "Action.", flag_values=values)
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
            str(CONFIGS.parent / DEFAULT_CONFIG),
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
        print(f"{help_text}\n{values.get_help()}")
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
