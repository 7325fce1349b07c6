"""Objects of the user's own code, which settings name by import paths such as `my_package.nets:MyNet`."""

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ncsn_jax.app.config import Config
from ncsn_jax.runtime.errors import UserError, reason


def is_import_path(name: str) -> bool:
    """Return whether a setting is an import path, `package.module:name`, and not a word of this program."""
    return ":" in name


def import_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the settings that are import paths, by name."""
    settings = {
        "config.model.name": config.model.name,
        "config.data.name": config.data.name,
        "config.training.objective": config.training.objective,
        "config.training.optimizer": config.training.optimizer,
        "config.restoration.operator": config.restoration.operator or "",
    }
    return ((name, path) for name, path in settings.items() if is_import_path(path))


def imported(name: str, path: str) -> Callable[..., Any]:
    """Import the function or class that a setting names.

    Args:
      name: the name of the setting, for errors.
      path: the import path.

    Raises:
      UserError: if it can't be imported, or isn't callable.
    """
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # a module is a program
        raise UserError(f"{name}={path!r}: can't be imported ({reason(error)})") from error
    if not callable(found):
        raise UserError(f"{name}={path!r}: found {type(found).__name__}; accepted: a function or a class")
    return found


def called(name: str, path: str, *arguments: Any, **fields: Any) -> Any:
    """Call the function that a setting names; an error in it is one line.

    Raises:
      UserError: if it can't be imported or called.
    """
    function = imported(name, path)
    try:
        return function(*arguments, **fields)
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(f"{name}={path!r}: {reason(error)}") from error


def hashable(value: Any) -> Any:
    """Return JSON with tuples instead of lists: a network's fields must hash."""
    if isinstance(value, Mapping):
        return {key: hashable(item) for key, item in value.items()}
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value
