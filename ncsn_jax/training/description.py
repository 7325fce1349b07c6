"""The content of a run's `config.json`, and the part of it that may change when the run resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.files import write_whole
from ncsn_jax.training.settings import MAY_CHANGE, Settings

CONFIG = "config.json"
Json = dict[str, Any]


class Description(NamedTuple):
    """The description of a run.

    Attributes:
      content: the JSON in `config.json` and in the records of the checkpoints.
      settings_of: a function from such content, perhaps of an older version, to its settings by dotted name;
        it raises a UserError for other content.
      may_change: a function that tells whether the setting of a name may change when the run resumes.
      group: the group of the settings that `train` reads, such as "training".
    """

    content: Json
    settings_of: Callable[[Json], Json]
    may_change: Callable[[str], bool]
    group: str

    def settings_of_record(self, place: str, record: Json) -> Json:
        """Return the settings in the record of a checkpoint, by name.

        Raises:
          UserError: if this version of the program doesn't know them.
        """
        try:
            return self.settings_of(record["config"])
        except UserError as error:
            raise UserError(f"{place} was written by a different version of this program: {error}") from error

    def require_same(self, place: str, stored: Json) -> list[str]:
        """Check that a run with stored content can resume with this description.

        Args:
          place: the path of the run, or of its checkpoint.
          stored: the settings there, by name.

        Returns:
          The allowed changes, such as "training.log_every=50 (was 100)".

        Raises:
          UserError: if settings that must not change differ; the message names each.
        """
        allowed, refused = [], []
        for name, (old, new) in changes(stored, self.settings_of(self.content)).items():
            if self.may_change(name):
                allowed.append(f"{name}={new!r} (was {old!r})")
            else:
                refused.append(f"{name}={old!r}, not {new!r}")
        if refused:
            raise UserError(
                f"{place} holds a run with {', '.join(refused)}: use its settings, or choose another workdir"
            )
        return allowed


def described_by_identity(identity: Any, settings: Settings) -> Description:
    """Return the description of a run that Python code made: its identity and its settings."""
    content = {"identity": identity, "settings": settings.model_dump()}
    may_change = tuple(f"settings.{name}" for name in MAY_CHANGE)
    return Description(
        json.loads(json.dumps(content)),
        _settings_by_name,
        may_change.__contains__,
        "settings",
    )


def is_by_identity(content: Any) -> bool:
    """Return whether Python code made the run with this content."""
    return isinstance(content, dict) and content.keys() == {"identity", "settings"}


def _settings_by_name(content: Json) -> Json:
    if not is_by_identity(content):
        raise UserError("it describes a run of a config, and this is Python code; choose another workdir")
    try:
        settings = Settings(**content["settings"])  # older runs lack newer settings
    except (TypeError, ValueError) as error:
        raise UserError(f"settings: {error}") from None
    return flatten({**content, "settings": settings.model_dump()})


def read(workdir: Path) -> Any:
    """Return the content of the run in a directory.

    Raises:
      UserError: if there is no run, or the file isn't JSON.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no {CONFIG}): train one there first")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not this program's config: {error}") from None


def write(workdir: Path, description: Description) -> None:
    """Write the content, which claims the directory for this run: the first write, after every check."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(description.content, indent=2) + "\n"
    write_whole(workdir / CONFIG, lambda file: file.write(text.encode()))


def changes(old: Json, new: Json) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by name, as (old, new)."""
    pairs = {name: (old.get(name), new.get(name)) for name in old | new}
    return {name: (a, b) for name, (a, b) in pairs.items() if a != b}


def flatten(settings: Json, prefix: str = "") -> Json:
    """Flatten nested dictionaries: `{"model": {"num_filters": 64}}` to `{"model.num_filters": 64}`."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
