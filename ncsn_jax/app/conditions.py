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
from ncsn_jax.models.conditions import Conditions as Kind
from ncsn_jax.models.conditions import require_classes
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
      facts: the facts of their parts.
      is_one: whether there is only one.
    """

    row: Callable[[Numbers], Numbers]
    conditions: Conditions
    facts: Mapping[str, ConditionFacts]
    is_one: bool

    def of(self, numbers: Numbers) -> Any:
        """Return the conditions of samples by their numbers: a pytree with further axes behind theirs."""
        rows = self.row(numbers)
        found = [self.conditions[int(row)] for row in rows.ravel()]
        return jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*rows.shape, *leaves[0].shape), *found)

    def labels(self, numbers: Numbers) -> list[str] | None:
        """Return short texts about the conditions of some samples; None if they are more than a class."""
        facts = self.facts.get(ONLY)
        if facts is None or facts.kind != "class":
            return None
        return ["none" if c < 0 else facts.names[c] for c in self.of(numbers).ravel().tolist()]


def kind_of(settings: Data, patch_size: int = 1) -> Kind | None:
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
    if not config.data.conditions or (
        config.sampling.guidance == 0 and not config.sampling.guidance_interval
    ):
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
    return Asked(row, conditions, config.data.conditions, is_one=False)


def asked_of_restorations(config: Config) -> Asked | None:
    """Return the conditions of restorations; None for the null condition.

    Raises:
      UserError: if the condition doesn't fit the run, or the network needs one.
    """
    if config.data.conditions and config.sampling.condition is None and not config.training.unconditional:
        raise UserError(
            "config.sampling.condition=None: the network was never trained without a condition; accepted: a "
            "condition, such as --config.sampling.condition=" + _example(config.data.conditions)
        )
    return _chosen(config) if config.sampling.condition is not None else None


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
        stored = _of_file(facts, Path(expanded(word)))
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
    return Asked(
        lambda numbers: np.asarray(numbers) % len(conditions), conditions, facts, len(conditions) == 1
    )


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
    if plain(word) in names:
        return names.index(plain(word))
    if re.fullmatch("[0-9]{1,9}", word) and int(word) < facts.size:
        return int(word)
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


def _of_file(facts: Mapping[str, ConditionFacts], path: Path) -> dict[str, np.ndarray]:
    """Return the conditions in a file, one a row, by part."""
    place = f"config.sampling.condition={str(path)!r}"
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
    for name, each in facts.items():
        array = found[name]
        is_class = each.kind == "class"
        fits = array.ndim == {"class": 1, "vector": 2, "image": 4}[each.kind] and len(array) > 0
        fits = fits and (is_class or array.shape[-1] == each.size)
        if not fits or array.dtype.kind not in ("iu" if is_class else "iufb"):
            raise UserError(
                f"{place}: found {array.dtype} of the shape {array.shape}; accepted: one condition a row, of "
                f"the part {described({name: each})}"
            )
        if is_class:
            try:
                require_classes(array, each.size, place)
            except ValueError as error:
                raise UserError(str(error)) from error
    if len({len(array) for array in found.values()}) > 1:
        lengths = {name: len(array) for name, array in found.items()}
        raise UserError(f"{place}: found parts of the lengths {lengths}; accepted: one length")
    return found
