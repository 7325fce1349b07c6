"""The conditions that samples and restorations are asked for, by the settings."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from ncsn_jax.app.config import Config
from ncsn_jax.data import ConditionFacts, Conditions, Data
from ncsn_jax.data.conditions import ONLY
from ncsn_jax.data.selected_images import read_array
from ncsn_jax.models import Classes, Image, Vector
from ncsn_jax.models.conditions import ConditionKind, require_classes
from ncsn_jax.runtime import processes
from ncsn_jax.runtime.errors import UserError
from ncsn_jax.runtime.paths import expanded
from ncsn_jax.runtime.streams import stream

EACH = "each"
Numbers = Int[np.ndarray, "*numbers"]
"""Numbers of samples, in any layout."""


class Asked(NamedTuple):
    """The conditions that are asked for.

    Attributes:
      row: the row of each number's condition in `conditions`, from an array of numbers.
      conditions: the conditions in turn, by index.
    """

    row: Callable[[Numbers], Numbers]
    conditions: Conditions

    def of(self, numbers: Numbers) -> Any:
        """Return the conditions of samples by their numbers: a pytree with further axes behind theirs."""
        return self.conditions.rows(self.row(numbers))

    def labels(self, numbers: Numbers) -> list[str] | None:
        """Return short texts about the conditions of some samples; None if they are more than a class."""
        facts = self.conditions.facts.get(ONLY)
        if facts is None or facts.kind != "class":
            return None
        return ["none" if c < 0 else facts.names[c] for c in self.of(numbers).ravel().tolist()]


def kind_of(settings: Data, patch_size: int = 1) -> ConditionKind | None:
    """Return the kind of condition that a network of the run takes; None if it takes none.

    Args:
      settings: the data's settings, with their measured facts.
      patch_size: the side of the network's patches, which have more channels.
    """
    kinds: dict[str, Any] = {
        name: {"class": Classes, "vector": Vector, "image": Image}[facts.kind](
            facts.size * (patch_size**2 if facts.kind == "image" else 1)
        )
        for name, facts in settings.conditions.items()
    }
    return kinds.get(ONLY, kinds or None)


def asked_of(config: Config, load: Callable[[], Conditions | None]) -> Asked | None:
    """Return the conditions of samples; None if the run has no conditions, or guidance leaves none.

    Without `sampling.condition`, each sample has the condition of a training example, drawn by its number.

    Args:
      config: the run's config.
      load: a function that loads the conditions of the training examples; called only if they are needed.

    Raises:
      UserError: if the condition doesn't fit the run.
    """
    if _has_none(config):
        return None
    if config.sampling.condition is not None:
        return _chosen(config)
    conditions = load()
    assert conditions is not None  # the run has facts of them
    key = stream(config.sampling.seed, "conditions")

    def row(numbers):
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers.ravel())
        rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(conditions)))(keys)
        return np.asarray(rows).reshape(numbers.shape)

    processes.say("conditions are drawn from the training data; config.sampling.condition chooses others")
    return Asked(row, conditions)


def _has_none(config: Config) -> bool:
    """Return whether samples have no conditions: there are none, or guidance ignores them."""
    settings = config.sampling
    return not config.data.conditions or (settings.guidance == 0 and settings.guidance_interval is None)


def asked_of_restorations(config: Config) -> Asked | None:
    """Return the conditions of restorations; None for the null condition.

    Raises:
      UserError: if the condition doesn't fit the run, or the network needs one.
    """
    if _has_none(config):
        return None
    if config.sampling.condition is not None:
        return _chosen(config)
    if config.sampling.guidance != 1:
        raise UserError(
            f"config.sampling.guidance={config.sampling.guidance}: restorations are guided towards a "
            "condition, found config.sampling.condition=None; accepted: 1.0, or a condition"
        )
    if not config.training.unconditional:
        raise UserError(
            "config.sampling.condition=None: the network was never trained without a condition; accepted: a "
            "condition, such as --config.sampling.condition=" + _example(config.data.conditions)
        )
    return None


def _example(conditions: Mapping[str, ConditionFacts]) -> str:
    facts = conditions.get(ONLY)
    if facts is None or facts.kind == "image":
        return "FILE.npz" if facts is None else "FILE.npy"
    return facts.names[0] if facts.kind == "class" else ",".join(["0.0"] * facts.size)


def _chosen(config: Config) -> Asked:
    """Return the conditions that `sampling.condition` names, in turn."""
    facts, word = config.data.conditions, str(config.sampling.condition)
    only = facts.get(ONLY)
    if word.endswith((".npy", ".npz")):
        stored = _of_file(config, Path(expanded(word)))
    elif only is not None and only.kind == "class":
        stored = {ONLY: np.arange(only.size) if word == EACH else np.array([_class(only, word)])}
    elif only is not None and only.kind == "vector":
        stored = {ONLY: _vector(only, word)[None]}
    else:
        raise UserError(
            f"config.sampling.condition={word!r}: this run's conditions have the parts "
            f"{described(facts)}; accepted: a .npy file, or a .npz file with an array for each part"
        )
    conditions = Conditions(stored, facts)
    return Asked(lambda numbers: np.asarray(numbers) % len(conditions), conditions)


def described(facts: Mapping[str, ConditionFacts]) -> str:
    """Return one line about the parts of a run's conditions."""
    return ", ".join(f"{name} ({each.kind} of {each.size})" for name, each in facts.items())


def plain(name: str) -> str:
    """Return a name as it is written in a setting: small letters, digits and underscores.

    >>> plain("Ankle boot"), plain("T-shirt/top")
    ('ankle_boot', 't_shirt_top')
    """
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _class(facts: ConditionFacts, word: str) -> int:
    """Return the number of a class, by its name or its number."""
    names = [plain(name) for name in facts.names]
    if word in facts.names:
        return facts.names.index(word)
    if re.fullmatch("[0-9]{1,9}", word) and int(word) < facts.size:
        return int(word)
    if not word.startswith("-") and names.count(plain(word)) == 1:
        return names.index(plain(word))
    shown = ", ".join(names[:40]) + (f", … ({facts.size} classes)" if facts.size > 40 else "")
    raise UserError(
        f"config.sampling.condition={word!r}: no such class; accepted: {shown}, a number below {facts.size}, "
        "or 'each'"
    )


def _vector(facts: ConditionFacts, word: str) -> np.ndarray:
    try:
        numbers = np.array([float(number) for number in word.strip("()[] ").split(",")])
    except ValueError:
        numbers = np.array([])
    if len(numbers) != facts.size or not np.isfinite(numbers).all():
        names = f" ({', '.join(facts.names[:40])})" if facts.names else ""
        raise UserError(
            f"config.sampling.condition={word!r}: accepted: {facts.size} numbers{names}, such as "
            f"{','.join(['0.0'] * facts.size)}, or a .npy file"
        )
    return numbers


def _of_file(config: Config, path: Path) -> dict[str, np.ndarray]:
    """Return the conditions in a file, one a row, by part."""
    place, facts = f"config.sampling.condition={str(path)!r}", config.data.conditions
    if path.suffix == ".npy" or facts.keys() == {ONLY}:
        found = {ONLY: read_array(path)}
    else:
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except Exception as error:  # damaged files raise many types
            raise UserError(f"{place}: can't be read ({' '.join(str(error).split())})") from error
    if found.keys() != facts.keys():
        raise UserError(f"{place}: found the parts {sorted(found)}; accepted: {described(facts)}")
    shape = config.data.shape or ()
    for name, each in facts.items():
        array, is_class = found[name], each.kind == "class"
        of_one = {"class": (), "vector": (each.size,), "image": (*shape[:2], each.size)}[each.kind]
        if each.size == 1 and array.ndim == len(of_one):  # without an axis of one entry, or channel
            array = found[name] = array[..., None]
        if array.shape[1:] != of_one or array.dtype.kind not in ("iub" if is_class else "iufb"):
            raise UserError(
                f"{place}: found {array.dtype} of the shape {array.shape}; accepted: one condition a row, of "
                f"the shape {(len(array), *of_one)}, the part {described({name: each})}"
            )
        if is_class:
            try:
                require_classes(array.astype(np.int64), each.size, place)
            except ValueError as error:
                raise UserError(str(error)) from error
    if len({len(array) for array in found.values()}) > 1:
        lengths = {name: len(array) for name, array in found.items()}
        raise UserError(f"{place}: found parts of the lengths {lengths}; accepted: one length")
    return found
